"""Weights of four bits in int8 containers and as int4: which file is small, which is fast?

    python benchmarks/storage.py

Each network, with random weights, is quantized once (W4A8) and exported both ways. Both graphs run in turn, and are
loaded in turn. Results go to `results/storage.json`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit

from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.profiling import latencies_ms
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.ptq import quantize
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, versions
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"cifar_resnet18": 32, "cifar_mobilenet_v2": 32, "torchvision:mobilenet_v2": 224}
STORAGES = ("int8", "int4")
BATCHES, ROUNDS, LOADS = (1, 32), 31, 5


def measure(name: str, size: int, threads: int, folder: Path) -> dict[str, Any]:
    """Sizes, times and the largest difference of one network's two files."""
    model = load_model(
        find_model(name), classes=10, image_size=size, weights=None, pretrained=False, normalization=None, seed=0
    )
    images = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    fake_quantized = quantize(model, X86_VNNI, [images], recipe=Recipe("w4a8"))
    paths = {storage: folder / f"{storage}.onnx" for storage in STORAGES}
    for storage, path in paths.items():
        export(fake_quantized, path, size, storage=storage)
    loads: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    for _ in range(LOADS):
        for storage, path in paths.items():
            started = time.perf_counter()
            OnnxClassifier(path, threads)
            loads[storage].append(1000 * (time.perf_counter() - started))
    sessions = {storage: OnnxClassifier(path, threads) for storage, path in paths.items()}
    wide, narrow = (session(images) for session in sessions.values())
    return {
        "size_bytes": {storage: path.stat().st_size for storage, path in paths.items()},
        "load_ms": {storage: statistics.median(times) for storage, times in loads.items()},
        "times_ms": {
            f"batch_{batch}": latencies_ms(sessions, size, batch, ROUNDS if batch == 1 else ROUNDS // 4)
            for batch in BATCHES
        },
        "largest_difference": float((wide - narrow).abs().max()),
    }


@click.command()
@click.option("--threads", default=1, show_default=True)
def main(threads: int) -> None:
    """Measure every network."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        for name, size in NETWORKS.items():
            rows.append({"network": name, "size": size} | measure(name, size, threads, Path(kept)))
            click.echo(rows[-1])
    write_json(
        RESULTS / "storage.json",
        {
            "rows": rows,
            "hardware": hardware(threads),
            "versions": versions(),
            "commit": git_commit(),
            "seed": 0,
            "command": "python benchmarks/storage.py",
        },
    )


if __name__ == "__main__":
    main()
