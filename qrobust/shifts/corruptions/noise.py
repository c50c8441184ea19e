"""Noise of sensors and of their electronics."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from qrobust.shifts.rng import LEVELS, Generators

# How an entry of `_alias_tables` is packed: a threshold above two counts of so many bits.
COUNT_BITS = 10


def gaussian_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Add normal noise of standard deviation `sigma` (unit: the [0, 1] scale)."""
    return generators.normal(*images.shape[1:]).mul_(sigma).add_(images)


def speckle_noise(images: torch.Tensor, sigma: float, *, generators: Generators) -> torch.Tensor:
    """Multiply by 1 plus normal noise of standard deviation `sigma`."""
    return generators.normal(*images.shape[1:]).mul_(sigma).mul_(images).add_(images)


@functools.lru_cache(maxsize=16)
def _alias_tables(photons: float) -> tuple[int, torch.Tensor]:
    """Walker's alias tables of Poisson counts for the means `photons * level / 255`, level 0 to 255.

    Walker, "An Efficient Method for Generating Discrete Random Variables with General Distributions", 1977:
    a column is drawn evenly, and one comparison decides between its own count and its alias.

    Returns:
        How many of a random number's 16 bits choose a column, and int32 `(256 * columns,)`: a threshold on the
        other bits, the count below it (10 bits) and the count above it (10 bits).
    """
    means = np.arange(256)[:, None] * (photons / 255)
    # Beyond eight standard deviations and a bit lies less than one draw in 2^31.
    low = np.floor((means - 8 * np.sqrt(means)).clip(0))
    widest = float((means + 8 * np.sqrt(means) + 12 - low).max())
    column_bits = max(6, math.ceil(math.log2(widest)))  # so that a threshold fits above the counts
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
    limits = np.round(threshold * (LEVELS >> column_bits))
    entries = (limits * 2**COUNT_BITS + counts) * 2**COUNT_BITS + alias
    return column_bits, torch.from_numpy(entries.astype(np.int32).ravel())


def poisson(images: torch.Tensor, photons: float, *, generators: Generators) -> torch.Tensor:
    """Poisson counts of mean `photons * x` for each of the 256 levels that x is rounded to; at most 700 photons."""
    column_bits, table = _alias_tables(photons)
    draws = generators.words(*images.shape[1:])
    columns = (images * 255).round_().to(torch.int32).bitwise_left_shift_(column_bits)
    columns.add_(draws.bitwise_and(2**column_bits - 1))
    entries = table.index_select(0, columns.flatten()).view(images.shape)
    # All bits are set where a draw is below its threshold: arithmetic is faster than comparisons.
    below = draws.bitwise_right_shift_(column_bits).sub_(entries >> 2 * COUNT_BITS).bitwise_right_shift_(31)
    # The count above, or with the bits of both exchanged the one below.
    above = entries.bitwise_and(2**COUNT_BITS - 1)
    change = (entries >> COUNT_BITS).bitwise_and_(2**COUNT_BITS - 1).bitwise_xor_(above).bitwise_and_(below)
    return above.bitwise_xor_(change).to(torch.float32)


def shot_noise(images: torch.Tensor, photons: float, *, generators: Generators) -> torch.Tensor:
    """Poisson noise of a sensor that counts `photons` at full white."""
    return poisson(images, photons, generators=generators).div_(photons)


def impulse_noise(pixels: torch.Tensor, amount: float, *, generators: Generators) -> torch.Tensor:
    """Set a fraction `amount` of all values of uint8 `(N, 3, H, W)` to black or white, half each."""
    draws = generators.words(*pixels.shape[1:])
    # All bits are set where a draw is below the limit: arithmetic is faster than comparisons.
    hit, black = (
        (draws - round(share * LEVELS)).bitwise_right_shift_(31).to(torch.uint8) for share in (amount, amount / 2)
    )
    return hit.bitwise_or_(pixels).bitwise_and_(black.bitwise_not_())
