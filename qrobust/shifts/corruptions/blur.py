"""Out of focus, behind structured glass, moved, or zoomed while the shutter is open."""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch.nn import functional as F

from qrobust.shifts.filters import (
    clipped_zoom,
    convolve,
    gaussian_weights,
    pad_reflect,
    smear,
    smooth,
)
from qrobust.shifts.rng import LEVELS, Generators

# Up to so many pixels all layers of a zoom are one sparse matrix, and a picture is one column of many.
MATRIX_PIXELS = 48 * 48
# Weights below this, of 1, are left out.
NEGLIGIBLE = 1e-9


@functools.lru_cache(maxsize=16)
def _disk_kernel(radius: float, alias_blur: float) -> torch.Tensor:
    """A disk, softened by a small Gaussian, as the benchmark defines it."""
    reach, soft_reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    x = torch.arange(-reach, reach + 1)
    disk = (x[:, None] ** 2 + x[None, :] ** 2 <= radius**2).float()
    soft = gaussian_weights(alias_blur, soft_reach)
    kernel = F.pad((disk / disk.sum())[None, None], [soft_reach] * 4, mode="reflect")
    kernel = F.conv2d(kernel, (soft[:, None] * soft[None, :])[None, None])[0, 0]
    # A weight too small to change a pixel costs an addition all the same, a subnormal one many.
    kernel[kernel < NEGLIGIBLE] = 0
    filled = torch.nonzero(kernel)[:, 0]
    rim = int(filled.min())
    return kernel[rim : len(kernel) - rim, rim : len(kernel) - rim].contiguous()


def defocus_blur(images: torch.Tensor, radius: float, alias_blur: float, *, generators: Generators) -> torch.Tensor:
    """Convolve with a disk of `radius` px whose rim is softened by `alias_blur` px."""
    kernel = _disk_kernel(radius, alias_blur)
    return convolve(pad_reflect(images, len(kernel) // 2), kernel)


def gaussian_blur(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Gaussian blur of `sigma` px."""
    return smooth(images, sigma)


@functools.lru_cache(maxsize=16)
def _glass_jumps(height: int, width: int, reach: int) -> torch.Tensor:
    """For each 16-bit number how far from a pixel's node its partner's lies, in `glass_blur`: int32 `(65,536,)`."""
    steps = torch.arange(-reach, reach)
    offsets = (steps[:, None] * width + steps).flatten()
    # One of the offsets for each number; how often each occurs differs by less than one in a thousand.
    offset = offsets[torch.arange(LEVELS) * len(offsets) // LEVELS]
    # Of this round if it has been replaced already, else of the round before.
    return torch.where(offset > 0, offset, offset - height * width).to(torch.int32)


def _glass_sources(height: int, width: int, reach: int, rounds: int, generators: Generators) -> torch.Tensor:
    """Which pixel each takes its value from in the end: positions int32 `(N, H * W)`.

    One after the other, from the last pixel to the first, each takes the value that one nearby has by then.
    So every pixel has a node per round, which points at a node of that round or the one before; where the
    pointers lead is found by letting all of them skip to where the next one points, until those of the last
    round lead to the picture as it was.
    """
    n, pixels = len(generators), height * width
    nodes = torch.arange(n * (rounds + 1) * pixels, dtype=torch.int32).view(n, rounds + 1, height, width)
    points = nodes.clone()
    points[:, 1:] -= pixels
    inner = slice(None), slice(1, None), slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    draws = generators.words(*nodes[inner].shape[1:])
    jumps = _glass_jumps(height, width, reach).index_select(0, draws.flatten())
    torch.add(nodes[inner], jumps.view(draws.shape), out=points[inner])
    flat, first = points.flatten(), nodes[:, 0, :1, :1]
    while (sources := flat.view(points.shape)[:, -1] - first).amax() >= pixels:
        flat = flat.index_select(0, flat)
    return sources.flatten(1)


def glass_blur(
    images: torch.Tensor, sigma: float, reach: int, rounds: int, *, generators: Generators
) -> torch.Tensor:
    """Blur by `sigma` px, let each pixel take the value of a random one nearby, `rounds` times, blur again.

    The published code means to swap the two pixels, but assigns one view of an array to another, so that one
    of the two values is lost. The published images were made that way, so it is done so here.

    Args:
        images: `(N, 3, H, W)`.
        sigma: of both blurs, in px.
        reach: a pixel looks at most so many px up or left, and one less down or right.
        rounds: how often all pixels are replaced, one after the other.
        generators: of these images.
    """
    height, width = images.shape[2:]
    source = _glass_sources(height, width, reach, rounds, generators)
    planes = torch.arange(len(images) * 3, dtype=torch.int32).view(-1, 3, 1) * (height * width)
    soft = smooth(images, sigma).mul(255).floor_().div_(255)  # to 8 bits, as published
    shuffled = soft.flatten().index_select(0, (planes + source[:, None]).flatten())
    return smooth(shuffled.view(images.shape), sigma)


def motion_blur(images: torch.Tensor, radius: int, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Smear along a random direction between -45 and 45 degrees.

    The smear is one-sided, `2 radius + 1` px long, its weights a Gaussian of `sigma` px.
    """
    angles = generators.uniform() * (math.pi / 2) - math.pi / 4
    return smear(images, radius, sigma, angles)


def _zoomed(images: torch.Tensor, step: float, layers: int) -> torch.Tensor:
    """The sum of the image and its layers, of whole numbers as of others."""
    height, width = images.shape[2:]
    total = 2 * (images if images.is_floating_point() else images.to(torch.int16))  # and the layer of factor 1
    for layer in range(1, layers):
        factor = 1 + layer * step
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        top, left = (height - rows) // 2, (width - columns) // 2
        total += clipped_zoom(images[:, :, top : top + rows, left : left + columns], factor, height, width)
    return total


@functools.lru_cache(maxsize=16)
def _zoom_matrix(height: int, width: int, step: float, layers: int) -> torch.Tensor:
    """What each pixel of the sum takes from those of the image, in a few places of a sparse `(H W, H W)`.

    Rounded so that sums over 8-bit pixels are exact in single precision, in whatever order they are taken.
    """
    single = torch.eye(height * width).view(-1, 1, height, width)
    fine = 2.0 ** math.floor(math.log2(2**24 / (255 * (layers + 1))))
    matrix = _zoomed(single, step, layers).flatten(1).T.mul(fine).round().div(fine)
    with warnings.catch_warnings(action="ignore"):  # torch calls its sparse tensors a beta
        return matrix.to_sparse_csr()


def zoom_blur(pixels: torch.Tensor, step: float, layers: int, *, generators: Generators) -> torch.Tensor:
    """Mean of the image and `layers` enlargements of its middle, by 1, 1 + step, 1 + 2 step, ...

    Args:
        pixels: uint8 `(N, 3, H, W)`.
        step: difference between successive enlargements.
        layers: how many of them.
        generators: not used.

    Returns:
        float32 in [0, 1].
    """
    n, channels, height, width = pixels.shape
    if height * width > MATRIX_PIXELS:
        total = _zoomed(pixels.contiguous(memory_format=torch.channels_last), step, layers).contiguous().float()
    else:
        planes = pixels.reshape(n * channels, -1).T.float()
        total = (_zoom_matrix(height, width, step, layers) @ planes).T.reshape(pixels.shape)
    return total.div_(255 * (layers + 1))
