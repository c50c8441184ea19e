"""Parts of a record that say how accurate classifiers are: per condition, in the headline, on further images."""

from __future__ import annotations

from dataclasses import dataclass, field

from qrobust.record.typed_json import was
from qrobust.record.units import (
    Bytes,
    Count,
    Fraction,
    Interval,
    Milliseconds,
    Points,
    PointsInterval,
    Positive,
    PValue,
    Ratio,
    RatioInterval,
    Severity,
    Share,
    TwicePoints,
    TwicePointsInterval,
)

# Said in every record.
STATISTICS = (
    "Intervals are at 95 % and each stands for itself: Wilson's of an accuracy, a paired bootstrap over images of a "
    "difference. p-values are of McNemar's exact test; those called adjusted are corrected for multiple comparisons "
    "by Holm's method over all rows of the record, drops and gains each being one family."
)


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Share of images whose prediction differs between two classifiers.

    Attributes:
        harmful: right with the first, wrong with the second.
        helpful: wrong with the first, right with the second.
        neutral: wrong with both.
    """

    harmful: Share
    helpful: Share
    neutral: Share


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changes from one classifier to another on the same pixels.

    Attributes:
        drop_pp: accuracy of the first minus that of the second.
        drop_interval_pp: its 95 % interval, a paired bootstrap over images.
        drop_p: of McNemar's exact test that both are equally accurate.
        drop_p_adjusted: the same, corrected by Holm's method over all comparisons beside it.
        agreement: share of equal predictions.
        flips: predictions that differ.
    """

    drop_pp: Points
    drop_interval_pp: PointsInterval
    drop_p: PValue
    drop_p_adjusted: PValue
    agreement: Share
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class ConditionAccuracy:
    """Each classifier by itself under one condition: a shift at a severity.

    Attributes:
        shift: name of the shift, or `clean`.
        severity: 0 for clean images.
        family: of the shift, `clean`, or `stored` for images of a corruption data set.
        n: images measured.
        of: images there were to choose them from.
        accuracy: per classifier.
        interval: per classifier, Wilson's at 95 %.
        ece: per classifier, expected calibration error over 15 bins.
        confidence: per classifier, mean of the largest softmax probability.
        confidence_shift: per classifier, that minus the one on clean images; null for a corruption data set.
    """

    shift: str
    severity: Severity
    family: str
    n: Positive
    of: Positive
    accuracy: dict[str, Share]
    interval: dict[str, Interval]
    ece: dict[str, Share]
    confidence: dict[str, Share]
    confidence_shift: dict[str, Fraction] | None = None


@dataclass(frozen=True, kw_only=True)
class ConditionResult(Comparison, ConditionAccuracy):
    """A row of a run: the drop is from `float` to `int8`, the gain from `int8` to `compensated`.

    Attributes:
        gain_pp: accuracy of `compensated` minus that of `int8`; null without a calibrator, as all about the gain.
        gain_interval_pp: its 95 % interval, a paired bootstrap over images.
        gain_p: of McNemar's exact test.
        gain_p_adjusted: the same, corrected by Holm's method over all rows.
        seen_by_classifier: the classifier was quantization-aware trained on this shift, at whatever severity.
        seen_by_remedy: the calibrator was trained on it. Unseen is what neither was trained on.
    """

    gain_pp: Points | None = None
    gain_interval_pp: PointsInterval | None = None
    gain_p: PValue | None = None
    gain_p_adjusted: PValue | None = None
    seen_by_classifier: bool = False
    seen_by_remedy: bool = field(default=False, metadata=was("seen_by_calibrator"))


@dataclass(frozen=True, kw_only=True)
class ConditionComparison(ConditionAccuracy):
    """A row of an evaluation of ONNX files, or of a corruption data set.

    Attributes:
        versus: every classifier but the first, compared with the first.
    """

    versus: dict[str, Comparison]


@dataclass(frozen=True, kw_only=True)
class MeanCorruptionError:
    """Over those of ImageNet-C's fifteen corruptions that were measured.

    Attributes:
        normalizer: `alexnet` where all five severities of the `imagenet-c` table were measured on 1,000 classes, else
            `none`, and then the figures are plain means.
        corruptions: how many were measured.
        value: per classifier, the mean corruption error.
        relative: per classifier, the mean growth of the error from clean images (AlexNet's own clean error is that of
            torchvision's weights, 43.48 %); null for a corruption data set.
    """

    normalizer: str
    corruptions: Positive
    value: dict[str, Fraction]
    relative: dict[str, Fraction] | None = None


@dataclass(frozen=True, kw_only=True)
class WorstClass:
    """A class whose accuracy falls most.

    Attributes:
        class_index: position in `class_names`.
        n: images of it.
        drop_pp: how far its accuracy falls.
    """

    class_index: Count = field(metadata=was("class"))
    n: Positive
    drop_pp: Points


@dataclass(frozen=True, kw_only=True)
class LostImage:
    """A test image that the first classifier gets right and the second wrong.

    Attributes:
        image: position among the images measured (`index` in `predictions/*.npz` is that in the data set).
        conditions: in how many of them.
    """

    image: Count
    conditions: Positive = field(metadata=was("cells"))


@dataclass(frozen=True, kw_only=True)
class MissedImage:
    """A test image that the graph that ships gets wrong most often.

    Attributes:
        image: position among the images measured (`index` in `predictions/*.npz` is that in the data set).
        label: its class index.
        predicted: the class index that it is taken for most often where it is wrong.
        conditions: in how many it is wrong, the clean one among them.
    """

    image: Count
    label: Count
    predicted: Count
    conditions: Positive


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The headline of each classifier by itself.

    Attributes:
        n_test: images measured.
        of: images there were to choose them from.
        n_conditions: shifts at severities; clean is none of them.
        clean_accuracy: per classifier.
        clean_interval: per classifier, Wilson's at 95 %.
        shift_accuracy: per classifier, the mean over all conditions, each weighing the same; null without any.
        shift_interval: per classifier, its 95 % interval by bootstrap over images, which all conditions share.
        far_accuracy: per classifier, the mean over the conditions whose shift lies far from all random operations;
            empty without any, and in records of earlier versions.
        n_far_conditions: how many these are.
        mce: mean corruption error; null if none of the corruptions was measured.
        worst_classes_by_shift: per classifier at most five classes, worst first, from clean images to the mean over
            conditions.
    """

    n_test: Positive
    of: Positive
    n_conditions: Count = field(metadata=was("n_cells"))
    clean_accuracy: dict[str, Share]
    clean_interval: dict[str, Interval]
    shift_accuracy: dict[str, Share | None]
    shift_interval: dict[str, Interval | None]
    far_accuracy: dict[str, Share] = field(default_factory=dict)
    n_far_conditions: Count = 0
    mce: MeanCorruptionError | None
    worst_classes_by_shift: dict[str, tuple[WorstClass, ...]]


@dataclass(frozen=True, kw_only=True)
class Drops:
    """What going from one classifier to another costs; in a run from `float` to `int8`.

    Attributes:
        quantization_drop_pp: first minus second, clean images.
        quantization_drop_interval_pp: its 95 % interval, as of all differences a paired bootstrap over images.
        quantization_drop_p: of McNemar's exact test.
        shift_quantization_drop_pp: the same under shift; null where no shift was rendered.
        shift_quantization_drop_interval_pp: its interval.
        difference_in_differences_pp: the drop under shift minus that on clean images.
        difference_in_differences_interval_pp: its interval.
        agreement: share of equal predictions on clean images.
        worst_classes: at most five classes, worst first, over all rows.
        lost_images: at most 20 that the first gets right and the second wrong, most conditions first.
    """

    quantization_drop_pp: Points
    quantization_drop_interval_pp: PointsInterval
    quantization_drop_p: PValue
    shift_quantization_drop_pp: Points | None
    shift_quantization_drop_interval_pp: PointsInterval | None
    difference_in_differences_pp: TwicePoints | None
    difference_in_differences_interval_pp: TwicePointsInterval | None
    agreement: Share
    worst_classes: tuple[WorstClass, ...]
    lost_images: tuple[LostImage, ...]


@dataclass(frozen=True, kw_only=True)
class RunAccuracy(Drops, Overview):
    """The headline of a run, without what is not accuracy.

    Attributes:
        compensation_gain_pp: `compensated` minus `int8` under shift; null without a calibrator, as all that follow.
        compensation_gain_interval_pp: its 95 % interval.
        clean_cost_pp: `int8` minus `compensated`, clean images.
        clean_cost_interval_pp: its interval.
        seen_gain_pp: the gain over conditions whose shift the classifier or the calibrator was trained on.
        seen_gain_interval_pp: its interval.
        n_seen_conditions: how many these are.
        unseen_gain_pp: the gain over the other conditions.
        unseen_gain_interval_pp: its interval.
        n_unseen_conditions: how many these are.
        far_gain_pp: the gain over conditions whose shift lies far from all random operations.
        far_gain_interval_pp: its interval.
    """

    compensation_gain_pp: Points | None = None
    compensation_gain_interval_pp: PointsInterval | None = None
    clean_cost_pp: Points | None = None
    clean_cost_interval_pp: PointsInterval | None = None
    seen_gain_pp: Points | None = None
    seen_gain_interval_pp: PointsInterval | None = None
    n_seen_conditions: Count = field(default=0, metadata=was("n_seen_cells"))
    unseen_gain_pp: Points | None = None
    unseen_gain_interval_pp: PointsInterval | None = None
    n_unseen_conditions: Count = field(default=0, metadata=was("n_unseen_cells"))
    far_gain_pp: Points | None = None
    far_gain_interval_pp: PointsInterval | None = None


@dataclass(frozen=True, kw_only=True)
class LatencyRatio:
    """How many times the time of another classifier.

    Attributes:
        batch_1: for one image.
        batch_32: for 32 images.
    """

    batch_1: Ratio
    batch_32: Ratio


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per batch: the first classifier's median, the others by the median of their ratio to it in turn.

    Attributes:
        batch_1: for one image.
        batch_32: for 32 images.
    """

    batch_1: Milliseconds
    batch_32: Milliseconds

    def over(self, other: Latency) -> LatencyRatio:
        """How many times the other's."""
        return LatencyRatio(batch_1=self.batch_1 / other.batch_1, batch_32=self.batch_32 / other.batch_32)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a graph takes beside time per image, in a process of its own.

    Attributes:
        load_ms: to open it, median of three.
        peak_memory_bytes: at most, while it was opened and classified one image, without what Python and onnxruntime
            take without a graph; null where the system does not tell.
    """

    load_ms: Milliseconds
    peak_memory_bytes: Bytes | None


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates for one image.

    Attributes:
        classifier: of the classifier.
        calibrator: of the calibrator in front; null without.
        calibrator_share: their quotient.
    """

    classifier: Count
    calibrator: Count | None = None
    calibrator_share: Ratio | None = None


@dataclass(frozen=True, kw_only=True)
class Summary(RunAccuracy):
    """The headline of a run.

    Attributes:
        latency_ms: per graph.
        latency_interval: per graph but `int8`, the 95 % interval of how many times the time of `int8` it takes for
            one image, from rounds in which all graphs ran in turn (sign test); null in records of earlier versions.
        size_bytes: per graph, of its file.
        macs: multiply-accumulates.
        footprint: per graph, memory and load time; null in records of earlier versions.
    """

    latency_ms: dict[str, Latency]
    size_bytes: dict[str, Bytes]
    macs: Macs
    footprint: dict[str, Footprint] | None = None
    latency_interval: dict[str, RatioInterval] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary(Overview):
    """The headline of an evaluation of ONNX files.

    Attributes:
        versus: what every classifier but the first loses against the first.
    """

    versus: dict[str, Drops]
