from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from qrobust.statistics import paired_bootstrap, wilson_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (5, 10), (10, 10), (430, 500), (4999, 5000)])
def test_wilson_equals_the_independent_reference(hits: int, n: int) -> None:
    reference = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_bootstrap_matches_the_normal_interval_and_its_seed() -> None:
    differences = np.random.default_rng(0).normal(1.0, 10.0, 2000)
    low, high = paired_bootstrap(differences, seed=3)
    half = 1.96 * differences.std() / math.sqrt(2000)
    # 2,000 resamples leave an error of a few per cent in each end of the interval.
    assert low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.1 * half)
    assert (low, high) == paired_bootstrap(differences, seed=3)


def test_bootstrap_of_equal_classifiers_is_zero() -> None:
    assert paired_bootstrap(np.zeros(50), seed=0) == (0.0, 0.0)
