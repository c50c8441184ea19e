"""What compensation gains, and costs, on the reference networks: the figures of docs/results/compensation.md.

    python benchmarks/compensation.py --data imagefolder:~/data/cifar10 --trainings ~/runs --out ~/runs/compensation
    python benchmarks/compensation.py --data imagefolder:~/data/cifar10 --trainings ~/runs --out ~/runs/small \
        --models resnet20 --latency-budget 0 --results compensation_resnet20

For each network that train_baselines.py left in `--trainings`: quantize (W8A8), then one run per job, each a
folder of its own with the same INT8 graph. `u13`: one calibrator for thirteen shifts at severity 5, attacked as
well; `methods`: beside it, every other method. `scene-*`: one calibrator for each of the five shifts on which the
INT8 graph is worst on validation images, and batch-norm re-estimation for the same. `without-*`: one family of
shifts left out of training. `w4a4`: the classifier at four bits. `few-*`: unlabelled training images. All but
`u13` take a calibrator as large as its own, whose time was measured. Everything is measured on the exported graphs by
onnxruntime on the test images; means over networks and over jobs, with their intervals, are of the same images in all
of them. A job that is done with the same options is kept and one that was killed goes on; `--jobs` and `--models`
choose.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import git_commit, record

from qrobust.evaluation.kept import Condition, read_predictions
from qrobust.evaluation.predictions import predict
from qrobust.evaluation.statistics import paired_bootstrap
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES, REMEDIES, TORCH_ONLY
from qrobust.progress import Reporter
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.registry import SUITES, defined_conditions, find_shift

RESULTS = Path(__file__).parent / "results"
MODELS = ("cifar_resnet18", "cifar_mobilenet_v2", "cifar_vgg16_bn")
KINDS = ("u13", "scenes", "families", "bits", "few", "methods")
SEVERITY = "5"
FAMILIES = tuple(dict.fromkeys(find_shift(name).family for name in SUITES["u13"]))
SCENARIOS, SCENE_IMAGES = 5, 1000
FEW = (100, 300, 1000)
# The job whose pair is attacked, through the calibrator too.
ADAPTIVE = "u13"


@dataclass(frozen=True)
class Job:
    """One run: its folder's name, the options of `compensate`, and methods to measure beside the calibrator."""

    name: str
    options: tuple[str, ...]
    methods: tuple[str, ...] = ()
    quantization: tuple[str, ...] = ()


def qrobust(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).parent / "qrobust"), *arguments], check=True)


def jobs(base: Path, steps: int, kinds: tuple[str, ...], latency_budget: float) -> Iterator[Job]:
    """All jobs of those kinds for the network whose INT8 graph lies in `base`."""
    measured = ("--shifts", "u13", "--severities", SEVERITY)
    shifts = (*measured, "--train-on", "u13")
    u13 = (*shifts, "--latency-budget", str(latency_budget)) if latency_budget else shifts
    fewer = ("--steps", str(steps // 4))
    if "u13" in kinds or "methods" in kinds:
        others = ("finetune", *BASELINES, TORCH_ONLY) if "methods" in kinds else ()
        yield Job("u13", (*u13, "--steps", str(steps)), others)
    alike = alike_u13(base) if set(kinds) - {"u13", "methods"} else ()
    if "scenes" in kinds:
        for shift in worst_shifts(base):
            options = ("--shifts", shift, "--train-on", shift, "--severities", SEVERITY, *alike, *fewer)
            yield Job(f"scene-{shift}", options, ("bn-reestimate",))
    if "families" in kinds:
        for family in FAMILIES:
            left = ",".join(name for name in SUITES["u13"] if find_shift(name).family != family)
            yield Job(f"without-{family}", (*measured, *alike, *fewer, "--train-on", left))
    if "bits" in kinds:
        options = (*shifts, *alike, "--steps", str(steps))
        yield Job("w4a4", options, quantization=("--bits", "w4a4", "--qat-epochs", "1"))
    if "few" in kinds:
        for count in FEW:
            yield Job(f"few-{count}", (*shifts, *alike, *fewer, "--few-shot", str(count), "--no-labels"))


def alike_u13(base: Path) -> tuple[str, ...]:
    """Options for a calibrator as large as that of `u13`, which was timed: of this run or of earlier results."""
    network, stage = base.parent.name, base.parent / "u13" / "stages" / "compensate.json"
    if stage.exists():
        found = json.loads(stage.read_text())
        whole = json.loads((base / "stages" / "quantize.json").read_text())["macs"]["classifier"]
        share, branches = found["macs"]["calibrator"] / whole, found["branches"]
    else:
        earlier = record("compensation")["networks"].get(network, {"jobs": {}})["jobs"].get("u13")
        if not earlier:
            raise click.ClickException(f"jobs: the others take calibrators as large as u13's, and {network} has none")
        share, branches = earlier["summary"]["macs"]["calibrator_share"], earlier["compensation"]["branches"]
    return ("--mac-budget", f"{1.001 * share:.6f}", "--branches", ",".join(branches))


def finished(out: Path, models: str, job: str) -> dict[str, Path]:
    """That job's folder for each of the comma-separated models, all of them done."""
    folders = {model: out / model / job for model in models.split(",")}
    for model, folder in folders.items():
        if not (folder / "record.json").exists():
            raise click.ClickException(f"models: expected runs of compensation.py, no finished {job} of {model!r}")
    return folders


def worst_shifts(base: Path) -> list[str]:
    """The shifts of `u13` on which the INT8 graph is worst, by validation images."""
    opened_run = Run.open(base, Reporter(), threads=2)
    split, session = opened_run.data.validation.first(SCENE_IMAGES), opened_run.onnx_classifier("int8")
    accuracy = {}
    for condition in defined_conditions(SUITES["u13"], (int(SEVERITY),), opened_run.table):
        found = predict({"int8": session}, split, condition, table=opened_run.table, seed=1)["int8"]
        accuracy[condition[0]] = float(np.mean(found.prediction == split.labels.numpy()))
    return sorted(accuracy, key=lambda name: accuracy[name])[:SCENARIOS]


def run_job(job: Job, base: Path, quantize: list[str], common: list[str]) -> None:
    """Bring a job's folder to its record, going on where it stopped."""
    folder, chosen = base.parent / job.name, [*job.options, *job.quantization]
    noted = folder / "job.json"
    if noted.exists() and json.loads(noted.read_text()) != chosen:
        raise click.ClickException(f"out: {folder} was done with other options; move it away to do it anew")
    done = {path.stem for path in (folder / "stages").glob("*.json")}
    if (folder / "record.json").exists():
        measured = {row["remedy"] for row in json.loads((folder / "record.json").read_text())["remedies"]}
        if set(job.methods) <= measured and "evaluate" in done:
            return
    if "quantize" not in done:
        shutil.rmtree(folder, ignore_errors=True)
        if job.quantization:
            qrobust("quantize", *quantize, *job.quantization, "--out", str(folder), *common)
        else:
            part = folder.with_name(f".{job.name}")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(base, part)
            part.replace(folder)
    noted.write_text(json.dumps(chosen))
    commits = (folder / "commit").read_text().split() if (folder / "commit").exists() else []
    (folder / "commit").write_text(
        " ".join(dict.fromkeys([*commits, git_commit()]))
    )  # of training, then of measuring
    run = (str(folder), *common)
    if "compensate" not in done:
        qrobust("compensate", *run, *job.options)
    if "export" not in done:
        qrobust("export", *run)
    for method in job.methods:
        if method not in done:
            qrobust("compensate", *run, "--remedy", method)
    qrobust("evaluate", *run, "--attacks", "quick" if job.name == ADAPTIVE else "none")
    qrobust("report", str(folder))


def differences(
    plus: Path, minus: Path, conditions: list[Condition], of: str = "compensated", against: str = "int8"
) -> Any:
    """Per test image, mean over conditions of whether `of` in run `plus` is right minus `against` in run `minus`."""
    right = []
    for run, name in ((plus, of), (minus, against)):
        labels, found = read_predictions(run / "predictions", conditions)
        right.append(np.mean([found[condition][name].prediction == labels for condition in conditions], axis=0))
    return right[0] - right[1]


def mean_of(images: list[Any]) -> dict[str, Any]:
    """The mean over runs, then over images, in points, with its 95 % interval over images."""
    each = np.mean(images, axis=0)
    low, high = paired_bootstrap(each, 0)
    return {
        "pp": 100 * float(each.mean()),
        "interval_pp": [100 * low, 100 * high],
        "runs": len(images),
        "n": len(each),
    }


def means(out: Path, networks: dict[str, Any]) -> dict[str, Any]:
    """What holds over networks and jobs, from the predictions that the runs keep."""
    found: dict[str, list[Any]] = {}
    for model, entry in networks.items():
        for name, job in entry["jobs"].items():
            run, seen = out / model / name, job["compensation"]["trained_on"]
            shifted = [(r["shift"], r["severity"]) for r in job["rows"] if r["shift"] != "clean"]
            kind = name.partition("-")[0]
            conditions = [c for c in shifted if c[0] not in seen] if kind == "without" else shifted
            gain = differences(run, run, conditions)
            found.setdefault(kind, []).append(gain)
            found.setdefault(f"{kind} {model}", []).append(gain)
            if kind in ("u13", "w4a4"):
                for what, plus in (("cost", "int8"), ("left", "compensated")):
                    lost = differences(run, run, conditions, plus, "float")
                    found.setdefault(f"{kind} {what} {model}", []).append(lost)
            if kind == "w4a4" and (out / model / "u13" / "record.json").exists():
                found[f"w4a4 against w8a8 {model}"] = [differences(run, out / model / "u13", conditions)]
    return {name: mean_of(images) for name, images in found.items()}


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a job's record."""
    keys = ("summary", "rows", "remedies", "compensation", "splits", "severity_table", "stages", "hardware", "config")
    kept = {key: record[key] for key in keys}
    kept["attacks"] = {key: record["attacks"][key] for key in ("level", "n", "worst", "flags")}
    kept["integer"] = {
        name: f"{audit['integer_ops']}/{audit['quantizable_ops']}" for name, audit in record["audit"].items()
    }
    return kept


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--trainings", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--jobs", "kinds", default=",".join(KINDS), show_default=True)
@click.option(
    "--steps", default=4000, show_default=True, help="Training steps of `u13`; a quarter for the narrower jobs."
)
@click.option(
    "--latency-budget",
    default=1.24,
    show_default=True,
    help="Times the INT8 graph's time that `u13` may take at batch 1; 0: any, within a tenth of the MACs.",
)
@click.option("--results", default="compensation", show_default=True, help="Name of the file in results/.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--threads", default=2, show_default=True)
def main(
    data: str,
    trainings: Path,
    models: str,
    kinds: str,
    steps: int,
    latency_budget: float,
    results: str,
    out: Path,
    threads: int,
) -> None:
    """Run the jobs and write what they found to results/."""
    if unknown := set(kinds.split(",")) - set(KINDS):
        raise click.ClickException(f"jobs: expected some of {', '.join(KINDS)}, got {', '.join(unknown)}")
    common = ["--threads", str(threads), "-v"]
    for model in models.split(","):
        training = trainings / model
        if not (training / "weights.pt").exists():
            click.echo(f"{model}: no weights in {training}, left out", err=True)
            continue
        base = out / model / "base"
        quantize = ["--model", model, "--weights", str(training / "weights.pt"), "--data", data]
        if not (base / "stages" / "quantize.json").exists():
            qrobust("quantize", *quantize, "--out", str(base), *common, *(["--overwrite"] if base.exists() else []))
        if not (base / "stages" / "evaluate.json").exists():  # what float and INT8 predict is the same in every job
            qrobust("evaluate", str(base), *common, "--shifts", "u13", "--severities", SEVERITY, "--attacks", "none")
        for job in jobs(base, steps, tuple(kinds.split(",")), latency_budget):
            click.echo(f"{model}: {job.name}", err=True)
            run_job(job, base, quantize, common)
            write(out, trainings, threads, results, steps, latency_budget)


def kinds_of(jobs: dict[str, Any]) -> set[str]:
    """Which `--jobs` a network's finished ones are of."""
    named = {"scene": "scenes", "without": "families", "w4a4": "bits"}
    found = {named.get(kind, kind) for kind in (name.partition("-")[0] for name in jobs)}
    others = {row["remedy"] for row in jobs.get("u13", {"remedies": []})["remedies"]} & set(REMEDIES)
    return found | ({"methods"} if others else set())


def write(out: Path, trainings: Path, threads: int, results: str, steps: int, latency_budget: float) -> None:
    """Gather every finished job under `out`, of earlier commands too."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/*/record.json")):
        model, job = path.parts[-3:-1]
        entry = found.setdefault(model, {"jobs": {}})
        entry["jobs"][job] = outcome(json.loads(path.read_text())) | {"commit": (path.parent / "commit").read_text()}
        entry["training"] = json.loads((trainings / model / "training.json").read_text())
    kinds = ",".join(kind for kind in KINDS if any(kind in kinds_of(entry["jobs"]) for entry in found.values()))
    result = {
        "command": f"python benchmarks/compensation.py --data imagefolder:DIR --trainings RUNS --models "
        f"{','.join(found)} --jobs {kinds} --steps {steps} --latency-budget {latency_budget:g} --results {results} "
        f"--out OUT",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "networks": found,
        "means": means(out, found),
        "versions": versions(),
        "hardware": to_json(hardware(threads)),
    }
    text = json.dumps(result, indent=1)
    for folder, name in ((str(out), "OUT"), (str(trainings), "RUNS"), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{results}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
