"""The tables of corruption data sets: accuracies on images of their own."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import Comparison, CorruptionSet, Drop, EvaluationRecord, Record
from qrobust.report.classes import balanced_sentence
from qrobust.report.figures import percent, points
from qrobust.report.verdict import corruption_error


def stored_tables(record: Record | EvaluationRecord, names: dict[str, str]) -> list[tuple[str, str, list[list[str]]]]:
    """Per set its name, a note, and a table: a header, the mean of its conditions, then a line per condition.

    Args:
        record: of a run or of an evaluation.
        names: classifiers to what they are called.
    """
    return [(entry.name, _note(entry, names), _table(entry, names)) for entry in record.corruption_sets]


def _table(entry: CorruptionSet, names: dict[str, str]) -> list[list[str]]:
    summary = entry.summary
    graphs = list(summary.accuracy)
    drops = [f"drop from {names[graphs[0]]} to {names[g]}" for g in graphs[1:]]
    rows = [["shift", "severity", *(names[g] for g in graphs), *drops]]
    rows.append(["mean", "", *(percent(a) for a in summary.accuracy.values()), *_drops(summary.versus)])
    for row in entry.rows:
        accuracies = [percent(row.accuracy[g]) for g in graphs]
        rows.append([row.shift, str(row.severity), *accuracies, *_drops(row.versus)])
    return rows


def _drops(versus: Mapping[str, Drop | Comparison]) -> list[str]:
    return [points(v.drop_pp, v.drop_interval_pp) for v in versus.values()]


def _note(entry: CorruptionSet, names: dict[str, str]) -> str:
    summary = entry.summary
    n, of = summary.n_test, summary.of
    subset = f" of {of} (a subset stratified by class)" if n < of else ""
    own = (
        f"n = {n}{subset} in each of {summary.n_conditions} conditions, which are no part of the figures under shift "
        "above."
    )
    by_class = [balanced_sentence(entry.classes, names)] if entry.classes else []
    return " ".join([own, *corruption_error(summary.mce, names), *by_class])
