"""Time and memory of quantizing MobileNetV2 at 224 px, and that memory does not grow with the images.

    python benchmarks/quantize_cost.py --data imagefolder:DIR/images --class-names DIR/classes.txt
    python benchmarks/quantize_cost.py --whole --data imagefolder:FOLDER

The second line measures the whole command `qrobust quantize` with its defaults, three times with one
`--calibration-cache`: for the target x86-vnni, which observes the ranges, for arm64, which reads them, and for
x86-vnni again, whose graph must be the first one to the byte.

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
from typing import Any

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


def measure_commands(data: str, threads: int) -> dict[str, Any]:
    """Quantize a network of random weights by the command with its defaults, in this process, thrice with a cache."""
    import tempfile

    import torch
    from torchvision.models import mobilenet_v2

    from qrobust.data.loading import open_data

    images, runs = open_data(data, seed=0, image_size=SIZE), []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.manual_seed(0)
        torch.save(mobilenet_v2(num_classes=len(images.class_names)).state_dict(), weights)
        for name, target in (("first", "x86-vnni"), ("other", "arm64"), ("again", "x86-vnni")):
            options = {
                "--model": "torchvision:mobilenet_v2",
                "--weights": weights,
                "--normalization": "imagenet",
                "--image-size": SIZE,
                "--data": data,
                "--out": Path(folder) / name,
                "--threads": threads,
                "--target": target,
                "--calibration-cache": Path(folder) / "ranges",
            }
            runs.append({"target": target} | measure_command(options))
            click.echo(runs[-1])
        graphs = [(Path(folder) / name / "int8.onnx").read_bytes() for name in ("first", "again")]
        kept_bytes = sum(file.stat().st_size for file in (Path(folder) / "ranges").iterdir())
    return {
        "images": len(images.calibration),
        "runs": runs,
        "kept_bytes": kept_bytes,
        "same_graph": graphs[0] == graphs[1],
    }


def measure_command(options: dict[str, Any]) -> dict[str, float]:
    """Seconds of one `qrobust quantize`, and those of them that observing ranges took."""
    from qrobust.cli.main import main as command
    from qrobust.quantization import quantize as quantization

    observe, observing = quantization.observe, [0.0]

    def timed_observe(*arguments: Any, **chosen: Any) -> Any:
        started = time.perf_counter()
        found = observe(*arguments, **chosen)
        observing[0] += time.perf_counter() - started
        return found

    words = ["quantize", *(str(word) for option in options.items() for word in option), "-q", "--anyway"]
    started = time.perf_counter()
    quantization.observe = timed_observe
    try:
        command(words, standalone_mode=False)
    finally:
        quantization.observe = observe
    if not observing[0]:
        raise click.ClickException("qrobust quantize did not come to observe ranges")
    return {"command_s": time.perf_counter() - started, "observe_s": observing[0]}


def keep_commands(data: str, threads: int) -> None:
    """Measure the whole command, and write what it took beside what was measured before."""
    from qrobust.record import hardware, to_json
    from qrobust.storage import write_json

    path = RESULTS / "quantize_cost.json"
    whole = measure_commands(data, threads) | {
        "hardware": to_json(hardware(threads)),
        "commit": git_commit(),
        "command": f"python benchmarks/quantize_cost.py --whole --data imagefolder:FOLDER --threads {threads}",
    }
    write_json(path, json.loads(path.read_text()) | {"whole_command": whole})


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of real images.")
@click.option("--class-names", help="File of the folder's class names; not needed for --whole.")
@click.option("--threads", default=2, show_default=True)
@click.option("--count", type=int, hidden=True)
@click.option("--whole", is_flag=True, help="Measure the whole command, on images in a folder per class.")
def main(data: str, class_names: str | None, threads: int, count: int | None, whole: bool) -> None:
    """Measure every count, each in a process of its own."""
    if whole:
        keep_commands(data, threads)
        return
    if class_names is None:
        raise click.UsageError("--class-names: expected a file, got none")
    if count:
        click.echo(json.dumps(measure(data, class_names, count, threads)))
        return
    from qrobust.record import hardware, to_json
    from qrobust.storage import write_json

    rows, kept = [], json.loads((RESULTS / "quantize_cost.json").read_text())
    for n in COUNTS:
        command = [sys.executable, __file__, "--data", data, "--class-names", class_names, "--threads", str(threads)]
        done = subprocess.run([*command, "--count", str(n)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(rows[-1])
    write_json(
        RESULTS / "quantize_cost.json",
        {key: value for key, value in kept.items() if key == "whole_command"}
        | {
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
