"""What a remedy costs on clean images, and its bound."""

from __future__ import annotations

import numpy as np
import pytest

from qrobust.evaluation.clean_cost import TOLERANCE_PP, clean_cost
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.evaluation.statistics import Z_ONE_SIDED
from qrobust.record import CleanCost

BALANCED = Primary("balanced")


def pairs(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two classifiers, of which the second loses some images and wins others; half are right anyway."""
    before = np.arange(n) < lost + (n - lost - won) // 2
    after = before.copy()
    after[:lost], after[n - won :] = False, True
    return before, after


def cost_of(lost: int, won: int, n: int, primary: Primary = ACCURACY, budget: float = 0.3) -> CleanCost:
    return clean_cost(*pairs(lost, won, n), np.arange(n) % 4, primary, budget_pp=budget, allowed_pp=budget)


def test_no_difference_on_few_images_is_no_proof() -> None:
    """By hand: one pseudo image of 102 differs, sqrt(1) / 102 of a standard error."""
    found = cost_of(0, 0, 100)
    assert found.cost_pp == 0
    assert found.bound_pp == pytest.approx(100 * Z_ONE_SIDED / 102)


def test_by_hand_where_images_are_lost_and_won() -> None:
    found = cost_of(6, 2, 198)
    assert found.cost_pp == pytest.approx(100 * 4 / 198)
    middle, variance = 4 / 200, (9 - 16 / 200) / 200**2
    assert found.bound_pp == pytest.approx(100 * (middle + Z_ONE_SIDED * variance**0.5))


@pytest.mark.parametrize("primary", [ACCURACY, BALANCED], ids=["accuracy", "balanced"])
def test_the_bound_holds_in_19_of_20_samples(primary: Primary) -> None:
    """Of classifiers that truly differ by 2 points; 0.93 is 0.95 less three standard errors of 1,000 samples."""
    rng, held, n = np.random.default_rng(0), 0, 200
    for _ in range(1000):
        kind = rng.choice(4, n, p=(0.05, 0.03, 0.7, 0.22))
        before, after = (kind == 0) | (kind == 2), (kind == 1) | (kind == 2)
        labels = rng.choice(3, n, p=(0.6, 0.3, 0.1))
        held += clean_cost(before, after, labels, primary, budget_pp=1, allowed_pp=1).bound_pp >= 2
    assert 0.93 <= held / 1000 <= 0.985


def test_as_many_images_as_it_names_would_tell() -> None:
    few = cost_of(3, 3, 150)
    assert few.images_to_tell is not None
    times = few.images_to_tell / 150
    assert times > 1
    many = cost_of(round(3 * times), round(3 * times), round(150 * times))
    assert many.bound_pp - many.cost_pp <= TOLERANCE_PP
    assert many.images_to_tell is None or many.bound_pp <= few.budget_pp + TOLERANCE_PP + 0.01


@pytest.mark.parametrize(("lost", "told"), [(2, True), (5, False)])
def test_no_images_tell_of_a_cost_that_is_more_than_a_point_above_the_budget(lost: int, told: bool) -> None:
    """Two of 250 images are half a point above 0.3: the bound has to be within half a point. Five are 1.7 above."""
    found = cost_of(lost, 0, 250)
    assert found.bound_pp > 0.3 + TOLERANCE_PP
    assert (found.images_to_tell is not None) == told
    if found.images_to_tell:
        times = found.images_to_tell / 250
        many = cost_of(round(lost * times), 0, round(250 * times))
        assert many.bound_pp == pytest.approx(0.3 + TOLERANCE_PP, abs=0.1)


def test_of_even_classes_balanced_accuracy_costs_the_same() -> None:
    plain, balanced = cost_of(4, 4, 200), cost_of(4, 4, 200, BALANCED)
    assert balanced.cost_pp == pytest.approx(plain.cost_pp)
    assert balanced.bound_pp == pytest.approx(plain.bound_pp, rel=0.05)  # classes lose and win unequally


def test_a_small_class_makes_balanced_accuracy_less_sure() -> None:
    before, after = pairs(2, 2, 200)
    labels = (np.arange(200) >= 190).astype(int)
    plain, balanced = (
        clean_cost(before, after, labels, p, budget_pp=0.3, allowed_pp=0.3) for p in (ACCURACY, BALANCED)
    )
    assert balanced.bound_pp - balanced.cost_pp > 2 * (plain.bound_pp - plain.cost_pp)


def test_the_recall_of_a_class_counts_its_images_alone() -> None:
    before, after = pairs(2, 0, 200)
    labels = (np.arange(200) >= 150).astype(int)
    found = clean_cost(before, after, labels, Primary("recall:b", 1), budget_pp=0.3, allowed_pp=0.3)
    assert found.cost_pp == 0
    assert found.bound_pp == pytest.approx(100 * Z_ONE_SIDED / 52)
