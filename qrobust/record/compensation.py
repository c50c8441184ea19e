"""Parts of a record that say how robustness was won back: what learned from what, its gain and its cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from qrobust.record.measurements import LatencyRatio
from qrobust.record.other_images import Gain
from qrobust.record.typed_json import OneOf, Unit, was
from qrobust.record.units import Bytes, Count, Points, PointsInterval, Positive, Ratio, Seconds, Severity, Share

# What a training gains from one validation to the next while it is still learning, as a fraction.
RISING = 0.01
Score = Annotated[float, Unit("sum of two fractions", 0, 2)]


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Which images a split holds.

    Attributes:
        n: how many.
        fingerprint: of its ordered indices.
        listing: changes when images of its source come or go.
        taken_from: the folder or part of the data that holds them; null where the data has no parts.
    """

    n: Count
    fingerprint: str
    listing: str
    taken_from: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class TrainingProvenance:
    """What a remedy learned from, as it was when it learned.

    Attributes:
        images: of the training split.
        labels: whether they were used.
        severities: of the shifts.
        severity_table: `cifar-c` or `imagenet-c`.
        scenarios: the named sets of shifts asked for.
        target_images: `imagefolder:DIR`, or null without.
        target_images_only: it learned from these images and from nothing else.
        target_splits: per split of the target images which ones they are, or null.
        steps: optimizer steps; null for what is not trained in steps.
        batch_size: likewise.
        clean_budget: points of clean validation accuracy that a calibrator's gate was to cost at most; else null.
        generic_share: of the rendered images, those under random operations where there were named shifts, too.
        batch_norm_images: how many images batch norms were re-estimated on, or null.
    """

    images: Count
    labels: bool
    severities: tuple[Severity, ...] = ()
    severity_table: str | None = None
    scenarios: tuple[str, ...] = field(default=(), metadata=was("scene_names"))
    target_images: str | None = field(default=None, metadata=was("scene_images"))
    target_images_only: bool = field(default=False, metadata=was("scene_alone"))
    target_splits: dict[str, SplitSummary] | None = field(default=None, metadata=was("scene_splits"))
    steps: Positive | None = None
    batch_size: Positive | None = None
    clean_budget: Points | None = None
    generic_share: Share | None = None
    batch_norm_images: Positive | None = field(default=None, metadata=was("drawn"))


@dataclass(frozen=True, kw_only=True)
class ClassifierHash:
    """SHA-256 of every parameter and buffer of the classifier.

    Attributes:
        before: the calibrator was trained.
        after: it was trained.
    """

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class PhaseFit:
    """What one training of a calibrator did, on validation images; `validation.measures` says what accuracy is.

    Attributes:
        start_clean_accuracy: on clean images, before.
        start_shift_accuracy: under shift, before.
        clean_accuracy: on clean images, of the state that was kept.
        shift_accuracy: under shift, of the state that was kept.
        best_step: the optimizer step whose state was kept; 0 is the start.
        diverged: it ended at what is not finite, and the best state before that was kept.
        earlier_s: of training by processes before the one that ended it.
        history: clean plus shift accuracy at each validation, in order; empty in records of earlier versions.
    """

    start_clean_accuracy: Share
    start_shift_accuracy: Share
    clean_accuracy: Share
    shift_accuracy: Share
    best_step: Count
    diverged: bool
    earlier_s: Seconds = field(default=0.0, compare=False)
    history: tuple[Score, ...] = ()

    @property
    def rising(self) -> bool:
        """Whether the last validation was the best, and by more than a point above the one before, mean of both."""
        return len(self.history) > 1 and self.history[-1] - max(self.history[:-1]) > 2 * RISING


@dataclass(frozen=True, kw_only=True)
class CalibratorTraining:
    """Both trainings of a calibrator.

    Attributes:
        float: in floating point.
        int8: on its own 8-bit grid.
    """

    float: PhaseFit
    int8: PhaseFit

    @property
    def diverged(self) -> bool:
        """Whether either ended at what is not finite."""
        return self.float.diverged or self.int8.diverged

    @property
    def rising(self) -> bool:
        """Whether the last one was still learning when it ended."""
        return self.int8.rising


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy:
    """Fine-tuning of the finished calibrator by random steps on onnxruntime.

    Attributes:
        before: accuracy on clean images plus that under shift, of validation images.
        after: the same of the best state.
        tries: steps tried.
    """

    before: Score
    after: Score
    tries: Count


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is called accuracy on validation images: `accuracy`, or without labels agreement or fit with float.

    Attributes:
        clean: on clean images.
        shift: under shift.
    """

    clean: str
    shift: str


@dataclass(frozen=True, kw_only=True)
class CleanCost:
    """What a remedy costs on clean validation images, in the measure that decides.

    Attributes:
        n: images.
        budget_pp: what it was to cost at most (`--clean-budget`).
        allowed_pp: what it was allowed to cost on these images: the budget, or one image where that is more.
        cost_pp: the classifier alone minus the remedy.
        bound_pp: what it costs at most with 95 % confidence, one-sided.
        images_to_tell: about how many validation images would bring the bound within a point of the budget; null
            where it is, and where the cost itself is not.
        folds: each of so many folds of the images judged what the others chose (cross-fitting); 0 where all of them
            chose and judged, as in records of earlier versions.
    """

    n: Positive
    budget_pp: Points
    allowed_pp: Points
    cost_pp: Points
    bound_pp: Points
    images_to_tell: Positive | None = None
    folds: Count = 0


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The finished integer calibrator in front of the classifier, on validation images.

    Attributes:
        clean_accuracy: on clean images.
        shift_accuracy: under shift.
        measures: what these are, here and in `training`.
        clean_cost: what it costs on clean images; null in folders of earlier versions.
    """

    clean_accuracy: Share
    shift_accuracy: Share
    measures: Measures
    clean_cost: CleanCost | None = None


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """The calibrator: what it is, what it learned from, what its training did.

    Attributes:
        width: of its convolutions.
        branches: what it may do to an image.
        latency_ratio: time of the compensated classifier over INT8 alone, where a latency budget chose the size.
        training_images: of the training split.
        trained_on: shifts, and the folder of target images.
        training: on validation images.
        gate_gain: what the gate's logit was multiplied by, chosen on validation images.
        gate_offset: what was added to it before.
        evolution_strategy: fine-tuning without gradients, or null.
        validation: the finished calibrator on validation images.
        classifier_hash: the classifier, before and after.
    """

    width: Positive
    branches: tuple[str, ...]
    latency_ratio: Ratio | None
    training_images: Count
    trained_on: tuple[str, ...]
    training: CalibratorTraining
    gate_gain: float = 1.0  # in folders of versions that did not choose one
    gate_offset: float = 0.0
    evolution_strategy: EvolutionStrategy | None = field(default=None, metadata=was("polish"))
    validation: Validation
    classifier_hash: ClassifierHash


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """How far a remedy moved the weights of the INT8 classifier.

    Attributes:
        relative_change: norm of the difference of all effective weights over the norm of INT8's.
        integers_changed: share of the integer weights that differ.
    """

    relative_change: Ratio
    integers_changed: Share


@dataclass(frozen=True, kw_only=True)
class RemedyGain(Gain):
    """What a remedy gains under shift, and costs on clean images, against `int8`.

    Attributes:
        remedy: name of its graph; a calibrator is `compensated`.
        n: images measured.
        clean_accuracy: on clean images.
        shift_accuracy: mean over all conditions.
        clean_cost_pp: `int8` minus the remedy, clean images.
        clean_cost_interval_pp: its 95 % interval.
        unseen_gain_pp: over conditions whose shift neither the classifier nor the remedy was trained on, or null.
        unseen_gain_interval_pp: its interval.
        seen_gain_pp: over the other conditions.
        seen_gain_interval_pp: its interval.
        far_gain_pp: over conditions whose shift lies far from all random operations, or null.
        far_gain_interval_pp: its interval.
        clean_agreement: share of clean images that it predicts as `int8` does; null in records of earlier versions.
        clean_harmful_flips: share of clean images that `int8` gets right and it gets wrong; likewise.
    """

    remedy: str = field(metadata=was("method"))
    n: Positive
    clean_accuracy: Share
    shift_accuracy: Share
    clean_cost_pp: Points
    clean_cost_interval_pp: PointsInterval
    unseen_gain_pp: Points | None = None
    unseen_gain_interval_pp: PointsInterval | None = None
    seen_gain_pp: Points | None = None
    seen_gain_interval_pp: PointsInterval | None = None
    far_gain_pp: Points | None = None
    far_gain_interval_pp: PointsInterval | None = None
    clean_agreement: Share | None = None
    clean_harmful_flips: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Remedy(RemedyGain):
    """One way to win robustness back.

    Attributes:
        runtime: `torch` for what has no graph.
        macs: multiply-accumulates added per image; null without a graph, as both latency ratios.
        trained_on: shifts, and the folder of target images.
        provenance: what it learned from; null for what is not trained.
        training_s: what making it took.
        diverged: its training ended at what is not finite, and the best state before that was kept.
        classifier_hash: before and after, where a calibrator was trained in front of it, else null.
        latency_ratio: over INT8.
        float_latency_ratio: how many times faster than float.
        size_bytes: of its graph's file; null without a graph, or in records of earlier versions.
        weight_change: of the INT8 classifier in it; null where nothing compared them.
        validation: on validation images; null where it was not chosen by them.
        rising: its training was still learning when its steps ended.
    """

    runtime: Annotated[str, OneOf("onnxruntime", "torch")]
    macs: Count | None = None
    trained_on: tuple[str, ...]
    provenance: TrainingProvenance | None = field(metadata=was("lessons"))
    training_s: Seconds
    diverged: bool = False
    classifier_hash: ClassifierHash | None = None
    latency_ratio: LatencyRatio | None = None
    float_latency_ratio: LatencyRatio | None = None
    size_bytes: Bytes | None = None
    weight_change: WeightChange | None = None
    validation: Validation | None = None
    rising: bool = False
