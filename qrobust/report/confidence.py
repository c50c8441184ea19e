"""What confidence is worth: a table of every graph, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import ClassifierConfidence, Confidence
from qrobust.report.figures import bounds, percent


def confidence_table(confidence: Confidence | None, names: Mapping[str, str]) -> list[list[str]]:
    """A header, then a line per classifier; nothing where it was not measured.

    Args:
        confidence: of a record.
        names: classifiers to what they are called.
    """
    if confidence is None:
        return []
    rows = [
        [
            "confidence",
            "threshold",
            "clean images above it",
            "images under shift above it",
            "of these right",
            *(f"AUROC against {kind}" for kind in confidence.foreign),
        ]
    ]
    for name, found in confidence.classifiers.items():
        if name in names:
            areas = [
                f"{one.auroc:.3f} [{one.interval[0]:.3f}, {one.interval[1]:.3f}]" for one in found.foreign.values()
            ]
            rows.append([names[name], *_above(found), *areas])
    return rows


def _above(found: ClassifierConfidence) -> list[str]:
    if found.threshold is None:
        return ["none", "", "", ""]
    interval = found.shift_precision_interval
    precision = "" if interval is None else f"{percent(found.shift_precision)} {bounds(interval)}"
    return [f"{found.threshold:.3f}", percent(found.clean_coverage), percent(found.shift_coverage), precision]


def confidence_note(confidence: Confidence) -> str:
    """How to read the table."""
    sets = " and ".join(f"{n} images of {kind}" for kind, n in confidence.foreign.items())
    return (
        f"The threshold is the lowest confidence from which on {100 * confidence.precision:.0f} % of clean images "
        f"are right; AUROC is the chance that a clean test image has higher confidence than a foreign one ({sets})."
    )
