"""Harm, no harm, undecided: closed forms, error rates, and what a class of twelve images can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from qrobust.evaluation.effects import (
    MARGIN,
    Moments,
    Right,
    chance,
    class_effects,
    graph_effects,
    needed,
    split_effect,
)
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.evaluation.statistics import ONE_SIDED, Z, holm, paired_bootstrap, wilson_interval


def right(per_class: list[tuple[int, int]]) -> Right:
    """Right on so many of so many images of each class, clean and under shift alike."""
    values = np.concatenate([np.arange(n) < hits for hits, n in per_class]).astype(float)
    labels = np.repeat(np.arange(len(per_class)), [n for _, n in per_class])
    return Right(values, labels, values, labels)


def test_estimate_is_that_of_one_image_more_won_and_one_more_lost() -> None:
    differences = np.array([1.0] * 3 + [-1.0] * 5 + [0.0] * 12)
    mean, error = Moments.of(differences).estimate()
    more = np.concatenate([differences, [1.0, -1.0]])
    assert (mean, error) == pytest.approx((more.mean(), more.std() / math.sqrt(len(more))))


def test_p_values_are_those_of_the_normal() -> None:
    found = Moments(98, -0.08, 0.1)
    mean, error = found.estimate()
    assert found.p_values() == pytest.approx((norm.cdf(mean / error), norm.sf((mean + 0.05) / error)))


def test_a_class_of_twelve_images_that_no_remedy_moves_is_undecided() -> None:
    found = class_effects(right([(12, 12)]), right([(12, 12)]))
    assert (found.harm, found.n_undecided, found.n_no_harm) == ((), 2, 0)
    assert found.undecided[0].n == 12
    assert found.undecided[0].needed is not None
    assert found.undecided[0].needed > 12


def test_as_many_images_as_are_said_to_be_needed_tell() -> None:
    for mean, square in ((0.0, 0.0), (-0.02, 0.06), (-0.2, 0.3)):
        enough = needed(Moments(12, mean, square), ONE_SIDED)
        assert enough is not None
        side = 0 if mean < -0.05 else 1
        assert Moments(enough, mean, square).p_values()[side] < ONE_SIDED
        assert Moments(enough - 1, mean, square).p_values()[side] >= ONE_SIDED


def test_what_lies_on_the_margin_is_never_told() -> None:
    assert needed(Moments(100, -0.05, 0.1), ONE_SIDED) is None


def test_a_class_that_loses_is_harmed_though_the_mean_gains() -> None:
    before, after = right([(150, 300), (90, 100)]), right([(270, 300), (60, 100)])
    found = class_effects(after, before)
    assert {(one.class_index, one.where) for one in found.harm} == {(1, "clean"), (1, "shift")}
    assert found.harm[0].difference_pp == pytest.approx(-30)
    assert (found.n_undecided, found.n_no_harm) == (0, 2)


def test_a_small_loss_of_a_large_class_is_no_harm() -> None:
    found = class_effects(right([(1980, 2000)]), right([(2000, 2000)]))
    assert (found.harm, found.n_undecided, found.n_no_harm) == ((), 0, 2)


def test_harmless_remedies_are_seldom_called_harmful_and_harmful_ones_seldom_harmless() -> None:
    """Over 20 classes at once Holm's correction keeps either mistake to 2.5 %; 12 of 200 are three errors above."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(20), 60)
    harm = harmless = 0
    for _ in range(200):
        differences = rng.choice([1.0, -1.0, 0.0], p=[0.1, 0.1, 0.8], size=1200)
        lost = rng.choice([-1.0, 0.0], p=[0.06, 0.94], size=1200)
        zero = np.zeros(1200)
        harm += bool(
            class_effects(Right(differences, labels, differences, labels), Right(zero, labels, zero, labels)).harm
        )
        harmless += class_effects(Right(lost, labels, lost, labels), Right(zero, labels, zero, labels)).n_no_harm > 0
    assert harm <= 12
    assert harmless <= 12


def test_each_graph_is_compared_with_the_one_whose_place_it_takes() -> None:
    found = {"float": right([(90, 100)]), "int8": right([(80, 100)]), "denoise": right([(85, 100)])}
    int8, denoise = graph_effects(found, found, ACCURACY, seed=0)
    assert (int8.graph, int8.reference, denoise.graph, denoise.reference) == ("int8", "float", "denoise", "int8")
    assert int8.shift_interval == wilson_interval(80, 100)
    assert (int8.test.clean_cost_pp, denoise.test.gain_pp) == (pytest.approx(10), pytest.approx(5))


def test_the_primary_measure_is_what_gains_are_of() -> None:
    before, after = right([(100, 100), (5, 10)]), right([(98, 100), (8, 10)])
    found = {"int8": before, "denoise": after, "float": before}
    balanced, recall = (
        graph_effects(found, found, primary, seed=0)[1].test.gain_pp
        for primary in (Primary("balanced"), Primary("recall:b", 1))
    )
    assert balanced == pytest.approx((-2 + 30) / 2)
    assert recall == pytest.approx(30)


def test_chance_is_the_largest_class_in_the_primary_measure() -> None:
    labels = np.array([0] * 9 + [1])
    assert (chance(labels, ACCURACY), chance(labels, Primary("balanced"))) == (0.9, 0.5)


def test_an_effect_tells_gain_and_cost_with_their_intervals() -> None:
    labels = np.array([0, 0, 1, 1])
    before = Right(np.array([1.0, 1, 1, 0]), labels, np.array([0.0, 0.5, 0, 1]), labels)
    after = Right(np.array([1.0, 0, 1, 0]), labels, np.array([1.0, 0.5, 0.5, 1]), labels)
    found = split_effect(after, before, ACCURACY, seed=3)
    assert (found.n, found.clean, found.shift) == (4, 0.5, 0.75)
    assert (found.gain_pp, found.clean_cost_pp) == (37.5, 25.0)
    assert found.gain_interval_pp == pytest.approx(paired_bootstrap(np.array([100.0, 0, 50, 0]), 3))
    assert found.clean_cost_interval_pp == pytest.approx(paired_bootstrap(np.array([0.0, 100, 0, 0]), 3))


def test_an_undecided_class_is_told_by_hand() -> None:
    """Of eight images one is lost, clean and under shift alike."""
    (first, second) = class_effects(right([(7, 8)]), right([(8, 8)])).undecided
    mean, square = -1 / 10, 3 / 10  # with one image more won and one more lost
    error = math.sqrt((square - mean**2) / 10)
    assert (first.where, second.where, first.class_index, first.n) == ("clean", "shift", 0, 8)
    assert first.difference_pp == -12.5
    assert first.interval_pp == pytest.approx((100 * (mean - Z * error), 100 * (mean + Z * error)))
    assert first.harm_p == pytest.approx(holm([norm.cdf(mean / error)] * 2)[0])
    assert first.no_harm_p == pytest.approx(holm([norm.sf((mean + MARGIN) / error)] * 2)[0])
    assert first.needed == needed(Moments(8, -1 / 8, 1 / 8), ONE_SIDED / 2)
