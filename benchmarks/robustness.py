"""What quantization costs under corruption: float, W8A8, W4A8 and W4A4 on the same pixels, on onnxruntime.

    python benchmarks/quantization.py --data imagefolder:DIR --trainings RUNS --out WORK
    python benchmarks/robustness.py --data imagefolder:DIR --graphs WORK --out EVALUATIONS

For each network the graphs that quantization.py left: the fifteen corruptions of CIFAR-10-C at five severities, on a
seeded sample of the test images. Results go to `results/robustness.json`; an evaluation that was killed goes on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from figures import git_commit

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("cifar_resnet18", "cifar_mobilenet_v2", "cifar_vgg16_bn")
# What a graph is called here, and where quantization.py left it.
GRAPHS = {
    "float": "w8a8/float.onnx",
    "w8a8": "w8a8/int8.onnx",
    "w4a8": "w4a8/int8.onnx",
    "w4a4": "w4a4-qat/int8.onnx",
}


def evaluate(data: str, graphs: Path, out: Path, images: int, threads: int) -> dict[str, Any]:
    """One network's record."""
    named = out / "graphs"
    named.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).parent / "qrobust"), "evaluate", "--data", data, "--out", str(out / "record")]
    for name, source in GRAPHS.items():
        shutil.copy(graphs / source, named / f"{name}.onnx")
        command += ["--model", str(named / f"{name}.onnx")]
    command += ["--shifts", "corruptions-15", "--severities", "1,2,3,4,5", "--test-images", str(images)]
    subprocess.run([*command, "--threads", str(threads), "--resume"], check=True)
    return json.loads((out / "record" / "record.json").read_text())


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--graphs", type=click.Path(path_type=Path, exists=True), required=True, help="Its WORK.")
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--images", default=1000, show_default=True, help="Test images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where evaluations are kept.")
@click.option("--threads", default=2, show_default=True)
def main(data: str, graphs: Path, networks: str, images: int, out: Path, threads: int) -> None:
    """Measure every network and write results/robustness.json."""
    path = RESULTS / "robustness.json"
    result = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    for network in networks.split(","):
        record = evaluate(data, graphs / network, out / network, images, threads)
        kept = ("summary", "rows", "severity_table", "fingerprint", "versions", "hardware")
        result["networks"][network] = {k: record[k] for k in kept} | {"commit": git_commit()}
        result["command"] = "python benchmarks/robustness.py --data imagefolder:DIR --graphs WORK --out EVALUATIONS"
        result["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
