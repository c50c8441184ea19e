"""Geometric and photometric transformations, and what resizers, codecs and cheap sensors do to a picture.

Same contract as `corruptions`: images `(N, 3, H, W)` float32 in [0, 1] in and out, strength in physical
units; those that work on 8-bit pixels (`jpeg_chain`, `resize_*`) take and return uint8. Geometry samples
bilinearly; what lies outside the picture is black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional as F

from qrobust.shifts.corruptions.digital import jpeg_compression, per_image
from qrobust.shifts.corruptions.noise import poisson
from qrobust.shifts.filters import pad_reflect, side, wobble
from qrobust.shifts.rng import Generators

# Luma of ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)


def _warp(images: torch.Tensor, matrix: Sequence[Sequence[float]]) -> torch.Tensor:
    """Sample at `matrix @ (x, y, 1)`, coordinates from -1 to 1 with the centre at 0."""
    theta = torch.tensor(matrix, dtype=torch.float32).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotation(images: torch.Tensor, degrees: float, *, generators: Generators) -> torch.Tensor:
    """Turn counter-clockwise by `degrees` about the centre."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    ratio = images.shape[2] / images.shape[3]
    return _warp(images, [[c, -s * ratio, 0], [s / ratio, c, 0]])


def translation(images: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """Move right and down by `fraction` of the side."""
    return _warp(images, [[1, 0, -2 * fraction], [0, 1, -2 * fraction]])


def scale(images: torch.Tensor, factor: float, *, generators: Generators) -> torch.Tensor:
    """Show the picture at `factor` of its size; below 1 it shrinks."""
    return _warp(images, [[1 / factor, 0, 0], [0, 1 / factor, 0]])


def shear(images: torch.Tensor, degrees: float, *, generators: Generators) -> torch.Tensor:
    """Lean the picture sideways by `degrees`."""
    return _warp(images, [[1, math.tan(math.radians(degrees)), 0], [0, 1, 0]])


def inversion(images: torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """The photographic negative."""
    return 1 - images


def pose(images: torch.Tensor, degrees: float, right: float, down: float) -> torch.Tensor:
    """Turn counter-clockwise by `degrees` about the centre, then move by fractions of the side."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    ratio = images.shape[2] / images.shape[3]
    turned = [[c, -s * ratio], [s / ratio, c]]
    return _warp(images, [[a, b, -2 * (a * right + b * down)] for a, b in turned])


def perspective(images: torch.Tensor, share: float, *, generators: Generators) -> torch.Tensor:
    """Tilt the picture away from the viewer: its upper edge is shorter by `share`, its lower edge stays."""
    _, _, height, width = images.shape
    y = ((torch.arange(height) + 0.5) * (2 / height) - 1)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) * (2 / width) - 1).expand(height, width)
    # The homography under which the width falls evenly from 1 at the bottom to (1 - share) at the top.
    breadth = 1 - share / 2 + share / 2 * y
    grid = torch.stack([x / breadth, ((1 - share / 2) * y + share / 2) / breadth], -1)
    return F.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def elastic(images: torch.Tensor, pixels: float, *, generators: Generators) -> torch.Tensor:
    """Displace every pixel by a smooth random field, `pixels` px on average at a side of 224 px.

    The field is smoothed by a Gaussian of a twentieth of the side. Mirrored at the border.
    """
    unit = side(images)
    sigma = 0.05 * unit
    # Smoothing leaves uniform noise in [-1, 1] a deviation of 1 / (sqrt(3) * 2 sqrt(pi) sigma) on each axis,
    # and the mean length of a normal vector in the plane is sqrt(pi / 2) times that.
    mean_length = math.sqrt(math.pi / 2) / (math.sqrt(3) * 2 * math.sqrt(math.pi) * sigma)
    return wobble(images, pixels * unit / 224 / mean_length, sigma, generators)


def horizontal_flip(images: torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """The mirror image."""
    return images.flip(3)


def vertical_flip(images: torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """The picture upside down, mirrored."""
    return images.flip(2)


def solarize(images: torch.Tensor, threshold: float, *, generators: Generators) -> torch.Tensor:
    """Invert what is above `threshold`."""
    return torch.where(images > threshold, 1 - images, images)


def posterize(images: torch.Tensor, bits: int, *, generators: Generators) -> torch.Tensor:
    """Keep the `bits` highest bits of each 8-bit value."""
    step = 2 ** (8 - bits)
    return (images * 255).round_().div_(step).floor_().mul_(step / 255)


def _luma(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def grey(images: torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Luma (ITU-R BT.601) in all three channels."""
    return _luma(images).repeat(1, 3, 1, 1)


def saturation(images: torch.Tensor, factor: float, *, generators: Generators) -> torch.Tensor:
    """Move colours away from their luma by `factor`; 0 is grey."""
    luma = _luma(images)
    return luma + factor * (images - luma)


def hue(images: torch.Tensor, degrees: float, *, generators: Generators) -> torch.Tensor:
    """Turn colours about the grey axis by `degrees`; luma stays.

    The turn is one of YIQ's colour plane, so it is linear and has no special case for grey.
    """
    to_yiq = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], dtype=torch.float64)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    matrix = (torch.linalg.inv(to_yiq) @ turn @ to_yiq).tolist()
    red, green, blue = images.unbind(1)
    return torch.stack([a * red + b * green + d * blue for a, b, d in matrix], 1)


def gamma(images: torch.Tensor, exponent: float, *, generators: Generators) -> torch.Tensor:
    """Raise values to `exponent`; above 1 it darkens the middle tones."""
    return images**exponent


def sharpness(images: torch.Tensor, factor: float, *, generators: Generators) -> torch.Tensor:
    """Multiply what a 3 x 3 blur takes away by `factor`: above 1 an over-sharpened picture, 1 the same."""
    blurred = F.avg_pool2d(pad_reflect(images, 1), 3, stride=1)
    return blurred + factor * (images - blurred)


def jpeg_chain(pixels: torch.Tensor, qualities: Sequence[int], *, generators: Generators) -> torch.Tensor:
    """Compress uint8 `(N, 3, H, W)` again and again: shared, downloaded, shared again."""
    for quality in qualities:
        pixels = jpeg_compression(pixels, quality, generators=generators)
    return pixels


def _resized(pixels: torch.Tensor, fraction: float, kernel: Image.Resampling) -> torch.Tensor:
    def change(image: Image.Image) -> Image.Image:
        small = (max(1, round(image.width * fraction)), max(1, round(image.height * fraction)))
        return image.resize(small, kernel).resize(image.size, kernel)

    return per_image(pixels, change)


def resize_nearest(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """Shrink uint8 `(N, 3, H, W)` to `fraction` of the side and enlarge again, by the nearest pixel."""
    return _resized(pixels, fraction, Image.Resampling.NEAREST)


def resize_bilinear(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """As `resize_nearest`, bilinear; antialiased when it shrinks, as Pillow does it."""
    return _resized(pixels, fraction, Image.Resampling.BILINEAR)


def resize_bicubic(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """As `resize_nearest`, bicubic; antialiased when it shrinks, as Pillow does it."""
    return _resized(pixels, fraction, Image.Resampling.BICUBIC)


def resize_area(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """As `resize_nearest`, by the mean over the area that a pixel covers."""
    return _resized(pixels, fraction, Image.Resampling.BOX)


def bayer_mosaic(images: torch.Tensor, read_noise: float, *, generators: Generators) -> torch.Tensor:
    """One colour per pixel, as a sensor with an RGGB mosaic sees it, plus noise, and bilinear demosaicing.

    Args:
        images: `(N, 3, H, W)`.
        read_noise: standard deviation of the raw values, of 1.
        generators: of these images.
    """
    _, _, height, width = images.shape
    odd_row = (torch.arange(height) % 2)[:, None].expand(height, width)
    odd_column = (torch.arange(width) % 2).expand(height, width)
    mask = torch.stack([(1 - odd_row) * (1 - odd_column), (odd_row + odd_column) % 2, odd_row * odd_column]).float()
    noise = generators.normal(1, height, width)
    raw = (images * mask).sum(1, keepdim=True) + read_noise * noise
    seen = pad_reflect((raw.clamp(0, 1) * mask).contiguous(), 1)
    # Weights of the neighbours: of those that carry the colour, the nearest ones, averaged.
    cross = torch.tensor([[0, 0.25, 0], [0.25, 1, 0.25], [0, 0.25, 0]])
    square = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]])
    result = torch.zeros_like(images)
    for channel, kernel in enumerate((square, cross, square)):
        for y in range(3):
            for x in range(3):
                view = seen[:, channel, y : y + height, x : x + width]
                result[:, channel].add_(view, alpha=float(kernel[y, x]))
    return result


def vignetting(images: torch.Tensor, loss: float, *, generators: Generators) -> torch.Tensor:
    """Darken towards the corners by the fourth power of the cosine, `loss` of the light in the corner itself."""
    _, _, height, width = images.shape
    y = ((torch.arange(height) + 0.5) * (2 / height) - 1)[:, None]
    x = (torch.arange(width) + 0.5) * (2 / width) - 1
    tangent = (1 / math.sqrt(1 - loss) - 1) * (x**2 + y**2) / 2
    return images / (1 + tangent) ** 2


def low_light(images: torch.Tensor, exposure: float, photons: float, *, generators: Generators) -> torch.Tensor:
    """Expose for a fraction of the time, on a sensor that counts `photons` at what is white then."""
    return poisson(images, photons, generators=generators) * (exposure / photons)


def rolling_shutter(images: torch.Tensor, swing: float, *, generators: Generators) -> torch.Tensor:
    """Rows read one after the other while the camera swings sideways by `swing` of the side, once and a half."""
    _, _, height, width = images.shape
    y = ((torch.arange(height) + 0.5) * (2 / height) - 1)[:, None].expand(height, width)
    x = (torch.arange(width) + 0.5) * (2 / width) - 1
    moved = x - 2 * swing * torch.sin(1.5 * math.pi * (y + 1))
    grid = torch.stack([moved, y], -1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
