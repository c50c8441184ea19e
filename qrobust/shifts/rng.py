"""Random numbers for a batch: one stream per image, drawn for all images at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

# Every random number is one of so many: 16 bits, four from each 64-bit word.
LEVELS = 2**16
# SplitMix64's step from one counter to the next: 2^64 over the golden ratio.
_STEP = 0x9E3779B97F4A7C15

# An odd number with as many ones as zeros, far from all multiples of the step.
_BRANCH = 0xD1B54A32D192ED03


class Generators:
    """A counter-based generator per image (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

    The hash of the counters is that of SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number
    Generators", 2014). What an image draws depends on its seed and on what it drew before, not on the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Start one stream per seed; seeds from 0 to 2^64 - 1."""
        self._counters = _hash(np.array(seeds, dtype=np.uint64))[:, None]

    def __len__(self) -> int:
        return len(self._counters)

    def branch(self, rows: torch.Tensor, number: int) -> Generators:
        """New streams for these positions `(n,)`, which differ by `number`; those here are left as they are."""
        streams = Generators(())
        counters = self._counters[rows.numpy()] + np.uint64((number + 1) * _BRANCH % 2**64)
        streams._counters = _hash(counters)
        return streams

    def words(self, *shape: int) -> torch.Tensor:
        """Whole numbers from 0 to 65,535, all equally likely: int32 `(N, *shape)`."""
        count = math.prod(shape)
        steps = _steps(-(-count // 4))
        drawn = _hash(self._counters + steps).view(np.uint16)[:, :count]
        self._counters = self._counters + steps[-1:]
        return torch.from_numpy(drawn).to(torch.int32).view(len(self), *shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers, centres of the 65,536 equal parts of [0, 1]: float32 `(N, *shape)`."""
        return self.words(*shape).to(torch.float32).add_(0.5).div_(LEVELS)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, one of 65,536 quantiles, at most 4.3 in size: float32 `(N, *shape)`."""
        return _quantiles().index_select(0, self.words(*shape).flatten()).view(len(self), *shape)


def _hash(counters: np.ndarray) -> np.ndarray:
    """SplitMix64's hash of uint64 of any shape, in place."""
    shifted = np.empty_like(counters)
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        counters ^= np.right_shift(counters, bits, out=shifted)
        counters *= np.uint64(factor)
    counters ^= np.right_shift(counters, 31, out=shifted)
    return counters


@functools.lru_cache(maxsize=8)
def _steps(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)


@functools.cache
def _quantiles() -> torch.Tensor:
    """The normal distribution's quantiles at the centres of 65,536 equal parts, scaled to a deviation of 1."""
    z = torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS)
    return (z / z.square().mean().sqrt()).float()
