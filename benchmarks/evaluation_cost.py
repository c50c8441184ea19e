"""Time and memory of a full evaluation: every corruption and transformation, three graphs, on onnxruntime.

    python benchmarks/evaluation_cost.py --data imagefolder:DIR --run runs/main --out WORK

`--run` is a finished run of ResNet-20, as main_job.py leaves it or with fewer `--steps`, for how well its calibrator
was trained does not matter to time and memory. Its float, INT8 and compensated graphs are evaluated as files. The
full evaluation is timed whole, as a command; a smaller one is repeated with more images, to see whether memory grows
with them. Memory is the sum of the peaks of the command's processes (Linux), above that of a process which only
imports. Then the run itself is attacked, at each level on some images, and the same command without attacks is
timed, too.
Results go to `results/evaluation_cost.json`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from figures import git_commit

from qrobust.record import hardware, to_json, versions
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
GRAPHS = ("float", "int8", "compensated")
IMPORTS = "import qrobust.pipeline.evaluate_onnx, torch, torchvision, onnxruntime"
# What is evaluated, at which severities, on how many test images: the full evaluation, then growth.
FULL = ("all", "1,2,3,4,5", 1000)
GROWTH = tuple(("fog,glass_blur,rotation", "5", count) for count in (500, 1000, 5000))
# Levels of attacks, and on how many images.
ATTACKS = (("none", 0), ("quick", 200), ("full", 10))
MIB, POLL_S = 1024, 0.2


def peaks_kib(pid: int) -> dict[int, int]:
    """Peak resident memory of a process and of all that it started, by process."""
    found, waiting = {}, [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
        if lines:
            found[one] = int(lines[0].split()[1])
    return found


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds that a command took, and the sum of its processes' peaks in MiB."""
    started = time.perf_counter()
    peaks: dict[int, int] = {}
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            for pid, peak in peaks_kib(process.pid).items():
                peaks[pid] = max(peak, peaks.get(pid, 0))
            time.sleep(POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - started, sum(peaks.values()) / MIB


def measure(
    data: str, run: Path, out: Path, what: tuple[str, str, int], workers: int, threads: int
) -> dict[str, Any]:
    """One evaluation, as a command of its own."""
    shifts, severities, images = what
    command = [str(Path(sys.executable).parent / "qrobust"), "evaluate", "--data", data, "--out", str(out)]
    for name in GRAPHS:
        command += ["--model", str(run / f"{name}.onnx")]
    command += ["--shifts", shifts, "--severities", severities, "--test-images", str(images)]
    command += ["--workers", str(workers), "--threads", str(threads), "--overwrite", "-q"]
    seconds, peak = watched(command)
    record = json.loads((out / "record.json").read_text())
    return {
        "shifts": shifts,
        "severities": severities,
        "images": images,
        "cells": record["summary"]["n_conditions"],
        "seconds": seconds,
        "peak_mib": peak,
    }


def attack_cost(run: Path, out: Path, threads: int) -> list[dict[str, Any]]:
    """Seconds of an evaluation of one condition, by what is tried against the run's graphs."""
    rows: list[dict[str, Any]] = []
    for level, images in ATTACKS:
        folder = out / f"attacks-{level}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("attacks.npz"))
        command = [str(Path(sys.executable).parent / "qrobust"), "evaluate", str(folder), "--attacks", level, "-q"]
        command += ["--shifts", "contrast", "--severities", "5", "--threads", str(threads)]
        command += ["--attack-images", str(images)] if images else []
        seconds, _ = watched(command)
        rows.append({"level": level, "images": images, "seconds": seconds})
        click.echo(rows[-1])
    return rows


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the evaluations.")
@click.option("--workers", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(data: str, run: Path, out: Path, workers: int, threads: int) -> None:
    """Measure the full evaluation, three of growing size, and attacks."""
    _, imports = watched([sys.executable, "-c", f"{IMPORTS}; import time; time.sleep(1)"])
    rows = []
    for index, what in enumerate((FULL, *GROWTH)):
        rows.append(measure(data, run, out / str(index), what, workers, threads))
        click.echo(rows[-1])
    attacks = attack_cost(run, out, threads)
    write_json(
        RESULTS / "evaluation_cost.json",
        {
            "graphs": list(GRAPHS),
            "imports_mib": imports,
            "rows": rows,
            "attacks": attacks,
            "training_steps": json.loads((run / "config.json").read_text())["steps"],
            "workers": workers,
            "hardware": to_json(hardware(threads)),
            "versions": versions(),
            "commit": git_commit(),
            "seed": 0,
            "command": "python benchmarks/evaluation_cost.py --data imagefolder:DIR --run runs/main --out WORK",
        },
    )


if __name__ == "__main__":
    main()
