"""What a remedy gains where something of the usual run is different.

    python benchmarks/unseen_runs.py --data imagefolder:~/data/cifar10 --weights weights.pt --out ~/runs/unseen

A ResNet-20 is quantized and a remedy learns from random operations that name no corruption, by the command line:
with another seed; with four bits; from 100, 300 or 1,000 images without labels, which are all that there are to
observe ranges on, to learn from and to choose by. Other runs name what they learn from and are measured under it:
`seen-mix` random operations and the thirteen shifts of the suite u13, `single-SHIFT` one shift alone. The exported
graphs are measured by onnxruntime at severity 5 on the test images of `ladder.py`. A run that is done is kept,
one that was killed goes on, and so does the results file; `--runs` chooses.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit
from ladder import SEVERITY, SIZE, SUITES_MEASURED, under

from qrobust.data.loading import open_data
from qrobust.deployment.deploy import open_on_target
from qrobust.evaluation.evaluate import evaluate
from qrobust.evaluation.statistics import wilson_interval
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.registry import SUITES, defined_conditions, table_for

RESULTS = Path(__file__).parent / "results" / "unseen_runs.json"
TEST_IMAGES = 5000


@dataclass(frozen=True)
class Run:
    """A run of the two commands.

    Attributes:
        quantize: options of `quantize`.
        compensate: options of `compensate`.
        remedy: what learns.
        images: how many there are to learn and choose from; None: all.
        suites: or single shifts, that are measured.
    """

    quantize: tuple[str, ...] = ()
    compensate: tuple[str, ...] = ("--steps", "1500")
    remedy: str = "calibrator"
    images: int | None = None
    suites: tuple[str, ...] = SUITES_MEASURED


NAMED = ("--severities", str(SEVERITY), "--train-on")
SINGLE = ("contrast", "impulse_noise", "rotation", "scale", "inversion")
FEW = ("--no-labels", "--steps", "750")
RUNS = {
    "w4a4": Run(("--bits", "w4a4", "--qat-epochs", "1")),
    **{f"few-{count}": Run((), FEW, images=count) for count in (100, 300, 1000)},
    **{f"few-{count}-scales": Run((), FEW, "scales", count) for count in (100, 300, 1000)},
    **{f"seed-{seed}": Run(("--seed", str(seed)), ("--steps", "750")) for seed in (0, 1, 2)},
    "seen-mix": Run((), (*NAMED, "generic,u13", "--steps", "4000"), suites=("u13",)),
    **{f"single-{shift}": Run((), (*NAMED, shift, "--steps", "1000"), suites=(shift,)) for shift in SINGLE},
}


def qrobust(*arguments: str | Path) -> None:
    """A command of this checkout."""
    subprocess.run([sys.executable, "-m", "qrobust", *map(str, arguments)], check=True)


def few_images(data: str, count: int, folder: Path) -> str:
    """Training images of a data set, so many, beside its test images: a data set of its own."""
    root = Path(data.removeprefix("imagefolder:")).expanduser()
    if not folder.exists():
        files = sorted((root / "train").glob("*/*"))
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for index in np.random.default_rng(0).permutation(len(files))[:count]:
            place = part / "train" / files[index].parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[index], place)
        shutil.copytree(root / "test", part / "test")
        part.rename(folder)
    return f"imagefolder:{folder}"


def made(name: str, run: Run, options: dict[str, Any]) -> Path:
    """The folder of a run with its graphs, gone on with where it ended."""
    out: Path = options["out"] / name
    data = (
        few_images(options["data"], run.images, options["out"] / f"data-few-{run.images}")
        if run.images
        else options["data"]
    )
    if not (out / "int8.onnx").exists():
        model = ("--model", "resnet20", "--weights", options["weights"], "--normalization", options["normalization"])
        again = ("--overwrite",) if out.exists() else ()
        qrobust("quantize", *model, "--data", data, *run.quantize, "--threads", "1", "--out", out, *again)
    if not graph_of(out, run).exists():
        qrobust("compensate", out, "--remedy", run.remedy, *run.compensate, "--threads", "1")
        if run.remedy == "calibrator":
            qrobust("export", out)
    return out


def graph_of(out: Path, run: Run) -> Path:
    """The exported graph of a run's remedy."""
    return out / ("compensated.onnx" if run.remedy == "calibrator" else f"{run.remedy}.onnx")


def measured(out: Path, run: Run, options: dict[str, Any]) -> dict[str, Any]:
    """What the remedy gains, under each suite."""
    test = open_data(options["data"], seed=0, image_size=SIZE).test.first(options["test_images"])
    table = table_for(SIZE)
    suites = {s: defined_conditions(SUITES.get(s, (s,)), (SEVERITY,), table) for s in run.suites}
    graphs = {"int8": out / "int8.onnx", run.remedy: graph_of(out, run)}
    sessions = {name: open_on_target(path, X86_VNNI) for name, path in graphs.items()}
    conditions = [condition for suite in suites.values() for condition in suite]
    found = evaluate(sessions, test, conditions, severity_table=table, seed=0)
    clean, n = {name: found.accuracy(name) for name in graphs}, len(found.labels)
    return {
        "remedy": run.remedy,
        "images": run.images,
        "options": [*run.quantize, *run.compensate],
        "n": n,
        "clean": {name: {"accuracy": a, "interval": wilson_interval(round(a * n), n)} for name, a in clean.items()},
        "suites": {suite: under(found, suites[suite], clean) for suite in suites},
        "shifts": {name: {c[0]: found.accuracy(name, c) for c in conditions} for name in graphs},
        "commit": git_commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option(
    "--weights", type=click.Path(path_type=Path, exists=True), required=True, help="Of a built-in resnet20."
)
@click.option("--normalization", default="imagenet", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of runs.")
@click.option("--runs", default=",".join(RUNS), show_default=True)
@click.option("--test-images", default=TEST_IMAGES, show_default=True)
def main(**options: Any) -> None:
    """Make the runs, measure them, and write results/unseen_runs.json."""
    torch.set_num_threads(1)
    options["out"] = options["out"].resolve()
    options["out"].mkdir(parents=True, exist_ok=True)
    for name in options["runs"].split(","):
        click.echo(name, err=True)
        found = measured(made(name, RUNS[name], options), RUNS[name], options)
        known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
        result = {
            "command": "python benchmarks/unseen_runs.py --data imagefolder:DIR --weights WEIGHTS --out OUT",
            "weights_sha256": hashlib.sha256(options["weights"].read_bytes()).hexdigest(),
            "severity": SEVERITY,
            "runs": {key: (known | {name: found})[key] for key in RUNS if key in known | {name: found}},
            "versions": versions(),
            "hardware": to_json(hardware(1)),
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
