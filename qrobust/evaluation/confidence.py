"""What confidence is worth: precision above a threshold, and telling test images from foreign ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from qrobust.evaluation.predictions import CLEAN, ConditionPredictions, Predictions
from qrobust.evaluation.statistics import Z
from qrobust.record import ClassifierConfidence, Confidence, Foreign

# Share of clean images that a threshold must leave right.
PRECISION = 0.95


def threshold_for(confidence: np.ndarray, right: np.ndarray, precision: float = PRECISION) -> float | None:
    """The lowest confidence from which on at least so large a share is right; None where no threshold does that.

    Args:
        confidence: `(n,)`.
        right: whether the classifier is right `(n,)`.
        precision: a fraction.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, hits = confidence[order], np.cumsum(right[order])
    ends = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)  # images of equal confidence go together
    enough = np.flatnonzero(ends & (hits >= precision * np.arange(1, len(hits) + 1)))
    return float(sorted_confidence[enough[-1]]) if len(enough) else None


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that a value of `inside` is higher than one of `outside`, ties counting half.

    Args:
        inside: `(n,)`.
        outside: `(m,)`.
    """
    ordered = np.sort(outside)
    below, not_above = (np.searchsorted(ordered, inside, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(outside)))


def auroc_interval(area: float, inside: int, outside: int) -> tuple[float, float]:
    """Interval of an AUROC of so many values each (J. Hanley and B. McNeil, Radiology 143, 1982)."""
    both_inside, both_outside = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (inside - 1) * (both_inside - area**2) + (outside - 1) * (both_outside - area**2)
    ) / (inside * outside)
    half = Z * math.sqrt(max(0.0, variance))
    return max(0.0, area - half), min(1.0, area + half)


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float]:
    """Interval of `sum(top) / sum(bottom)`, in [0, 1], over images that are drawn whole, linearised.

    Args:
        top: per image `(n,)`.
        bottom: per image `(n,)`, not all 0.
    """
    ratio = top.sum() / bottom.sum()
    half = Z * float(np.sqrt(((top - ratio * bottom) ** 2).sum())) / bottom.sum()
    return max(0.0, float(ratio - half)), min(1.0, float(ratio + half))


def confidence_results(
    predictions: ConditionPredictions, labels: np.ndarray, foreign: Mapping[str, Mapping[str, Predictions]]
) -> Confidence:
    """What the confidence of every classifier is worth.

    Args:
        predictions: per condition and classifier, `CLEAN` among them.
        labels: `(n,)`.
        foreign: per set of foreign images and classifier.
    """
    names = predictions[CLEAN]
    return Confidence(
        precision=PRECISION,
        foreign={kind: len(next(iter(found.values())).confidence) for kind, found in foreign.items()},
        classifiers={
            name: _classifier(
                {condition: own[name] for condition, own in predictions.items()},
                labels,
                {kind: found[name] for kind, found in foreign.items()},
            )
            for name in names
        },
    )


def _classifier(
    predictions: Mapping[tuple[str, int], Predictions], labels: np.ndarray, foreign: Mapping[str, Predictions]
) -> ClassifierConfidence:
    clean = predictions[CLEAN]
    shifted = [found for condition, found in predictions.items() if condition != CLEAN]
    areas = {kind: auroc(clean.confidence, found.confidence) for kind, found in foreign.items()}
    told = {
        kind: Foreign(auroc=area, interval=auroc_interval(area, len(labels), len(foreign[kind].confidence)))
        for kind, area in areas.items()
    }
    threshold = threshold_for(clean.confidence, clean.prediction == labels)
    if threshold is None:
        return ClassifierConfidence(threshold=None, foreign=told)
    shape = len(shifted), len(labels)  # where nothing is measured under shift, too
    accepted = np.array([found.confidence >= threshold for found in shifted], bool).reshape(shape)
    right = np.array([found.prediction == labels for found in shifted], bool).reshape(shape)
    hits, tries = (right & accepted).sum(0), accepted.sum(0)
    known = tries.any()
    return ClassifierConfidence(
        threshold=threshold,
        clean_coverage=float((clean.confidence >= threshold).mean()),
        shift_coverage=float(accepted.mean()) if shifted else None,
        shift_precision=float(hits.sum() / tries.sum()) if known else None,
        shift_precision_interval=ratio_interval(hits, tries) if known else None,
        foreign=told,
    )
