"""What is to be said of a calibrator in front of a file that was quantized before."""

from __future__ import annotations

from qrobust.record import EvaluationRecord, FileCompensation
from qrobust.report.figures import percent


def file_sentences(record: EvaluationRecord) -> list[str]:
    """What the graphs are, what the calibrator learned from and what it did on validation images.

    Args:
        record: of an evaluation; of one without a calibrator nothing is said.
    """
    found = record.compensation
    return [] if found is None else [_graphs(found), _learned(found), _validated(found)]


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
    teacher = "labels and what it says of clean images" if labels else "what the file says of clean images"
    return (
        f"No float network took part: the calibrator learned from {teacher}, on {found.calibrator.training_images:,} "
        f"training images under {', '.join(found.calibrator.trained_on)}. The file's integers, through which "
        f"it learned, say what the file says on {percent(parity.agreement_beyond_ties)} of {parity.n:,} validation "
        "images, ties apart."
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
