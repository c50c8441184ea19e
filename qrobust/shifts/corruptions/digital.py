"""What happens to a picture in a camera and in files."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch.nn import functional as F

from qrobust.shifts.filters import side, wobble
from qrobust.shifts.rng import Generators


def contrast(images: torch.Tensor, factor: float, *, generators: Generators) -> torch.Tensor:
    """Pull every channel towards its own mean: `(x - mean) * factor + mean`."""
    # Sums of 8-bit pixels are exact in double precision, in whatever order they are taken.
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float64).float()
    return (images - mean).mul_(factor).add_(mean)


def saturate(images: torch.Tensor, factor: float, offset: float, *, generators: Generators) -> torch.Tensor:
    """Multiply HSV's saturation by `factor` and add `offset`; where there is no hue, red is added."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    depth = value - least
    saturation = depth / value.clamp(min=1e-6)
    wanted = (saturation * factor + offset).clamp_(0, 1)
    # How far below the value a channel lies, as a share of the full depth; grey counts as red.
    below = (value - images) / depth.clamp(min=1e-6)
    grey = (depth <= 0).float() * torch.tensor([0.0, 1, 1])[:, None, None]
    return value * (1 - wanted * (below + grey))


def elastic_transform(
    images: torch.Tensor, amplitude: float, sigma: float, corners: float, *, generators: Generators
) -> torch.Tensor:
    """A random affine map, then a smooth random displacement of every pixel; mirrored at the border.

    Args:
        images: `(N, 3, H, W)`.
        amplitude: factor of the smoothed displacement, as a fraction of the side.
        sigma: of the smoothing, as a fraction of the side.
        corners: how far each of three corners moves at most along each axis, as a fraction of the side.
        generators: of these images.
    """
    unit = side(images)
    if corners > 0:
        images = _jolt(images, corners * unit, generators)
    return wobble(images, amplitude * unit, sigma * unit, generators) if amplitude > 0 else images


def _jolt(images: torch.Tensor, reach: float, generators: Generators) -> torch.Tensor:
    """The affine map that moves three corners of the middle square by up to `reach` px each way."""
    n, _, height, width = images.shape
    half = min(height, width) // 3
    middle = torch.tensor([height // 2, width // 2], dtype=torch.float64)
    before = middle + half * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    after = before + (2 * generators.uniform(3, 2).double() - 1) * reach
    # The map from the shown picture back to the given one, in px: (x, y, 1) @ back.
    back = torch.linalg.solve(torch.cat([after, torch.ones(n, 3, 1)], 2), before.expand(n, 3, 2))
    # In the units of the sampler, from -1 to 1 between the centres of the outermost pixels.
    along_x, along_y, offset = (back * 2 / (torch.tensor([width, height]) - 1)).float().unbind(1)
    # x and y as one complex number are summed in one pass, and lie as the sampler wants them.
    columns = torch.complex(*(torch.arange(width) * along_x[..., None] + (offset - 1)[..., None]).unbind(1))
    rows = torch.complex(*(torch.arange(height) * along_y[..., None]).unbind(1))
    grid = torch.view_as_real(columns[:, None] + rows[:, :, None])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def per_image(pixels: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Apply a Pillow operation that keeps the size to each of uint8 `(N, 3, H, W)`."""
    n, _, height, width = pixels.shape
    # Pillow's own order "RGB;L": of each row first red, then green, then blue.
    rows = pixels.transpose(1, 2).contiguous().numpy()
    images = (Image.frombuffer("RGB", (width, height), row, "raw", "RGB;L", 0, 1) for row in rows)
    changed = bytearray().join(change(image).tobytes("raw", "RGB;L") for image in images)
    return torch.frombuffer(changed, dtype=torch.uint8).view(n, height, 3, width).transpose(1, 2).contiguous()


def jpeg_compression(pixels: torch.Tensor, quality: int, *, generators: Generators) -> torch.Tensor:
    """Encode and decode uint8 `(N, 3, H, W)` as JPEG of `quality` (1 to 95)."""

    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        # The decoder itself: `Image.open` takes as long again to read the header.
        return Image.frombytes("RGB", image.size, buffer.getvalue(), "jpeg", "RGB", "")

    return per_image(pixels, compress)


def pixelate(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """Shrink uint8 `(N, 3, H, W)` to `fraction` of the side and enlarge again, both with box filters."""

    def shrink(image: Image.Image) -> Image.Image:
        small = (max(1, int(image.width * fraction)), max(1, int(image.height * fraction)))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return per_image(pixels, shrink)
