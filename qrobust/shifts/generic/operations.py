"""Six families of random image operations that name no corruption, to learn from.

Each takes images `(N, C, H, W)` float32 in [0, 1] with one or three channels, a strength from 0 (nothing) to 1 for
all or per image `(N,)`, and one stream of random numbers per image; and returns images of the same shape in [0, 1].
Every image has parameters of its own, drawn on the CPU, whatever the device of the images; what an image becomes
depends on neither the batch nor its order. The constants bound what strength 1 may do, so that a picture still shows
what its label says.

The idea, that random primitives of high entropy teach robustness to corruptions that nobody named, is that of PRIME
(Modas et al., arXiv 2112.13547).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from qrobust.shifts.filters import pad_reflect, side
from qrobust.shifts.rng import Generators

# Filters: px to each side of a kernel, at a side of 32 px; larger pictures are filtered at coarser scales, too.
REACH, FILTERED_SIDE = 3, 32
# What a filter that also subtracts may add to the picture, of the largest difference between its pixels.
MOST_SIGNED = 1.0
# Tone: deviation of a curve from the identity; smallest and largest slope; exponent; offset; colour mixing.
MOST_BENT, GAINS, MOST_EXPONENT, MOST_OFFSET, MOST_MIXED = 0.25, (0.1, 2.0), 3.0, 0.3, 0.35
# Warp: degrees, factor of each axis, shear, fraction of the side moved; gradient and size of a smooth displacement.
MOST_TURNED, MOST_SCALED, MOST_SHEARED, MOST_MOVED, MOST_STRETCHED, MOST_DISPLACED = 35.0, 1.4, 0.45, 0.25, 0.6, 0.06
# Noise: root mean square; the share of values that are hit goes down to this.
MOST_NOISE, LEAST_DENSITY = 0.25, 0.02
# Light: how much of the picture a veil may hide, or a shadow take.
MOST_VEILED, MOST_SHADED = 0.8, 0.7
# Resampling: fraction of the side that stays, px at least; bits that stay.
LEAST_RESOLUTION, LEAST_PIXELS, LEAST_BITS = 0.3, 4, 2
# Waves along each axis that a smooth random field is made of: 4.5 periods at most.
WAVES = 10

Operation = Callable[..., torch.Tensor]


def _per_image(strength: float | torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(strength, dtype=torch.float32, device=images.device)
    return values.expand(len(images)).view(-1, 1, 1, 1)


def _scalars(generators: Generators, images: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """So many uniform numbers per image, each `(N, 1, 1, 1)`."""
    return generators.uniform(count).to(images.device).view(-1, count, 1, 1, 1).unbind(1)


def _between(uniform: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * uniform


def _cosines(size: int, like: torch.Tensor) -> torch.Tensor:
    """`(WAVES, size)`: half waves over a line of `size` px."""
    place = (torch.arange(size, device=like.device) + 0.5) * (math.pi / size)
    return torch.cos(torch.arange(WAVES, device=like.device)[:, None] * place)


def _fields(
    generators: Generators, count: int, images: torch.Tensor, cut: torch.Tensor, decay: torch.Tensor
) -> torch.Tensor:
    """Smooth random fields of unit mean square: sums of cosines with random weights.

    Args:
        generators: of the images.
        count: fields per image.
        images: whose height and width the fields have.
        cut: `(N, 1, 1, 1)`, half waves per side up to which there are weights.
        decay: `(N, 1, 1, 1)`, power by which the weights fall with the frequency.

    Returns:
        `(N, count, H, W)`.
    """
    height, width = images.shape[2:]
    frequency = torch.arange(WAVES, device=images.device, dtype=torch.float32)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    weights = generators.normal(count, WAVES, WAVES).to(images.device)
    weights = weights * (radius <= cut) * (radius > 0) / radius.clamp(min=1) ** decay
    # The mean square of a cosine is 1/2, that of a constant 1.
    shares = torch.where(frequency == 0, 1.0, 0.5)
    power = (weights.square() * shares[:, None] * shares).flatten(2).sum(2)[..., None, None]
    weights = weights / power.clamp(min=1e-12).sqrt()
    rows, columns = _cosines(height, images), _cosines(width, images)
    lines = torch.zeros(*weights.shape[:3], width, device=images.device)
    for wave in range(WAVES):
        lines.addcmul_(weights[..., wave, None], columns[wave])
    fields = torch.zeros(*weights.shape[:2], height, width, device=images.device)
    for wave in range(WAVES):
        fields.addcmul_(lines[:, :, wave, None], rows[wave, :, None])
    return fields


def _kernels(
    images: torch.Tensor, strength: torch.Tensor, generators: Generators
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random kernels `(N, 1, 7, 7)`, and how much of the detail that they do not see stays `(N, 1, 1, 1)`."""
    size = 2 * REACH + 1
    kind, angle, long, wide, start, soft, rough, amount = _scalars(generators, images, 8)
    ragged, raw = generators.uniform(1, size, size), generators.normal(1, size, size)
    ragged, raw = ragged.to(images.device), raw.to(images.device)
    line = torch.arange(size, device=images.device) - float(REACH)
    y, x = line[:, None], line
    long = 0.4 + (REACH - 0.4) * strength * long
    soft = _between(soft, 0.15, 0.6)
    cosine, sine = torch.cos(math.pi * angle), torch.sin(math.pi * angle)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    distance = (x**2 + y**2).sqrt()
    disc = torch.sigmoid((long - distance) / soft)
    streak = torch.sigmoid((long - (along - (start - 0.5) * long).abs()) / soft)
    streak = streak * torch.sigmoid((0.3 + 0.4 * wide * long - across.abs()) / 0.2)
    smooth = torch.where(kind < 0.4, disc, streak) * (1 - 0.7 * rough * ragged)
    smooth = smooth / smooth.sum((2, 3), keepdim=True)
    identity = ((x == 0) & (y == 0)).float()
    share = _between(amount, 0.7, 1.0) * (1 - (1 - strength) ** 2)
    signed = raw * torch.exp(-(distance**2) / (2 * _between(wide, 0.5, 2.5) ** 2))
    signed = signed - signed.mean((2, 3), keepdim=True)
    # Half the sum of the absolute weights is what the kernel adds to a picture of zeros and ones at most.
    signed = signed * (2 / signed.abs().sum((2, 3), keepdim=True))
    adds = kind >= 0.7
    kernels = torch.where(
        adds,
        identity + MOST_SIGNED * strength * _between(amount, 0.3, 1.0) * signed,
        identity + share * (smooth - identity),
    )
    return kernels, torch.where(adds, 1.0, 1 - share)


def _filtered(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    padded = pad_reflect(images, REACH)
    result = torch.zeros_like(images)
    for y in range(kernels.shape[2]):
        for x in range(kernels.shape[3]):
            result.addcmul_(padded[:, :, y : y + height, x : x + width], kernels[:, :, y : y + 1, x : x + 1])
    return result


def filters(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Convolve with a random kernel: a soft disc, a streak, or one that also subtracts.

    In pictures of 64 px and more the kernel may act at a coarser scale, with a side halved as often as it stays at
    least 32 px.
    """
    kernels, kept = _kernels(images, _per_image(strength, images), generators)
    octaves = 1 + max(0, int(math.log2(min(images.shape[2:]) / FILTERED_SIDE))) if images.numel() else 1
    scale = generators.words(1).flatten() * octaves // 2**16
    result = torch.empty_like(images)
    for octave in range(octaves):
        rows = (scale == octave).nonzero().flatten().to(images.device)
        if not len(rows):
            continue
        some = images[rows]
        if not octave:
            result[rows] = _filtered(some, kernels[rows])
            continue
        height, width = (-(-length // 2**octave) for length in images.shape[2:])
        coarse = F.interpolate(some, size=(height, width), mode="area")
        both = torch.cat([_filtered(coarse, kernels[rows]), coarse], 1)
        enlarged = F.interpolate(both, size=images.shape[2:], mode="bilinear", align_corners=False)
        made, plain = enlarged.chunk(2, 1)
        result[rows] = made + kept[rows] * (some - plain)
    return result.clamp_(0, 1)


def tone(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Map values by a random smooth curve, for all channels or for each, and mix the channels at random.

    Mixing leaves grey as it is.
    """
    n, channels = images.shape[:2]
    s = _per_image(strength, images)[..., 0]
    numbers = [u[..., 0] for u in _scalars(generators, images, 7)]
    each, slope, pivot, offset, exponent, mixes, amount = numbers
    bends, mixing = generators.normal(3, 4).to(images.device), generators.normal(3, 3).to(images.device)
    bends = torch.where(each < 0.6, bends[:, :1], bends)[:, :channels]
    x = torch.linspace(0, 1, 256, device=images.device)
    curve = torch.zeros(n, channels, 256, device=images.device) + x
    # Half the variance of sum(a_k sin(k pi x) / k) is that of its weights; four terms have that of 1.42.
    for k in range(1, 5):
        curve = curve + (MOST_BENT / k) * s * bends[..., k - 1, None] * torch.sin(math.pi * k * x)
    curve = curve.clamp(0, 1) ** torch.exp(s * _between(exponent, -1, 1) * math.log(MOST_EXPONENT) * (slope < 0.5))
    gain = torch.exp(s * _between(slope, math.log(GAINS[0]), math.log(GAINS[1])))
    pivot = _between(pivot, 0.25, 0.75)
    curve = pivot + gain * (curve - pivot) + s * _between(offset, -MOST_OFFSET, MOST_OFFSET)
    levels = (images * 255).round_().long().flatten(2)
    toned = curve.gather(2, levels).view_as(images)
    if channels > 1:
        mixing = mixing - mixing.mean(2, keepdim=True)
        mixing = torch.eye(3, device=images.device) + MOST_MIXED * s * amount * (mixes < 0.5) * mixing
        mixed = torch.zeros_like(toned)
        for source in range(3):
            mixed.addcmul_(toned[:, source : source + 1], mixing[:, :, source, None, None])
        toned = mixed
    return toned.clamp_(0, 1)


def warp(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Sample through a random affine map and a random smooth displacement.

    Each part of the map is there or not, like the toss of a coin. What lies outside is mirrored, or has one value.
    """
    _, _, height, width = images.shape
    s = _per_image(strength, images)
    numbers = _scalars(generators, images, 16)
    turn, scale_x, scale_y, shear, right, down, stretch = (
        s * _between(value, -1, 1) * (coin < 0.5)
        for value, coin in zip(numbers[:7], (*numbers[7:13], numbers[13]), strict=True)
    )
    filled, fill = numbers[14], numbers[15]
    angle = turn * math.radians(MOST_TURNED)
    scale_x, scale_y = (MOST_SCALED**factor for factor in (scale_x, scale_y))
    shear = MOST_SHEARED * shear
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # Pixels are square whatever the picture's shape: coordinates in half sides, the centre at 0.
    unit = side(images)
    across, upright = width / unit, height / unit
    x = ((torch.arange(width, device=images.device) + 0.5) * (2 / width) - 1) * across
    y = (((torch.arange(height, device=images.device) + 0.5) * (2 / height) - 1) * upright)[:, None]
    leaning = x + shear * y
    to_x = scale_x * (cosine * leaning - sine * y) + 2 * MOST_MOVED * right
    to_y = scale_y * (sine * leaning + cosine * y) + 2 * MOST_MOVED * down
    cut = _between(fill, 2.0, WAVES - 1.0)
    displacement = _fields(generators, 2, images, cut, torch.zeros_like(cut))
    # The gradient of a wave is its size times pi times its half waves per side.
    size = (MOST_STRETCHED / (math.pi * cut)).clamp(max=MOST_DISPLACED) * stretch.abs()
    moved = displacement * (2 * size)
    grid = torch.stack([(to_x[:, 0] + moved[:, 0]) / across, (to_y[:, 0] + moved[:, 1]) / upright], -1)
    result = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    outside = (grid.abs() > 1).any(3)[:, None] & (filled < 0.5)
    # A quarter of all is filled with black, as transformations are, a quarter with any grey.
    return torch.where(outside, (2 * fill - 1).clamp(min=0), result).clamp_(0, 1)


def noise(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Add noise of random size, density, colour and correlation that depends on the signal more or less."""
    _, channels, height, width = images.shape
    s = _per_image(strength, images)
    size, sparse, density, coloured, correlation, depends, slope = _scalars(generators, images, 7)
    normal = generators.normal(channels, height + 1, width + 1).to(images.device)
    normal = torch.where(coloured < 0.7, normal, normal[:, :1])
    neighbour = (2 * correlation - 1).clamp(min=0)
    normal = (normal[:, :, 1:] + neighbour * normal[:, :, :-1]) / (1 + neighbour**2).sqrt()
    normal = (normal[..., 1:] + neighbour * normal[..., :-1]) / (1 + neighbour**2).sqrt()
    density = torch.where(sparse < 0.5, LEAST_DENSITY**density, 1.0)
    hit = generators.uniform(channels, height, width).to(images.device) < density
    dependent = torch.where(depends < 0.5, 1 + _between(slope, -1, 1) * (2 * images - 1), 1.0)
    amplitude = MOST_NOISE * s * _between(size, 0.3, 1.0) / density.sqrt()
    return (images + amplitude * hit * normal * dependent).clamp_(0, 1)


def light(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Blend with a tinted random veil of light, even or patchy, or shade by a smooth random field."""
    s = _per_image(strength, images)
    kind, amount, even, cut, decay, level, tinted, ripple = _scalars(generators, images, 8)
    tint = generators.normal(3).to(images.device).view(-1, 3, 1, 1)[:, : images.shape[1]]
    patches, haze = _fields(generators, 2, images, _between(cut, 1.0, WAVES - 1.0), _between(decay, 0.0, 2.0)).split(
        1, 1
    )
    soft = torch.sigmoid(2 * patches)
    veil = MOST_VEILED * s * _between(amount, 0.15, 1.0) * torch.where(even < 0.4, 1.0, soft)
    colour = (level + 0.1 * (tinted < 0.4) * tint + 0.25 * ripple * haze).clamp(0, 1)
    veiled = images + veil * (colour - images)
    shaded = images * (1 - MOST_SHADED * s * _between(amount, 0.3, 1.0) * (soft - 0.4 * level))
    return torch.where(kind < 0.7, veiled, shaded).clamp_(0, 1)


def _resampling(size: int, kept: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Matrices `(N, size, size)` that bring a line to `kept` px and back.

    Args:
        size: px of the line.
        kept: whole numbers `(N, 1, 1)`, at most `size`.
        down: uniform `(N, 1, 1)`: by area, by a triangle, or by the pixel in the middle.
        up: uniform `(N, 1, 1)`: the nearest, or linear.
    """
    x = torch.arange(size, device=kept.device, dtype=torch.float32)
    fine, coarse = x[None, None], x[None, :, None]
    ratio = size / kept
    low, high = coarse * ratio, (coarse + 1) * ratio
    area = (torch.minimum(fine + 1, high) - torch.maximum(fine, low)).clamp(min=0)
    middle = (coarse + 0.5) * ratio
    triangle = (1 - (fine + 0.5 - middle).abs() / ratio).clamp(min=0)
    point = (fine == middle.floor()).float()
    shrink = torch.where(down < 0.4, area, torch.where(down < 0.7, triangle, point)) * (coarse < kept)
    shrink = shrink / shrink.sum(2, keepdim=True).clamp(min=1e-6)
    place = (coarse + 0.5) / ratio
    nearest = (fine == place.floor()).float()
    linear = (1 - (place - 0.5 - fine).abs()).clamp(min=0)
    enlarge = torch.where(up < 0.5, nearest, linear) * (fine < kept)
    enlarge = enlarge / enlarge.sum(2, keepdim=True).clamp(min=1e-6)
    return torch.stack([a @ b for a, b in zip(enlarge, shrink, strict=True)])


def resampling(images: torch.Tensor, strength: float | torch.Tensor, *, generators: Generators) -> torch.Tensor:
    """Bring to fewer pixels and back by random kernels, or keep fewer levels, or both."""
    if not len(images):
        return images
    height, width = images.shape[2:]
    s = _per_image(strength, images)
    kind, fraction, down, up, bits = _scalars(generators, images, 5)
    stays = 1 - (1 - LEAST_RESOLUTION) * s * fraction * (kind < 0.8)
    axes = {
        size: _resampling(size, (stays[:, 0] * size).round().clamp(min=LEAST_PIXELS), down[:, 0], up[:, 0])
        for size in {height, width}
    }
    result = torch.stack(
        [rows @ image @ columns.T for rows, image, columns in zip(axes[height], images, axes[width], strict=True)]
    )
    levels = (2 ** (8 - (8 - LEAST_BITS) * s * bits)).floor() - 1
    return torch.where(kind < 0.6, result, (result * levels).round() / levels).clamp_(0, 1)


OPERATIONS: dict[str, Operation] = {f.__name__: f for f in (filters, tone, warp, noise, light, resampling)}
