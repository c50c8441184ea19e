"""Intervals: how far a number measured on n images may be from the truth. All at 95 %."""

from __future__ import annotations

import math

import numpy as np

Z = 1.959963984540054  # 97.5 % quantile of the standard normal
RESAMPLES = 2000


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions (E. B. Wilson, JASA 22, 1927)."""
    p, z2 = hits / n, Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of per-image differences `(n,)`.

    Images are resampled whole, so two classifiers that err on the same images are compared as such.
    """
    rng = np.random.default_rng(seed)
    n = len(differences)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        means[i] = differences[rng.integers(0, n, n)].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
