"""Parts of a record about images other than the data's: corruption data sets, and target images."""

from __future__ import annotations

from dataclasses import dataclass, field

from qrobust.record.classes import Classes
from qrobust.record.measurements import ConditionComparison, MeanCorruptionError
from qrobust.record.typed_json import was
from qrobust.record.units import Interval, Points, PointsInterval, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy of the first classifier minus that of another.

    Attributes:
        drop_pp: the difference.
        drop_interval_pp: its 95 % interval, a paired bootstrap over images.
    """

    drop_pp: Points
    drop_interval_pp: PointsInterval


@dataclass(frozen=True, kw_only=True)
class CorruptionSetSummary:
    """Means over the conditions of a corruption data set.

    Attributes:
        n_test: images measured in each condition.
        of: images there were to choose them from.
        n_conditions: how many the set was measured in.
        accuracy: per classifier.
        interval: per classifier, at 95 % by bootstrap over images.
        mce: mean corruption error; null if none of the corruptions was measured.
        versus: every classifier but the first, compared with the first.
    """

    n_test: Positive
    of: Positive
    n_conditions: Positive = field(metadata=was("n_cells"))
    accuracy: dict[str, Share]
    interval: dict[str, Interval]
    mce: MeanCorruptionError | None
    versus: dict[str, Drop]


@dataclass(frozen=True, kw_only=True)
class CorruptionSet:
    """A corruption data set among the shifts: images and labels of its own, so it is no part of `rows` and `summary`.

    Attributes:
        name: `stored:DIR`, as it was given.
        predictions: the folder in `predictions` that `read_predictions` reads.
        summary: means over its conditions.
        rows: one per condition; Holm's correction is over the set.
        classes: recall per class, balanced accuracy and confusions; null in records of earlier versions.
    """

    name: str
    predictions: str
    summary: CorruptionSetSummary
    rows: tuple[ConditionComparison, ...]
    classes: Classes | None = None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Accuracy of a classifier minus that of `int8`.

    Attributes:
        gain_pp: the difference.
        gain_interval_pp: its 95 % interval, a paired bootstrap over images.
    """

    gain_pp: Points
    gain_interval_pp: PointsInterval


@dataclass(frozen=True, kw_only=True)
class TargetImages:
    """Real images of the place of use, their test part.

    Attributes:
        images: `imagefolder:DIR`, as it was given.
        labelled: whether they have labels.
        n: images measured.
        confidence: per classifier, mean of the largest softmax probability.
        accuracy: per classifier; null without labels.
        interval: per classifier, Wilson's at 95 %; null without labels.
        gain: of each remedy over `int8`; null without labels.
        agreement: per classifier with `int8`; null with labels.
    """

    images: str
    labelled: bool
    n: Positive
    confidence: dict[str, Share]
    accuracy: dict[str, Share] | None = None
    interval: dict[str, Interval] | None = None
    gain: dict[str, Gain] | None = None
    agreement: dict[str, Share] | None = None
