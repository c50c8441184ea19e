"""Common corruptions of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv 1903.12261, as batched tensor code.

Every function takes images `(N, 3, H, W)` float32 in [0, 1], its strength in physical units and one
random generator per image, and returns images of the same shape, clamped to [0, 1] by the renderer. The
result for an image depends on that image and its generator alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Generators = Sequence[torch.Generator]


def _draw(generators: Generators, images: torch.Tensor, draw: Callable[..., torch.Tensor]) -> torch.Tensor:
    return torch.stack([draw(images.shape[1:], generator=g) for g in generators])


def gaussian_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Add normal noise of standard deviation `sigma` (unit: the [0, 1] scale)."""
    return images + sigma * _draw(generators, images, torch.randn)


def shot_noise(images: torch.Tensor, photons: float, *, generators: Generators) -> torch.Tensor:
    """Poisson noise of a sensor that counts `photons` at full white."""
    counts = [torch.poisson(x * photons, generator=g) for x, g in zip(images, generators, strict=True)]
    return torch.stack(counts) / photons


def impulse_noise(images: torch.Tensor, amount: float, *, generators: Generators) -> torch.Tensor:
    """Set a fraction `amount` of all values to black or white, half each."""
    draw = _draw(generators, images, torch.rand)
    images = torch.where(draw < amount / 2, torch.zeros(()), images)
    return torch.where((draw >= amount / 2) & (draw < amount), torch.ones(()), images)


def _gaussian_kernel(taps: int, sigma: float) -> torch.Tensor:
    x = torch.arange(taps) - (taps - 1) / 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _disk_kernel(radius: float, alias_blur: float) -> torch.Tensor:
    """A disk, softened by a small Gaussian, as the benchmark defines it."""
    reach, taps = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    x = torch.arange(-reach, reach + 1)
    disk = (x[:, None] ** 2 + x[None, :] ** 2 <= radius**2).float()
    soft = _gaussian_kernel(taps, alias_blur)
    kernel = F.pad((disk / disk.sum())[None, None], [taps // 2] * 4, mode="reflect")
    return F.conv2d(kernel, (soft[:, None] * soft[None, :])[None, None])[0, 0]


def _pad_reflect(images: torch.Tensor, reach: int) -> torch.Tensor:
    """Reflect at the border as often as a reach larger than the image needs."""
    while reach > 0:
        step = min(reach, images.shape[2] - 1, images.shape[3] - 1)
        images = F.pad(images, [step] * 4, mode="reflect")
        reach -= step
    return images


def defocus_blur(images: torch.Tensor, radius: float, alias_blur: float, *, generators: Generators) -> torch.Tensor:
    """Convolve with a disk of `radius` px whose rim is softened by `alias_blur` px."""
    kernel = _disk_kernel(radius, alias_blur)
    weight = kernel.expand(3, 1, *kernel.shape).contiguous()
    return F.conv2d(_pad_reflect(images, len(kernel) // 2), weight, groups=3)


def motion_blur(images: torch.Tensor, radius: int, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Smear along a random direction between -45 and 45 degrees.

    The smear is one-sided, `2 radius + 1` px long, its weights a Gaussian of `sigma` px.
    """
    length = 2 * radius + 1
    weights = torch.exp(-(torch.arange(length) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    angle = torch.stack([torch.rand((), generator=g) for g in generators]) * (math.pi / 2) - math.pi / 4
    n, _, height, width = images.shape
    result = torch.zeros_like(images)
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    for tap in range(length):
        dy = torch.ceil(tap * torch.sin(angle) - 0.5).long()[:, None]
        dx = torch.ceil(tap * torch.cos(angle) - 0.5).long()[:, None]
        rows = (torch.arange(height)[None] + dy).clamp(0, height - 1)
        columns = (torch.arange(width)[None] + dx).clamp(0, width - 1)
        result += weights[tap] * images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return result


def plasma_fractal(size: int, decay: float, *, generators: Generators) -> torch.Tensor:
    """Diamond-square heights `(N, size, size)` in [0, 1]; `size` is a power of two.

    The benchmark's own variant, in which a corner's fourth neighbour is taken twice from one side.
    """
    heights = torch.zeros(len(generators), size, size)
    step, wobble = size, 100.0

    def mean(total: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.rand(total.shape[1:], generator=g) for g in generators])
        return total / 4 + wobble * wobble * (2 * noise - 1)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = mean(squares + squares.roll(-1, 2))
        centres = heights[:, half::step, half::step]
        across = corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = mean(centres + centres.roll(1, 1) + across)
        heights[:, half::step, ::step] = mean(centres + centres.roll(1, 2) + across)
        step, wobble = half, wobble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def fog(images: torch.Tensor, thickness: float, decay: float, *, generators: Generators) -> torch.Tensor:
    """Add a random fractal haze of `thickness` and rescale to the image's own brightest value."""
    _, _, height, width = images.shape
    size = 2 ** math.ceil(math.log2(max(height, width)))
    haze = plasma_fractal(size, decay, generators=generators)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * haze) * brightest / (brightest + thickness)


def brightness(images: torch.Tensor, offset: float, *, generators: Generators) -> torch.Tensor:
    """Add `offset` to the value channel of HSV; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + offset).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-6)), brighter)


def contrast(images: torch.Tensor, factor: float, *, generators: Generators) -> torch.Tensor:
    """Pull every channel towards its own mean: `(x - mean) * factor + mean`."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _per_image(images: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Apply a Pillow operation to each image as 8-bit pixels."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(p))) for p in pixels])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


def jpeg_compression(images: torch.Tensor, quality: int, *, generators: Generators) -> torch.Tensor:
    """Encode and decode as JPEG of `quality` (1 to 95)."""

    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _per_image(images, compress)


def pixelate(images: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """Shrink to `fraction` of the side and enlarge again, both with box filters."""

    def shrink(image: Image.Image) -> Image.Image:
        small = (max(1, int(image.width * fraction)), max(1, int(image.height * fraction)))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _per_image(images, shrink)
