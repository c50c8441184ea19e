"""Rows and headlines of four images by hand: every field, none left to its neighbour."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from qrobust.evaluation import summary
from qrobust.evaluation.metrics import expected_calibration_error
from qrobust.evaluation.predictions import CLEAN, Condition, ConditionPredictions, Predictions
from qrobust.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from qrobust.evaluation.summary import (
    compare,
    comparison_rows,
    corruption_error,
    difference,
    drops,
    overview,
    remedy_gains,
    run_rows,
    summarise,
)

LABELS = np.array([0, 1, 2, 0])
FOG, TURN = ("fog", 3), ("rotation", 5)
RIGHT: dict[Condition, dict[str, list[int]]] = {
    CLEAN: {"float": [1, 1, 1, 1], "int8": [1, 1, 1, 0], "compensated": [1, 1, 0, 0]},
    FOG: {"float": [1, 1, 1, 0], "int8": [1, 0, 0, 0], "compensated": [1, 1, 0, 1]},
    TURN: {"float": [1, 1, 0, 0], "int8": [1, 0, 1, 0], "compensated": [1, 1, 1, 0]},
}
CONFIDENCE = {"float": 0.9, "int8": 0.7, "compensated": 0.8}
SEED = 4


def said(right: list[int], confidence: float) -> Predictions:
    """The label, or else the class after it."""
    n = len(right)
    return Predictions(np.where(right, LABELS, (LABELS + 1) % 3), np.ones(n), np.full(n, confidence))


def answers(*names: str, conditions: tuple[Condition, ...] = (CLEAN, FOG, TURN)) -> ConditionPredictions:
    """Under shift everyone is less sure: by a tenth under fog, by two under rotation."""
    return {
        condition: {name: said(RIGHT[condition][name], CONFIDENCE[name] - 0.1 * index) for name in names}
        for index, condition in enumerate(conditions)
    }


def per_image(name: str, *conditions: Condition) -> np.ndarray:
    return np.mean([RIGHT[condition][name] for condition in conditions], axis=0)


def between(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    return pytest.approx(100 * float(np.mean(a - b))), pytest.approx(paired_bootstrap(100 * (a - b), SEED))


EVERY = answers("float", "int8", "compensated")


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation is what lies far from all that is learned from."""
    monkeypatch.setattr(summary, "is_far", lambda name: name == "rotation")


def test_a_difference_is_in_points_and_paired() -> None:
    a, b = np.array([True, True, False, True]), np.array([False, True, False, False])
    assert difference(a, b, SEED) == (50.0, paired_bootstrap(np.array([100.0, 0.0, 0.0, 100.0]), SEED))
    assert difference(b, a, SEED)[0] == -50.0


def test_two_classifiers_are_compared_on_the_same_images() -> None:
    one = compare(EVERY[FOG]["float"], EVERY[FOG]["int8"], LABELS, seed=SEED)
    drop, interval = between(per_image("float", FOG), per_image("int8", FOG))
    assert (one.drop_pp, one.drop_interval_pp) == (drop, interval)
    assert one.drop_p == one.drop_p_adjusted == 0.5  # two of two images
    assert one.agreement == 0.5
    assert asdict(one.flips) == {"harmful": 0.5, "helpful": 0.0, "neutral": 0.0}


@pytest.mark.parametrize(("index", "condition"), [(0, CLEAN), (1, FOG), (2, TURN)])
def test_a_row_of_a_run(index: int, condition: Condition) -> None:
    row = run_rows(EVERY, LABELS, seed=SEED, of=9, seen=("fog",), seen_by_classifier=("rotation",))[index]
    right = {name: np.array(values) for name, values in RIGHT[condition].items()}
    assert (row.shift, row.severity, row.n, row.of) == (*condition, 4, 9)
    assert row.family == ("clean", "weather", "geometry")[index]
    assert row.accuracy == {name: values.mean() for name, values in right.items()}
    assert row.interval == {name: wilson_interval(int(values.sum()), 4) for name, values in right.items()}
    sure = {name: pytest.approx(value - 0.1 * index) for name, value in CONFIDENCE.items()}
    assert row.confidence == sure
    assert row.confidence_shift == {name: pytest.approx(-0.1 * index) for name in CONFIDENCE}
    told = {name: EVERY[condition][name].confidence for name in CONFIDENCE}
    assert row.ece == {name: expected_calibration_error(told[name], right[name]) for name in CONFIDENCE}
    assert (row.seen_by_remedy, row.seen_by_classifier) == (condition == FOG, condition == TURN)
    assert (row.drop_pp, row.drop_interval_pp) == between(right["float"], right["int8"])
    assert (row.gain_pp, row.gain_interval_pp) == between(right["compensated"], right["int8"])
    assert row.gain_p == mcnemar_exact(right["compensated"] == 1, right["int8"] == 1)


def test_p_values_are_adjusted_over_the_rows() -> None:
    rows = run_rows(EVERY, LABELS, seed=SEED, of=4)
    assert [row.drop_p for row in rows] == [1.0, 0.5, 1.0]
    assert [row.drop_p_adjusted for row in rows] == [1.0, 1.0, 1.0]
    assert [row.gain_p for row in rows] == [1.0, 0.5, 1.0]
    assert [row.gain_p_adjusted for row in rows] == [1.0, 1.0, 1.0]
    assert {(row.seen_by_remedy, row.seen_by_classifier) for row in rows} == {(False, False)}
    plain = run_rows(answers("float", "int8"), LABELS, seed=SEED, of=4)
    assert {(row.gain_pp, row.gain_interval_pp, row.gain_p, row.gain_p_adjusted) for row in plain} == {(None,) * 4}


def test_rows_of_any_classifiers_are_held_against_the_first() -> None:
    rows = comparison_rows(EVERY, LABELS, seed=SEED, of=7)
    assert [(row.shift, row.severity, row.n, row.of) for row in rows] == [(*c, 4, 7) for c in EVERY]
    assert [list(row.versus) for row in rows] == [["int8", "compensated"]] * 3
    for row, condition in zip(rows, EVERY, strict=True):
        for name in row.versus:
            plain = compare(EVERY[condition]["float"], EVERY[condition][name], LABELS, seed=SEED)
            assert asdict(row.versus[name]) == asdict(plain) | {"drop_p_adjusted": 1.0}


def test_rows_of_stored_images_know_no_clean_ones() -> None:
    stored = answers("float", "int8", conditions=(FOG, TURN))
    for row in comparison_rows(stored, LABELS, seed=SEED, of=4):
        assert (row.family, row.confidence_shift) == ("stored", None)


def overall(*names: str) -> dict[str, Any]:
    """What `overview` says of these classifiers."""
    shifted = {name: per_image(name, FOG, TURN) for name in names}
    return {
        "n_test": 4,
        "of": 9,
        "n_conditions": 2,
        "clean_accuracy": {name: per_image(name, CLEAN).mean() for name in names},
        "clean_interval": {name: wilson_interval(sum(RIGHT[CLEAN][name]), 4) for name in names},
        "shift_accuracy": {name: values.mean() for name, values in shifted.items()},
        "shift_interval": {name: paired_bootstrap(values, SEED) for name, values in shifted.items()},
        "far_accuracy": {name: per_image(name, TURN).mean() for name in names},
        "n_far_conditions": 1,
    }


def fields_of(value: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in wanted}


def test_an_overview_by_hand() -> None:
    names = ("float", "int8", "compensated")
    found = overview(EVERY, LABELS, seed=SEED, table="cifar-c", classes=3, of=9)
    wanted = overall(*names)
    assert fields_of(found, wanted) == wanted
    assert found.mce == corruption_error(EVERY, LABELS, "cifar-c", 3)
    # Class 0 loses half of one of its two images under each shift, in float; class 2 a half.
    worst = [(one.class_index, one.n, one.drop_pp) for one in found.worst_classes_by_shift["float"]]
    assert worst == [(0, 2, 50.0), (2, 1, 50.0)]


def test_an_overview_of_clean_images_alone() -> None:
    found = overview({CLEAN: EVERY[CLEAN]}, LABELS, seed=SEED, table="cifar-c", classes=3, of=4)
    nothing = dict.fromkeys(CONFIDENCE)
    assert (found.n_conditions, found.shift_accuracy, found.shift_interval) == (0, nothing, nothing)
    assert (found.far_accuracy, found.n_far_conditions, found.mce) == ({}, 0, None)
    assert found.worst_classes_by_shift == dict.fromkeys(CONFIDENCE, ())


def test_corruption_errors_are_of_corruptions_alone() -> None:
    more = EVERY | {("snow", 5): {name: said([0, 0, 0, 0], 0.5) for name in CONFIDENCE}}
    found = corruption_error(more, LABELS, "cifar-c", 3)
    assert found is not None
    assert (found.normalizer, found.corruptions) == ("none", 2)
    # Fog and snow; rotation is no corruption. Relative ones are those above the errors on clean images.
    assert found.value == pytest.approx({"float": 0.625, "int8": 0.875, "compensated": 0.625})
    assert found.relative == pytest.approx({"float": 0.625, "int8": 0.625, "compensated": 0.125})
    assert corruption_error({TURN: EVERY[TURN]}, LABELS, "cifar-c", 3) is None
    stored = corruption_error({FOG: EVERY[FOG]}, LABELS, "cifar-c", 3)
    assert stored is not None
    assert (stored.value["int8"], stored.relative) == (pytest.approx(0.75), None)


def test_one_corruption_of_other_severities_leaves_all_as_they_are() -> None:
    whole = {("fog", severity): EVERY[FOG] for severity in range(1, 6)}

    def normalizer(predictions: ConditionPredictions) -> str:
        found = corruption_error(predictions, LABELS, "imagenet-c", 1000)
        assert found is not None
        return found.normalizer

    assert normalizer(whole) == "alexnet"
    assert normalizer(whole | {("snow", 5): EVERY[FOG]}) == "none"


def test_drops_by_hand() -> None:
    found = drops(EVERY, "float", "int8", LABELS, seed=SEED)
    clean = [per_image(name, CLEAN) for name in ("float", "int8")]
    shift = [per_image(name, FOG, TURN) for name in ("float", "int8")]
    assert (found.quantization_drop_pp, found.quantization_drop_interval_pp) == between(*clean)
    assert found.quantization_drop_p == 1.0
    assert (found.shift_quantization_drop_pp, found.shift_quantization_drop_interval_pp) == between(*shift)
    wanted = between(shift[0] - shift[1], clean[0] - clean[1])
    assert (found.difference_in_differences_pp, found.difference_in_differences_interval_pp) == wanted
    assert found.agreement == 0.75
    # Over all three conditions: class 1 loses two of three, class 0 one of six.
    worst = [(one.class_index, one.n, pytest.approx(one.drop_pp)) for one in found.worst_classes]
    assert worst == [(1, 1, 200 / 3), (0, 2, 100 / 6)]
    assert [(one.image, one.conditions) for one in found.lost_images] == [(1, 2), (2, 1), (3, 1)]


def test_drops_on_clean_images_alone() -> None:
    found = drops({CLEAN: EVERY[CLEAN]}, "float", "int8", LABELS, seed=SEED)
    assert found.quantization_drop_pp == 25.0
    assert (found.shift_quantization_drop_pp, found.shift_quantization_drop_interval_pp) == (None, None)
    assert (found.difference_in_differences_pp, found.difference_in_differences_interval_pp) == (None, None)


def test_the_headline_of_a_run_by_hand() -> None:
    found = summarise(EVERY, LABELS, ("fog",), seed=SEED, table="cifar-c", classes=3, of=9)
    wanted = overall("float", "int8", "compensated")
    assert fields_of(found, wanted) == wanted
    assert found.quantization_drop_pp == 25.0

    def gain(*conditions: Condition) -> tuple[float, tuple[float, float]]:
        return between(per_image("compensated", *conditions), per_image("int8", *conditions))

    assert (found.compensation_gain_pp, found.compensation_gain_interval_pp) == gain(FOG, TURN)
    assert (found.seen_gain_pp, found.seen_gain_interval_pp) == gain(FOG)
    assert (found.unseen_gain_pp, found.unseen_gain_interval_pp) == gain(TURN)
    assert (found.far_gain_pp, found.far_gain_interval_pp) == gain(TURN)
    assert (found.n_seen_conditions, found.n_unseen_conditions) == (1, 1)
    cost = between(per_image("int8", CLEAN), per_image("compensated", CLEAN))
    assert (found.clean_cost_pp, found.clean_cost_interval_pp) == cost
    unseen = summarise(EVERY, LABELS, (), seed=SEED, table="cifar-c", classes=3, of=9)
    assert (unseen.seen_gain_pp, unseen.seen_gain_interval_pp, unseen.n_seen_conditions) == (None, None, 0)
    plain = summarise(answers("float", "int8"), LABELS, (), seed=SEED, table="cifar-c", classes=3, of=9)
    assert (plain.compensation_gain_pp, plain.clean_cost_pp) == (None, None)


def test_the_gain_of_a_remedy_by_hand() -> None:
    (found,) = remedy_gains(EVERY, LABELS, seed=SEED, seen={"compensated": ("fog",)})

    def gain(*conditions: Condition) -> tuple[float, tuple[float, float]]:
        return between(per_image("compensated", *conditions), per_image("int8", *conditions))

    assert (found.remedy, found.n, found.clean_accuracy, found.shift_accuracy) == ("compensated", 4, 0.5, 0.75)
    assert (found.gain_pp, found.gain_interval_pp) == gain(FOG, TURN)
    assert (found.unseen_gain_pp, found.unseen_gain_interval_pp) == gain(TURN)
    assert (found.seen_gain_pp, found.seen_gain_interval_pp) == gain(FOG)
    assert (found.far_gain_pp, found.far_gain_interval_pp) == gain(TURN)
    cost = between(per_image("int8", CLEAN), per_image("compensated", CLEAN))
    assert (found.clean_cost_pp, found.clean_cost_interval_pp) == cost
    assert (found.clean_agreement, found.clean_harmful_flips) == (0.75, 0.25)
    assert remedy_gains({CLEAN: EVERY[CLEAN]}, LABELS, seed=SEED) == []


def test_remedies_come_in_the_order_of_their_gain() -> None:
    three = {c: {"int8": e["int8"], "same": e["int8"], "better": e["float"]} for c, e in EVERY.items()}
    assert [(one.remedy, one.gain_pp) for one in remedy_gains(three, LABELS, seed=SEED)] == [
        ("better", 25.0),
        ("same", 0.0),
    ]
