"""What has to be approved again of a classifier that a remedy was applied to."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import Record, Remedy
from qrobust.remedies import CALIBRATOR, MARGIN, least_intrusive
from qrobust.report.figures import percent, points


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


def enough_sentence(record: Record, names: Mapping[str, str]) -> str:
    """Which remedy that the validation images know is the least intrusive one that is enough; empty where none is.

    Chosen on validation images, so what is measured on test images is no part of the choice. Each kept within the
    clean budget there.
    """
    gains = {
        CALIBRATOR if row.remedy == "compensated" else row.remedy: 100
        * (row.validation.shift_accuracy - row.validation.int8_shift_accuracy)
        for row in record.remedies
        if row.validation and row.validation.int8_shift_accuracy is not None
    }
    enough = least_intrusive(gains)
    if enough is None or len(gains) < 2:
        return ""
    best = max(gains, key=lambda name: gains[name])
    said = {name: names["compensated" if name == CALIBRATOR else name] for name in (enough, best)}
    other = "" if best == enough else f"; the best, {said[best]}, gains {points(gains[best])}"
    return (
        f"By validation images, the least intrusive remedy within {MARGIN:g} point of the best is {said[enough]}: "
        f"{points(gains[enough])} under shift{other}."
    )


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
