"""A picture seen through moving water, or drawn into a whirl."""

from __future__ import annotations

import math

import torch

from qrobust.shifts.c_bar.places import between, numbers, places, sample, somewhere
from qrobust.shifts.rng import Generators

# Waves on the water; their lengths in sides of the picture; how much darker and brighter light may come together.
WAVES, LENGTHS, CONCENTRATION = 6, (0.3, 0.8), (0.5, 2.0)
# Length of a ripple, in sides of the picture.
RIPPLES = (0.15, 0.35)
# Radius of a whirl in sides of the picture, and how far from the picture's centre its own lies at most.
WHIRL, OFF_CENTRE = 0.6, 0.15


def caustic_refraction(images: torch.Tensor, depth: float, *, generators: Generators) -> torch.Tensor:
    """Look through water with waves: rays bend by their slopes, and light gathers where they meet.

    Args:
        images: `(N, C, H, W)`.
        depth: the root mean square of what pixels are displaced on each axis, in sides of the picture.
        generators: of the images.
    """
    x, y = places(images)
    moved_x = moved_y = xx = yy = xy = torch.zeros(len(images), 1, *images.shape[2:], device=images.device)
    for _ in range(WAVES):
        turn, length, phase = numbers(generators, images, 3)
        cosine, sine = torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn)
        pace = 2 * math.pi / between(length, *LENGTHS)
        angle = pace * (x * cosine + y * sine) + 2 * math.pi * phase
        # The waves' slopes are alike, so that a short wave is lower than a long one.
        slope, bend = torch.cos(angle), -pace * torch.sin(angle)
        moved_x, moved_y = moved_x + cosine * slope, moved_y + sine * slope
        xx, yy, xy = xx + cosine**2 * bend, yy + sine**2 * bend, xy + cosine * sine * bend
    # A cosine has the mean square 1/2, and so has that of a random direction.
    size = depth * 2 / math.sqrt(WAVES)
    # How much larger the area is that a pixel sees; its light is spread over less.
    area = (1 + size * xx) * (1 + size * yy) - (size * xy) ** 2
    light = (1 / area.abs().clamp(min=1e-6)).clamp(*CONCENTRATION)
    return sample(images, x + size * moved_x, y + size * moved_y) * light


def ripple(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Displace pixels along the line to a random point by a sine of the distance, by at most `amplitude` sides."""
    across, down, length, phase = numbers(generators, images, 4)
    x, y = places(images)
    right, low = somewhere(across, down, images)
    distance = ((x - right).square() + (y - low).square()).sqrt()
    moved = amplitude * torch.sin(2 * math.pi * (distance / between(length, *RIPPLES) + phase))
    share = moved / distance.clamp(min=1e-6)
    return sample(images, x + share * (x - right), y + share * (y - low))


def pinch_and_twirl(images: torch.Tensor, turn: float, *, generators: Generators) -> torch.Tensor:
    """Turn the middle of the picture by `turn` radians one way or the other, and pinch or widen it by exp(turn / 2).

    Both fall with the square of the distance, to nothing at a radius of 0.6 sides.
    """
    across, down, way, pinch = numbers(generators, images, 4)
    x, y = places(images)
    x, y = x - between(across, -OFF_CENTRE, OFF_CENTRE), y - between(down, -OFF_CENTRE, OFF_CENTRE)
    within = (1 - (x.square() + y.square()).sqrt() / WHIRL).clamp(min=0).square()
    angle = turn * torch.where(way < 0.5, -1.0, 1.0) * within
    factor = torch.exp(turn / 2 * torch.where(pinch < 0.5, -1.0, 1.0) * within)
    cosine, sine = factor * torch.cos(angle), factor * torch.sin(angle)
    right, low = (between(at, -OFF_CENTRE, OFF_CENTRE) for at in (across, down))
    return sample(images, right + x * cosine - y * sine, low + x * sine + y * cosine)
