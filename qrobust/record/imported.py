"""Parts of a record about an ONNX file that was quantized before, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record.compensation import Compensation, Remedy, TrainingProvenance, Validation, WeightChange
from qrobust.record.measurements import Macs
from qrobust.record.other_images import TargetImages
from qrobust.record.quantization import Audit, Parity, QatTraining
from qrobust.record.recommendation import Effects, Recommendation
from qrobust.record.stages import CompensationResult, ExportedGraphs, RemedyResult, SplitSummary, StageResult
from qrobust.record.units import Count, Positive, Share
from qrobust.remedies import CALIBRATOR


@dataclass(frozen=True, kw_only=True)
class ImportedFile:
    """A quantized file as it was given.

    Attributes:
        file: its path, as it was given.
        sha256: of its content.
        opset: version of ONNX's own operators.
        converted_to: opset that it had to be converted to, where its own allows nothing in front; else null.
        bit_equal_images: images on which the converted file gave the same logits to the bit; null without one.
        integer: kinds of operators on integers.
        layout: `NCHW` or `NHWC`.
        pixels: type of its input.
        parity: its integers as a torch network against the file, on validation images.
    """

    file: str
    sha256: str
    opset: Positive
    converted_to: Positive | None = None
    bit_equal_images: Positive | None = None
    integer: tuple[str, ...]
    layout: str
    pixels: str
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class ImportResult(StageResult):
    """`stages/import.json`, of a folder that `qrobust compensate FILE.onnx` made.

    Attributes:
        file: what was imported.
        splits: per split, which images it holds.
        remedy: what is made of it, `calibrator`, `scales` or `scales+calibrator`.
    """

    file: ImportedFile
    splits: dict[str, SplitSummary]
    remedy: str = CALIBRATOR


@dataclass(frozen=True, kw_only=True)
class RescaledFile:
    """New numbers for scales and biases of a quantized file: what they learned from, and what training did.

    Attributes:
        scales: stored tensors of scales that learned.
        biases: stored tensors of biases that learned.
        training_images: of the training split.
        trained_on: shifts.
        training: on validation images.
        validation: the finished file on validation images.
        weight_change: of what the integer weights stand for; the integers did not change.
        kept_share: of the way from the file to the end of its training, what `--clean-budget` left.
    """

    scales: Positive
    biases: Count
    training_images: Count
    trained_on: tuple[str, ...]
    training: QatTraining
    validation: Validation
    weight_change: WeightChange
    kept_share: Share


@dataclass(frozen=True, kw_only=True)
class RescaledFileResult(RemedyResult):
    """`stages/scales.json`, of a folder that `qrobust compensate FILE.onnx --remedy scales` made.

    Attributes:
        scales: stored tensors of scales that learned.
        biases: stored tensors of biases that learned.
        training_images: of the training split.
    """

    scales: Positive
    biases: Count
    training_images: Count


@dataclass(frozen=True, kw_only=True)
class CalibratedFileResult(CompensationResult, ExportedGraphs):
    """`stages/scales+calibrator.json` of such a folder: a calibrator in front of the file with its new scales."""


@dataclass(frozen=True, kw_only=True)
class FileCompensation:
    """A quantized file whose nodes and integer weights stayed, byte for byte, and what was made of it.

    Attributes:
        file: as it was given; in the evaluation it is `int8`.
        calibrator: in front of the file: what it is and did on validation images; with it the file is `compensated`.
            Null without one.
        scales: with these the file is `scales`, and with a calibrator in front `scales+calibrator`; null where all
            constants of the file stayed.
        provenance: what the remedy learned from.
        macs: of the file and of the calibrator.
        audit: per graph, what onnxruntime runs on integers.
        parity: of the graph with the remedy, torch against onnxruntime.
        remedy: what it gains and costs on test images; null where nothing but clean images was rendered.
        target_images: real images of the place of use (`--target-images DIR`), or null.
        effects: what it does, on validation images, too; null where not measured.
        recommendation: whether to ship it; null where not measured.
    """

    file: ImportedFile
    calibrator: Compensation | None = None
    scales: RescaledFile | None = None
    provenance: TrainingProvenance | None
    macs: Macs
    audit: dict[str, Audit]
    parity: Parity
    remedy: Remedy | None = None
    target_images: TargetImages | None = None
    effects: Effects | None = None
    recommendation: Recommendation | None = None

    @property
    def graph(self) -> str:
        """The graph with the remedy."""
        if self.calibrator is None:
            return "scales"
        return f"scales+{CALIBRATOR}" if self.scales else "compensated"
