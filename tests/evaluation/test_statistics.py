from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from qrobust.evaluation.statistics import (
    holm,
    mcnemar_exact,
    paired_bootstrap,
    stratified,
    wilson_interval,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (5, 10), (10, 10), (430, 500), (4999, 5000)])
def test_wilson_inverts_the_score_test(hits: int, n: int) -> None:
    """At either end, the hits are as many standard errors away as the normal's 97.5 % quantile; 0 and 1 bound it."""
    p, z = hits / n, float(norm.ppf(0.975))
    for end in wilson_interval(hits, n):
        assert end in (0.0, 1.0) or abs(p - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-9)


def test_bootstrap_matches_the_normal_interval_and_its_seed() -> None:
    differences = np.random.default_rng(0).normal(1.0, 10.0, 2000)
    low, high = paired_bootstrap(differences, seed=3)
    half = 1.96 * differences.std() / math.sqrt(2000)
    # 2,000 resamples leave an error of a few per cent in each end of the interval.
    assert low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.1 * half)
    assert (low, high) == paired_bootstrap(differences, seed=3)


def test_bootstrap_of_few_distinct_differences_matches_the_normal_interval() -> None:
    differences = np.repeat([-100.0, 0.0, 100.0], [50, 800, 150])
    low, high = paired_bootstrap(differences, seed=1)
    half = 1.96 * differences.std() / math.sqrt(1000)
    # As above, and the mean moves in steps of 0.1.
    assert (low, high) == pytest.approx((10 - half, 10 + half), abs=0.1 * half + 0.1)


def test_bootstrap_of_equal_classifiers_is_zero() -> None:
    assert paired_bootstrap(np.zeros(50), seed=0) == (0.0, 0.0)


def right_on(only_a: int, only_b: int, both: int = 7) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, False, True, False], [only_a, only_b, both, 3])
    return a, np.repeat([False, True, True, False], [only_a, only_b, both, 3])


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 0), (1, 9), (12, 12), (40, 61), (700, 800)])
def test_mcnemar_is_twice_the_binomial_tail(only_a: int, only_b: int) -> None:
    total = only_a + only_b
    reference = min(1.0, sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (total - 1))
    assert mcnemar_exact(*right_on(only_a, only_b)) == pytest.approx(reference, rel=1e-9)
    assert mcnemar_exact(*right_on(only_b, only_a)) == mcnemar_exact(*right_on(only_a, only_b))


def test_mcnemar_closed_forms() -> None:
    # Five images that only one gets right fall on one side with probability 2 / 2^5.
    assert mcnemar_exact(*right_on(5, 0)) == 2 / 32
    assert mcnemar_exact(*right_on(0, 0)) == 1.0


def test_holm_of_a_worked_example() -> None:
    # Sorted: .005 x 4, .01 x 3, .03 x 2, and .04 x 1 is raised to its predecessor's.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_stricter_than_false_discovery_control_and_laxer_than_bonferroni() -> None:
    p = np.random.default_rng(0).random(30) ** 3
    adjusted = np.array(holm(list(p)))
    assert (adjusted >= false_discovery_control(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, 30 * p) + 1e-12).all()
    assert np.array_equal(np.argsort(adjusted, kind="stable")[:5], np.argsort(p)[:5])


def test_stratified_keeps_shares_is_seeded_and_total_is_all() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    chosen = stratified(labels, 20, seed=5)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2]
    assert np.array_equal(chosen, stratified(labels, 20, seed=5))
    assert not np.array_equal(chosen, stratified(labels, 20, seed=6))
    assert np.array_equal(stratified(labels, 100, seed=0), np.arange(100))
    for count in range(1, 100, 7):
        shares = np.bincount(labels[stratified(labels, count, 0)], minlength=3)
        assert shares.sum() == count
        assert (abs(shares - np.array([0.6, 0.3, 0.1]) * count) < 1).all()
