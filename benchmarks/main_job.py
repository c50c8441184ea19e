"""The main job on CIFAR-10 (JPEG) with a ResNet-20: the run whose figures README and docs quote.

    python benchmarks/main_job.py --data imagefolder:~/data/cifar10 --weights ~/weights/resnet20.pt \
        --normalization imagenet --out ~/runs/main

`--weights` are a public ResNet-20's, as `padded_resnet20.py` writes them, or those of `train_baselines.py`
(`--normalization cifar10`). It calls `qrobust run` with its defaults, copies the record to `benchmarks/results/`, and
draws the report from it (without pictures of the data).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from figures import git_commit
from report_picture import redraw

RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="Of a ResNet-20.")
@click.option("--normalization", default="cifar10", show_default=True, help="That those weights were trained with.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--threads", default=2, show_default=True)
def main(data: str, weights: Path, normalization: str, out: Path, threads: int) -> None:
    """Run the main job and keep its record and report."""
    command = ["run", "--model", "resnet20", "--weights", str(weights), "--normalization", normalization]
    command += ["--data", data, "--out", str(out), "--threads", str(threads), "--resume", "-v"]
    subprocess.run([Path(sys.executable).parent / "qrobust", *command], check=True)
    record = json.loads((out / "record.json").read_text())
    record["benchmark"] = {
        "command": f"python benchmarks/main_job.py --data imagefolder:DIR --weights {weights.name} "
        f"--normalization {normalization} --threads {threads} --out OUT",
        "commit": git_commit(),
    }
    text = json.dumps(record, indent=1)
    # A result says what was run, not where: folders of this machine are left out.
    for folder, name in ((str(out.parent), "RUNS"), (str(weights.parent), "WEIGHTS"), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "main_job.json").write_text(text + "\n")
    redraw()


if __name__ == "__main__":
    main()
