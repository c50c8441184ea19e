"""Blurs and samplings that corruptions and transformations share.

Images are `(..., H, W)` float32. Everything works image by image or element by element, so that an image's
result never depends on the batch it came in.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional as F

from qrobust.shifts.rng import Generators

# Up to so many taps a sum of shifted pictures is faster than a matrix product or a Fourier transform.
DIRECT_TAPS = 32


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 `(N, C, H, W)` to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float `(N, C, H, W)`, clamped to [0, 1] and rounded to uint8."""
    # By way of int16, which is several times as fast.
    return images.clamp(0, 1).mul_(255).round_().to(torch.int16).to(torch.uint8)


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
    # Beyond four sigma a tap has less than a thousandth of the first one's weight.
    taps = torch.arange(min(2 * radius, int(4 * sigma + 0.5)) + 1)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    dy = torch.ceil(taps * torch.sin(angles)[:, None] - 0.5).long()
    dx = torch.ceil(taps * torch.cos(angles)[:, None] - 0.5).long()
    left, right, top, bottom = (max(0, int(d)) for d in (-dx.min(), dx.max(), -dy.min(), dy.max()))
    n, channels, height, width = images.shape
    padded = F.pad(images, [left, right, top, bottom], mode="replicate")
    tall, wide = padded.shape[2:]
    # Every shifted image is a window on the padded ones, named by the place of its first pixel in memory.
    last = padded.numel() - channels * tall * wide + (tall - height) * wide + wide - width
    windows = padded.as_strided((last + 1, *images.shape[1:]), (1, tall * wide, wide, 1))
    starts = torch.arange(n)[:, None] * padded[0].numel() + (dy + top) * wide + dx + left
    result = torch.zeros(images.shape)
    for start, weight in zip(starts.unbind(1), weights.tolist(), strict=True):
        result.add_(windows.index_select(0, start) if n > 1 else windows[int(start)], alpha=weight)
    return result


def clipped_zoom(images: torch.Tensor, factor: float, height: int, width: int) -> torch.Tensor:
    """Enlarge the middle `(ceil(H / factor), ceil(W / factor))` bilinearly by `factor`, corners on corners."""
    size = (round(images.shape[2] * factor), round(images.shape[3] * factor))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)[:, :, :height, :width]


@functools.lru_cache(maxsize=64)
def _waves(size: int, sigma: float) -> torch.Tensor:
    """What white noise on a mirrored line of `size` px consists of after a Gaussian blur of `sigma` px.

    These are the cosines of a discrete cosine transform, each times what the blur, cut off at three sigma,
    leaves of it; those of which it leaves less than a hundredth are left out.

    Returns:
        `(size, K)`, one cosine per column.
    """
    reach = int(3 * sigma + 0.5)
    frequencies = torch.arange(size, dtype=torch.float64) * (math.pi / size)
    taps = torch.arange(-reach, reach + 1)
    gains = torch.cos(torch.outer(frequencies, taps)) @ gaussian_weights(sigma, reach).double()
    waves = torch.cos(torch.outer(torch.arange(size) + 0.5, frequencies)) * math.sqrt(2 / size)
    waves[:, 0] /= math.sqrt(2)
    return (waves * gains)[:, gains.abs() > 0.01].float().contiguous()


@functools.lru_cache(maxsize=4)
def _pixel_centres(height: int, width: int) -> torch.Tensor:
    """x and y of each pixel `(H, W, 2)`, from -1 to 1 between the borders of the outermost pixels."""
    y, x = ((torch.arange(size) * 2 + 1) / size - 1 for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def wobble(images: torch.Tensor, amplitude: float, sigma: float, generators: Generators) -> torch.Tensor:
    """Displace every pixel by a smooth random field.

    White noise of the variance of uniform numbers in [-1, 1] is smoothed by a Gaussian of `sigma` px, mirrored
    about the border, and multiplied by `amplitude` px.
    """
    n, _, height, width = images.shape
    rows, columns = _waves(height, sigma), _waves(width, sigma)
    # In the units of the sampler, from -1 to 1 between the borders of the outermost pixels.
    scales = torch.tensor([2 / width, 2 / height]).mul_(amplitude / math.sqrt(3)).view(2, 1, 1)
    noise = generators.normal(2, rows.shape[1], columns.shape[1]).mul_(scales)
    grid = torch.empty(n, height, 2 * width)
    for of_one, target in zip(noise, grid, strict=True):
        torch.mm(rows, (of_one @ columns.T).permute(1, 2, 0).flatten(1), out=target)
    grid = grid.view(n, height, width, 2).add_(_pixel_centres(height, width))
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def side(images: torch.Tensor) -> float:
    """Geometric mean of height and width in px: what a fraction of the side refers to."""
    return math.sqrt(images.shape[-2] * images.shape[-1])
