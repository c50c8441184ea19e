"""Snow, frost, fog and bright light."""

from __future__ import annotations

import math

import torch

from qrobust.shifts.corruptions.frost import PICTURES, frost_picture
from qrobust.shifts.filters import clipped_zoom, smear
from qrobust.shifts.rng import Generators


def snow(
    images: torch.Tensor,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
    *,
    generators: Generators,
) -> torch.Tensor:
    """Flakes that fall, in front of a scene that brightens.

    Normal noise of `mean` and `spread` is enlarged by `zoom`; what exceeds `threshold` is a flake and is
    smeared downwards (`radius`, `sigma`, as in `motion_blur`). The scene keeps the share `keep` of its
    colours; the rest is its own brightened grey.
    """
    height, width = images.shape[2:]
    # Only the middle of the noise is ever seen.
    field = generators.normal(1, math.ceil(height / zoom), math.ceil(width / zoom))
    angles = (generators.uniform() - 1.5) * (math.pi / 2)
    flakes = clipped_zoom(field.mul_(spread).add_(mean), zoom, height, width)
    flakes = (flakes * (flakes >= threshold)).clamp_(0, 1)
    flakes = smear(flakes, radius, sigma, angles).mul_(255).round_().div_(255)
    red, green, blue = images.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    target_images = torch.maximum(images, grey.mul_(1.5).add_(0.5)).mul_(1 - keep).add_(images, alpha=keep)
    return target_images.add_(flakes + flakes.flip(2, 3))


def frost(images: torch.Tensor, keep: float, amount: float, size: float, *, generators: Generators) -> torch.Tensor:
    """`keep` of the image plus `amount` of a random crop of a frost picture shown at `size` of its size.

    The pictures are synthesised (see `frost.frost_picture`), not those of the published benchmark.
    """
    height, width = images.shape[2:]
    result = images * keep
    for target, (which, down, right) in zip(result, generators.uniform(3).tolist(), strict=True):
        picture = frost_picture(int(which * PICTURES), size, max(height, width))
        top, left = (
            int(share * (rest + 1))
            for share, rest in ((down, picture.shape[1] - height), (right, picture.shape[2] - width))
        )
        target.add_(picture[:, top : top + height, left : left + width], alpha=amount)
    return result


def plasma_fractal(size: int, decay: float, *, generators: Generators) -> torch.Tensor:
    """Diamond-square heights `(N, size, size)` in [0, 1]; `size` is a power of two.

    The benchmark's own variant, in which a corner's fourth neighbour is taken twice from one side.
    """
    noise = generators.uniform(size * size - 1).mul_(2).sub_(1)
    heights = torch.zeros(len(generators), 1, 1)
    used, spread = 0, 100.0**2
    while (side := heights.shape[1]) < size:
        centre, top, left = noise[:, used : used + 3 * side**2].mul_(spread).view(-1, 3, side, side).unbind(1)
        across = heights + heights.roll(-1, 2)
        centre += (across + across.roll(-1, 1)).div_(4)
        top += (centre + centre.roll(1, 1)).add_(across).div_(4)
        left += (centre + centre.roll(1, 2)).add_(across).div_(4)
        heights = torch.stack([torch.stack([heights, top], 3), torch.stack([left, centre], 3)], 2).view(
            -1, 2 * side, 2 * side
        )
        used, spread = used + 3 * side**2, spread / decay**2
    heights -= heights.amin((1, 2), keepdim=True)
    return heights.div_(heights.amax((1, 2), keepdim=True))


def fog(images: torch.Tensor, thickness: float, decay: float, *, generators: Generators) -> torch.Tensor:
    """Add a random fractal haze of `thickness` and rescale to the image's own brightest value."""
    _, _, height, width = images.shape
    size = 2 ** math.ceil(math.log2(max(height, width)))
    haze = plasma_fractal(size, decay, generators=generators)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * haze).mul_(brightest).div_(brightest + thickness)


def brightness(images: torch.Tensor, offset: float, *, generators: Generators) -> torch.Tensor:
    """Add `offset` to the value channel of HSV; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + offset).clamp_(max=1)
    black = (value <= 0) * brighter
    return (images * brighter.div_(value.clamp_(min=1e-6))).add_(black)
