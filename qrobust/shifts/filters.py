"""Blurs and samplings that corruptions and transformations share.

Images are `(..., H, W)` float32. Everything works image by image or element by element, so that an image's
result never depends on the batch it came in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

# Up to so many taps a sum of shifted pictures is faster than a matrix product or a Fourier transform.
DIRECT_TAPS = 32


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 `(N, 3, H, W)` to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float `(N, 3, H, W)`, clamped to [0, 1] and rounded to uint8."""
    return images.clamp(0, 1).mul_(255).round_().to(torch.uint8)


def gaussian_weights(sigma: float, reach: int) -> torch.Tensor:
    """Weights `(2 reach + 1,)` of a Gaussian of `sigma` px, with sum 1."""
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def mirrored(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside `0..size - 1` reflected about the picture's edge, as often as needed (d c b a | a b c d)."""
    folded = positions.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


@functools.lru_cache(maxsize=64)
def _smoothing_matrix(size: int, sigma: float, reach: int, mirror: bool) -> torch.Tensor:
    """The Gaussian blur of a line of `size` px as a matrix, border included."""
    source = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)
    source = mirrored(source, size) if mirror else source.clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    weights = gaussian_weights(sigma, reach).double().expand(size, -1)
    return matrix.scatter_add_(1, source, weights).float()


def smooth(images: torch.Tensor, sigma: float, *, truncate: float = 4.0, mirror: bool = False) -> torch.Tensor:
    """Gaussian blur of `sigma` px, cut off at `truncate` sigma.

    Args:
        images: `(N, C, H, W)`.
        sigma: standard deviation in px.
        truncate: reach in units of sigma.
        mirror: reflect about the border; otherwise its pixels are repeated outwards.
    """
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return images
    height, width = images.shape[-2:]
    if 2 * reach + 1 > DIRECT_TAPS:
        rows = _smoothing_matrix(height, sigma, reach, mirror)
        columns = _smoothing_matrix(width, sigma, reach, mirror)
        return torch.stack([rows @ image @ columns.T for image in images])
    if mirror:
        for axis in (2, 3):
            first, last = images.narrow(axis, 0, reach), images.narrow(axis, images.shape[axis] - reach, reach)
            images = torch.cat([first.flip(axis), images, last.flip(axis)], axis)
    else:
        images = F.pad(images, [reach] * 4, mode="replicate")
    weights = gaussian_weights(sigma, reach).tolist()
    lines = images[..., :height, :] * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        lines.add_(images[..., tap : tap + height, :], alpha=weight)
    result = lines[..., :width] * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        result.add_(lines[..., tap : tap + width], alpha=weight)
    return result


def pad_reflect(images: torch.Tensor, reach: int) -> torch.Tensor:
    """Reflect about the outermost pixels (c b | a b c), as often as a reach larger than the image needs."""
    while reach > 0:
        step = min(reach, images.shape[2] - 1, images.shape[3] - 1)
        images = F.pad(images, [step] * 4, mode="reflect")
        reach -= step
    return images


def _fourier_size(least: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5: the fast ones."""
    while True:
        rest = least
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return least
        least += 1


def convolve(padded: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Correlate `(N, C, H + h - 1, W + w - 1)` with a kernel `(h, w)`: `(N, C, H, W)`."""
    height, width = padded.shape[2] - kernel.shape[0] + 1, padded.shape[3] - kernel.shape[1] + 1
    taps = torch.nonzero(kernel).tolist()
    result = torch.zeros(*padded.shape[:2], height, width)
    if len(taps) <= DIRECT_TAPS:
        for y, x in taps:
            result.add_(padded[..., y : y + height, x : x + width], alpha=float(kernel[y, x]))
        return result
    shape = (_fourier_size(padded.shape[2]), _fourier_size(padded.shape[3]))
    spectrum = torch.fft.rfft2(kernel, s=shape).conj().resolve_conj()
    for target, image in zip(result, padded, strict=True):
        product = torch.fft.rfft2(image, s=shape).mul_(spectrum)
        target.copy_(torch.fft.irfft2(product, s=shape)[:, :height, :width])
    return result


def smear(images: torch.Tensor, radius: int, sigma: float, angles: torch.Tensor) -> torch.Tensor:
    """One-sided motion: `2 radius + 1` px long, its weights half a Gaussian of `sigma` px.

    Args:
        images: `(N, C, H, W)`.
        radius: half the length in px.
        sigma: in px.
        angles: direction `(N,)` in radians, per image.
    """
    length = 2 * radius + 1
    taps = torch.arange(length)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    dy = torch.ceil(taps * torch.sin(angles)[:, None] - 0.5).long()
    dx = torch.ceil(taps * torch.cos(angles)[:, None] - 0.5).long()
    left, right, top, bottom = (max(0, int(d)) for d in (-dx.min(), dx.max(), -dy.min(), dy.max()))
    padded = F.pad(images, [left, right, top, bottom], mode="replicate")
    result = torch.zeros_like(images)
    row = padded.shape[3]
    starts = ((dy + top) * row + dx + left).tolist()
    strides = (padded.shape[2] * row, row, 1)
    for image, target, offsets in zip(padded, result, starts, strict=True):
        # Views by stride: slicing takes longer than adding where images are small.
        first = image.storage_offset()
        for offset, weight in zip(offsets, weights.tolist(), strict=True):
            target.add_(image.as_strided(target.shape, strides, first + offset), alpha=weight)
    return result


def displace(images: torch.Tensor, right: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Sample bilinearly at each pixel's own place plus `(N, H, W)` px; mirrored at the border."""
    _, _, height, width = images.shape
    grid = torch.empty(len(images), height, width, 2)
    torch.add((torch.arange(width) * 2 + 1) / width - 1, right, alpha=2 / width, out=grid[..., 0])
    torch.add(((torch.arange(height) * 2 + 1) / height - 1)[:, None], down, alpha=2 / height, out=grid[..., 1])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def wobble(
    images: torch.Tensor, amplitude: float, sigma: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Displace every pixel by a smooth random field.

    Uniform noise in [-1, 1] is smoothed by a Gaussian of `sigma` px and multiplied by `amplitude` px.
    """
    n, _, height, width = images.shape
    words = [random_words(2 * height * width, torch.int16, g) for g in generators]
    noise = torch.stack(words).view(n, 2, height, width).to(torch.float32).add_(0.5)
    fields = smooth(noise, sigma, truncate=3.0, mirror=True).mul_(amplitude / 2**15)
    return displace(images, fields[:, 0], fields[:, 1])


def random_words(count: int, kind: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """`count` integers over the whole range of an integer type, many from each 64-bit draw."""
    draws = torch.empty(-(-count * kind.itemsize // 8), dtype=torch.int64)
    return draws.random_(-(2**63), None, generator=generator).view(kind)[:count]


def side(images: torch.Tensor) -> float:
    """Geometric mean of height and width in px: what a fraction of the side refers to."""
    return math.sqrt(images.shape[-2] * images.shape[-1])
