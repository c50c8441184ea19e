"""Common corruptions of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv 1903.12261, as batched tensor code: the 15 and the 4 extra ones.

Every function takes images `(N, 3, H, W)` float32 in [0, 1], its strength in physical units and one
random generator per image, and returns images of the same shape, clamped to [0, 1] by the renderer. Those
that work on 8-bit pixels (`pixelate`, `jpeg_compression`, `zoom_blur`) take uint8. The result for an image
depends on that image and its generator alone.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from qrobust.shifts.filters import (
    convolve,
    gaussian_weights,
    pad_reflect,
    random_words,
    side,
    smear,
    smooth,
    wobble,
)
from qrobust.shifts.frost import PICTURES, frost_picture

Generators = Sequence[torch.Generator]
# Bits of one random number that `poisson` draws per value.
RANDOM_BITS = 31
# So many float32 values stay in a core's own cache.
CACHED_VALUES = 2**18


def _normal(generators: Generators, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers `(N, *shape)`."""
    draws = torch.empty(len(generators), *shape)
    for draw, generator in zip(draws, generators, strict=True):
        draw.normal_(generator=generator)
    return draws


def _uniform(generators: Generators, shape: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1) `(N, *shape)`."""
    draws = torch.empty(len(generators), *shape)
    for draw, generator in zip(draws, generators, strict=True):
        draw.uniform_(generator=generator)
    return draws


def gaussian_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Add normal noise of standard deviation `sigma` (unit: the [0, 1] scale)."""
    return _normal(generators, images.shape[1:]).mul_(sigma).add_(images)


def speckle_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Multiply by 1 plus normal noise of standard deviation `sigma`."""
    return _normal(generators, images.shape[1:]).mul_(sigma).mul_(images).add_(images)


@functools.lru_cache(maxsize=16)
def _alias_tables(photons: float) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Walker's alias tables of Poisson counts for the means `photons * level / 255`, level 0 to 255.

    Walker, "An Efficient Method for Generating Discrete Random Variables with General Distributions", 1977:
    a column is drawn evenly, and one comparison decides between its own count and its alias.

    Returns:
        How many bits choose a column, thresholds `(256 * columns,)` on the other bits, and the counts
        `(512 * columns,)` below and above them.
    """
    means = np.arange(256)[:, None] * (photons / 255)
    # Beyond eight standard deviations and a bit lies less than one draw in 2^31.
    low = np.floor((means - 8 * np.sqrt(means)).clip(0))
    column_bits = math.ceil(math.log2(float((means + 8 * np.sqrt(means) + 12 - low).max())))
    columns = 2**column_bits
    counts = low + np.arange(columns)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts.max() + 1)))])
    with np.errstate(divide="ignore", invalid="ignore"):  # level 0: log 0, and 0 times it
        logs = np.where(counts == 0, 0.0, counts * np.log(means))
    mass = np.exp(logs - means - log_factorials[counts.astype(int)])
    mass *= columns / mass.sum(1, keepdims=True)
    every, threshold, alias = np.arange(256), np.ones_like(mass), counts.copy()
    still_open = np.zeros_like(mass)
    for _ in range(columns):
        small, large = (mass + still_open).argmin(1), (mass - still_open).argmax(1)
        threshold[every, small] = mass[every, small]
        alias[every, small] = counts[every, large]
        mass[every, large] -= 1 - mass[every, small]
        still_open[every, small] = np.inf
    limits = np.round(threshold * 2 ** (RANDOM_BITS - column_bits)).astype(np.int32)
    either = np.stack([alias, counts], -1).astype(np.float32)
    return column_bits, torch.from_numpy(limits.ravel()), torch.from_numpy(either.ravel())


def poisson(images: torch.Tensor, photons: float, *, generators: Generators) -> torch.Tensor:
    """Poisson counts of mean `photons * x` for each of the 256 levels that x is rounded to."""
    column_bits, limits, counts = _alias_tables(photons)
    words = [random_words(images[0].numel(), torch.int32, g).bitwise_and_(2**RANDOM_BITS - 1) for g in generators]
    draws = torch.stack(words).view(images.shape)
    cells = (images * 255).round_().to(torch.int32).bitwise_left_shift_(column_bits)
    places = cells.add_(draws.bitwise_and(2**column_bits - 1)).flatten()
    below = draws.bitwise_right_shift_(column_bits).flatten() < limits.index_select(0, places)
    return counts.index_select(0, places.mul_(2).add_(below)).view(images.shape)


def shot_noise(images: torch.Tensor, photons: float, *, generators: Generators) -> torch.Tensor:
    """Poisson noise of a sensor that counts `photons` at full white."""
    return poisson(images, photons, generators=generators).div_(photons)


def impulse_noise(images: torch.Tensor, amount: float, *, generators: Generators) -> torch.Tensor:
    """Set a fraction `amount` of all values to black or white, half each."""
    draws = _uniform(generators, images.shape[1:])
    unless_black = (draws >= amount / 2).to(torch.float32)
    return torch.minimum(torch.maximum(images, (draws < amount).to(torch.float32)), unless_black)


@functools.lru_cache(maxsize=16)
def _disk_kernel(radius: float, alias_blur: float) -> torch.Tensor:
    """A disk, softened by a small Gaussian, as the benchmark defines it."""
    reach, soft_reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    x = torch.arange(-reach, reach + 1)
    disk = (x[:, None] ** 2 + x[None, :] ** 2 <= radius**2).float()
    soft = gaussian_weights(alias_blur, soft_reach)
    kernel = F.pad((disk / disk.sum())[None, None], [soft_reach] * 4, mode="reflect")
    kernel = F.conv2d(kernel, (soft[:, None] * soft[None, :])[None, None])[0, 0]
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
def _glass_schedule(height: int, width: int, reach: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """When each pixel of `glass_blur` is replaced: positions `(pixels,)` in that order, and where each step ends.

    One after the other, from the last pixel to the first, each takes the value of one at most `reach` away.
    Two of them whose reaches do not meet can be exchanged, so pixels `2 reach` columns apart in successive
    rows, and rows `2 reach` apart in successive rounds, are replaced at the same step: the outcome is that
    of the sequence, to the bit.
    """
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    step = np.arange(rounds)[:, None, None] * 4 * reach**2
    step = step + np.arange(len(rows))[:, None] * 2 * reach + np.arange(len(columns))
    place = np.broadcast_to(rows[:, None] * width + columns, step.shape)
    order = np.argsort(step, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(step.ravel()))
    return place.ravel()[order].astype(np.int32), ends


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
        generators: one per image.
    """
    n, _, height, width = images.shape
    start, ends = _glass_schedule(height, width, reach, rounds)
    offsets = np.add.outer(np.arange(-reach, reach) * width, np.arange(-reach, reach)).ravel().astype(np.int32)
    # One of the offsets for each 16-bit number; how often each occurs differs by less than one in a thousand.
    offset_of = offsets[np.arange(2**16) * len(offsets) >> 16]
    here = np.add.outer(np.arange(n, dtype=np.int32) * (height * width), start)
    there = here.copy()
    for partner, generator in zip(there, generators, strict=True):
        partner += offset_of.take(random_words(len(start), torch.int16, generator).numpy().view(np.uint16))
    source = np.arange(n * height * width, dtype=np.int32)
    begin = 0
    for end in ends.tolist():
        source[here[:, begin:end]] = source.take(there[:, begin:end])
        begin = end
    places = torch.from_numpy(source).long().view(n, 1, -1) - torch.arange(n)[:, None, None] * (height * width)
    result = torch.empty_like(images)
    portion = max(1, CACHED_VALUES // images[0].numel())
    for target, part, place in zip(*(t.split(portion) for t in (result, images, places)), strict=True):
        soft = smooth(part, sigma).mul(255).floor_().div_(255)  # to 8 bits, as published
        shuffled = soft.flatten(2).gather(2, place.expand(-1, 3, -1)).view(soft.shape)
        target.copy_(smooth(shuffled, sigma))
    return result


def motion_blur(images: torch.Tensor, radius: int, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Smear along a random direction between -45 and 45 degrees.

    The smear is one-sided, `2 radius + 1` px long, its weights a Gaussian of `sigma` px.
    """
    angles = _uniform(generators, ()) * (math.pi / 2) - math.pi / 4
    return smear(images, radius, sigma, angles)


def _clipped_zoom(images: torch.Tensor, factor: float, height: int, width: int) -> torch.Tensor:
    """Enlarge the middle `(ceil(H / factor), ceil(W / factor))` bilinearly by `factor`, corners on corners."""
    size = (round(images.shape[2] * factor), round(images.shape[3] * factor))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)[:, :, :height, :width]


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
    height, width = pixels.shape[2:]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    total = pixels.to(torch.int16) * 2  # the image, and the layer of factor 1
    for layer in range(1, layers):
        factor = 1 + layer * step
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        top, left = (height - rows) // 2, (width - columns) // 2
        middle = pixels[:, :, top : top + rows, left : left + columns]
        total += _clipped_zoom(middle, factor, height, width)
    return total.contiguous().to(torch.float32).div_(255 * (layers + 1))


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
    field = _normal(generators, (1, math.ceil(height / zoom), math.ceil(width / zoom)))
    angles = (_uniform(generators, ()) - 1.5) * (math.pi / 2)
    flakes = _clipped_zoom(field.mul_(spread).add_(mean), zoom, height, width)
    flakes = (flakes * (flakes >= threshold)).clamp_(0, 1)
    flakes = smear(flakes, radius, sigma, angles).mul_(255).round_().div_(255)
    red, green, blue = images.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    scene = torch.maximum(images, grey.mul_(1.5).add_(0.5)).mul_(1 - keep).add_(images, alpha=keep)
    return scene.add_(flakes + flakes.flip(2, 3))


def frost(images: torch.Tensor, keep: float, amount: float, size: float, *, generators: Generators) -> torch.Tensor:
    """`keep` of the image plus `amount` of a random crop of a frost picture shown at `size` of its size.

    The pictures are synthesised (see `frost.frost_picture`), not those of the published benchmark.
    """
    height, width = images.shape[2:]
    result = images * keep
    for target, generator in zip(result, generators, strict=True):
        picture = frost_picture(int(torch.randint(PICTURES, (), generator=generator)), size, max(height, width))
        top = int(torch.randint(picture.shape[1] - height + 1, (), generator=generator))
        left = int(torch.randint(picture.shape[2] - width + 1, (), generator=generator))
        target.add_(picture[:, top : top + height, left : left + width], alpha=amount)
    return result


def plasma_fractal(size: int, decay: float, *, generators: Generators) -> torch.Tensor:
    """Diamond-square heights `(N, size, size)` in [0, 1]; `size` is a power of two.

    The benchmark's own variant, in which a corner's fourth neighbour is taken twice from one side.
    """
    heights = torch.zeros(len(generators), size, size)
    noise = _uniform(generators, (size * size - 1,)).mul_(2).sub_(1)
    step, wobble_, used = size, 100.0, 0

    def mean(total: torch.Tensor) -> torch.Tensor:
        nonlocal used
        count = total.shape[1] * total.shape[2]
        used += count
        return total / 4 + wobble_ * wobble_ * noise[:, used - count : used].view(total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = mean(squares + squares.roll(-1, 2))
        centres = heights[:, half::step, half::step]
        across = corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = mean(centres + centres.roll(1, 1) + across)
        heights[:, half::step, ::step] = mean(centres + centres.roll(1, 2) + across)
        step, wobble_ = half, wobble_ / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights.div_(heights.amax((1, 2), keepdim=True))


def fog(images: torch.Tensor, thickness: float, decay: float, *, generators: Generators) -> torch.Tensor:
    """Add a random fractal haze of `thickness` and rescale to the image's own brightest value."""
    _, _, height, width = images.shape
    size = 2 ** math.ceil(math.log2(max(height, width)))
    haze = plasma_fractal(size, decay, generators=generators)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * haze).mul_(brightest).div_(brightest + thickness)


def spatter(
    images: torch.Tensor,
    mean: float,
    spread: float,
    sigma: float,
    threshold: float,
    strength: float,
    is_mud: bool,
    *,
    generators: Generators,
) -> torch.Tensor:
    """Drops of water or splashes of mud on the lens.

    Normal noise of `mean` and `spread`, smoothed by `sigma` px, is liquid where it exceeds `threshold`. Mud
    covers with its colour, its rim smoothed by `strength` px. Water adds `strength` of its own, weighed by a
    relief of the distance to the nearest rim.
    """
    liquid = smooth(_normal(generators, (1, *images.shape[2:])).mul_(spread).add_(mean), sigma)
    wet = liquid >= threshold
    if is_mud:
        cover = smooth(wet.float(), strength)
        cover = cover * (cover >= 0.8)
        return images * (1 - cover) + cover * torch.tensor([63, 42, 20])[:, None, None] / 255
    depth = (liquid * wet * 255).floor()
    weight = depth * _relief(_distance(_edges(depth)))
    peak = weight.amax((1, 2, 3), keepdim=True)
    weight = weight / torch.where(peak > 0, peak, torch.ones(()))
    return images + strength * weight * torch.tensor([175, 238, 238])[:, None, None] / 255


def _edges(depth: torch.Tensor) -> torch.Tensor:
    """Canny's edges of `(N, 1, H, W)`, 0 to 255, as bool: above 150, and above 50 if connected to these.

    Canny, "A Computational Approach to Edge Detection", 1986; gradients by Sobel's filter, their size as the
    sum of both components.
    """
    around = F.pad(depth, [1] * 4, mode="replicate")
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    across, down = convolve(around, sobel), convolve(around, sobel.T)
    steep = across.abs() + down.abs()
    ring = F.pad(steep, [1] * 4)
    height, width = steep.shape[2:]

    def beyond(y: int, x: int) -> torch.Tensor:
        """The steepness of each pixel's neighbour."""
        return ring[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    is_across = down.abs() < math.tan(math.pi / 8) * across.abs()
    is_down = down.abs() > math.tan(3 * math.pi / 8) * across.abs()
    falls = across * down < 0
    # Of two equal neighbours across or down the first is the crest; on a diagonal none is.
    crest = torch.where(
        is_across,
        (steep > beyond(0, -1)) & (steep >= beyond(0, 1)),
        torch.where(
            is_down,
            (steep > beyond(-1, 0)) & (steep >= beyond(1, 0)),
            torch.where(
                falls,
                (steep > beyond(-1, 1)) & (steep > beyond(1, -1)),
                (steep > beyond(-1, -1)) & (steep > beyond(1, 1)),
            ),
        ),
    )
    maybe, sure = crest & (steep > 50), crest & (steep > 150)
    while True:
        grown = maybe & (F.max_pool2d(sure.float(), 3, stride=1, padding=1) > 0)
        if torch.equal(grown, sure):
            return sure
        sure = grown


def _distance(rim: torch.Tensor) -> torch.Tensor:
    """Distance in px, at most 20, to the nearest pixel that is True."""
    height, width = rim.shape[2:]
    far = 20.0
    beside = torch.where(rim, torch.zeros(()), torch.full((), far))
    for axis, size in ((3, width), (2, height)):
        nearest = beside.square()
        for offset in range(1, min(20, size)):
            for forward, back in ((offset, 0), (0, offset)):
                there = beside.narrow(axis, forward, size - offset).square() + offset**2
                view = nearest.narrow(axis, back, size - offset)
                torch.minimum(view, there, out=view)
        beside = nearest.sqrt()
    return beside.clamp(max=far)


def _relief(distance: torch.Tensor) -> torch.Tensor:
    """Equalise the distances' histogram to 0..255 and light them from one corner."""

    def box(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(pad_reflect(values, 1), 3, stride=1)

    levels = box(distance).long()
    counts = torch.zeros(len(levels), 256).scatter_add_(1, levels.flatten(1), torch.ones(levels[0].numel()).expand(
        len(levels), -1
    ))  # fmt: skip
    first = counts.gather(1, levels.flatten(1).amin(1, keepdim=True))
    above = (counts.cumsum(1) - first) * 255 / (counts.sum(1, keepdim=True) - first).clamp(min=1)
    equal = above.round_().clamp_(0, 255).gather(1, levels.flatten(1)).view(levels.shape)
    kernel = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    return box(convolve(pad_reflect(equal, 1), kernel).clamp_(0, 255)).round_()


def brightness(images: torch.Tensor, offset: float, *, generators: Generators) -> torch.Tensor:
    """Add `offset` to the value channel of HSV; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + offset).clamp_(max=1)
    black = (value <= 0) * brighter
    return (images * brighter.div_(value.clamp_(min=1e-6))).add_(black)


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
        generators: one per image.
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
    after = before + (2 * _uniform(generators, (3, 2)).double() - 1) * reach
    # The map from the shown picture back to the given one, in px: (x, y, 1) @ back.
    back = torch.linalg.solve(torch.cat([after, torch.ones(n, 3, 1)], 2), before.expand(n, 3, 2))
    # In the units of the sampler, from -1 to 1 between the centres of the outermost pixels.
    along_x, along_y, offset = (back * 2 / (torch.tensor([width, height]) - 1)).float().unbind(1)
    grid = torch.empty(n, height, width, 2)
    for axis in (0, 1):
        columns = torch.arange(width) * along_x[:, axis, None, None] + (offset[:, axis, None, None] - 1)
        rows = torch.arange(height)[:, None] * along_y[:, axis, None, None]
        torch.add(columns, rows, out=grid[..., axis])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def per_image(pixels: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Apply a Pillow operation to each of uint8 `(N, 3, H, W)`."""
    changed = [np.asarray(change(Image.fromarray(p))) for p in pixels.permute(0, 2, 3, 1).contiguous().numpy()]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous()


def jpeg_compression(pixels: torch.Tensor, quality: int, *, generators: Generators) -> torch.Tensor:
    """Encode and decode uint8 `(N, 3, H, W)` as JPEG of `quality` (1 to 95)."""

    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer, formats=("JPEG",))

    return per_image(pixels, compress)


def pixelate(pixels: torch.Tensor, fraction: float, *, generators: Generators) -> torch.Tensor:
    """Shrink uint8 `(N, 3, H, W)` to `fraction` of the side and enlarge again, both with box filters."""

    def shrink(image: Image.Image) -> Image.Image:
        small = (max(1, int(image.width * fraction)), max(1, int(image.height * fraction)))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return per_image(pixels, shrink)
