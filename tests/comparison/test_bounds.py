"""Bounds: judged by intervals, paired over images, and breached by what was not measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_folders import evaluation_folder

from qrobust.comparison.bounds import check, check_limits, images_needed, judge
from qrobust.comparison.measured import Figure, Measured, mean, proportion
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN
from qrobust.evaluation.statistics import wilson_interval
from qrobust.pipeline.finished import open_finished
from qrobust.record import BoundResult, EvaluationRecord, Latency

FOG = ("fog", 3)


def predicted(labels: np.ndarray, wrong: int) -> np.ndarray:
    """Right but for the first so many images."""
    return np.where(np.arange(len(labels)) < wrong, 1 - labels, labels)


def measured(path: Path, n: int, wrong: int, wrong_in_fog: int = 0, **extra: object) -> Measured:
    """`float` is right for all images, `int8` wrong for the first so many."""
    labels = np.arange(n) % 2
    found = {
        condition: {"float": labels, "int8": predicted(labels, count)}
        for condition, count in ((CLEAN, wrong), (FOG, wrong_in_fog))
    }
    return open_finished(evaluation_folder(path, found, labels, **extra), "run folder")  # type: ignore[arg-type]  # of its types


def only(run: Measured, **limits: float | dict[str, float]) -> BoundResult:
    return check(run, limits).bounds[0]


@pytest.mark.parametrize(
    ("interval", "at_most", "at_least"),
    [
        ((0.2, 0.9), "pass", "breach"),
        ((0.2, 1.0), "pass", "undecided"),
        ((0.9, 1.1), "undecided", "undecided"),
        ((1.0, 1.1), "undecided", "pass"),
        ((1.1, 1.2), "breach", "pass"),
    ],
)
def test_a_bound_is_judged_by_the_whole_interval(interval: tuple[float, float], at_most: str, at_least: str) -> None:
    figure = Figure(sum(interval) / 2, interval, 100)
    assert (judge(figure, 1.0, at_most=True), judge(figure, 1.0, at_most=False)) == (at_most, at_least)


def test_what_has_no_interval_is_taken_as_it_is() -> None:
    assert [judge(Figure(value), 0.6, at_most=True) for value in (0.6, 0.61)] == ["pass", "breach"]


def test_the_drop_is_that_of_the_images_that_differ(tmp_path: Path) -> None:
    found = only(measured(tmp_path / "run", 1000, 20), max_drop=2.5)
    assert found.value == pytest.approx(2.0)
    assert found.n == 1000


def test_the_interval_of_a_drop_is_that_of_the_record(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", 1000, 20)
    drops = run.record.summary.versus["int8"]  # type: ignore[union-attr]  # an evaluation
    assert only(run, max_drop=2.5).interval == drops.quantization_drop_interval_pp


@pytest.mark.parametrize(("limit", "outcome"), [(5.0, "pass"), (2.1, "undecided"), (1.0, "breach")])
def test_a_drop_of_two_points_on_a_thousand_images(tmp_path: Path, limit: float, outcome: str) -> None:
    assert only(measured(tmp_path / "run", 1000, 20), max_drop=limit).outcome == outcome


def test_less_confidence_decides_sooner(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", 1000, 20)
    outcomes = [check(run, {"max_drop": 2.5}, confidence=c).bounds[0].outcome for c in (0.95, 0.6)]
    assert outcomes == ["undecided", "pass"]


def test_no_difference_on_few_images_proves_little(tmp_path: Path) -> None:
    few, many = (only(measured(tmp_path / str(n), n, 0), max_drop=1) for n in (20, 1000))
    assert (few.outcome, many.outcome) == ("undecided", "pass")
    assert few.interval is not None
    assert few.interval[1] == pytest.approx(100 * wilson_interval(0, 20)[1])


@pytest.mark.parametrize("limit", [0.82, 0.75, 0.9])
def test_so_many_images_decide_a_share_and_fewer_do_not(limit: float) -> None:
    needed = images_needed(proportion(np.arange(10) < 8, 0.95), limit)
    assert needed is not None
    enough, short = (-(-needed // 10) * 10, needed // 10 * 10 - 10)  # of which 0.8 is a whole number
    assert judge(proportion(np.arange(enough) < 0.8 * enough, 0.95), limit, at_most=limit > 0.8) == "pass"
    assert judge(proportion(np.arange(short) < 0.8 * short, 0.95), limit, at_most=limit > 0.8) == "undecided"


def test_so_many_images_without_a_difference_decide_and_one_fewer_does_not() -> None:
    needed = images_needed(mean(np.zeros(20), 0, 0.95, least=-100.0, most=100.0), 1.0)
    assert needed is not None
    found = [mean(np.zeros(n), 0, 0.95, least=-100.0, most=100.0) for n in (needed, needed - 1)]
    assert [judge(figure, 1.0, at_most=True) for figure in found] == ["pass", "undecided"]


def test_so_many_images_decide_a_difference() -> None:
    """The bootstrap's ends are within a few per cent of where they will be: so many images and a fifth more."""
    few = mean(np.array([1.0, 0.0, 0.0, 0.0] * 25), 0, 0.95)
    needed = images_needed(few, 0.3)
    assert needed is not None
    many, some = (np.array([1.0, 0.0, 0.0, 0.0] * (n // 4)) for n in (int(1.2 * needed), int(0.8 * needed)))
    assert [judge(mean(x, 0, 0.95), 0.3, at_most=True) for x in (many, some)] == ["pass", "undecided"]


def test_no_number_of_images_decides_a_figure_that_is_the_bound() -> None:
    assert images_needed(proportion(np.arange(10) < 8, 0.95), 0.8) is None


@pytest.mark.parametrize(
    "limit",
    [{"max_latency_ratio": 0.6}, {"min_integer_share": 0.1}, {"min_unseen_gain": -50.0}],
    ids=lambda limit: next(iter(limit)),
)
def test_what_was_not_measured_is_a_breach(tmp_path: Path, limit: dict[str, float]) -> None:
    found = only(measured(tmp_path / "run", 50, 0), **limit)
    assert (found.outcome, found.value) == ("breach", None)
    assert found.missing


@pytest.mark.parametrize(("limit", "outcome"), [(0.5, "pass"), (0.39, "breach")])
def test_times_of_files_are_compared_with_the_first(limit: float, outcome: str, tmp_path: Path) -> None:
    run = measured(tmp_path / "run", 50, 0)
    assert isinstance(run.record, EvaluationRecord)
    times = {"float": Latency(batch_1=5.0, batch_32=90.0), "int8": Latency(batch_1=2.0, batch_32=30.0)}
    found = only(replace(run, record=replace(run.record, latency_ms=times)), max_latency_ratio=limit)
    assert (found.outcome, found.value) == (outcome, 0.4)


def test_a_single_file_has_nothing_to_drop_from(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "run", {CLEAN: {"int8": [0, 1]}}, [0, 1])
    found = only(open_finished(folder, "run folder"), max_drop=100.0)
    assert (found.outcome, found.missing) == (
        "breach",
        "there is no other classifier to lose accuracy against; name one by --against",
    )


def test_without_shifts_accuracy_under_shift_is_missing(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "run", {CLEAN: {"float": [0, 1], "int8": [0, 1]}}, [0, 1])
    found = only(open_finished(folder, "run folder"), min_shift_accuracy=0.0)
    assert (found.outcome, found.missing) == ("breach", "no shift was measured")


def test_recall_is_of_the_images_of_a_class(tmp_path: Path) -> None:
    labels = np.array([0] * 30 + [1] * 70)
    found = np.where(np.arange(100) < 6, 1, labels)
    run = open_finished(evaluation_folder(tmp_path / "run", {CLEAN: {"int8": found}}, labels), "run folder")
    cat, dog = check(run, {"min_recall": {"cat": 0.5, "dog": 0.9}}).bounds
    assert (cat.value, cat.n, cat.interval) == (0.8, 30, wilson_interval(24, 30))
    assert (dog.value, dog.n, dog.outcome) == (1.0, 70, "pass")


def test_balanced_accuracy_is_the_mean_of_the_recalls(tmp_path: Path) -> None:
    labels = np.array([0] * 30 + [1] * 70)
    found = np.where(np.arange(100) < 6, 1, labels)
    run = open_finished(evaluation_folder(tmp_path / "run", {CLEAN: {"int8": found}}, labels), "run folder")
    balanced = only(run, min_balanced_accuracy=0.5)
    assert (balanced.value, balanced.outcome) == (pytest.approx(0.9), "pass")


def test_balanced_accuracy_needs_images_of_every_class(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "run", {CLEAN: {"int8": [0, 0]}}, [0, 0])
    found = only(open_finished(folder, "run folder"), min_balanced_accuracy=0.0)
    assert (found.outcome, found.missing) == ("breach", "none of the images measured is of dog")


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"min_recall: expected one of cat, dog, got 'cats'; did you mean 'cat'"):
        only(measured(tmp_path / "run", 10, 0), min_recall={"cats": 0.9})


def test_a_gain_is_over_the_first_file(tmp_path: Path) -> None:
    found = only(measured(tmp_path / "run", 100, 0, wrong_in_fog=30), min_gain=-50)
    assert found.value == pytest.approx(-30.0)


def test_against_another_folder_the_drop_is_from_the_same_graph(tmp_path: Path) -> None:
    old, new = measured(tmp_path / "old", 200, 10), measured(tmp_path / "new", 200, 30)
    found = check(new, {"max_drop": 1, "max_shift_drop": 1, "min_agreement": 0.5}, against=old)
    assert [bound.value for bound in found.bounds] == [pytest.approx(10.0), 0.0, pytest.approx(0.9)]
    assert found.reference == f"int8 of {old.name}"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"listing": "9999"}, "expected the same test images"),
        ({"first_index": 1}, "expected the same test images"),
        ({"class_names": ("dog", "cat")}, "expected the labels"),
    ],
    ids=["listing", "order", "classes"],
)
def test_other_test_images_are_refused(tmp_path: Path, other: dict[str, object], message: str) -> None:
    run, against = measured(tmp_path / "a", 20, 0), measured(tmp_path / "b", 20, 0, **other)
    with pytest.raises(InputError, match=f"against: {message}"):
        check(run, {"max_drop": 1}, against=against)


def test_another_severity_table_leaves_the_drop_under_shift_unmeasured(tmp_path: Path) -> None:
    run, against = measured(tmp_path / "a", 20, 0), measured(tmp_path / "b", 20, 0, table="imagenet-c")
    found = check(run, {"max_shift_drop": 50}, against=against).bounds[0]
    assert (found.outcome, found.missing) == ("breach", "the severity tables differ (cifar-c, imagenet-c)")


@pytest.mark.parametrize(
    ("limits", "confidence", "message"),
    [
        ({}, 0.95, "bounds: expected at least one, got none"),
        ({"max_drop": None}, 0.95, "bounds: expected at least one, got none"),
        ({"max_drop": 101.0}, 0.95, "max_drop: expected percentage points from -100 to 100, got 101"),
        ({"min_recall": {"cat": 1.5}}, 0.95, "min_recall: expected a share from 0 to 1, got 1.5"),
        ({"max_latency_ratio": 0.0}, 0.95, "max_latency_ratio: expected a ratio above 0, got 0"),
        ({"min_accuracy": float("nan")}, 0.95, "min_accuracy: expected a finite number, got nan"),
        ({"max_drop": 1.0}, 1.0, "confidence: expected 0.5 to 0.995, got 1"),
        ({"max_drops": 1.0}, 0.95, "did you mean 'max_drop'?"),
    ],
)
def test_bounds_that_make_no_sense(limits: dict, confidence: float, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_limits(limits, confidence)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"confidence: .*; max_drop: .*; min_gain: "):
        check_limits({"max_drop": 101.0, "min_gain": 101.0}, 2.0)


def test_a_record_of_other_predictions_is_refused(tmp_path: Path) -> None:
    folder, other = (
        evaluation_folder(tmp_path / name, {CLEAN: {"int8": found}}, [0, 1])
        for name, found in (("a", [0, 1]), ("b", [0, 0]))
    )
    (other / "record.json").replace(folder / "record.json")
    with pytest.raises(InputError, match="is not of the predictions that lie beside it"):
        open_finished(folder, "run folder")
