"""A record as Markdown, for a pull request."""

from __future__ import annotations

from typing import Any

from qrobust.report.verdict import NAMES, headline, percent, points, verdict


def markdown_report(record: dict[str, Any]) -> str:
    """The verdict, the headline table and a row per shift and severity."""
    lines = [f"# qrobust: {record['config']['model']}", "", *(f"- {v}" for v in verdict(record)), ""]
    lines += table(headline(record))
    graphs = [k for k in NAMES if k in record["summary"]["clean_accuracy"]]
    rows = [
        ["shift", "severity", *(NAMES[g] for g in graphs), "drop", *(["gain"] if "compensated" in graphs else [])]
    ]
    for row in record["rows"]:
        cells = [percent(row["accuracy"][g]) for g in graphs]
        gain = [points(row["gain_pp"], row["gain_interval_pp"])] if "gain_pp" in row else []
        rows.append([
            row["shift"], str(row["severity"]), *cells, points(row["drop_pp"], row["drop_interval_pp"]), *gain,
        ])  # fmt: skip
    return "\n".join([*lines, "", f"n = {record['n_test']}, intervals at 95 %.", "", *table(rows), ""])


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is the header."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(rows[0]) - 1)) + "|"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], rule, *lines[1:]]
