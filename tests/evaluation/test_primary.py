"""The measure that decides: closed forms, coverage, and names that are none."""

from __future__ import annotations

import numpy as np
import pytest

from qrobust.errors import InputError
from qrobust.evaluation.classes import balanced_accuracy
from qrobust.evaluation.config import EvaluationConfig
from qrobust.evaluation.primary import ACCURACY, Primary, find_primary
from qrobust.evaluation.statistics import Z, stratified_interval

LABELS = np.array([0] * 6 + [1] * 3)
RIGHT = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
BALANCED, RECALL = Primary("balanced"), Primary("recall:b", 1)


def test_each_measure_is_its_closed_form() -> None:
    assert ACCURACY.value(RIGHT, LABELS) == 4 / 9
    assert BALANCED.value(RIGHT, LABELS) == balanced_accuracy(RIGHT, LABELS)
    assert RECALL.value(RIGHT, LABELS) == 1 / 3


@pytest.mark.parametrize("primary", [ACCURACY, BALANCED, RECALL])
def test_a_measure_is_a_weighted_mean(primary: Primary) -> None:
    weights = primary.weights(LABELS)
    assert weights.sum() == pytest.approx(1)
    assert weights @ RIGHT == pytest.approx(primary.value(RIGHT, LABELS))


def test_a_measure_tells_as_much_as_so_many_images() -> None:
    """Variances add up: of balanced accuracy that is (1/6 + 1/3) / 4 of one image's, as of 8 images."""
    assert ACCURACY.images(LABELS) == pytest.approx(9)
    assert RECALL.images(LABELS) == pytest.approx(3)
    assert BALANCED.images(LABELS) == pytest.approx(8)
    assert BALANCED.images(np.repeat([0, 1, 2], 5)) == pytest.approx(15)


@pytest.mark.parametrize("primary", [ACCURACY, BALANCED, RECALL])
def test_a_difference_is_that_of_two_values_in_points(primary: Primary) -> None:
    found, (low, high) = primary.difference(~RIGHT, RIGHT, LABELS, seed=0)
    wanted = 100 * (primary.value(~RIGHT, LABELS) - primary.value(RIGHT, LABELS))
    assert found == pytest.approx(wanted)
    assert low <= found <= high


def test_interval_of_one_stratum_is_that_of_a_mean() -> None:
    values = np.array([0.0, 1.0, 1.0, 2.0])
    low, high = stratified_interval(values, np.full(4, 0.25), np.zeros(4, dtype=int))
    half = Z * values.std(ddof=1) / 2
    assert (low, high) == pytest.approx((1 - half, 1 + half))


def test_interval_of_a_balanced_difference_covers_the_truth() -> None:
    rng, labels, covered = np.random.default_rng(0), np.repeat([0, 1, 2], [40, 100, 300]), 0
    truth = np.array([0.2, 0.0, -0.1])
    for _ in range(1000):
        values = np.where(rng.random(440) < np.abs(truth[labels]), np.sign(truth[labels]), 0)
        low, high = stratified_interval(values, BALANCED.weights(labels), labels)
        covered += low <= truth.mean() <= high
    # 95 % within three standard errors over 1,000 samples; the normal's interval is a little short at n = 40.
    assert 920 <= covered <= 970


def test_auto_is_balanced_where_classes_are_uneven() -> None:
    many = np.repeat(LABELS, 10)
    assert find_primary("auto", ("a", "b"), many) == ACCURACY
    assert find_primary("auto", ("a", "b"), many[:-1]) == BALANCED
    assert find_primary("accuracy", ("a", "b"), many[:-1]) == ACCURACY


def test_a_class_is_found_by_its_name_whatever_it_holds() -> None:
    assert find_primary("recall:a:b", ("x", "a:b"), LABELS) == Primary("recall:a:b", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recall:dgo", "primary: recall:CLASS: expected one of dog, cat, got 'dgo'; did you mean 'dog'?"),
        ("recall:", "primary: expected one of auto, accuracy, balanced, recall:CLASS, got 'recall:'"),
        ("balnced", "primary: expected one of balanced, auto, accuracy, recall:CLASS, got 'balnced'; did you mean"),
        ("recall:bird", "primary: expected a class that has images to choose by, got bird, which has none"),
    ],
)
def test_what_is_no_measure_is_refused(text: str, message: str) -> None:
    names = ("cat", "dog", "bird") if "bird" in text else ("cat", "dog")
    with pytest.raises(InputError) as caught:
        find_primary(text, names, LABELS)
    assert str(caught.value).startswith(message)


def test_a_configuration_refuses_it_before_classes_are_known() -> None:
    assert EvaluationConfig("recall:anything").primary == "recall:anything"
    with pytest.raises(InputError, match="recall:CLASS"):
        EvaluationConfig("f1")


def test_images_without_the_class_are_told() -> None:
    with pytest.raises(InputError, match="expected images of the class of recall:b, got none among 6"):
        RECALL.weights(LABELS[:6])
