"""A record as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from qrobust.record import Attacks, EvaluationRecord, MeanCorruptionError, Overview, Record
from qrobust.report.approval import approval_table
from qrobust.report.attacks import (
    NO_GRADIENT,
    NOTE,
    attack_table,
    pose_table,
)
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
from qrobust.report.data import duplicates_sentence, left_out_sentence
from qrobust.report.figures import footprint_cells, percent, points
from qrobust.report.imported import file_sentences, recommended
from qrobust.report.verdict import (
    NAMES,
    comparison,
    headline,
    verdict,
)
from qrobust.text import markdown

LISTED = 5


def markdown_report(record: Record) -> str:
    """The verdict, the headline table and a row per shift and severity."""
    lines = [f"# qrobust: {markdown(record.model)}", "", *(f"- {markdown(v)}" for v in verdict(record)), ""]
    lines += table(headline(record))
    if len(record.remedies) > 1:
        lines += ["", *table(comparison(record))]
        if approval := approval_table(record, NAMES):
            lines += ["", *table(approval)]
    s = record.summary
    graphs = [k for k in ("float", "int8", "compensated") if k in s.clean_accuracy]
    rows = [
        ["shift", "severity", *(NAMES[g] for g in graphs), "drop", *(["gain"] if "compensated" in graphs else [])]
    ]
    for row in record.rows:
        cells = [percent(row.accuracy[g]) for g in graphs]
        gain = [points(row.gain_pp, row.gain_interval_pp)] if row.gain_pp is not None else []
        rows.append(
            [
                row.shift,
                str(row.severity),
                *cells,
                points(row.drop_pp, row.drop_interval_pp),
                *gain,
            ]
        )
    return "\n".join(
        [
            *lines,
            "",
            *_mce(s.mce, NAMES),
            sample(s),
            "",
            *_skipped(record.skipped_images),
            *_sentence(left_out_sentence(record.left_out)),
            *_sentence(duplicates_sentence(record.duplicates)),
            *table(rows),
            "",
            *_classes(record, {g: NAMES[g] for g in graphs}),
            *_confidence(record, NAMES),
            *_stored(record, NAMES),
            *_attacks(record.attacks, NAMES, NOTE),
        ]
    )


def _classes(record: Record | EvaluationRecord, names: dict[str, str]) -> list[str]:
    """A section on classes: recalls, then what is taken for what; nothing where they were not measured."""
    if record.classes is None:
        return []
    found = recall_table(record.classes, record.class_names, names)
    lines = ["## Classes", "", *table(found), "", recall_note(record.classes), ""]
    for title, rows in confusion_tables(record.classes, record.class_names, names):
        lines += [f"{markdown(title)}:", "", *table(rows), ""]
    return lines


def _confidence(record: Record | EvaluationRecord, names: dict[str, str]) -> list[str]:
    """A section on confidence; nothing where it was not measured."""
    if record.confidence is None:
        return []
    rows = table(confidence_table(record.confidence, names))
    return ["## Confidence", "", *rows, "", confidence_note(record.confidence), ""]


def _stored(record: Record | EvaluationRecord, names: dict[str, str]) -> list[str]:
    """A section per corruption data set."""
    return [
        line
        for name, note, rows in stored_tables(record, names)
        for line in (f"## Corruption data set: {markdown(name)}", "", *table(rows), "", markdown(note), "")
    ]


def _attacks(attacks: Attacks, names: dict[str, str], note: str) -> list[str]:
    """A section, or nothing."""
    tables = [attack_table(attacks, names), pose_table(attacks, names)]
    if not attacks.rows:
        return []
    parts = [line for rows in tables if rows for line in (*table(rows), "")]
    return ["## Attacks", "", f"n = {attacks.n}. {note}", "", *parts]


def _skipped(names: tuple[str, ...]) -> list[str]:
    """A sentence about files that were left out, followed by an empty line; or nothing."""
    return _sentence(skipped_sentence(names) if names else "")


def _sentence(text: str) -> list[str]:
    """A sentence followed by an empty line, or nothing."""
    return [markdown(text), ""] if text else []


def _mce(mce: MeanCorruptionError | None, names: dict[str, str]) -> list[str]:
    """The mean corruption error as a table, followed by an empty line."""
    if not mce or not mce.relative:
        return []
    by = "over AlexNet's" if mce.normalizer == "alexnet" else "not normalised"
    rows = [["", f"mCE, {by}", "relative mCE, not normalised"]]
    rows += [[names[k], percent(v), percent(mce.relative[k])] for k, v in mce.value.items()]
    return [*table(rows), ""]


def skipped_sentence(skipped: Sequence[str]) -> str:
    """How many files were left out because they cannot be decoded, and which, the first few by name."""
    more = f" and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
    return f"Skipped {len(skipped)} images that cannot be decoded: {', '.join(skipped[:LISTED])}{more}"


def sample(summary: Overview) -> str:
    """What the figures were measured on, and how to read them."""
    n, of = summary.n_test, summary.of
    subset = f" of {of} (a subset stratified by class)" if n < of else ""
    return (
        f"n = {n}{subset}. Intervals are at 95 % and stand for themselves, row by row; the record's adjusted "
        "p-values (McNemar's exact test, Holm's correction) hold for all rows together."
    )


def evaluation_table(record: EvaluationRecord) -> list[list[str]]:
    """A header, then a line per classifier; all but the first with what they lose against it."""
    s = record.summary
    reference, *others = s.clean_accuracy
    by_class = record.classes.classifiers if record.classes else {}
    header = ["", "clean", "under shift", *(["balanced, clean", "balanced, under shift"] if by_class else [])]
    header += ["mCE"] if s.mce else []
    taken = ["batch 1", "batch 32"] if record.latency_ms else []
    taken += ["size", *(["memory", "load"] if record.footprint else [])]
    rows = [header + taken + ([f"drop from {reference}, clean", "drop under shift"] if others else [])]
    for name, clean in s.clean_accuracy.items():
        line = [name, percent(clean), percent(s.shift_accuracy[name])]
        line += [percent(by_class[name].clean_balanced), percent(by_class[name].shift_balanced)] if by_class else []
        line += [percent(s.mce.value[name])] if s.mce else []
        times = record.latency_ms and record.latency_ms[name]
        line += [f"{times.batch_1:.2f} ms", f"{times.batch_32:.1f} ms"] if times else []
        line += [f"{record.models[name].size_bytes / 1024:.0f} KiB", *footprint_cells(record.footprint, name)]
        lost = s.versus.get(name)
        if lost:
            line.append(points(lost.quantization_drop_pp, lost.quantization_drop_interval_pp))
            line.append(points(lost.shift_quantization_drop_pp, lost.shift_quantization_drop_interval_pp))
        elif others:
            line += ["", ""]
        rows.append(line)
    return rows


def class_lines(record: EvaluationRecord) -> list[str]:
    """How even classes are, and balanced accuracies, each followed by an empty line."""
    if record.classes is None:
        return []
    names = {n: n for n in record.summary.clean_accuracy}
    leading = primary_sentence(record, names) or balanced_sentence(record.classes, names)
    told = (leading, evenness(record.classes, record.class_names))
    return [line for sentence in told for line in (markdown(sentence), "")]


def evaluation_report(record: EvaluationRecord) -> str:
    """An evaluation of ONNX files: a line per classifier, then a row per shift and severity."""
    names = list(record.summary.clean_accuracy)
    rows = [["shift", "severity", *names, *(f"drop to {name}" for name in names[1:])]]
    for row in record.rows:
        drops = [points(v.drop_pp, v.drop_interval_pp) for v in row.versus.values()]
        rows.append([row.shift, str(row.severity), *(percent(row.accuracy[n]) for n in names), *drops])
    title = "# qrobust: " + markdown(f"{', '.join(names)} on {record.data}")
    lines = [title, "", *table(evaluation_table(record)), ""]
    mce = _mce(record.summary.mce, {n: n for n in names})
    stored = _stored(record, {n: n for n in names})
    attacks = _attacks(record.attacks, {n: n for n in names}, NO_GRADIENT)
    return "\n".join(
        [
            *lines,
            *mce,
            sample(record.summary),
            "",
            *(line for sentence in [*recommended(record), *file_sentences(record)] for line in _sentence(sentence)),
            *class_lines(record),
            *_skipped(record.skipped_images),
            *_sentence(left_out_sentence(record.left_out)),
            *table(rows),
            "",
            *_classes(record, {n: n for n in names}),
            *_confidence(record, {n: n for n in names}),
            *stored,
            *attacks,
        ]
    )


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is the header."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(rows[0]) - 1)) + "|"
    lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    return [lines[0], rule, *lines[1:]]
