"""Accuracy per shift and severity in the CSV form that RobustBench keeps its unaggregated results in."""

from __future__ import annotations

import csv
import io
from typing import Any


def unaggregated_csv(record: dict[str, Any]) -> str:
    """A header line of shifts, one of severities, then a line of accuracies per classifier, as fractions.

    `pandas.read_csv(file, header=[0, 1], index_col=0)` reads it, and so do RobustBench's own tools. Clean
    accuracy is not in that form; every shift that was measured is, not only the benchmark's fifteen corruptions.

    Args:
        record: of a run or of an evaluation.
    """
    rows = [row for row in record["rows"] if row["shift"] != "clean"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["", *(row["shift"] for row in rows)])
    writer.writerow(["", *(row["severity"] for row in rows)])
    for name in record["summary"]["clean_accuracy"]:
        writer.writerow([name, *(row["accuracy"][name] for row in rows)])
    return buffer.getvalue()
