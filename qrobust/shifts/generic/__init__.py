"""The suite `generic`: random operations without a name, alone and one to three deep, at continuous strength.

What learns from it has seen no named corruption. The operations form six families; leaving some of them out of
training keeps operations for validation that nothing was taught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from qrobust.errors import InputError, unknown
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.generic.operations import OPERATIONS
from qrobust.shifts.rng import Generators

FAMILIES = tuple(OPERATIONS)
# Families that move pixels: behind them a pixel shows another spot of the scene.
MOVING = ("warp",)
# So many operations are applied to an image, one after the other, with these probabilities.
DEPTHS = {1: 0.5, 2: 0.3, 3: 0.2}
# Uniform numbers to this power are strengths: stronger ones are more frequent, none is left out.
STRENGTH_POWER = 0.5
# So many float32 values stay in a core's own cache.
CACHED_VALUES = 2**18

__all__ = ["DEPTHS", "FAMILIES", "MOVING", "OPERATIONS", "apply", "draw", "mixture"]


def _plan(generators: Generators, families: int, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which families are applied to each image, and how much of the strength each has.

    Returns:
        Numbers of families in the order of their application `(N, deepest)`, each at most once, -1 for none; and
        shares `(N, deepest)` whose squares add up to 1, so that a deep mixture is no stronger than one operation.
    """
    deepest = min(int(depths.max()), families) if len(depths) else 0
    order = generators.uniform(families).argsort(dim=1)[:, :deepest]
    used = torch.arange(deepest) < depths[:, None]
    parts = -generators.uniform(families)[:, :deepest].log() * used
    return torch.where(used, order, -1), (parts / parts.sum(1, keepdim=True).clamp(min=1e-9)).sqrt()


def apply(
    images: torch.Tensor,
    strength: float | torch.Tensor,
    *,
    generators: Generators,
    depths: torch.Tensor,
    families: Sequence[str] = FAMILIES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply random families to each image, one after the other.

    Args:
        images: `(N, C, H, W)` float32 in [0, 1], one or three channels, on any device.
        strength: from 0 to 1, for all or per image `(N,)`.
        generators: one stream per image.
        depths: `(N,)`, operations per image.
        families: to draw from.

    Returns:
        Images in [0, 1], and whether each pixel still shows the same spot of the scene `(N,)`.

    Raises:
        InputError: no family, or an unknown one.
    """
    if not families:
        raise InputError("generic: expected at least one family to draw from, got none")
    for family in families:
        if family not in OPERATIONS:
            raise unknown("generic", family, FAMILIES)
    order, shares = _plan(generators, len(families), depths)
    strengths = torch.as_tensor(strength, dtype=torch.float32).expand(len(images))[:, None] * shares
    portion = max(1, CACHED_VALUES // max(1, images[:1].numel()))
    result, in_place = images.clone(), torch.ones(len(images), dtype=torch.bool)
    for place in range(order.shape[1]):
        for number, family in enumerate(families):
            chosen = (order[:, place] == number).nonzero().flatten()
            in_place[chosen] &= family not in MOVING
            for rows in chosen.split(portion):
                there = rows.to(images.device)
                streams = generators.branch(rows, place)
                result[there] = OPERATIONS[family](result[there], strengths[rows, place], generators=streams)
    return result, in_place


def mixture(images: torch.Tensor, strength: float, *, generators: Generators) -> torch.Tensor:
    """Two or three random families, one after the other."""
    depths = 2 + generators.words(1).flatten() * 2 // 2**16
    return apply(images, strength, generators=generators, depths=depths)[0]


def draw(
    images: torch.Tensor, indices: torch.Tensor, *, seed: int, epoch: int, families: Sequence[str] = FAMILIES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render training images under random operations, one to three deep, at random strength.

    The random numbers follow from an image's index, the seed and the epoch: each epoch shows an image under another
    draw, whatever batch, order or device it comes in.

    Args:
        images: uint8 `(N, C, H, W)`, one or three channels.
        indices: whole numbers `(N,)` that name the images.
        seed: of the training.
        epoch: how often the images were drawn before, or any number that is not used again.
        families: to draw from.

    Returns:
        uint8 images of the same shape on the same device, and whether each pixel still shows the same spot of the
        scene, bool `(N,)` on the CPU.

    Raises:
        InputError: no family, or an unknown one.
    """
    digest = hashlib.blake2b(f"generic/{seed}/{epoch}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little")
    generators = Generators([start ^ index for index in indices.tolist()])
    numbers = generators.uniform(2)
    bounds = torch.tensor(list(DEPTHS.values())).cumsum(0)[:-1]
    depths = 1 + (numbers[:, :1] > bounds).sum(1)
    strength = numbers[:, 1] ** STRENGTH_POWER
    shown, in_place = apply(to_unit(images), strength, generators=generators, depths=depths, families=families)
    return to_uint8(shown), in_place
