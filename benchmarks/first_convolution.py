"""What a fourth channel of zeros does for a network's first convolution on x86: the same outputs in less time?

    python benchmarks/first_convolution.py

Each network, with random weights, is quantized once and exported twice: as qrobust does it, and with its first
convolution left at three channels. Both graphs run in turn. Then single convolutions of other kernels, which `export`
leaves alone, the same way. Results go to `results/first_convolution.json`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from figures import git_commit
from torch import nn

from qrobust.deployment import export as graph
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.profiling import latencies_ms
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, versions
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "cifar_mobilenet_v2": 32,
    "cifar_resnet18": 32,
    "cifar_vgg16_bn": 32,
    "torchvision:mobilenet_v2": 224,
}
# Kernel, stride, filters and size of the image.
KERNELS = ((3, 2, 32, 224), (5, 2, 32, 224), (7, 2, 64, 224), (11, 4, 96, 224))
BATCHES, ROUNDS = (1, 32), 31


def both(model: nn.Module, size: int, widened: tuple[int, ...], threads: int, folder: Path) -> dict[str, Any]:
    """Times of a network with and without the fourth channel, and whether its outputs differ."""
    images = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    fake_quantized = quantize(model, X86_VNNI, [images])
    with mock.patch.object(graph, "WIDENED", widened):
        graph.export(fake_quantized, folder / "wide.onnx", size)
    with mock.patch.object(graph, "_widen"):
        graph.export(fake_quantized, folder / "plain.onnx", size)
    sessions = {name: OnnxClassifier(folder / f"{name}.onnx", threads) for name in ("plain", "wide")}
    found = {}
    for batch in BATCHES:
        times = latencies_ms(sessions, size, batch, ROUNDS if batch == 1 else ROUNDS // 4)
        found[f"batch_{batch}"] = {"plain_ms": times["plain"], "wide_ms": times["wide"]}
    plain, wide = (session(images) for session in sessions.values())
    return {"largest_difference": float((plain - wide).abs().max()), "times": found}


@click.command()
@click.option("--threads", default=1, show_default=True)
def main(threads: int) -> None:
    """Measure every network and kernel."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        for name, size in NETWORKS.items():
            model = load_model(
                find_model(name),
                classes=10,
                image_size=size,
                weights=None,
                pretrained=False,
                normalization=None,
                seed=0,
            )
            rows.append({"network": name, "size": size} | both(model, size, graph.WIDENED, threads, Path(kept)))
            click.echo(rows[-1])
        for kernel, stride, filters, size in KERNELS:
            torch.manual_seed(0)
            layers = (nn.Conv2d(3, filters, kernel, stride, kernel // 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            single = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters, 10)).eval()
            name = f"{kernel}x{kernel}, stride {stride}, {filters} filters"
            rows.append(
                {"network": name, "size": size} | both(single, size, (3, kernel, kernel), threads, Path(kept))
            )
            click.echo(rows[-1])
    write_json(
        RESULTS / "first_convolution.json",
        {
            "rows": rows,
            "hardware": hardware(threads),
            "versions": versions(),
            "commit": git_commit(),
            "seed": 0,
            "command": "python benchmarks/first_convolution.py",
        },
    )


if __name__ == "__main__":
    main()
