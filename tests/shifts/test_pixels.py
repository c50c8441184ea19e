"""Every shift gives the pixels that it gave before: those that were kept, and were measured, stay comparable.

Where this fails because a shift is to give other pixels, give it another `version` in the registry, so that kept
predictions are not taken for those of the new pixels, and write the file anew from the root of the project:

    PYTHONPATH=. python tests/shifts/test_pixels.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qrobust.shifts.generic import draw
from qrobust.shifts.registry import SHIFTS, TABLES
from qrobust.shifts.rendering import render

KEPT = Path(__file__).with_name("pixels.json")
HIGH, WIDE, IMAGES, DRAWN = 32, 40, 4, 24
# Row and column of pixels that are kept, one by one.
PLACES = torch.tensor([[0, 0], [3, 17], [9, 39], [15, 15], [16, 22], [22, 5], [31, 0], [31, 39]])
# Grey levels. Kernels of other processors round a pixel to its neighbour now and then.
OF_A_PIXEL, OF_A_MEAN = 1, 0.05


def pictures(count: int) -> torch.Tensor:
    """Triangle waves and edges of whole numbers, uint8 `(count, 3, 32, 40)`."""
    n, c = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    y, x = torch.arange(HIGH)[:, None], torch.arange(WIDE)
    wave = (((3 + n) * x + (5 - c) * y + 37 * n + 11 * c) % 128 - 64).abs() * 3
    box = ((y // 8 + x // 10 + n) % 3 == 0) * (20 + 10 * c)
    return (wave + box + 5 * n).clamp(0, 255).to(torch.uint8)


def figures(images: torch.Tensor) -> list[list[float]]:
    """Mean and deviation of each image, and single pixels of the first."""
    values = images.double().flatten(1)
    pixels = images[0][:, PLACES[:, 0], PLACES[:, 1]]
    return [values.mean(1).tolist(), values.std(1).tolist(), pixels.flatten().tolist()]


def rendered(name: str) -> dict[str, list[list[float]]]:
    """Figures of a shift at a middle strength and at its highest, one per table."""
    found = {}
    for table, severity in zip(TABLES, (3, 5), strict=True):
        defined = severity if SHIFTS[name].strengths[table][severity - 1] is not None else 5
        count = DRAWN if name.startswith("generic_") else IMAGES
        found[f"{table} {defined}"] = figures(render(pictures(count), name, defined, table=table, seed=0))
    return found


def trained_on() -> tuple[list[list[float]], list[bool]]:
    """Figures of images as a training draws them, and which of them were not moved."""
    shown, in_place = draw(pictures(DRAWN), torch.arange(DRAWN), seed=1, epoch=2)
    return figures(shown), in_place.tolist()


def assert_near(found: list[list[float]], wanted: list[list[float]]) -> None:
    for own, kept, tolerance in zip(found, wanted, (OF_A_MEAN, OF_A_MEAN, OF_A_PIXEL), strict=True):
        assert own == pytest.approx(kept, abs=tolerance)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_gives_the_pixels_that_it_gave_before(name: str) -> None:
    kept = json.loads(KEPT.read_text())["shifts"]
    assert name in kept, "a new shift: write the file anew"
    found = rendered(name)
    assert list(found) == list(kept[name])
    for condition, own in found.items():
        assert_near(own, kept[name][condition])


def test_a_training_draws_the_pixels_that_it_drew_before() -> None:
    kept, (found, in_place) = json.loads(KEPT.read_text())["draw"], trained_on()
    assert in_place == kept[1]
    assert_near(found, kept[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole = {"shifts": {name: rendered(name) for name in SHIFTS}, "draw": trained_on()}
    lines = json.dumps(json.loads(json.dumps(whole), parse_float=lambda text: round(float(text), 3)), indent=None)
    KEPT.write_text(lines.replace('"cifar-c', '\n  "cifar-c').replace('"imagenet-c', '\n  "imagenet-c') + "\n")
