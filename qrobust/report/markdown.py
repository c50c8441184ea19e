"""A record as Markdown, for a pull request."""

from __future__ import annotations

from typing import Any

from qrobust.report.verdict import NAMES, headline, percent, points, verdict


def markdown_report(record: dict[str, Any]) -> str:
    """The verdict, the headline table and a row per shift and severity."""
    lines = [f"# qrobust: {record['config']['model']}", "", *(f"- {v}" for v in verdict(record)), ""]
    lines += table(headline(record))
    s = record["summary"]
    graphs = [k for k in NAMES if k in s["clean_accuracy"]]
    rows = [
        ["shift", "severity", *(NAMES[g] for g in graphs), "drop", *(["gain"] if "compensated" in graphs else [])]
    ]
    for row in record["rows"]:
        cells = [percent(row["accuracy"][g]) for g in graphs]
        gain = [points(row["gain_pp"], row["gain_interval_pp"])] if "gain_pp" in row else []
        rows.append([
            row["shift"], str(row["severity"]), *cells, points(row["drop_pp"], row["drop_interval_pp"]), *gain,
        ])  # fmt: skip
    return "\n".join([*lines, "", *_mce(s, NAMES), sample(s), "", *table(rows), ""])


def _mce(summary: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The mean corruption error as a table, followed by an empty line."""
    mce = summary["mce"]
    if not mce:
        return []
    by = "over AlexNet's" if mce["normalizer"] == "alexnet" else "not normalised"
    rows = [["", f"mCE, {by}", "relative mCE, not normalised"]]
    rows += [[names[k], percent(v), percent(mce["relative"][k])] for k, v in mce["value"].items()]
    return [*table(rows), ""]


def sample(summary: dict[str, Any]) -> str:
    """What the figures were measured on, and how to read them."""
    n, of = summary["n_test"], summary["of"]
    subset = f" of {of} (a subset stratified by class)" if n < of else ""
    return (
        f"n = {n}{subset}. Intervals are at 95 % and stand for themselves, row by row; the record's adjusted "
        "p-values (McNemar's exact test, Holm's correction) hold for all rows together."
    )


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is the header."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(rows[0]) - 1)) + "|"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], rule, *lines[1:]]
