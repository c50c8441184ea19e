"""Parts of a record that say what confidence is worth: above a threshold, and on images of no known class."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record.units import Interval, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """How well confidence tells test images from foreign ones.

    Attributes:
        auroc: chance that a clean test image has higher confidence than a foreign one, ties counting half.
        interval: its 95 % interval (Hanley and McNeil, 1982).
    """

    auroc: Share
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ClassifierConfidence:
    """What the confidence of one classifier is worth.

    Attributes:
        threshold: lowest confidence from which on at least 95 % of clean images are right; null where none does, as
            all that follows but `foreign`.
        clean_coverage: share of clean images at or above it.
        shift_coverage: share of images under shift at or above it, over all conditions.
        shift_precision: share of these that are right; null also where there are none.
        shift_precision_interval: its 95 % interval, over images, which all conditions share.
        foreign: per set of foreign images.
    """

    threshold: Share | None
    clean_coverage: Share | None = None
    shift_coverage: Share | None = None
    shift_precision: Share | None = None
    shift_precision_interval: Interval | None = None
    foreign: dict[str, Foreign]


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What confidence is worth, of every classifier.

    Attributes:
        precision: that the threshold is to give on clean images.
        foreign: per set, how many images: `noise`, and images of other classes, `digits` or `photographs`.
        classifiers: per classifier.
    """

    precision: Share
    foreign: dict[str, Positive]
    classifiers: dict[str, ClassifierConfidence]
