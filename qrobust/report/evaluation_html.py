"""An evaluation of ONNX files as one self-contained HTML page."""

from __future__ import annotations

from qrobust.record import Drops, EvaluationRecord
from qrobust.report.attacks import NO_GRADIENT, attack_table, pose_table
from qrobust.report.classes import (
    balanced_sentence,
    confusion_tables,
    evenness,
    primary_sentence,
    recall_note,
    recall_table,
)
from qrobust.report.confidence import confidence_note, confidence_table
from qrobust.report.corruption_sets import stored_tables
from qrobust.report.data import left_out_sentence
from qrobust.report.figures import bounds, percent, points
from qrobust.report.html import environment
from qrobust.report.imported import file_sentences, recommended
from qrobust.report.markdown import evaluation_table, sample, skipped_sentence
from qrobust.report.plots import (
    Looks,
    attack_plots,
    cost_plots,
    gains_plot,
    heat_maps,
    looks_in_turn,
    recall_plots,
    severity_plots,
    shift_name,
)
from qrobust.report.svg import SHAPES
from qrobust.report.tiles import Tile, share_tile, time_tile
from qrobust.report.verdict import LEVEL, corruption_error


def evaluation_html(record: EvaluationRecord) -> str:
    """Render an evaluation.

    Args:
        record: of `qrobust evaluate-onnx`.
    """
    looks = looks_in_turn(record.summary.clean_accuracy)
    names = {name: name for name in looks}
    first, *others = names
    stored = stored_tables(record, names)
    rows, losses = _conditions(record)
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            record=record,
            title=f"{', '.join(names)} on {record.data}",
            sample=sample(record.summary),
            contents=_contents(record, [name for name, *_ in stored]),
            shapes=SHAPES,
            sentences=_sentences(record, names),
            notes=_notes(record),
            tiles=evaluation_tiles(record),
            compared_sentence=" → ".join([first, *others[-1:]]),
            looks=list(looks.values()),
            headline=evaluation_table(record),
            conditions=rows,
            losses=losses,
            stored_tables=stored,
            provenance=_provenance(record),
            **_plots(record, looks),
            **_classes(record, looks, names),
        )
    )


def _contents(record: EvaluationRecord, sets: list[str]) -> dict[str, str]:
    found = {"graphs": "The files", "gains": "Where they differ and where they do not", "shifts": "Every shift"}
    if record.classes:
        found["classes"] = "Every class"
    if record.confidence:
        found["confidence"] = "What confidence is worth"
    found |= {f"set-{index}": f"Corruption data set: {name}" for index, name in enumerate(sets, 1)}
    if record.attacks.rows:
        found["attacks"] = "Attacks: a risk figure, not a defence claim"
    return found | {"provenance": "Provenance"}


def _sentences(record: EvaluationRecord, names: dict[str, str]) -> list[str]:
    """What each file gains or loses against the first; of a single file its accuracies."""
    s, (reference, *others) = record.summary, names
    told = recommended(record)
    if not others:
        clean = f"{percent(s.clean_accuracy[reference])} {bounds(s.clean_interval[reference])} right on clean images"
        interval = s.shift_interval[reference]
        shifted = f", {percent(s.shift_accuracy[reference])} {bounds(interval)} under shift" if interval else ""
        told.append(f"{reference}: {clean}{shifted}.")
    for name in others:
        change = s.versus[name]
        on_clean, shift = _changes(change)
        under = f", {points(*shift)} under shift" if shift else ""
        told.append(
            f"{name} against {reference}: {points(*on_clean)} on clean images{under}; both predict the same on "
            f"{percent(change.agreement)} of clean images."
        )
    told += corruption_error(s.mce, names)
    if record.classes:
        told.append(primary_sentence(record, names) or balanced_sentence(record.classes, names))
        told.append(evenness(record.classes, record.class_names))
    return told


Change = tuple[float, tuple[float, float]]


def _changes(found: Drops) -> tuple[Change, Change | None]:
    """What is gained on clean images and under shift, with intervals: drops, the other way round."""
    clean = _gained(found.quantization_drop_pp, found.quantization_drop_interval_pp)
    drop, interval = found.shift_quantization_drop_pp, found.shift_quantization_drop_interval_pp
    return clean, None if drop is None or interval is None else _gained(drop, interval)


def _gained(drop: float, interval: tuple[float, float]) -> Change:
    return 0.0 - drop, (0.0 - interval[1], 0.0 - interval[0])


def evaluation_tiles(record: EvaluationRecord) -> list[Tile]:
    """The first file and the last one: accuracy under shift and on clean images, time for one image; or nothing.

    Args:
        record: of `qrobust evaluate-onnx`.
    """
    s, names = record.summary, list(record.summary.clean_accuracy)
    if len(names) < 2:
        return []
    first, last = names[0], names[-1]
    clean, shift = _changes(s.versus[last])
    found = [
        share_tile("Accuracy under shift", s.shift_accuracy[last], *(shift or (None, None))),
        share_tile("Accuracy on clean images", s.clean_accuracy[last], *clean),
    ]
    if record.latency_ms:
        found.append(time_tile(record.latency_ms[first], record.latency_ms[last], None))
    return found


def _notes(record: EvaluationRecord) -> list[str]:
    skipped = [skipped_sentence(record.skipped_images)] if record.skipped_images else []
    return [*file_sentences(record), *skipped, *filter(None, [left_out_sentence(record.left_out)])]


def _conditions(record: EvaluationRecord) -> tuple[list[list[str]], list[bool]]:
    """A header and a row per condition; and for each row whether a file is significantly worse than the first."""
    names = list(record.summary.clean_accuracy)
    rows, losses = [["shift", "severity", *names, *(f"change to {name}" for name in names[1:])]], []
    for row in record.rows:
        changes, lost = [], False
        for found in row.versus.values():
            sure = found.drop_p_adjusted < LEVEL
            lost |= sure and found.drop_pp > 0
            changes.append(f"{points(*_gained(found.drop_pp, found.drop_interval_pp))}{' *' if sure else ''}")
        accuracies = [f"{percent(row.accuracy[name])} {bounds(row.interval[name])}" for name in names]
        rows.append([shift_name(row.shift), str(row.severity or ""), *accuracies, *changes])
        losses.append(lost)
    return rows, losses


def _plots(record: EvaluationRecord, looks: Looks) -> dict[str, object]:
    first, last = next(iter(looks)), list(looks)[-1]
    times = {name: latency.batch_1 for name, latency in (record.latency_ms or {}).items()}
    sizes = {name: file.size_bytes for name, file in record.models.items()}
    names = {name: name for name in looks}
    return {
        "gains": gains_plot(record.rows, looks),
        "severities": severity_plots(record.rows, looks),
        "heat_maps": heat_maps(record.rows, looks, first, last),
        "costs": cost_plots(record.summary, looks, times, sizes),
        "attack_tables": [attack_table(record.attacks, names), pose_table(record.attacks, names)],
        "attack_note": NO_GRADIENT,
        "attack_plots": attack_plots(record.attacks, looks),
        "attack_looks": list(looks.values()),
    }


def _classes(record: EvaluationRecord, looks: Looks, names: dict[str, str]) -> dict[str, object]:
    found, class_names = record.classes, record.class_names
    return {
        "recalls": recall_table(found, class_names, names) if found else [],
        "recall_note": recall_note(found) if found else "",
        "recall_plots": recall_plots(found, class_names, looks) if found else [],
        "confusions": confusion_tables(found, class_names, names) if found else [],
        "confidences": confidence_table(record.confidence, names),
        "confidence_note": confidence_note(record.confidence) if record.confidence else "",
    }


def _provenance(record: EvaluationRecord) -> list[list[str]]:
    """A header, then a line per thing that a figure depends on."""
    rows = [["what", "is"], ["made", f"{record.created} by qrobust {record.qrobust}"], ["data", record.data]]
    listing = f", files {record.listing}" if record.listing else ""
    rows.append(["test images", f"{record.summary.n_test:,}; order {record.fingerprint}{listing}"])
    rows += [[name, f"{file.file}, SHA-256 {file.sha256}"] for name, file in record.models.items()]
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())])
    found = record.hardware
    rows.append(["CPU", f"{found.processor} ({', '.join(found.flags)}), {found.threads} thread(s) of {found.cores}"])
    return rows
