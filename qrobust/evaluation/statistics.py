"""How far a number measured on n images may be from the truth (intervals, at 95 %), and whether two differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 2000
FEW_VALUES = 500


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions (E. B. Wilson, JASA 22, 1927)."""
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def chance_agreement(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images `(n,)` that these predictions would get right if they did not depend on the images.

    Each class is predicted as often as it was, and is there as often as it is (J. Cohen, 1960).
    """
    classes = 1 + int(max(predicted.max(), labels.max()))
    shares = (np.bincount(values, minlength=classes) / len(values) for values in (predicted, labels))
    return float(np.multiply(*shares).sum())


def paired_bootstrap(differences: np.ndarray, seed: int) -> tuple[float, float]:
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
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value that two classifiers are right equally often, from where only one of them is.

    Exact form of Q. McNemar's test (Psychometrika 12, 1947): of the images that one classifier alone gets
    right, each is as likely to be either's.

    Args:
        a: whether the first is right `(n,)`, bool.
        b: the same of the second, on the same images.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    total = only_a + only_b
    return float(binomtest(only_a, total).pvalue) if total else 1.0


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
