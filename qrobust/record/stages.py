"""What each stage of a run leaves in `stages/NAME.json`, from which the report makes the record."""

from __future__ import annotations

from dataclasses import dataclass, field

from qrobust.preprocessing import Preprocessing
from qrobust.record.attacks import Attacks
from qrobust.record.classes import Classes
from qrobust.record.compensation import (
    CalibratorTraining,
    ClassifierHash,
    Compensation,
    RemedyGain,
    SplitSummary,
    TrainingProvenance,
    Validation,
    WeightChange,
)
from qrobust.record.confidence import Confidence
from qrobust.record.data import Duplicates, LeftOut
from qrobust.record.measurements import ConditionResult, Footprint, Latency, Macs, MissedImage, RunAccuracy
from qrobust.record.other_images import CorruptionSet, TargetImages
from qrobust.record.provenance import Hardware
from qrobust.record.quantization import Audit, Parity, QatTraining, Quantization
from qrobust.record.recommendation import Effects
from qrobust.record.start import Start
from qrobust.record.typed_json import was
from qrobust.record.units import Bytes, Count, Positive, RatioInterval, Seconds, Share


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What every stage leaves.

    Attributes:
        choices: changes with every choice that the stage depends on; null where that is not compared.
        duration_s: what it took, with what killed processes had trained before; set as it ends, like `choices`.
    """

    choices: str | None = None
    duration_s: Seconds = 0.0


@dataclass(frozen=True, kw_only=True)
class ExportedGraphs:
    """The graphs that a stage made.

    Attributes:
        audit: per graph, what onnxruntime runs on integers.
        parity: per graph, torch against onnxruntime.
    """

    audit: dict[str, Audit]
    parity: dict[str, Parity]


@dataclass(frozen=True, kw_only=True)
class QuantizationResult(StageResult, ExportedGraphs):
    """`stages/quantize.json`.

    Attributes:
        quantization: how the network was quantized.
        macs: of the classifier.
        quantized_hash: SHA-256 of the fake-quantized network's parameters and buffers.
        splits: per split, which images it holds.
        skipped_images: files that could not be decoded.
        left_out: files and folders of the data that were not used, by reason.
        duplicates: images that are in two splits, by pair of splits.
        class_names: in index order.
        image_size: side in px, as the network reads images.
        channels: 3 (RGB) or 1 (luma); null where an earlier version left it out.
        preprocessing: how images became the network's input; null in folders of earlier versions.
        start: what was found before the first stage; null in folders of earlier versions.
    """

    quantization: Quantization
    macs: Macs
    quantized_hash: str = field(metadata=was("twin_hash"))
    splits: dict[str, SplitSummary]
    skipped_images: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    class_names: tuple[str, ...]
    image_size: Positive
    channels: Positive | None = None
    preprocessing: Preprocessing | None = None
    start: Start | None = None


@dataclass(frozen=True, kw_only=True)
class CalibratorMacs:
    """Multiply-accumulates for one image.

    Attributes:
        calibrator: what a remedy adds to the classifier's.
    """

    calibrator: Count


@dataclass(frozen=True, kw_only=True)
class CompensationResult(StageResult, Compensation):
    """`stages/compensate.json`.

    Attributes:
        macs: of the calibrator.
        calibrator_version: of the architecture, which older folders do not name.
        provenance: what it learned from.
    """

    macs: CalibratorMacs
    calibrator_version: int | None = None
    provenance: TrainingProvenance | None = field(default=None, metadata=was("lessons"))


@dataclass(frozen=True, kw_only=True)
class ExportResult(StageResult, ExportedGraphs):
    """`stages/export.json`."""


@dataclass(frozen=True, kw_only=True)
class RemedyTraining:
    """How a remedy other than a calibrator was made.

    Attributes:
        macs: what it adds.
        trained_on: shifts, and the folder of target images.
        provenance: what it learned from; null for what is not trained.
        training: what training did, on validation images; null for what is not trained in steps.
        classifier_hash: before and after, where a calibrator was trained in front of it, else null.
        validation: on validation images; null where it was not chosen by them.
        weight_change: from the INT8 classifier's; null where nothing compared them.
        kept_share: of the way from INT8 to the end of its training, what `--clean-budget` left; null without one.
        threshold: of a second look, in nats by which a negative must be known better; null for other remedies.
    """

    macs: CalibratorMacs = CalibratorMacs(calibrator=0)
    trained_on: tuple[str, ...]
    provenance: TrainingProvenance | None = field(metadata=was("lessons"))
    training: CalibratorTraining | QatTraining | None = None
    classifier_hash: ClassifierHash | None = None
    validation: Validation | None = None
    weight_change: WeightChange | None = None
    kept_share: Share | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class RemedyResult(StageResult, RemedyTraining, ExportedGraphs):
    """`stages/REMEDY.json` of a remedy other than a calibrator."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(StageResult):
    """`stages/evaluate.json`.

    Attributes:
        rows: one per condition, the clean one first.
        summary: the headline.
        remedies: what each gains and costs, highest gain first.
        target_images: real images of the place of use, or null.
        corruption_sets: one per corruption data set among the shifts.
        attacks: what attacks leave.
        splits: per split, which images it holds; null where an earlier version left it out.
        severity_table: `cifar-c` or `imagenet-c`.
        latency_ms: per graph.
        latency_interval: per graph but `int8`, as in the summary; null where an earlier version left it out.
        size_bytes: per graph, of its file.
        footprint: per graph, memory and load time; null where an earlier version left it out.
        graph_sha256: per graph, of its file; null where an earlier version left it out.
        hardware: where it was measured.
        versions: as in the record; null where an earlier version left it out.
        classes: recall per class, balanced accuracy and confusions; null where an earlier version left it out.
        primary: the measure that decides: `accuracy`, `balanced` or `recall:CLASS`.
        confidence: what confidence is worth, above a threshold and on foreign images; null where not measured.
        effects: what every graph does against the one that it would take the place of; null where not measured.
        missed_images: those that the graph that ships gets wrong in most conditions.
    """

    rows: tuple[ConditionResult, ...]
    summary: RunAccuracy
    remedies: tuple[RemedyGain, ...] = field(metadata=was("methods"))
    target_images: TargetImages | None = field(metadata=was("scene"))
    corruption_sets: tuple[CorruptionSet, ...] = field(metadata=was("stored"))
    attacks: Attacks
    splits: dict[str, SplitSummary] | None = None
    severity_table: str
    latency_ms: dict[str, Latency]
    size_bytes: dict[str, Bytes]
    graph_sha256: dict[str, str] | None = None
    hardware: Hardware
    versions: dict[str, str] | None = None
    classes: Classes | None = None
    primary: str = "accuracy"
    confidence: Confidence | None = None
    footprint: dict[str, Footprint] | None = None
    latency_interval: dict[str, RatioInterval] | None = None
    effects: Effects | None = None
    missed_images: tuple[MissedImage, ...] = ()
