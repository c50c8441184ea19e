"""Where a pixel lies, and numbers that each image has of its own: what the corruptions of c-bar are made of."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qrobust.shifts.filters import side
from qrobust.shifts.rng import Generators


def numbers(generators: Generators, images: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """So many uniform numbers in [0, 1] per image, each `(N, 1, 1, 1)`, on the images' device."""
    return generators.uniform(count).to(images.device).view(-1, count, 1, 1, 1).unbind(1)


def between(uniform: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Numbers in [0, 1] brought to `[low, high]`."""
    return low + (high - low) * uniform


def places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far right `(1, 1, 1, W)` and down `(1, 1, H, 1)` of the centre pixels lie, in sides of the picture.

    A side is the geometric mean of height and width, so pixels are square in pictures that are not.
    """
    height, width = images.shape[2:]
    x, y = (
        (torch.arange(length, device=images.device) + (1 - length) / 2) / side(images) for length in (width, height)
    )
    return x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)


def somewhere(across: torch.Tensor, down: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform numbers `(N, 1, 1, 1)` as a point of the picture, in sides from its centre."""
    height, width = images.shape[2:]
    return (across - 0.5) * (width / side(images)), (down - 0.5) * (height / side(images))


def sample(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Look at the pictures bilinearly at other places; what lies outside is mirrored.

    Args:
        images: `(N, C, H, W)`.
        x: where to look for each pixel `(N, 1, H, W)`, in sides right of the centre.
        y: the same, down.
    """
    height, width = images.shape[2:]
    grid = torch.stack([x[:, 0] * (2 * side(images) / width), y[:, 0] * (2 * side(images) / height)], -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
