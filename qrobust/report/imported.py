"""What is to be said of a file that was quantized before, and of what compensates it."""

from __future__ import annotations

from qrobust.record import Compensation, EvaluationRecord, FileCompensation, Macs, RescaledFile
from qrobust.report.figures import percent, points
from qrobust.report.recommendation import Decided, recommendation_sentences
from qrobust.report.verdict import target_sentence


def file_sentences(record: EvaluationRecord) -> list[str]:
    """What the graphs are, what the remedy learned from and what it did on validation images.

    Args:
        record: of an evaluation; of one without a remedy nothing is said.
    """
    found = record.compensation
    if found is None:
        return []
    target = [target_sentence(found.target_images)] if found.target_images else []
    done = _validated(found.calibrator, found.macs) if found.calibrator else []
    done += _rescaled(found.scales) if found.scales else []
    return [*target, _graphs(found), _learned(found), *done]


def recommended(record: EvaluationRecord) -> list[str]:
    """Whether to ship the remedy, and why not."""
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
    """What the remedy gains under shift and costs on clean images, on test images."""
    found = record.compensation
    assert found is not None
    who, s = ("The calibrator", "s") if found.calibrator else ("The new scales", "")
    if found.calibrator and found.scales:
        who, s = "The new scales and the calibrator", ""
    change = record.summary.versus[found.graph]
    clean = points(change.quantization_drop_pp, change.quantization_drop_interval_pp)
    drop, interval = change.shift_quantization_drop_pp, change.shift_quantization_drop_interval_pp
    if drop is None or interval is None:
        return f"{who} cost{s} {clean} on clean images."
    gain = points(0.0 - drop, (0.0 - interval[1], 0.0 - interval[0]))
    return f"{who} gain{s} {gain} under shift and cost{s} {clean} on clean images."


def _graphs(found: FileCompensation) -> str:
    file = found.file
    parts = ["other scales and biases"] if found.scales else []
    parts += ["a calibrator in front"] if found.calibrator else []
    other = f"{found.graph} the same with {' and '.join(parts)}"
    kept = f"its nodes and {'integer weights' if found.scales else 'constants'} are in both"
    kept += ", byte for byte"
    if file.converted_to is not None:
        kept = (
            f"converted to opset {file.converted_to}, since its own allows nothing in front; its logits are equal to "
            f"the bit on {file.bit_equal_images:,} images"
        )
    return f"int8 is {file.file} (opset {file.opset}) with images in [0, 1] as its input, {other}: {kept}."


def _learned(found: FileCompensation) -> str:
    parity, labels = found.file.parity, found.provenance is None or found.provenance.labels
    teacher = f"{'labels and ' if labels else ''}the file's own answers on clean images"
    made = found.calibrator or found.scales
    assert made is not None
    who, it = ("the calibrator", "it") if found.calibrator else ("scales and biases", "they")
    if found.calibrator and found.scales:
        who, it = "scales and biases, and then the calibrator,", "they"
    return (
        f"No float network took part: {who} learned from {teacher}, on {made.training_images:,} "
        f"training images under {', '.join(made.trained_on)}. The file's integers, through which "
        f"{it} learned, say what the file says on {percent(parity.agreement_beyond_ties)} of {parity.n:,} images, "
        "ties apart."
    )


def _validated(made: Compensation, macs: Macs) -> list[str]:
    end, start = made.validation, made.training.float
    measures = end.measures
    return [
        f"On validation images, {measures.shift} under shift goes from {percent(start.start_shift_accuracy)} to "
        f"{percent(end.shift_accuracy)}, {measures.clean} on clean ones from {percent(start.start_clean_accuracy)} "
        f"to {percent(end.clean_accuracy)}. The calibrator takes {percent(macs.calibrator_share)} of the "
        "classifier's multiply-accumulates."
    ]


def _rescaled(made: RescaledFile) -> list[str]:
    end, said = made.validation, f"{made.scales:,} scales and {made.biases:,} biases that the file stores are others."
    if made.kept_share < 1:
        said += (
            f" They are {percent(made.kept_share)} of the way from the file's to the end of training, so that clean "
            "images cost no more than --clean-budget."
        )
    return [
        f"{said} On validation images, {end.measures.shift} under shift is then {percent(end.shift_accuracy)}, "
        f"{end.measures.clean} on clean ones {percent(end.clean_accuracy)}. scales.file.onnx is the file itself with "
        "these numbers and its own input."
    ]
