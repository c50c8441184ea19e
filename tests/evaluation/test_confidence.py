"""What confidence is worth: closed forms, scikit-learn, and what lowers it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from qrobust.evaluation.confidence import auroc, auroc_interval, confidence_results, ratio_interval, threshold_for
from qrobust.evaluation.predictions import CLEAN, Predictions
from qrobust.evaluation.recommendation import lowered
from qrobust.evaluation.statistics import Z

LABELS = np.zeros(10, dtype=int)
CONFIDENCE = np.linspace(0.95, 0.5, 10)


def said(wrong: int, confidence: np.ndarray = CONFIDENCE) -> Predictions:
    """Wrong on the last so many of ten images."""
    return Predictions((np.arange(10) >= 10 - wrong).astype(int), np.ones(10), confidence)


def test_threshold_is_the_lowest_that_keeps_the_precision() -> None:
    right = np.arange(10) < 9
    assert threshold_for(CONFIDENCE, right) == pytest.approx(0.55)
    assert threshold_for(CONFIDENCE, right, 0.9) == pytest.approx(0.5)
    assert threshold_for(CONFIDENCE, np.zeros(10, dtype=bool)) is None


def test_images_of_equal_confidence_are_above_it_together() -> None:
    assert threshold_for(np.array([0.9, 0.5, 0.5]), np.array([True, True, False])) == 0.9


def test_a_threshold_looks_beyond_a_wrong_image_of_high_confidence() -> None:
    right = np.array([False] + [True] * 39)
    assert threshold_for(np.linspace(1, 0.1, 40), right) == pytest.approx(0.1)


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 6, 50), rng.integers(-2, 4, 70)
    wanted = roc_auc_score([1] * 50 + [0] * 70, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(wanted)


def test_interval_of_an_auroc_covers_the_truth() -> None:
    """Of two normals a standard deviation apart it is the normal's value at the root of a half, 0.76."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        low, high = auroc_interval(auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 80)), 60, 80)
        covered += low <= 0.7602 <= high
    # 95 % within three standard errors over 500 samples.
    assert 460 <= covered <= 490


def test_interval_of_a_ratio_with_the_same_bottom_is_that_of_a_mean() -> None:
    top = np.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    half = Z * top.std() / np.sqrt(8)
    assert ratio_interval(top, np.ones(8)) == pytest.approx((max(0, 0.75 - half), min(1, 0.75 + half)))


def test_precision_under_shift_is_of_what_is_above_the_threshold_of_clean_images() -> None:
    lower = CONFIDENCE - 0.2
    found = confidence_results(
        {CLEAN: {"int8": said(1)}, ("fog", 3): {"int8": said(5)}, ("fog", 5): {"int8": said(8, lower)}},
        LABELS,
        {"noise": {"int8": said(0, CONFIDENCE - 0.25)}},
    ).classifiers["int8"]
    assert found.threshold == pytest.approx(0.55)
    # Of nine images under the one shift five are right, of five under the other two.
    assert found.shift_coverage == pytest.approx(14 / 20)
    assert found.shift_precision == pytest.approx(7 / 14)
    assert found.foreign["noise"].auroc == auroc(CONFIDENCE, CONFIDENCE - 0.25)


def test_without_a_threshold_nothing_is_above_it() -> None:
    found = confidence_results({CLEAN: {"int8": said(10)}}, LABELS, {})
    assert found.classifiers["int8"].shift_precision is None
    assert found.classifiers["int8"].threshold is None


def test_what_a_remedy_lowers_by_more_than_a_point_is_named() -> None:
    shift = ("fog", 3)
    found = confidence_results(
        {CLEAN: {"int8": said(0), "denoise": said(0)}, shift: {"int8": said(5), "denoise": said(6)}},
        LABELS,
        {"noise": {"int8": said(0, CONFIDENCE - 0.2), "denoise": said(0, CONFIDENCE - 0.1)}},
    )
    assert lowered(found, "denoise") == ("noise", "precision")
    assert lowered(found, "int8") == ()
    same = replace(found, classifiers=found.classifiers | {"denoise": found.classifiers["int8"]})
    assert lowered(same, "denoise") == ()
