"""Drops of water or splashes of mud on the lens."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from qrobust.shifts.filters import convolve, pad_reflect, smooth
from qrobust.shifts.rng import Generators


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
    liquid = smooth(generators.normal(1, *images.shape[2:]).mul_(spread).add_(mean), sigma)
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
    counts = torch.zeros(len(levels), 256).scatter_add_(
        1, levels.flatten(1), torch.ones(levels[0].numel()).expand(len(levels), -1)
    )
    first = counts.gather(1, levels.flatten(1).amin(1, keepdim=True))
    above = (counts.cumsum(1) - first) * 255 / (counts.sum(1, keepdim=True) - first).clamp(min=1)
    equal = above.round_().clamp_(0, 255).gather(1, levels.flatten(1)).view(levels.shape)
    kernel = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    return box(convolve(pad_reflect(equal, 1), kernel).clamp_(0, 255)).round_()
