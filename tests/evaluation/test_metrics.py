from __future__ import annotations

import numpy as np
import pytest

from qrobust.evaluation.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    agreement,
    expected_calibration_error,
    flips,
    lost_images,
    mce_normalizer,
    mean_corruption_error,
    missed_images,
    relative_corruption_error,
    worst_classes,
)
from qrobust.record import Flips, WorstClass

LABELS = np.array([0, 1, 2, 3, 4])


def test_flips_are_told_apart() -> None:
    before, after = np.array([0, 1, 0, 0, 4]), np.array([1, 1, 2, 1, 4])
    assert flips(before, after, LABELS) == Flips(harmful=0.2, helpful=0.2, neutral=0.2)
    assert agreement(before, after) == pytest.approx(0.4)


def test_calibration_error_closed_forms() -> None:
    correct = np.array([True] * 70 + [False] * 30)
    assert expected_calibration_error(np.full(100, 0.7), correct) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(100, 1.0), correct) == pytest.approx(0.3)
    # A quarter is 0.12 sure and right half the time, the others are 0.96 sure and right on five of six.
    sure, right = np.repeat([0.12, 0.96], [2, 6]), np.array([1, 0, 1, 1, 1, 1, 1, 0], bool)
    assert expected_calibration_error(sure, right) == pytest.approx(0.38 / 4 + 3 / 4 * (0.96 - 5 / 6))
    # Two bins from 0 to 1: 0.4 lies in the first, 0.5 in the second.
    assert expected_calibration_error(np.array([0.4, 0.5]), np.array([1, 0], bool), bins=2) == pytest.approx(0.55)
    assert expected_calibration_error(np.array([0.4, 0.5]), np.array([1, 0], bool), bins=1) == pytest.approx(0.05)


def test_corruption_error_of_alexnet_itself_is_one() -> None:
    assert mean_corruption_error(ALEXNET_ERRORS, "alexnet") == pytest.approx(1.0)
    halved = {name: error / 2 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(halved, "alexnet") == pytest.approx(0.5)
    assert mean_corruption_error({"fog": 0.2, "snow": 0.4}, "none") == pytest.approx(0.3)
    assert len(ALEXNET_ERRORS) == 15


def test_relative_error_is_what_shift_adds() -> None:
    errors = {"fog": 0.2, "snow": 0.4}
    assert relative_corruption_error(errors, 0.1, "none") == pytest.approx(0.2)
    assert relative_corruption_error(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, "alexnet") == pytest.approx(1.0)


def test_corruption_errors_of_resnet50_are_those_published() -> None:
    """Table 1 of arXiv 1903.12261: from errors per corruption, in percent of AlexNet's, to mCE and relative mCE."""
    published = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
    errors = {n: ce / 100 * a for (n, a), ce in zip(ALEXNET_ERRORS.items(), published, strict=True)}
    assert mean_corruption_error(errors, "alexnet") == pytest.approx(0.767, abs=0.005)  # rounded by corruption
    assert relative_corruption_error(errors, 0.239, "alexnet") == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize(
    ("table", "severities", "classes", "expected"),
    [
        ("imagenet-c", {1, 2, 3, 4, 5}, 1000, "alexnet"),
        ("imagenet-c", {3, 5}, 1000, "none"),
        ("imagenet-c", {1, 2, 3, 4, 5}, 10, "none"),
        ("cifar-c", {1, 2, 3, 4, 5}, 1000, "none"),
    ],
)
def test_alexnet_normalises_only_what_it_was_measured_on(
    table: str, severities: set[int], classes: int, expected: str
) -> None:
    assert mce_normalizer(table, severities, classes) == expected


def test_worst_classes_and_lost_images() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    before = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0]], bool)
    after = np.array([[1, 0, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0]], bool)
    found = worst_classes(before.mean(0), after.mean(0), labels)
    # Class 2 gains, and is not listed.
    assert found == tuple(WorstClass(class_index=index, n=2, drop_pp=50.0) for index in (0, 1))
    lost = [(image.image, image.conditions) for image in lost_images(before, after)]
    assert lost == [(1, 2), (2, 1), (3, 1)]
    assert len(lost_images(before, after, top=1)) == 1
    assert len(worst_classes(before.mean(0), after.mean(0), labels, top=1)) == 1


def test_a_class_that_falls_by_rounding_alone_does_not_fall() -> None:
    labels, before = np.array([0, 1]), np.array([0.5, 0.5])
    assert worst_classes(before, before - [3e-12, 1e-10], labels)[0].class_index == 1
    assert len(worst_classes(before, before - [3e-12, 1e-10], labels)) == 1


def test_missed_images_are_those_wrong_most_often() -> None:
    """Of four images: never wrong; wrong once; wrong three times, twice taken for 2; wrong three times, later."""
    labels = np.array([0, 1, 0, 1])
    predicted = np.array([[0, 1, 2, 0], [0, 0, 1, 0], [0, 1, 2, 0]])
    found = missed_images(predicted, labels)
    assert [(one.image, one.label, one.predicted, one.conditions) for one in found] == [
        (2, 0, 2, 3),
        (3, 1, 0, 3),
        (1, 1, 0, 1),
    ]
    assert missed_images(predicted, labels, top=1) == found[:1]
