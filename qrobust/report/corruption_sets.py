"""The tables of stored sets: accuracies on images of their own."""

from __future__ import annotations

from typing import Any

from qrobust.report.verdict import corruption_error, percent, points


def stored_tables(record: dict[str, Any], names: dict[str, str]) -> list[tuple[str, str, list[list[str]]]]:
    """Per stored set its name, a note, and a table: a header, the mean of its cells, then a line per cell.

    Args:
        record: of a run or of an evaluation.
        names: classifiers to what they are called.
    """
    return [(entry["name"], _note(entry["summary"], names), _table(entry, names)) for entry in record["stored"]]


def _table(entry: dict[str, Any], names: dict[str, str]) -> list[list[str]]:
    summary = entry["summary"]
    graphs = list(summary["accuracy"])
    drops = [f"drop from {names[graphs[0]]} to {names[g]}" for g in graphs[1:]]
    rows = [["shift", "severity", *(names[g] for g in graphs), *drops]]
    rows.append(["mean", "", *(percent(a) for a in summary["accuracy"].values()), *_drops(summary)])
    for row in entry["rows"]:
        accuracies = [percent(row["accuracy"][g]) for g in graphs]
        rows.append([row["shift"], str(row["severity"]), *accuracies, *_drops(row)])
    return rows


def _drops(found: dict[str, Any]) -> list[str]:
    return [points(v["drop_pp"], v["drop_interval_pp"]) for v in found["versus"].values()]


def _note(summary: dict[str, Any], names: dict[str, str]) -> str:
    n, of = summary["n_test"], summary["of"]
    subset = f" of {of} (a subset stratified by class)" if n < of else ""
    own = (
        f"n = {n}{subset} in each of {summary['n_cells']} cells, which are no part of the figures under shift above."
    )
    return " ".join([own, *corruption_error(summary, names)])
