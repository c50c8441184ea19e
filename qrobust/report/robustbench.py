"""Accuracy per shift and severity in the CSV form that RobustBench keeps its unaggregated results in."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import PurePath

from qrobust.record import ConditionAccuracy, EvaluationRecord, Record
from qrobust.text import spreadsheet_cell


def unaggregated_csv(rows: Sequence[ConditionAccuracy], names: list[str]) -> str:
    """A header line of shifts, one of severities, then a line of accuracies per classifier, as fractions.

    A name that a spreadsheet would take for a formula has an apostrophe before it.
    `pandas.read_csv(file, header=[0, 1], index_col=0)` reads it, and so do RobustBench's own tools. Clean
    accuracy is not in that form; every shift that was measured is, not only the benchmark's fifteen corruptions.

    Args:
        rows: of a record, or of one of its corruption data sets.
        names: of the classifiers.
    """
    rows = [row for row in rows if row.shift != "clean"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["", *(spreadsheet_cell(row.shift) for row in rows)])
    writer.writerow(["", *(row.severity for row in rows)])
    for name in names:
        writer.writerow([spreadsheet_cell(name), *(row.accuracy[name] for row in rows)])
    return buffer.getvalue()


def csv_files(record: Record | EvaluationRecord) -> dict[str, str]:
    """`results.csv` of what was rendered, and a file for each corruption data set: names to text.

    Args:
        record: of a run or of an evaluation.
    """
    names = list(record.summary.clean_accuracy)
    files = {"results.csv": unaggregated_csv(record.rows, names)}
    for entry in record.corruption_sets:
        plain = f"results-{PurePath(entry.name.partition(':')[2]).name}.csv"
        files[plain if plain not in files else f"results-{entry.predictions}.csv"] = unaggregated_csv(
            entry.rows, names
        )
    return files
