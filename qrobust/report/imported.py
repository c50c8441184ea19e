"""What is to be said of a calibrator in front of a file that was quantized before."""

from __future__ import annotations

from qrobust.record import EvaluationRecord, FileCompensation
from qrobust.report.figures import percent, points
from qrobust.report.recommendation import Decided, recommendation_sentences
from qrobust.report.verdict import target_sentence


def file_sentences(record: EvaluationRecord) -> list[str]:
    """What the graphs are, what the calibrator learned from and what it did on validation images.

    Args:
        record: of an evaluation; of one without a calibrator nothing is said.
    """
    found = record.compensation
    if found is None:
        return []
    target = [target_sentence(found.target_images)] if found.target_images else []
    return [*target, _graphs(found), _learned(found), _validated(found)]


def recommended(record: EvaluationRecord) -> list[str]:
    """Whether to ship the calibrator, and why not."""
    found = record.compensation
    if found is None or found.recommendation is None:
        return []
    known = Decided(
        recommendation=found.recommendation,
        effects=found.effects,
        remedies=(found.remedy,) if found.remedy else (),
        target_images=found.target_images,
        primary=record.primary,
        confidence=record.confidence,
        class_names=record.class_names,
        accepting="`qrobust compensate FILE.onnx --resume --accept-undecided`",
    )
    return recommendation_sentences(known, {name: name for name in record.models})


def gain_sentence(record: EvaluationRecord) -> str:
    """What the calibrator gains under shift and costs on clean images, on test images."""
    change = record.summary.versus["compensated"]
    clean = points(change.quantization_drop_pp, change.quantization_drop_interval_pp)
    drop, interval = change.shift_quantization_drop_pp, change.shift_quantization_drop_interval_pp
    if drop is None or interval is None:
        return f"The calibrator costs {clean} on clean images."
    gain = points(0.0 - drop, (0.0 - interval[1], 0.0 - interval[0]))
    return f"The calibrator gains {gain} under shift and costs {clean} on clean images."


def _graphs(found: FileCompensation) -> str:
    file = found.file
    kept = "its nodes and constants are in both, byte for byte"
    if file.converted_to is not None:
        kept = (
            f"converted to opset {file.converted_to}, since its own allows nothing in front; its logits are equal to "
            f"the bit on {file.bit_equal_images:,} images"
        )
    return (
        f"int8 is {file.file} (opset {file.opset}) with images in [0, 1] as its input, compensated the same with a "
        f"calibrator in front: {kept}."
    )


def _learned(found: FileCompensation) -> str:
    parity, labels = found.file.parity, found.provenance is None or found.provenance.labels
    teacher = f"{'labels and ' if labels else ''}the file's own answers on clean images"
    return (
        f"No float network took part: the calibrator learned from {teacher}, on {found.calibrator.training_images:,} "
        f"training images under {', '.join(found.calibrator.trained_on)}. The file's integers, through which "
        f"it learned, say what the file says on {percent(parity.agreement_beyond_ties)} of {parity.n:,} images, "
        "ties apart."
    )


def _validated(found: FileCompensation) -> str:
    end, start = found.calibrator.validation, found.calibrator.training.float
    measures = end.measures
    return (
        f"On validation images, {measures.shift} under shift goes from {percent(start.start_shift_accuracy)} to "
        f"{percent(end.shift_accuracy)}, {measures.clean} on clean ones from {percent(start.start_clean_accuracy)} "
        f"to {percent(end.clean_accuracy)}. The calibrator takes {percent(found.macs.calibrator_share)} of the "
        "classifier's multiply-accumulates."
    )
