"""Recall per class, balanced accuracy and confusions: closed forms, scikit-learn, and what a record holds of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from qrobust.evaluation.classes import (
    MOST_CONFUSIONS,
    balanced_accuracy,
    class_results,
    confusion_matrix,
    confusions,
    is_uneven,
    recalls,
)
from qrobust.evaluation.predictions import CLEAN, Predictions
from qrobust.evaluation.statistics import mean_interval, wilson_interval
from qrobust.record import Classes, from_json, to_json
from qrobust.report.classes import class_name, confusion_table, evenness, recall_table

# Six images of a, three of b, none of c.
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
NAMES = ("a", "b", "c")


def said(prediction: list[int] | np.ndarray) -> Predictions:
    n = len(prediction)
    return Predictions(np.asarray(prediction), np.ones(n), np.full(n, 0.5))


def test_recall_is_the_share_of_a_class_and_unknown_without_images() -> None:
    right = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    assert recalls(right, LABELS, 3)[:2].tolist() == [0.5, pytest.approx(1 / 3)]
    assert np.isnan(recalls(right, LABELS, 3)[2])
    assert balanced_accuracy(right, LABELS) == pytest.approx((0.5 + 1 / 3) / 2)


def test_balanced_accuracy_and_confusions_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, prediction = np.minimum(rng.geometric(0.3, 300), 7) - 1, rng.integers(0, 7, 300)
    assert balanced_accuracy(prediction == labels, labels) == pytest.approx(
        balanced_accuracy_score(labels, prediction)
    )
    wanted = sklearn_confusion_matrix(labels, prediction, labels=range(7))
    assert np.array_equal(confusion_matrix(prediction, labels, 7), wanted)


def test_a_prediction_beyond_the_names_has_a_column() -> None:
    assert confusion_matrix(np.array([0, 4]), np.array([0, 1]), 2)[1, 4] == 1
    assert class_name(("a", "b"), 4) == "class 4"


def test_wilson_interval_is_that_of_scipy() -> None:
    for hits, n in ((0, 5), (3, 7), (7, 7), (412, 1000)):
        wanted = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, n) == pytest.approx((wanted.low, wanted.high))


def test_interval_of_a_mean_is_that_of_one_proportion_and_narrows_with_the_root_of_their_number() -> None:
    one = wilson_interval(12, 20)
    assert mean_interval(np.array([0.6]), np.array([one])) == pytest.approx(one)
    low, high = mean_interval(np.full(4, 0.6), np.array([one] * 4))
    assert (0.6 - low, high - 0.6) == pytest.approx(((0.6 - one[0]) / 2, (one[1] - 0.6) / 2))


def test_interval_of_balanced_accuracy_covers_the_truth_as_often_as_it_says() -> None:
    rng, truth, counts = np.random.default_rng(0), np.array([0.95, 0.7, 0.5]), np.array([12, 60, 300])
    hits = rng.binomial(counts, truth, size=(2000, 3))
    spans = [
        mean_interval(row / counts, np.array([wilson_interval(h, n) for h, n in zip(row, counts, strict=True)]))
        for row in hits
    ]
    covered = np.mean([low <= truth.mean() <= high for low, high in spans])
    # 95 % with a standard error of half a point over 2,000 samples; Wilson's own coverage wanders by a point or two.
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize(
    ("counts", "uneven"),
    [
        ((50, 100), False),
        ((50, 101), True),
        ((0, 70, 70), False),
        ((0, 0), False),
        ((5, 11), False),
        ((1, 40, 40), True),
    ],
)
def test_uneven_is_more_than_twice_the_images_and_no_chance(counts: tuple[int, ...], uneven: bool) -> None:
    assert is_uneven(np.array(counts)) is uneven


@pytest.fixture
def results() -> Classes:
    a_bit = said([0, 0, 0, 1, 1, 2, 1, 0, 0])
    found = {
        CLEAN: {"float": said(LABELS), "int8": a_bit},
        ("fog", 3): {"float": a_bit, "int8": said(np.zeros(9, dtype=int))},
        ("fog", 5): {"float": a_bit, "int8": said([0, 0, 0, 0, 0, 0, 1, 1, 1])},
    }
    return class_results(found, LABELS, 3)


def test_baseline_is_the_share_of_the_largest_class(results: Classes) -> None:
    assert (results.n, results.uneven, results.majority_class) == ((6, 3, 0), False, 0)
    assert (results.majority, results.chance) == (pytest.approx(6 / 9), 0.5)


def test_right_and_confusions_are_the_whole_matrix(results: Classes) -> None:
    clean = results.conditions[0]
    assert clean.right["int8"] == (3, 1, 0)
    assert set(clean.confusions["int8"]) == {(0, 1, 2), (1, 0, 2), (0, 2, 1)}
    assert clean.unlisted == {"float": 0, "int8": 0}
    assert clean.balanced["int8"] == pytest.approx((3 / 6 + 1 / 3) / 2)


def test_recall_under_shift_is_the_mean_over_conditions(results: Classes) -> None:
    a, b, c = results.classifiers["int8"].recall
    assert (a.clean, a.shift, b.shift) == (0.5, 1.0, 0.5)
    assert a.clean_interval == wilson_interval(3, 6)
    assert b.shift_interval == wilson_interval(1.5, 3)
    assert (c.clean, c.clean_interval, c.shift, c.shift_interval) == (None, None, None, None)
    assert results.classifiers["int8"].shift_balanced == pytest.approx(0.75)


def test_a_record_of_them_is_read_back(results: Classes) -> None:
    assert from_json(Classes, json.loads(json.dumps(to_json(results))), "record.json") == results


def test_a_thousand_classes_take_little_room() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(5000) % 1000
    found = class_results({CLEAN: {"int8": said(rng.integers(0, 1000, 5000))}}, labels, 1000)
    condition = found.conditions[0]
    assert len(condition.confusions["int8"]) == MOST_CONFUSIONS
    listed = sum(n for *_, n in condition.confusions["int8"])
    assert condition.unlisted["int8"] == 5000 - sum(condition.right["int8"]) - listed
    assert len(json.dumps(to_json(condition))) < 15_000


def test_most_frequent_confusions_come_first() -> None:
    assert confusions(np.array([1, 1, 2, 0]), np.array([0, 0, 0, 0]), most=1) == ((0, 1, 2),)


def test_matrix_of_a_report_adds_conditions_up(results: Classes) -> None:
    rows = confusion_table(results.conditions[1:], "int8", results.n, NAMES)
    assert rows == [
        ["class, and what it is taken for", "a", "b"],
        ["a", "100.0 %", ""],
        ["b", "50.0 %", "50.0 %"],
    ]


def test_many_classes_show_the_worst() -> None:
    labels = np.repeat(np.arange(30), 4)
    prediction = np.where(labels == 17, 3, labels)
    found = class_results({CLEAN: {"int8": said(prediction)}}, labels, 30)
    names = tuple(f"n{index}" for index in range(30))
    rows = recall_table(found, names, {"int8": "INT8"})
    assert len(rows) == 21
    assert rows[1][:2] == ["n17", "4"]
    assert confusion_table(found.conditions, "int8", found.n, names)[1] == ["n17", "n3", "100.0 %"]


def test_a_report_says_where_classes_are_uneven() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    told = evenness(class_results({CLEAN: {"int8": said(labels)}}, labels, 2), ("good", "bad"))
    assert told.startswith("Classes are uneven, from 30 images of bad to 70 of good;")
    assert "always answering good would be right on 70.0 % of the images (balanced 50.0 %)" in told
