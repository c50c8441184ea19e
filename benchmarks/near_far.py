"""Which shifts lie near the random operations that are learned from, and which far: before anything is trained.

    python benchmarks/near_far.py --data imagefolder:DIR --weights WEIGHTS --normalization imagenet

DIR is CIFAR-10 (JPEG) and WEIGHTS a public ResNet-20 trained on CIFAR-10's original pixels. After the minimal sample
distance of Mintun, Kirillov and Xie, "On Interaction Between Augmentations and Corruptions in Natural Corruption
Robustness", arXiv 2102.11273: what an operation does is the mean, over a fixed set of images, by which it moves the
features that a reference network's last layer reads; a random operation of `qrobust.shifts.generic` is drawn once for
all images, a corruption's random numbers are each image's own. The distance of a shift is that to the nearest of
10,000 draws.

Distances are pooled over severities and relative to what the shift does itself: the root of the sum of their squares,
over that of the shift's own. 0 is a draw that does the same at each severity, 1 is no nearer than a clean picture.

The threshold is set without any shift: each of the six families of random operations is left out in turn, and its own
operations are held to the draws of the other five. A shift is far if it is at least as far from all draws as a
left-out family is from the others, on average over families; what is nearer resembles what is learned more than that.
So the threshold is the distance to what is known not to have been learned, on the same images by the same network.

Images are validation images, which are taken from the training images. Results go to `results/near_far.json`, and
from there to `qrobust/shifts/nearness.py`, which a test holds to them.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit
from torch import nn

from qrobust.data.loading import open_data
from qrobust.device import CPU, fast_arithmetic
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.record import hardware, to_json, versions
from qrobust.shifts import generic
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.registry import C_BAR, SEVERITIES, SUITES, defined_conditions, table_for
from qrobust.shifts.rendering import render
from qrobust.shifts.rng import Generators
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
NAMES = (*SUITES["corruptions-19"], *SUITES["transformations"], *SUITES[C_BAR])
# Random operations; of each family, operations that are left out for the threshold; renders of a random shift.
DRAWS, LEFT_OUT, SEEDS = 10_000, 200, 4
TOGETHER = 8  # draws that go through the network at once


@dataclass(frozen=True)
class Draw:
    """One random operation: its families, their strength in all, and the seed of its numbers."""

    families: tuple[str, ...]
    strength: float
    seed: int


def drawn(count: int, seed: int, families: Sequence[str] = generic.FAMILIES, depth: int | None = None) -> list[Draw]:
    """Random operations as training meets them, or of one depth."""
    numbers, found = random.Random(seed), []
    for _ in range(count):
        deep = depth or numbers.choices(list(generic.DEPTHS), list(generic.DEPTHS.values()))[0]
        chosen = tuple(numbers.sample(list(families), deep))
        found.append(Draw(chosen, numbers.random() ** generic.STRENGTH_POWER, numbers.getrandbits(63)))
    return found


class Features:
    """What a network's last layer reads of some images, the mean by which operations move it."""

    def __init__(self, model: nn.Module, pixels: torch.Tensor) -> None:
        self.model, self.pixels, self.kept = model.to(memory_format=torch.channels_last), pixels, torch.empty(0)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_pre_hook(self._keep)
        self.clean = self.means([pixels])

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.kept = inputs[0].float()

    def means(self, changed: list[torch.Tensor]) -> torch.Tensor:
        """The mean over the images `(len(changed), features)` of each changed uint8 `(n, C, H, W)`."""
        images = to_unit(torch.cat(changed)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), fast_arithmetic(CPU):
            self.model(images)
        return self.kept.view(len(changed), len(self.pixels), -1).double().mean(1)

    def of_draws(self, draws: Sequence[Draw]) -> torch.Tensor:
        """What random operations do `(len(draws), features)`."""
        images, n = to_unit(self.pixels), len(self.pixels)
        found = []
        for start in range(0, len(draws), TOGETHER):
            changed = []
            for draw in draws[start : start + TOGETHER]:
                depths, streams = torch.full((n,), len(draw.families)), Generators([draw.seed] * n)
                strength = draw.strength
                shown, _ = generic.apply(images, strength, generators=streams, depths=depths, families=draw.families)
                changed.append(to_uint8(shown))
            found.append(self.means(changed) - self.clean)
        return torch.cat(found)

    def of_shift(self, name: str, table: str) -> torch.Tensor:
        """What a shift does at each of its severities `(severities, features)`."""
        found = []
        for _, severity in defined_conditions((name,), SEVERITIES, table):
            changed = [render(self.pixels, name, severity, table=table, seed=seed) for seed in range(SEEDS)]
            found.append(self.means(changed).mean(0) - self.clean[0])
        return torch.stack(found)


def relative_distance(moved: torch.Tensor, draws: torch.Tensor) -> float:
    """How far what is done `(k, features)` is from the nearest of the draws `(n, features)`, of its own size."""
    nearest = torch.cdist(moved, draws).amin(1)
    return math.sqrt(float(nearest.square().sum() / moved.square().sum()))


def nearest_draw(moved: torch.Tensor, draws: torch.Tensor, told: Sequence[Draw]) -> list[str]:
    """The families of the draw that is nearest to the last row, for readers."""
    return list(told[int(torch.cdist(moved[-1:], draws).argmin())].families)


def threshold(features: Features, moved: torch.Tensor, draws: Sequence[Draw], seed: int) -> dict[str, float]:
    """Per family, how far its operations are from the draws in which it has no part."""
    found = {}
    for number, family in enumerate(generic.FAMILIES):
        others = torch.tensor([family not in draw.families for draw in draws])
        own = features.of_draws(drawn(LEFT_OUT, seed + 1 + number, (family,), depth=1))
        found[family] = relative_distance(own, moved[others])
    return found


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--model", default=f"{Path(__file__).parent / 'padded_resnet20.py'}:make")
@click.option("--normalization", required=True)
@click.option("--images", default=50, show_default=True, help="Validation images.")
@click.option("--draws", default=DRAWS, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Class every shift and write the result."""
    torch.set_num_threads(options["threads"])
    began, seed = time.perf_counter(), 0
    data = open_data(options["data"], seed=seed)
    pixels = data.validation.read(slice(0, options["images"]))
    model = load_model(
        find_model(options["model"]),
        classes=len(data.class_names),
        image_size=pixels.shape[2],
        weights=options["weights"],
        pretrained=False,
        normalization=options["normalization"],
        seed=seed,
    )
    features, table = Features(model, pixels), table_for(pixels.shape[2])
    draws = drawn(options["draws"], seed)
    moved = features.of_draws(draws)
    left_out = threshold(features, moved, draws, seed)
    limit = sum(left_out.values()) / len(left_out)
    click.echo(f"threshold {limit:.3f}: {left_out}")
    shifts = {}
    for name in NAMES:
        own = features.of_shift(name, table)
        distance = relative_distance(own, moved)
        shifts[name] = {
            "distance": distance,
            "far": distance >= limit,
            "size": math.sqrt(float(own.square().sum(1).mean())),
            "nearest_families": nearest_draw(own, moved, draws),
        }
        click.echo(f"{name}: {shifts[name]}")
    write_json(
        RESULTS / "near_far.json",
        {
            "network": "a public ResNet-20 trained on CIFAR-10's original pixels",
            "weights_sha256": hashlib.sha256(options["weights"].read_bytes()).hexdigest(),
            "split": "validation",
            "n": len(pixels),
            "severity_table": table,
            "draws": len(draws),
            "left_out_operations": LEFT_OUT,
            "renders": SEEDS,
            "left_out_distance": left_out,
            "threshold": limit,
            "shifts": shifts,
            "duration_s": time.perf_counter() - began,
            "hardware": to_json(hardware(options["threads"])),
            "versions": versions(),
            "seed": seed,
            "commit": git_commit(),
            "command": "python benchmarks/near_far.py --data imagefolder:DIR --weights WEIGHTS "
            "--normalization imagenet",
        },
    )


if __name__ == "__main__":
    main()
