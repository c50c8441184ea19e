"""How far a number measured on n images may be from the truth (intervals), and whether two differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
# Of the intervals in a record.
CONFIDENCE = 0.95
FEW_VALUES = 500
# Standard errors to either side of an interval at 95 %.
Z = NormalDist().inv_cdf(0.975)
# Standard errors above an estimate of a one-sided bound at 95 %.
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)
# What either end of such an interval leaves out.
ONE_SIDED = 0.025


@cache
def _deviations(confidence: float) -> float:
    """Standard errors to either side of an interval."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(hits: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions (E. B. Wilson, JASA 22, 1927).

    Args:
        hits: how many of the n; no whole number where each of the n counts by a fraction, whose variance is at most
            that of a proportion.
        n: at least 1.
        confidence: of the interval.
    """
    z = _deviations(confidence)
    share, factor = hits / n, z * z / n
    middle = (share + factor / 2) / (1 + factor)
    half = z / (1 + factor) * math.sqrt(max(0.0, share * (1 - share)) / n + factor / (4 * n))
    return (max(0.0, middle - half) if share > 0 else 0.0), (min(1.0, middle + half) if share < 1 else 1.0)


def mean_interval(shares: np.ndarray, intervals: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of independent proportions, from an interval of each.

    MOVER, the method of variance estimates recovery (Zou and Donner, Statistics in Medicine 27, 2008): of one
    proportion it is that one's interval, and it never leaves [0, 1].

    Args:
        shares: `(k,)`.
        intervals: `(k, 2)`.
    """
    below, above = shares - intervals[:, 0], intervals[:, 1] - shares
    mean, k = float(shares.mean()), len(shares)
    return mean - float(np.sqrt((below**2).sum())) / k, mean + float(np.sqrt((above**2).sum())) / k


def chance_agreement(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images `(n,)` that these predictions would get right if they did not depend on the images.

    Each class is predicted as often as it was, and is there as often as it is (J. Cohen, 1960).
    """
    classes = 1 + int(max(predicted.max(), labels.max()))
    shares = (np.bincount(values, minlength=classes) / len(values) for values in (predicted, labels))
    return float(np.multiply(*shares).sum())


def wilson_images(share: float, limit: float, confidence: float = CONFIDENCE) -> float:
    """How many images Wilson's interval of a share needs to exclude a limit: where the score test just rejects it.

    Args:
        share: the proportion, in [0, 1].
        limit: another one.
        confidence: of the interval.
    """
    z = _deviations(confidence)
    return z * z * limit * (1 - limit) / (share - limit) ** 2


def paired_bootstrap(differences: np.ndarray, seed: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of the mean of per-image differences `(n,)`.

    Images are resampled whole, so two classifiers that err on the same images are compared as such. Where few
    differences are distinct, how often each is drawn is multinomial, and drawing that is much faster.
    """
    rng = np.random.default_rng(seed)
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= FEW_VALUES:
        means = rng.multinomial(n, counts / n, size=RESAMPLES) @ values / n
    else:
        means = np.array([differences[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    tail = round(50 * (1 - confidence), 9)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def stratified_interval(values: np.ndarray, weights: np.ndarray, strata: np.ndarray) -> tuple[float, float]:
    """Interval of a weighted sum of per-image values, from their variance within each stratum.

    Strata are sampled apart, so the variance is the sum of `W_k^2 s_k^2 / n_k`, W_k being a stratum's weight. That of
    a stratum of one image is taken from the others together.

    Args:
        values: `(n,)`.
        weights: `(n,)`, equal within a stratum.
        strata: index of each image's stratum `(n,)`.
    """
    _, index, counts = np.unique(strata, return_inverse=True, return_counts=True)
    means = np.bincount(index, values) / counts
    squares = np.bincount(index, (values - means[index]) ** 2)
    within = squares.sum() / max(1, len(values) - len(counts))
    variances = np.where(counts > 1, squares / np.maximum(1, counts - 1), within)
    shares = np.bincount(index, weights)
    half = Z * float(np.sqrt((shares**2 * variances / counts).sum()))
    middle = float(weights @ values)
    return middle - half, middle + half


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value that two classifiers are right equally often, from where only one of them is.

    Exact form of Q. McNemar's test (Psychometrika 12, 1947): of the images that one classifier alone gets
    right, each is as likely to be either's.

    Args:
        a: whether the first is right `(n,)`, bool.
        b: the same of the second, on the same images.
    """
    from scipy.stats import binomtest  # imported here: a report, which needs it not, is to need no torch either

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    total = only_a + only_b
    return float(binomtest(only_a, total).pvalue) if total else 1.0


def even_counts(counts: np.ndarray) -> float:
    """p-value of Pearson's chi-squared test that classes of these counts `(k,)` are drawn equally often."""
    from scipy.stats import chisquare  # see `mcnemar_exact`

    return float(chisquare(counts).pvalue) if len(counts) > 1 else 1.0


def lower_tail(z: float) -> float:
    """Chance that a standard normal variable is below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))  # exact far out, where 1 + erf is not


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, so that the chance of one false finding among all is bounded (S. Holm, 1979).

    Args:
        p_values: of one family of tests, in any order, which the result keeps.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of a seeded subset with each class's share, in ascending order `(count,)`.

    Classes get the whole part of their share, and what is left over goes to the largest remainders.

    Args:
        labels: `(n,)`.
        count: how many, at most n.
        seed: equal seeds give equal subsets.
    """
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    chosen = shares.astype(int)
    chosen[np.argsort(chosen - shares, kind="stable")[: count - chosen.sum()]] += 1
    picked = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, chosen, strict=True)]
    return np.sort(np.concatenate(picked))
