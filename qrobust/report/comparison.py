"""A comparison of finished runs: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from qrobust.record import Change, RunComparison
from qrobust.report.html import environment
from qrobust.report.markdown import table
from qrobust.report.verdict import LEVEL, percent, points
from qrobust.text import printable

# Of values of a configuration on the terminal.
LONGEST_VALUE = 40


def titles(found: RunComparison) -> list[str]:
    """What each classifier is called: its folder, and its graph where these differ."""
    graphs = {run.graph for run in found.runs}
    return [run.name if len(graphs) == 1 else f"{run.name}: {run.graph}" for run in found.runs]


def sentences(found: RunComparison) -> list[str]:
    """What each classifier gains or loses against the first."""
    first, *others = titles(found)
    told = []
    for title, change in zip(others, found.changes, strict=True):
        under_shift = f", {_words(change.shift)} under shift" if change.shift else ""
        told.append(
            f"{title} against {first}: {_words(change.clean)} on clean images (McNemar's exact test: p = "
            f"{change.clean_p:.2g}){under_shift}; both predict the same on {percent(change.agreement)}."
        )
    return told


def _words(change: Change) -> str:
    return points(change.change_pp, change.change_interval_pp)


def figures_table(found: RunComparison) -> list[list[str]]:
    """A header, then a line per figure with a column for each classifier."""
    runs, changes = found.runs, [None, *found.changes]
    rows = [
        ["", *titles(found)],
        ["clean", *(percent(run.clean_accuracy) for run in runs)],
        ["clean, against the first", *(_words(change.clean) if change else "" for change in changes)],
    ]
    if runs[0].shift_accuracy is not None:
        rows.append(["under shift", *(percent(run.shift_accuracy) for run in runs)])
        rows.append(
            [
                "under shift, against the first",
                *(_words(change.shift) if change and change.shift else "" for change in changes),
            ]
        )
    rows.append(["agreement with the first", *(percent(change.agreement) if change else "" for change in changes)])
    if any(run.latency_ms for run in runs):
        rows.append(["batch 1", *(f"{run.latency_ms.batch_1:.2f} ms" if run.latency_ms else "" for run in runs)])
        rows.append(["batch 32", *(f"{run.latency_ms.batch_32:.1f} ms" if run.latency_ms else "" for run in runs)])
    rows.append(["size", *(f"{run.size_bytes / 1024:.0f} KiB" if run.size_bytes else "" for run in runs)])
    if any(run.integer_mac_share is not None for run in runs):
        rows.append(["work on integers", *(percent(run.integer_mac_share) for run in runs)])
    return rows


def conditions_table(found: RunComparison) -> list[list[str]]:
    """A header, then a row per condition: accuracies, then changes, a star where they are significant."""
    names = titles(found)
    rows = [["shift", "severity", *names, *(f"change to {name}" for name in names[1:])]]
    for row in found.rows:
        changes = [
            f"{_words(change)}{' *' if p < LEVEL else ''}"
            for change, p in zip(row.changes, row.p_adjusted, strict=True)
        ]
        rows.append([row.shift.replace("_", " "), str(row.severity or ""), *map(percent, row.accuracy), *changes])
    return rows


def differences_table(found: RunComparison, longest: int | None = None) -> list[list[str]]:
    """A header, then a row per entry that differs; values cut to so many characters."""
    rows = [["", *titles(found)]]
    for entry in found.differences:
        rows.append([entry.key, *("" if value is None else _cut(value, longest) for value in entry.values)])
    return rows


def _cut(text: str, longest: int | None) -> str:
    shown = printable(text)
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 3]}..."


def worst_classes_sentences(found: RunComparison) -> list[str]:
    """For each classifier the classes that it loses most of, over all conditions."""
    told = []
    for title, change in zip(titles(found)[1:], found.changes, strict=True):
        worst = ", ".join(
            f"{found.class_names[c.class_index]} {c.drop_pp:.1f} points (n = {c.n})" for c in change.worst_classes
        )
        told.append(f"{title} loses most of: {worst}." if worst else f"{title} loses accuracy in no class.")
    return told


def about(found: RunComparison) -> str:
    """What the figures were measured on, and how to read them."""
    return (
        f"n = {found.n:,} images, the same for all; {len(found.rows) - 1} conditions beside the clean one. Intervals "
        f"are at {100 * found.confidence:g} %, paired over images, and stand for themselves, row by row."
    )


def comparison_lines(found: RunComparison) -> list[str]:
    """For the terminal: sentences, figures, what differs in configuration, notes."""
    lines = [*sentences(found), "", *table(figures_table(found)), ""]
    if found.differences:
        lines += [*table(differences_table(found, LONGEST_VALUE)), ""]
    return [*lines, *found.notes, about(found)]


def comparison_html(found: RunComparison) -> str:
    """One page without requests."""
    page = environment().get_template("comparison.html")
    return page.render(
        found=found,
        contents={},
        titles=titles(found),
        sentences=sentences(found),
        tables=[
            ("Figures", figures_table(found)),
            ("What differs in configuration", differences_table(found)),
            ("Every condition", conditions_table(found)),
        ],
        worst=worst_classes_sentences(found),
        about=about(found),
        level=LEVEL,
        worse=any(change.clean.change_interval_pp[1] < 0 for change in found.changes),
    )
