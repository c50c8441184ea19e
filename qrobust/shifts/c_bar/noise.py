"""Noise that is not independent from pixel to pixel: of a colour, of cells, of a lattice."""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional as F

from qrobust.shifts.c_bar.places import numbers, places, somewhere
from qrobust.shifts.rng import Generators

# Power of the frequency by which the amplitudes of coloured noise go; white is 0.
BLUE, BROWNISH = 1.0, -1.5
# Size of each finer grid's numbers in plasma noise, of those of the grid before.
ROUGHNESS = 0.7
# Cells of Voronoi noise.
CELLS = 24
# Cells of the lattice along a side in the first octave of Perlin noise, and the number of octaves.
LATTICE, OCTAVES = 5, 3


@functools.lru_cache(maxsize=16)
def _spectrum(height: int, width: int, exponent: float) -> torch.Tensor:
    """What coloured noise keeps of each frequency of white noise `(H, W // 2 + 1)`: its variance stays 1."""
    down = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    across = torch.fft.fftfreq(width, dtype=torch.float64)
    frequency = (down**2 + across**2).sqrt()
    frequency[0, 0] = math.inf if exponent < 0 else 0  # there is no constant part
    gains = frequency**exponent
    gains = gains / gains.square().mean().sqrt()
    return gains[:, : width // 2 + 1].float()


def _coloured(images: torch.Tensor, exponent: float, generators: Generators) -> torch.Tensor:
    """Normal noise of variance 1 whose amplitudes go by a power of the frequency; of each channel its own."""
    _, channels, height, width = images.shape
    white = generators.normal(channels, height, width)
    gains = _spectrum(height, width, exponent)
    result = torch.empty_like(white)
    for target, noise in zip(result, white, strict=True):
        target.copy_(torch.fft.irfft2(torch.fft.rfft2(noise) * gains, s=(height, width)))
    return result.to(images.device)


def blue_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Add noise whose amplitudes grow with the frequency, of standard deviation `sigma`."""
    return images + sigma * _coloured(images, BLUE, generators)


def brownish_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Add noise whose amplitudes fall with the frequency to the power 1.5, of standard deviation `sigma`."""
    return images + sigma * _coloured(images, BROWNISH, generators)


def plasma_noise(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Add clouds of colour: random numbers on grids of 2, 3, 5, 9 ... points, on each 0.7 times as large as before.

    Between the points of a grid they are interpolated bilinearly. What is added is at most `amplitude` in size.
    """
    _, channels, height, width = images.shape
    sizes = [2]
    while 2 * sizes[-1] - 1 < max(height, width):
        sizes.append(2 * sizes[-1] - 1)
    shares = [ROUGHNESS**octave for octave in range(len(sizes))]
    total = torch.zeros(images.shape, device=images.device)
    for size, share in zip(sizes, shares, strict=True):
        drawn = (2 * generators.uniform(channels, size, size) - 1).to(images.device)
        part = F.interpolate(drawn, size=(height, width), mode="bilinear", align_corners=True)
        total.add_(part, alpha=share / sum(shares))
    return images + amplitude * total


def voronoi_noise(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Add a random colour, at most `amplitude` in size, to each of 24 cells: the pixels nearest to a random point."""
    _, channels, height, width = images.shape
    x, y = places(images)
    nearest = torch.full((len(images), 1, height, width), math.inf, device=images.device)
    added = torch.zeros(images.shape, device=images.device)
    for _ in range(CELLS):
        across, down, *colour = numbers(generators, images, 5)
        right, low = somewhere(across, down, images)
        distance = (x - right).square() + (y - low).square()
        added = torch.where(distance < nearest, torch.cat(colour, 1)[:, :channels], added)
        nearest = torch.minimum(distance, nearest)
    return images + amplitude * (2 * added - 1)


def _gradient_noise(gradients: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient noise: 0 at the corners of a lattice, where it rises along random directions.

    Ken Perlin, "Improving Noise", 2002: the fifth-degree fade between the corners.

    Args:
        gradients: unit vectors at the corners `(N, rows, columns, 2)`.
        x: where along the columns `(W,)`, from 0 to less than columns - 1.
        y: where along the rows `(H,)`.

    Returns:
        `(N, H, W)` in [-1, 1].
    """
    column, row = x.floor().long(), y.floor().long()
    right, low = x - column, (y - row)[:, None]

    def towards(below: int, beside: int) -> torch.Tensor:
        corner = gradients[:, row + below][:, :, column + beside]
        return corner[..., 0] * (right - beside) + corner[..., 1] * (low - below)

    def fade(part: torch.Tensor) -> torch.Tensor:
        return part * part * part * (part * (part * 6 - 15) + 10)

    across, down = fade(right), fade(low)
    top = towards(0, 0) + across * (towards(0, 1) - towards(0, 0))
    bottom = towards(1, 0) + across * (towards(1, 1) - towards(1, 0))
    # In the middle of a cell all four corners may point at it, which gives the half of a diagonal.
    return math.sqrt(2) * (top + down * (bottom - top))


def perlin_noise(images: torch.Tensor, amplitude: float, *, generators: Generators) -> torch.Tensor:
    """Add grey gradient noise of three octaves, each half as large as the one before, at most `amplitude` in all."""
    x, y = places(images)
    x, y = x.flatten() - x.min(), y.flatten() - y.min()
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    for octave in range(OCTAVES):
        cells = LATTICE * 2**octave
        # One corner more than the last cell begins at.
        rows, columns = (int(line.max() * cells) + 2 for line in (y, x))
        angle = (2 * math.pi * generators.uniform(rows, columns)).to(images.device)
        gradients = torch.stack([angle.cos(), angle.sin()], -1)
        total = total + 0.5**octave * _gradient_noise(gradients, x * cells, y * cells)
    return images + (amplitude / (2 - 0.5 ** (OCTAVES - 1))) * total[:, None]
