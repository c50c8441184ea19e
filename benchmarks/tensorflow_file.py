"""An INT8 network of TensorFlow: trained by Keras, quantized by TFLite, converted by tf2onnx, and compensated here.

    python benchmarks/tensorflow_file.py --data imagefolder:DIR --tensorflow ENV/bin/python --work WORK

`train_keras.py` trains and converts in an environment that has TensorFlow. The file must pass `audit`,
`evaluate-onnx` and `compensate`, the latter with a calibrator and with other scales, learned from random operations
alone and measured under the 19 corruptions at severity 5. What is done in WORK is kept.
`results/tensorflow_file.json` holds what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from quantized_file import gain_of_file

RESULT = Path(__file__).parent / "results" / "tensorflow_file.json"
SEED, SIZE, BATCH = 0, 32, 500


def dump(data: str, images: int, path: Path) -> None:
    """Training images and labels, for another process."""
    from qrobust.data.loading import open_data
    from qrobust.preprocessing import Preprocessing

    opened = open_data(data, seed=SEED).prepared(Preprocessing(size=SIZE, crop_ratio=1.0))
    batches = list(opened.training.first(images).batches(BATCH))
    pixels = np.concatenate([found.numpy() for found, _ in batches]).transpose(0, 2, 3, 1)
    np.savez(path, images=pixels, labels=np.concatenate([labels.numpy() for _, labels in batches]))


def make(data: str, images: int, tensorflow: str, work: Path) -> dict[str, Any]:
    """The file, made in WORK unless it is there; returns the versions of what made it."""
    file, told = work / "int8.onnx", work / "made_by.json"
    if not file.exists():
        dump(data, images, work / "images.npz")
        script = Path(__file__).parent / "train_keras.py"
        said = subprocess.run(
            [tensorflow, str(script), str(work / "images.npz"), str(work / "int8.tflite"), str(file)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        told.write_text(said.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(told.read_text())
    return found


def run(*arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "qrobust", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@click.command()
@click.option("--data", required=True)
@click.option("--tensorflow", required=True, metavar="PYTHON", help="Interpreter that has tensorflow and tf2onnx.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--images", default=10_000, show_default=True, help="Training images of the network.")
@click.option("--steps", default=400, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--test-images", default=300, show_default=True)
def main(data: str, tensorflow: str, work: Path, images: int, steps: int, batch_size: int, test_images: int) -> None:
    """Make the file, and keep what three commands say of it."""
    from figures import git_commit

    from qrobust.record import hardware, read_evaluation, to_json, versions
    from qrobust.storage import write_json

    work.mkdir(parents=True, exist_ok=True)
    made_by, file = make(data, images, tensorflow, work), work / "int8.onnx"
    audits = {kind: json.loads(run("audit", file, "--json", *more)) for kind, more in AUDITS.items()}
    shifts = ["--data", data, "--test-images", test_images, "--shifts", "corruptions-19", "--severities", 5]
    shifts += ["--seed", SEED, "--threads", 1]
    if not (work / "evaluated" / "record.json").exists():
        run("evaluate-onnx", file, *shifts, "--out", work / "evaluated")
    evaluated = read_evaluation(work / "evaluated" / "record.json").summary
    gains, minutes = dict[str, Any](), dict[str, float]()
    for remedy in ("calibrator", "scales"):
        out, began = work / remedy, time.perf_counter()
        if not (out / "record.json").exists():
            learn = ["--remedy", remedy, "--steps", steps, "--batch-size", batch_size]
            again = ["--resume"] if out.exists() else []
            run("compensate", file, *shifts, *learn, *again, "--out", out)
            minutes[remedy] = (time.perf_counter() - began) / 60
        gains[remedy] = gain_of_file(out)
    write_json(
        RESULT,
        {
            "what": "a network of Keras, quantized by TFLite and converted by tf2onnx, measured and compensated",
            "commit": git_commit(),
            "command": "python benchmarks/tensorflow_file.py --data imagefolder:DIR --tensorflow ENV/bin/python "
            f"--work WORK --images {images} --steps {steps} --batch-size {batch_size} --test-images {test_images}",
            "made_by": made_by,
            "images": images,
            "steps": steps,
            "batch_size": batch_size,
            "seed": SEED,
            "minutes": minutes,
            "integer_mac_share": {kind: found["integer_mac_share"] for kind, found in audits.items()},
            "evaluated": {
                "n": evaluated.n_test,
                "clean_accuracy": evaluated.clean_accuracy,
                "shift_accuracy": evaluated.shift_accuracy,
            },
            **gains,
            "versions": versions(),
            "hardware": to_json(hardware(1)),
        },
    )


AUDITS = {"x86": ("--target", "x86-vnni"), "arm64": ("--target", "arm64")}

if __name__ == "__main__":
    main()
