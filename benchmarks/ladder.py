"""What each rung of the ladder of remedies gains under corruptions that nothing was trained on.

    python benchmarks/ladder.py --data imagefolder:~/data/cifar10 --weights weights.pt --out ~/runs/ladder

A ResNet-20 is quantized (W8A8). Each remedy learns from generic random operations alone, which name no corruption;
the exported graphs are measured by onnxruntime at severity 5, on the same test images, under the 19 corruptions, the
transformations, and corruptions made to be unlike the 19; of each suite also under those that are far from all random
operations. A remedy that is done is kept, a training that was killed goes on; what is done is measured and written.
`--remedies` chooses; `--times-only` measures times again, where the machine was busy before. `--five-severities`
measures the 19 at all five severities instead, on `--test-images`, into `results/ladder_severities.json`.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit
from safetensors.torch import load_file, save_file
from torch import fx, nn

from qrobust.classifier import Compensated
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.first_stage import prepare_first_stage
from qrobust.compensation.fit import CalibratorData, Checkpoints, FrozenClassifier, fit_calibrator
from qrobust.compensation.retraining import retrain
from qrobust.compensation.scales import prepare_scales
from qrobust.compensation.second_look import SecondLook, fit_second_look
from qrobust.compensation.validation import Validation
from qrobust.data.loading import open_data
from qrobust.data.splits import TrainingData
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.deploy import deploy, open_on_target
from qrobust.deployment.export import export
from qrobust.deployment.profiling import latencies_ms
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.kept import CLEAN, Condition
from qrobust.evaluation.statistics import wilson_interval
from qrobust.evaluation.summary import corruption_error, far_conditions, remedy_gains
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.progress import Reporter
from qrobust.quantization.config import QATConfig, QuantizationConfig
from qrobust.quantization.ptq import restore
from qrobust.quantization.qat import prepare_qat
from qrobust.quantization.quantize import quantize_classifier
from qrobust.record import hardware, to_json, versions
from qrobust.remedies import CALIBRATOR, LADDER, SECOND_LOOKS
from qrobust.shifts.generic import FAMILIES
from qrobust.shifts.registry import SUITES, defined_conditions, table_for

RESULTS = Path(__file__).parent / "results"
SUITES_MEASURED, SEVERITY, SIZE = ("corruptions-19", "transformations", "c-bar"), 5, 32
FIVE_SEVERITIES, SEVERITIES = SUITES_MEASURED[0], (1, 2, 3, 4, 5)
SECOND_LOOK = SECOND_LOOKS[0]


class Ladder:
    """The classifier, and what is done to it; everything that is made stays in a folder."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.out, self.options = options["out"], options
        self.out.mkdir(parents=True, exist_ok=True)
        data = open_data(options["data"], seed=0, image_size=SIZE)
        self.class_names, spec = data.class_names, find_model("resnet20")
        self.model = load_model(
            spec,
            classes=len(data.class_names),
            image_size=SIZE,
            weights=options["weights"],
            pretrained=False,
            normalization=options["normalization"],
            seed=0,
        )
        self.quantized = quantize_classifier(self.model, data.calibration, data.validation, QuantizationConfig())
        self.target, self.test = self.quantized.target, data.test.first(options["test_images"])
        self.table = table_for(SIZE)
        self.config = CalibratorConfig(steps=options["steps"], batch_size=options["batch_size"])
        training = TrainingData(data.training, [], self.table, families=FAMILIES)
        validation = data.validation.first(options["validation_images"])
        self.images = CalibratorData(training, validation, data.calibration)
        self.write("float", self.model, {})
        self.write("int8", self.quantized.module, {})

    def frozen(self, fake_quantized: fx.GraphModule) -> FrozenClassifier:
        own, deployed = self.quantized.module, partial(deploy, target=self.target, image_size=SIZE)
        made_from = None if fake_quantized is own else own
        return FrozenClassifier(fake_quantized, self.model, self.target, deployed, made_from)

    def write(self, name: str, model: nn.Module, told: dict[str, Any]) -> None:
        export(model, self.out / f"{name}.onnx", SIZE)
        (self.out / f"{name}.json").write_text(json.dumps(told))

    def made(self, name: str) -> bool:
        return (self.out / f"{name}.json").exists()

    def make(self, name: str) -> None:
        """Train a remedy, unless it is there."""
        if self.made(name):
            return
        below, calibrated = name.removesuffix(f"+{CALIBRATOR}"), name.endswith(CALIBRATOR)
        began = time.perf_counter()
        if name == SECOND_LOOK:
            self.look_again()
            return
        if not calibrated:
            self.retrain(name, began)
            return
        classifier = self.quantized.module
        if below != CALIBRATOR:
            self.make(below)
            state = load_file(self.out / f"{below}.safetensors")
            classifier = restore(self.model, self.target, SIZE, state, recipe=self.quantized.recipe)
        places = (self.out / f"{name}.{what}" for what in ("float.pt", "int8.pt", "chosen.json"))
        told = _Timed()
        fit = fit_calibrator(
            self.frozen(classifier), self.images, self.config, checkpoints=Checkpoints(*places), reporter=told
        )
        self.write(
            name,
            Compensated(fit.calibrator, classifier),
            {
                "steps": self.config.steps,
                "training_s": time.perf_counter() - began + fit.earlier_s,
                "gate_s": told.seconds["choose the gate"],
                "validation": {"clean_accuracy": fit.clean_accuracy, "shift_accuracy": fit.shift_accuracy},
                "macs": fit.macs,
                "gate": fit.gate._asdict(),
                "commit": git_commit(),
            },
        )

    def look_again(self) -> None:
        """A second look of the classifier; nothing is trained."""
        validation = Validation(
            self.images.validation, [], table=self.table, seed=0, limit=self.options["validation_images"]
        )
        deployed = deploy(self.quantized.module, self.target, image_size=SIZE)
        threshold, cost = fit_second_look(deployed, validation, self.config.clean_limit)
        told = {"steps": 0, "threshold": threshold, "validation_cost": to_json(cost), "commit": git_commit()}
        self.write(SECOND_LOOK, SecondLook(self.quantized.module, threshold), told)

    def retrain(self, name: str, began: float) -> None:
        module, observed = self.quantized.module, self.quantized.observed
        trainable = {
            "scales": lambda: prepare_scales(module),
            "first-stage": lambda: prepare_first_stage(observed.graph, module, observed.images[:1]),
            "finetune": lambda: prepare_qat(observed.graph, module, learn_ranges=True),
        }[name]()
        done = retrain(
            name,
            trainable,
            self.frozen(module),
            self.images,
            self.config,
            QATConfig(),
            checkpoint=self.out / f"{name}.pt",
            reporter=_Timed(),
        )
        model = done.averaged.model
        save_file(
            {k: v.clone().contiguous() for k, v in model.state_dict().items()}, self.out / f"{name}.safetensors"
        )
        self.write(
            name,
            model,
            {
                "steps": self.config.steps,
                "training_s": time.perf_counter() - began + done.training.earlier_s,
                "validation": {
                    "clean_accuracy": done.averaged.clean_accuracy,
                    "shift_accuracy": done.averaged.shift_accuracy,
                },
                "kept_share": done.averaged.share,
                "weight_change": to_json(done.change),
                "commit": git_commit(),
            },
        )

    def latency_ratios(self, names: Iterable[str]) -> dict[str, float]:
        """Time of each graph for one image over that of INT8."""
        ms = latencies_ms({name: open_on_target(self.out / f"{name}.onnx", self.target) for name in names}, SIZE, 1)
        return {name: ms[name] / ms["int8"] for name in ms}

    def sessions(self) -> dict[str, OnnxClassifier]:
        """The graphs that are there."""
        names = ["float", "int8", *(name for name in (*LADDER, SECOND_LOOK) if self.made(name))]
        return {name: open_on_target(self.out / f"{name}.onnx", self.target) for name in names}

    def measure(self) -> dict[str, Any]:
        """Every graph that is there, on the same test images."""
        sessions = self.sessions()
        names = list(sessions)
        suites = {suite: defined_conditions(SUITES[suite], (SEVERITY,), self.table) for suite in SUITES_MEASURED}
        conditions = [condition for suite in suites.values() for condition in suite]
        suites |= {f"{suite}, far": far_conditions(own) for suite, own in suites.items()}
        found = evaluate(sessions, self.test, conditions, severity_table=self.table, seed=0)
        clean = {name: found.accuracy(name) for name in names}
        latency, n = self.latency_ratios(names), len(found.labels)
        graphs = {
            name: json.loads((self.out / f"{name}.json").read_text())
            | {
                "clean_accuracy": clean[name],
                "clean_interval": wilson_interval(round(clean[name] * n), n),
                "shifts": {c[0]: found.accuracy(name, c) for c in conditions},
                "latency_ratio": latency[name],
                "size_bytes": (self.out / f"{name}.onnx").stat().st_size,
            }
            for name in names
        }
        return {
            "n": n,
            "suites": {suite: under(found, suites[suite], clean) for suite in suites},
            "graphs": graphs,
        }

    def measure_severities(self) -> dict[str, Any]:
        """Every graph that is there under the 19 corruptions at five severities, and mean corruption errors."""
        sessions = self.sessions()
        conditions = defined_conditions(SUITES[FIVE_SEVERITIES], SEVERITIES, self.table)
        found = evaluate(sessions, self.test, conditions, severity_table=self.table, seed=0)
        clean = {name: found.accuracy(name) for name in sessions}
        errors = corruption_error(found.predictions, found.labels, self.table, len(self.class_names))
        return {
            "n": len(found.labels),
            "clean_accuracy": clean,
            "by_severity": {
                severity: {
                    name: mean_accuracy(found, name, [c for c in conditions if c[1] == severity]) for name in clean
                }
                for severity in SEVERITIES
            },
            "corruption_errors": to_json(errors),  # not normalised: AlexNet's are of other images
            **under(found, conditions, clean),
        }


def mean_accuracy(found: Evaluation, name: str, conditions: list[Condition]) -> float:
    return statistics.mean(found.accuracy(name, condition) for condition in conditions)


def under(found: Evaluation, conditions: list[Condition], clean: dict[str, float]) -> dict[str, Any]:
    """What each remedy gains under the shifts of a suite, and how much of what INT8 loses there it recovers."""
    predictions = {condition: found.predictions[condition] for condition in [CLEAN, *conditions]}
    before = mean_accuracy(found, "int8", conditions)
    lost = clean["int8"] - before
    gains = {gain.remedy: gain for gain in remedy_gains(predictions, found.labels, seed=0)}
    graphs: dict[str, dict[str, Any]] = {
        name: {"shift_accuracy": mean_accuracy(found, name, conditions)} for name in clean
    }
    for name, gain in gains.items():
        graphs[name] |= {
            "gain": to_json(gain),
            "recovered": gain.gain_pp / (100 * lost),
            # Of the drop from the remedy's own clean accuracy: a better one does not count as repair.
            "recovered_of_own": 1 - (clean[name] - gain.shift_accuracy) / lost,
            "worst_pp": 100 * min(found.accuracy(name, c) - found.accuracy("int8", c) for c in conditions),
        }
    return {"conditions": len(conditions), "lost_pp": 100 * lost, "graphs": graphs}


class _Timed(Reporter):
    """Tells what is said, and keeps how long each progress bar was there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    detail = warn = say

    @contextmanager
    def bar(self, label: str, length: int) -> Iterator[Any]:
        began = time.perf_counter()
        with super().bar(label, length) as bar:
            yield bar
        self.seconds[label] = time.perf_counter() - began


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option(
    "--weights", type=click.Path(path_type=Path, exists=True), required=True, help="Of a built-in resnet20."
)
@click.option("--normalization", default="cifar10", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of graphs and checkpoints.")
@click.option("--remedies", default=",".join(LADDER), show_default=True)
@click.option("--steps", default=4000, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--validation-images", default=5000, show_default=True)
@click.option("--test-images", default=5000, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--times-only", is_flag=True, help="Measure the times of what results/ladder.json knows, and no more.")
@click.option("--five-severities", is_flag=True, help="Measure the 19 corruptions at five severities, and no more.")
def main(**options: Any) -> None:
    """Make the remedies and write what they gain to results/ladder.json."""
    torch.set_num_threads(options["threads"])
    ladder = Ladder(options)
    if options["times_only"]:
        result = json.loads((RESULTS / "ladder.json").read_text())
        for name, ratio in ladder.latency_ratios(result["graphs"]).items():
            result["graphs"][name]["latency_ratio"] = ratio
        (RESULTS / "ladder.json").write_text(json.dumps(result, indent=1) + "\n")
        return
    for name in options["remedies"].split(","):
        click.echo(name, err=True)
        ladder.make(name)
    kept = ("remedies", "steps", "batch_size", "validation_images", "test_images", "normalization")
    result = {
        "command": "python benchmarks/ladder.py --data imagefolder:DIR --weights WEIGHTS --out OUT "
        + " ".join(f"--{key.replace('_', '-')} {options[key]}" for key in kept)
        + (" --five-severities" if options["five_severities"] else ""),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "weights_sha256": hashlib.sha256(options["weights"].read_bytes()).hexdigest(),
        "trained_on": list(FAMILIES),
        "severity": SEVERITIES if options["five_severities"] else SEVERITY,
        **(ladder.measure_severities() if options["five_severities"] else ladder.measure()),
        "versions": versions(),
        "hardware": to_json(hardware(options["threads"])),
    }
    name = "ladder_severities" if options["five_severities"] else "ladder"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
