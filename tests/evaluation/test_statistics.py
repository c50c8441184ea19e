from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from qrobust.evaluation.statistics import (
    chance_agreement,
    even_counts,
    holm,
    lower_tail,
    mcnemar_exact,
    mean_interval,
    paired_bootstrap,
    stratified,
    stratified_interval,
    wilson_images,
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


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_images_are_those_at_which_the_interval_ends_at_the_limit(confidence: float) -> None:
    n = wilson_images(0.9, 0.85, confidence)
    assert wilson_interval(0.9 * n, n, confidence)[0] == pytest.approx(0.85)
    n = wilson_images(0.2, 0.3, confidence)
    assert wilson_interval(0.2 * n, n, confidence)[1] == pytest.approx(0.3)


def test_wilson_of_one_image_by_hand() -> None:
    """One of one: from 1 / (1 + z^2) to 1."""
    z = float(norm.ppf(0.975))
    assert wilson_interval(1, 1) == (pytest.approx(1 / (1 + z * z)), 1.0)
    assert wilson_interval(0, 1) == (0.0, pytest.approx(z * z / (1 + z * z)))
    assert wilson_interval(1, 1, 0.5)[0] == pytest.approx(1 / (1 + float(norm.ppf(0.75)) ** 2))


def test_chance_agrees_by_how_often_each_class_is_said_and_is_there() -> None:
    # Said 3/4 and 1/4 of class 0 and 1, there 1/2 of class 0 and of class 2.
    assert chance_agreement(np.array([0, 0, 0, 1]), np.array([0, 0, 2, 2])) == pytest.approx(3 / 8)
    assert chance_agreement(np.array([0, 2, 2, 2]), np.array([1, 1, 1, 2])) == pytest.approx(3 / 16)


def test_the_interval_of_a_mean_of_proportions_adds_the_squares_of_both_sides() -> None:
    low, high = mean_interval(np.array([0.5, 0.7]), np.array([[0.2, 0.6], [0.3, 0.94]]))
    assert low == pytest.approx(0.6 - 0.5 / 2)  # sides of 0.3 and 0.4
    assert high == pytest.approx(0.6 + 0.26 / 2)  # of 0.1 and 0.24


def test_the_interval_of_strata_by_hand() -> None:
    """Variances 2 and 0.5 within strata of two, and that of both together, (2 + 0.5) / 2, for the stratum of one."""
    values, strata = np.array([1.0, 3.0, 5.0, 6.0, 9.0]), np.array([0, 0, 1, 1, 2])
    weights = np.array([0.25, 0.25, 0.1, 0.1, 0.3])
    low, high = stratified_interval(values, weights, strata)
    middle = 0.25 * 4 + 0.1 * 11 + 0.3 * 9
    half = float(norm.ppf(0.975)) * math.sqrt(0.25 * 2 / 2 + 0.04 * 0.5 / 2 + 0.09 * 1.25)
    assert (low, high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    # Strata of one image each tell no variance.
    assert stratified_interval(np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.array([0, 1])) == (1.5, 1.5)


def test_the_bootstrap_of_many_distinct_differences_narrows_with_its_confidence() -> None:
    differences = np.random.default_rng(0).normal(0.0, 1.0, 800)  # more than are counted as few
    for confidence in (0.5, 0.95):
        low, high = paired_bootstrap(differences, seed=1, confidence=confidence)
        half = float(norm.ppf(0.5 + confidence / 2)) * differences.std() / math.sqrt(800)
        # The error of 2,000 resamples, as above.
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)
        assert (high + low) / 2 == pytest.approx(differences.mean(), abs=0.1 * half)


def test_the_bootstrap_without_confidence_is_the_median() -> None:
    low, high = paired_bootstrap(np.random.default_rng(0).normal(0.0, 1.0, 50), seed=1, confidence=0.0)
    assert low == high


@pytest.mark.parametrize("place", [0, -1])
def test_the_bootstrap_draws_every_image(place: int) -> None:
    """One large difference among many small ones, which most resamples hold once or twice."""
    differences = np.linspace(-1, 1, 600)
    differences[place] = 600.0
    low, high = paired_bootstrap(differences, seed=0)
    assert low < 0.5
    assert 2 < high < 5


def test_even_counts_are_likely_and_uneven_ones_are_not() -> None:
    assert even_counts(np.array([50, 50])) == pytest.approx(1.0)
    # Chi-squared (20^2 + 20^2) / 50 = 16 with one degree of freedom: 4 standard errors, on both sides.
    assert even_counts(np.array([70, 30])) == pytest.approx(2 * norm.sf(4))
    assert even_counts(np.array([7])) == 1.0


@pytest.mark.parametrize("z", [-30.0, -2.0, 0.0, 1.5])
def test_the_lower_tail_is_the_normals(z: float) -> None:
    assert lower_tail(z) == pytest.approx(norm.cdf(z), rel=1e-12)


def test_what_is_left_over_goes_to_the_largest_remainders() -> None:
    """Of 5 from 5, 3 and 2: shares 2.5, 1.5 and 1, so the first of equal remainders takes what is left."""
    labels = np.repeat([4, 7, 9], [5, 3, 2])
    chosen = stratified(labels, 5, seed=0)
    assert [int((labels[chosen] == c).sum()) for c in (4, 7, 9)] == [3, 1, 1]
    assert (np.diff(chosen) > 0).all()
