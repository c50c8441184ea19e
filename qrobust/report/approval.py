"""What has to be approved again of a classifier that a remedy was applied to."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import Record, Remedy
from qrobust.report.figures import percent


def approval_table(record: Record, names: Mapping[str, str]) -> list[list[str]]:
    """A header, then a row per remedy: what of INT8 changed; nothing for records that do not tell."""
    rows = [
        [
            names[row.remedy],
            percent(row.clean_agreement),
            percent(row.clean_harmful_flips),
            "-" if row.weight_change is None else percent(row.weight_change.relative_change),
            "-" if row.weight_change is None else percent(row.weight_change.integers_changed),
            "-" if row.size_bytes is None else f"{row.size_bytes / 1024:.0f} KiB",
        ]
        for row in record.remedies
        if row.clean_agreement is not None
    ]
    header = [
        "to approve again",
        "clean images answered as by INT8",
        "right by INT8, now wrong",
        "change of effective weights",
        "integer weights changed",
        "size",
    ]
    return [header, *rows] if rows else []


def approval_sentence(remedy: Remedy) -> str:
    """The same of one remedy, for its card; empty for records that do not tell."""
    if remedy.clean_agreement is None:
        return ""
    change = remedy.weight_change
    weights = (
        f" Effective weights moved by {percent(change.relative_change)} of their norm, "
        f"{percent(change.integers_changed)} of the integer weights changed."
        if change
        else ""
    )
    return (
        f"To approve again: it answers {percent(remedy.clean_agreement)} of clean images as INT8 does, and is wrong "
        f"on {percent(remedy.clean_harmful_flips)} that INT8 gets right.{weights}"
    )
