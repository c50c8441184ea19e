"""Evaluate a run of ResNet-20 on CIFAR-10 by processes and by two Ray nodes, one of which is killed, and compare.

    pip install 'qrobust[ray]'
    python benchmarks/evaluation_runners.py --data imagefolder:DIR --weights w.pt --work WORK
    pip install 'qrobust[slurm]'    # for the next line, which a Slurm controller of this machine answers
    python benchmarks/evaluation_runners.py ... --slurm

The run is made once: float, INT8 and compensated graphs, the calibrator trained for few steps, as its quality is of
no matter here. Each way evaluates a copy of it as a command, on images under 19 corruptions at five severities and
clean: `one` process of one thread; `two` such processes (`--workers 2`); `ray`, two nodes of one CPU on this machine;
`killed`, the same, the second node being killed once half of all blocks are answered. Ways alternate in rounds, but
for the last, which is done once. The second command adds `slurm` to what the first left: jobs of this machine, one of
which is cancelled once half of all blocks are answered. Every file in `predictions` must be that of `one` to the
byte, and every figure of the stage equal but for times.

Seconds are those until the last condition is kept; starting Python, opening data and joining the cluster are among
them, attacks, statistics and latencies are not. `conditions_s` tells the pace of one process, condition by condition.
`--images 600 --severities 5` is a trial. Ratios need two cores that nothing else uses; where the
load was 1 or more before, nothing is quoted of times.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from figures import git_commit

from qrobust.record import hardware, to_json, versions, without_timings
from qrobust.storage import read_json, write_json

RESULT = Path(__file__).parent / "results" / "evaluation_runners.json"
ONE, TWO, RAY, KILLED = NAMES = ("one", "two", "ray", "killed")
SLURM = "slurm"
SHIFTS, CORRUPTIONS = ("--shifts", "corruptions-19", "--attacks", "none"), 19
# Images of a block (`qrobust.evaluation.predictions.BLOCK_IMAGES`).
BLOCK_IMAGES = 500
STEPS, LOOK_S = 40, 0.2


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qrobust", *map(str, arguments)]


def made(work: Path, data: str, weights: Path, images: int) -> Path:
    """The run that is evaluated."""
    out = work / f"run-{images}"
    if not (out / "stages" / "quantize.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        options = ("--model", "resnet20", "--weights", weights, "--normalization", "imagenet", "--data", data)
        counts = ("--test-images", images, "--calibration-images", 200, "--train-images", 600)
        subprocess.run(command("quantize", *options, *counts, "--threads", 1, "--out", out, "-q"), check=True)
    if not (out / "stages" / "export.json").is_file():
        subprocess.run(command("compensate", out, "--steps", STEPS, "--batch-size", 16, "-q"), check=True)
        subprocess.run(command("export", out, "-q"), check=True)
    return out


def kept(out: Path) -> list[tuple[float, str]]:
    """When each condition was kept, and its name, in that order."""
    return sorted((path.stat().st_mtime, path.stem) for path in (out / "predictions").glob("*.npz"))


def blocks(out: Path) -> int:
    """How many blocks of images are answered, once for each condition."""
    return len(list((out / "predictions" / "blocks").glob("*/*.npz")))


def evaluated(run: Path, out: Path, severities: str, *options: object) -> tuple[subprocess.Popen[bytes], float]:
    """An evaluation of a copy of the run that begins now, and when that is."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run, out)
    began = time.time()
    options = (*SHIFTS, "--severities", severities, "--threads", 1, "-q", *options)
    return subprocess.Popen(command("evaluate", out, *options)), began


def ended(process: subprocess.Popen[bytes], began: float, out: Path) -> dict[str, Any]:
    code = process.wait()
    whole = time.time() - began
    if code:
        raise click.ClickException(f"the evaluation in {out} ended with {code}")
    return {"seconds": kept(out)[-1][0] - began, "command_s": whole}


def by_processes(run: Path, out: Path, severities: str, count: int) -> dict[str, Any]:
    found = ended(*evaluated(run, out, severities, "--workers", count), out)
    if count == 1:
        times = kept(out)
        found["conditions_s"] = {name: round(after - before, 3) for (before, _), (after, name) in pairwise(times)}
    return found


def by_ray(run: Path, out: Path, severities: str, half: int | None = None) -> dict[str, Any]:
    """On two nodes, the second of which is killed once so many blocks are answered; None: it is not."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    told: dict[str, Any] = {}
    try:
        second = cluster.add_node(num_cpus=1)
        process, began = evaluated(run, out, severities, "--runner", f"ray://{cluster.address}")
        if half is not None:
            while (there := blocks(out)) < half:
                if process.poll() is not None:
                    raise click.ClickException("the evaluation ended before half of it was there")
                time.sleep(LOOK_S)
            cluster.remove_node(second, allow_graceful=False)
            told = {"killed_after_s": time.time() - began, "blocks_then": there}
        return told | ended(process, began, out)
    finally:
        cluster.shutdown()


def by_slurm(run: Path, out: Path, severities: str, half: int) -> dict[str, Any]:
    """By jobs, one of which is cancelled once so many blocks are answered."""

    def running() -> list[str]:
        command = ["squeue", "-h", "--states=RUNNING", "--format=%i", "--me"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    running()  # an error now, where no controller answers
    process, began = evaluated(run, out, severities, "--runner", "slurm")
    while blocks(out) < half or not running():
        if process.poll() is not None:
            raise click.ClickException("the evaluation ended before half of it was there")
        time.sleep(LOOK_S)
    there, job = blocks(out), running()[0]
    subprocess.run(["scancel", job], check=True)
    return {"cancelled_after_s": time.time() - began, "blocks_then": there} | ended(process, began, out)


def compared(out: Path, other: Path) -> dict[str, int | bool]:
    """How many files of predictions there are, how many are those of the other, and whether all figures are."""
    files = sorted(path.relative_to(other) for path in (other / "predictions").rglob("*.npz"))
    mine = sorted(path.relative_to(out) for path in (out / "predictions").rglob("*.npz"))
    equal = sum((out / path).is_file() and (out / path).read_bytes() == (other / path).read_bytes() for path in files)
    stages = [without_timings(read_json(folder / "stages" / "evaluate.json")) for folder in (out, other)]
    for stage in stages:
        stage["versions"].pop("commit", None)  # a checkout may have moved on between the two
    return {
        "files": len(files),
        "equal_files": equal,
        "no_others": mine == files,
        "equal_figures": stages[0] == stages[1],
    }


def ratios(rounds: list[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Of the seconds of two ways, round by round."""
    found = [one[first]["seconds"] / one[second]["seconds"] for one in rounds]
    return {"ratio": statistics.median(found), "ratios": found}


@click.command()
@click.option("--data", required=True, help="CIFAR-10 as imagefolder:DIR.")
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="Of ResNet-20.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for runs.")
@click.option("--images", default=5000, show_default=True, help="Test images.")
@click.option("--severities", default="1,2,3,4,5", show_default=True)
@click.option("--rounds", default=1, show_default=True)
@click.option("--slurm", is_flag=True, help="Add what Slurm's jobs make of it to what was measured.")
def main(data: str, weights: Path, work: Path, images: int, severities: str, rounds: int, slurm: bool) -> None:
    """Evaluate in every way, and compare."""
    work, load = work.absolute(), list(os.getloadavg())
    work.mkdir(parents=True, exist_ok=True)
    run, outs = made(work, data, weights, images), {name: work / name for name in NAMES}
    conditions = 1 + CORRUPTIONS * len(severities.split(","))
    answered = conditions * -(-images // BLOCK_IMAGES)
    if slurm:
        known = read_json(RESULT)
        if (known["n"], known["conditions"]) != (images, conditions):
            raise click.ClickException(f"{RESULT} is of {known['n']} images under {known['conditions']} conditions")
        out = work / SLURM
        found = by_slurm(run, out, severities, answered // 2) | {"blocks": answered, "load_before": load}
        same = known["equal_to_one"] | {SLURM: compared(out, outs[ONE])}
        write_json(RESULT, known | {SLURM: found, "equal_to_one": same, "slurm_commit": git_commit()})
        return
    every = list[dict[str, Any]]()
    for _ in range(rounds):
        every.append(
            {
                ONE: by_processes(run, outs[ONE], severities, 1),
                TWO: by_processes(run, outs[TWO], severities, 2),
                RAY: by_ray(run, outs[RAY], severities),
            }
        )
        click.echo({name: round(found["seconds"], 1) for name, found in every[-1].items()})
    killed = by_ray(run, outs[KILLED], severities, answered // 2)
    write_json(
        RESULT,
        {
            "what": "an evaluation by processes and by two Ray nodes of one machine",
            "n": images,
            "conditions": conditions,
            "graphs": 3,
            "rounds": every,
            "killed": killed | {"blocks": answered},
            "equal_to_one": {name: compared(outs[name], outs[ONE]) for name in NAMES[1:]},
            "two_processes_over_one": ratios(every, ONE, TWO),
            "ray_over_two_processes": ratios(every, RAY, TWO),
            "load_before": load,
            "seed": 0,
            "commit": git_commit(),
            "command": "python benchmarks/evaluation_runners.py --data imagefolder:DIR --weights w.pt --work WORK "
            f"--images {images} --severities {severities} --rounds {rounds}",
            "hardware": to_json(hardware(1)),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
