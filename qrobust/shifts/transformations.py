"""Geometric and photometric transformations: a camera that is turned, shifted, too far, or negative.

Same contract as `corruptions`: images `(N, 3, H, W)` float32 in [0, 1] in and out, strength in physical
units. Geometry samples bilinearly; what lies outside the picture is black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def _warp(images: torch.Tensor, matrix: Sequence[Sequence[float]]) -> torch.Tensor:
    """Sample at `matrix @ (x, y, 1)`, coordinates from -1 to 1 with the centre at 0."""
    theta = torch.tensor(matrix, dtype=torch.float32).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotation(images: torch.Tensor, degrees: float, *, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Turn counter-clockwise by `degrees` about the centre."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    ratio = images.shape[2] / images.shape[3]
    return _warp(images, [[c, -s * ratio, 0], [s / ratio, c, 0]])


def translation(images: torch.Tensor, fraction: float, *, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Move right and down by `fraction` of the side."""
    return _warp(images, [[1, 0, -2 * fraction], [0, 1, -2 * fraction]])


def scale(images: torch.Tensor, factor: float, *, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Show the picture at `factor` of its size; below 1 it shrinks."""
    return _warp(images, [[1 / factor, 0, 0], [0, 1 / factor, 0]])


def shear(images: torch.Tensor, degrees: float, *, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Lean the picture sideways by `degrees`."""
    return _warp(images, [[1, math.tan(math.radians(degrees)), 0], [0, 1, 0]])


def inversion(images: torch.Tensor, *, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """The photographic negative."""
    return 1 - images
