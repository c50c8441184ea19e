"""Time and memory of quantizing MobileNetV2 at 224 px, and that memory does not grow with the images.

    python benchmarks/quantize_cost.py --data imagefolder:DIR/images --class-names DIR/classes.txt

Each count of calibration images is a process of its own, so that its peak memory is its own. Images are
repeated where the folder holds fewer: what counts here is how many are seen. Results go to
`results/quantize_cost.json`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from figures import git_commit

RESULTS = Path(__file__).parent / "results"
COUNTS, SIZE, BATCH = (256, 2048), 224, 32


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(data: str, class_names: str, count: int, threads: int) -> dict[str, float]:
    """Quantize and export once, in this process."""
    import tempfile

    import torch

    from qrobust.data.loading import open_data
    from qrobust.deployment.export import export
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model
    from qrobust.quantization.ptq import quantize
    from qrobust.quantization.target import X86_VNNI
    from qrobust.shifts.filters import to_unit

    torch.set_num_threads(threads)
    found = find_model("torchvision:mobilenet_v2")
    model = load_model(
        found, classes=1000, image_size=SIZE, weights=None, pretrained=False, normalization=None, seed=0
    )
    images = open_data(data, seed=0, image_size=SIZE, class_names_file=Path(class_names), calibration_images=64)
    split = images.calibration
    imported = peak_mib()

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, count, BATCH):
            yield to_unit(split.read(torch.arange(start, start + BATCH) % len(split)))

    started = time.perf_counter()
    fake_quantized = quantize(model, X86_VNNI, batches())
    quantized = time.perf_counter() - started
    above = peak_mib() - imported
    with tempfile.TemporaryDirectory() as folder:
        export(fake_quantized, Path(folder) / "int8.onnx", SIZE)
    exported = time.perf_counter() - started - quantized
    return {
        "images": count,
        "quantize_s": quantized,
        "export_s": exported,
        "peak_above_imports_mib": above,
        "peak_with_export_above_imports_mib": peak_mib() - imported,
    }


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of real images.")
@click.option("--class-names", required=True, help="File of the folder's class names.")
@click.option("--threads", default=2, show_default=True)
@click.option("--count", type=int, hidden=True)
def main(data: str, class_names: str, threads: int, count: int | None) -> None:
    """Measure every count, each in a process of its own."""
    if count:
        click.echo(json.dumps(measure(data, class_names, count, threads)))
        return
    from qrobust.record import hardware, to_json
    from qrobust.storage import write_json

    rows = []
    for n in COUNTS:
        command = [sys.executable, __file__, "--data", data, "--class-names", class_names, "--threads", str(threads)]
        done = subprocess.run([*command, "--count", str(n)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(rows[-1])
    write_json(
        RESULTS / "quantize_cost.json",
        {
            "network": "torchvision:mobilenet_v2, random weights",
            "image_size": SIZE,
            "batch": BATCH,
            "rows": rows,
            "hardware": to_json(hardware(threads)),
            "commit": git_commit(),
            "seed": 0,
            "command": "python benchmarks/quantize_cost.py --data imagefolder:DIR/images "
            "--class-names DIR/classes.txt",
        },
    )


if __name__ == "__main__":
    main()
