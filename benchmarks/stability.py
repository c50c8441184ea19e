"""Do predictions flip more often from frame to frame with a remedy than without?

    python benchmarks/stability.py --data imagefolder:~/data/cifar10 --ladder ~/runs/ladder

`--ladder` is where ladder.py left its graphs. Each test image becomes sequences of ten frames in which it moves a
little from one to the next, as a hand or a mount lets it: sideways by a fifth of a pixel, turning by half a degree,
coming nearer by a hundredth; in a direction of its own, bilinear, mirrored at the border. A flip is a prediction that
differs from that of the frame before: the "flip probability" of Hendrycks and Dietterich (arXiv 1903.12261), on
motions of our own. The exported graphs run on onnxruntime.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit
from torch.nn import functional as F

from qrobust.data.loading import open_data
from qrobust.deployment.deploy import open_on_target
from qrobust.evaluation.statistics import paired_bootstrap
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, to_json, versions
from qrobust.remedies import LADDER, SECOND_LOOKS
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results" / "stability.json"
FRAMES, SIZE, BATCH = 10, 32, 50
# From one frame to the next: pixels, degrees, share of the size.
STEPS = {"translation": 0.2, "rotation": 0.5, "zoom": 0.01}


def frames(images: torch.Tensor, motion: str, generator: torch.Generator) -> torch.Tensor:
    """Sequences `(N, FRAMES, C, S, S)` uint8 of images `(N, C, S, S)` in [0, 1]; the first frame is the image.

    Args:
        images: what moves.
        motion: of `STEPS`.
        generator: draws a direction for each image.
    """
    n, size = len(images), images.shape[-1]
    direction = 2 * math.pi * torch.rand(n, 1, generator=generator)
    sign = torch.where(direction < math.pi, 1.0, -1.0)
    time = STEPS[motion] * torch.arange(FRAMES)
    x, y = torch.zeros(n, FRAMES), torch.zeros(n, FRAMES)
    angle, scale = torch.zeros(n, FRAMES), torch.ones(n, FRAMES)
    if motion == "translation":
        x, y = 2 / size * direction.cos() * time, 2 / size * direction.sin() * time
    elif motion == "rotation":
        angle = torch.deg2rad(sign * time)
    else:
        scale = 1 + sign * time
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], -2).flatten(0, 1)
    shape = [n * FRAMES, *images.shape[1:]]
    grid = F.affine_grid(matrix, shape, align_corners=False)
    moved = F.grid_sample(images.repeat_interleave(FRAMES, 0), grid, padding_mode="reflection", align_corners=False)
    return to_uint8(moved).unflatten(0, (n, FRAMES))


def flips(predictions: np.ndarray) -> np.ndarray:
    """Share of each sequence's steps `(N,)` at which the prediction changes; predictions `(N, FRAMES)`."""
    return (predictions[:, 1:] != predictions[:, :-1]).mean(1)


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Flips of every graph under every motion, and how many more than INT8's."""
    folder: Path = options["ladder"]
    names = ["float", "int8", *(n for n in (*LADDER, *SECOND_LOOKS) if (folder / f"{n}.onnx").exists())]
    sessions = {name: open_on_target(folder / f"{name}.onnx", X86_VNNI) for name in names}
    test = open_data(options["data"], seed=0, image_size=SIZE).test.first(options["images"])
    result: dict[str, Any] = {name: {} for name in names}
    for motion in STEPS:
        generator, said = torch.Generator().manual_seed(0), {name: list[np.ndarray]() for name in names}
        for pixels, _ in test.batches(BATCH):
            shown = to_unit(frames(to_unit(pixels), motion, generator).flatten(0, 1))
            for name, session in sessions.items():
                said[name].append(session(shown).argmax(1).reshape(-1, FRAMES).numpy())
        each = {name: flips(np.concatenate(found)) for name, found in said.items()}
        for name, found in each.items():
            more = found - each["int8"]
            low, high = paired_bootstrap(more, 0)
            result[name][motion] = {
                "flips": float(found.mean()),
                "more_pp": 100 * float(more.mean()),
                "more_interval_pp": [100 * low, 100 * high],
            }
    return {"n": len(test), "graphs": result}


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--ladder", type=click.Path(path_type=Path, exists=True), required=True, help="OUT of ladder.py.")
@click.option("--images", default=1000, show_default=True, help="The first test images.")
def main(**options: Any) -> None:
    """Measure, and write results/stability.json."""
    torch.set_num_threads(1)
    about = {
        "command": f"python benchmarks/stability.py --data imagefolder:DIR --ladder OUT --images {options['images']}",
        "frames": FRAMES,
        "steps": STEPS,
        "commit": git_commit(),
        "versions": versions(),
        "hardware": to_json(hardware(1)),
    }
    write_json(RESULTS, measure(options) | about)


if __name__ == "__main__":
    main()
