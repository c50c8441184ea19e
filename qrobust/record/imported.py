"""Parts of a record about an ONNX file that was quantized before and has a calibrator in front of it now."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record.compensation import Compensation, Remedy, TrainingProvenance
from qrobust.record.measurements import Macs
from qrobust.record.other_images import TargetImages
from qrobust.record.quantization import Audit, Parity
from qrobust.record.recommendation import Effects, Recommendation
from qrobust.record.stages import SplitSummary, StageResult
from qrobust.record.units import Positive


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
    """

    file: ImportedFile
    splits: dict[str, SplitSummary]


@dataclass(frozen=True, kw_only=True)
class FileCompensation:
    """A calibrator in front of a quantized file whose nodes and constants stayed, byte for byte.

    Attributes:
        file: what it stands in front of; in the evaluation it is `int8`.
        calibrator: what it is and did on validation images; with it the file is `compensated`.
        provenance: what it learned from.
        macs: of both.
        audit: per graph, what onnxruntime runs on integers.
        parity: of the graph with the calibrator, torch against onnxruntime.
        remedy: what it gains and costs on test images; null where nothing but clean images was rendered.
        target_images: real images of the place of use (`--target-images DIR`), or null.
        effects: what it does, on validation images, too; null where not measured.
        recommendation: whether to ship it; null where not measured.
    """

    file: ImportedFile
    calibrator: Compensation
    provenance: TrainingProvenance | None
    macs: Macs
    audit: dict[str, Audit]
    parity: Parity
    remedy: Remedy | None = None
    target_images: TargetImages | None = None
    effects: Effects | None = None
    recommendation: Recommendation | None = None
