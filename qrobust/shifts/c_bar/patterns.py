"""Regular patterns in front of a picture: waves, a checkerboard, stars."""

from __future__ import annotations

import math

import torch

from qrobust.shifts.c_bar.places import between, numbers, places, somewhere
from qrobust.shifts.rng import Generators

# Shortest and longest wave of one frequency, and of rings, in sides of the picture: from 3 px at a side of 32 px.
PLANE_LENGTHS, RING_LENGTHS = (0.1, 0.3), (0.12, 0.35)
# Side of a square of the checkerboard, in sides of the picture.
SQUARES = (0.12, 0.3)
# Stars in a picture; the shortest one's length, of the longest; reach of light between rays, of that along them.
STARS, SHORTEST, BODY = 12, 0.4, 0.2


def plane_waves(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Add a grey sine of one frequency, with a random direction, length and phase."""
    turn, length, phase = numbers(generators, images, 3)
    x, y = places(images)
    along = x * torch.cos(2 * math.pi * turn) + y * torch.sin(2 * math.pi * turn)
    return images + amplitude * torch.sin(2 * math.pi * (along / between(length, *PLANE_LENGTHS) + phase))


def concentric_waves(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Add rings about a random point: a sine of the distance, in each channel with another phase."""
    across, down, length, *_ = numbers(generators, images, 3)
    phases = generators.uniform(3)[:, : images.shape[1], None, None].to(images.device)
    x, y = places(images)
    right, low = somewhere(across, down, images)
    distance = ((x - right) ** 2 + (y - low) ** 2).sqrt()
    return images + amplitude * torch.sin(2 * math.pi * (distance / between(length, *RING_LENGTHS) + phases))


def checkerboard_cutout(images: torch.Tensor, opacity: float, *, generators: Generators) -> torch.Tensor:
    """Cover every other square of a tilted board, all in one random grey that hides `opacity` of the picture."""
    turn, size, right, low, grey = numbers(generators, images, 5)
    x, y = places(images)
    cosine, sine = torch.cos(math.pi / 2 * turn), torch.sin(math.pi / 2 * turn)
    unit = between(size, *SQUARES)
    column = ((x * cosine + y * sine) / unit + 2 * right).floor()
    row = ((y * cosine - x * sine) / unit + 2 * low).floor()
    covered = (column + row).remainder(2)
    return images + opacity * covered * (grey - images)


def _stars(images: torch.Tensor, length: float, generators: Generators) -> torch.Tensor:
    """How much of the light each pixel has of stars with four rays `(N, 1, H, W)`, in [0, 1].

    Args:
        images: whose size the result has.
        length: of the rays of the longest star, in sides of the picture: there its light has fallen to 1 / e.
        generators: of the images.
    """
    x, y = places(images)
    dark = torch.ones(len(images), 1, *images.shape[2:], device=images.device)
    for _ in range(STARS):
        across, down, turn, size = numbers(generators, images, 4)
        right, low = somewhere(across, down, images)
        cosine, sine = torch.cos(math.pi / 2 * turn), torch.sin(math.pi / 2 * turn)
        u = ((x - right) * cosine + (y - low) * sine).square()
        v = ((y - low) * cosine - (x - right) * sine).square()
        squared = (u + v).clamp(min=1e-12)
        # The eighth power of the cosine of twice the angle: 1 along the four rays, 0 between them.
        rays = ((u - v) / squared).square().square().square()
        reach = max(length, 1e-9) * between(size, SHORTEST, 1.0) * (BODY + (1 - BODY) * rays)
        dark = dark * (1 - torch.exp(-squared.sqrt() / reach))
    return 1 - dark


def sparkles(images: torch.Tensor, length: float, *, generators: Generators) -> torch.Tensor:
    """Let white stars shine in front of the picture, with rays of `length` sides."""
    return images + _stars(images, length, generators) * (1 - images)


def inverse_sparkles(images: torch.Tensor, length: float, *, generators: Generators) -> torch.Tensor:
    """Let black stars swallow the picture, with rays of `length` sides."""
    return images * (1 - _stars(images, length, generators))
