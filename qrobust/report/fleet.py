"""A fleet: its runs in one table for the terminal, one page, and lines for a spreadsheet."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

from qrobust.record import DONE, FAILED, WAITING, FleetFigures, FleetRecord, FleetRun
from qrobust.report.figures import percent, points
from qrobust.report.html import environment
from qrobust.text import spreadsheet_cell

SEED = "seed"
BEST = " *"


class Column(NamedTuple):
    """A figure of a run: its title, what it is, how it is shown, and whether more of it is better."""

    title: str
    value: Callable[[FleetFigures], float | None]
    shown: Callable[[FleetFigures], str]
    more: bool = True


def _points(value: float | None, interval: tuple[float, float] | None) -> str:
    return points(value, interval) if value is not None and interval is not None else ""


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"


COLUMNS = (
    Column("under shift", lambda f: f.shift_accuracy, lambda f: _percent(f.shift_accuracy)),
    Column("unseen gain", lambda f: f.unseen_gain_pp, lambda f: _points(f.unseen_gain_pp, f.unseen_gain_interval_pp)),
    Column("clean", lambda f: f.clean_accuracy, lambda f: percent(f.clean_accuracy)),
    Column(
        "clean cost",
        lambda f: f.clean_cost_pp,
        lambda f: _points(f.clean_cost_pp, f.clean_cost_interval_pp),
        more=False,
    ),
    Column(
        "batch 1",
        lambda f: f.latency_ms,
        lambda f: _milliseconds(f.latency_ms),
        more=False,
    ),
    Column("size", lambda f: f.size_bytes, lambda f: f"{f.size_bytes / 1024:.0f} KiB", more=False),
)


def _percent(value: float | None) -> str:
    return "" if value is None else percent(value)


def best(record: FleetRecord) -> dict[str, str]:
    """Of each column that tells runs apart, the one with the best figure among those that break no bound."""
    found = {}
    for column in COLUMNS:
        able = [
            (value, run.name)
            for run in record.runs
            if run.figures and run.figures.gate not in ("breach", "failed")
            if (value := column.value(run.figures)) is not None
        ]
        if len(able) > 1:
            found[column.title] = (max if column.more else min)(able, key=lambda pair: pair[0])[1]
    return found


def runs_table(record: FleetRecord) -> list[list[str]]:
    """A header, then a line per run: its values, how it stands, its figures, the best of each with a star."""
    gated = any(run.figures and run.figures.gate for run in record.runs)
    marked = best(record)
    rows = [[*record.axes, "state", *(column.title for column in COLUMNS), *(["bounds"] if gated else [])]]
    for run in record.runs:
        cells = [
            column.shown(run.figures) + (BEST if marked.get(column.title) == run.name else "") if run.figures else ""
            for column in COLUMNS
        ]
        gate = [(run.figures.gate or "") if run.figures else ""] if gated else []
        rows.append([*run.values.values(), run.state, *cells, *gate])
    return rows


def seeds_table(record: FleetRecord) -> list[list[str]]:
    """Mean and standard deviation over seeds of runs that differ in nothing else; nothing where no two are done."""
    others = [axis for axis in record.axes if axis != SEED]
    groups = dict[tuple[str, ...], list[FleetFigures]]()
    for run in record.runs if SEED in record.axes else ():
        if run.figures:
            groups.setdefault(tuple(run.values[axis] for axis in others), []).append(run.figures)
    rows = [[*others, "seeds", "under shift", "unseen gain", "clean"]]
    for values, every in groups.items():
        if len(every) > 1:
            shares = (
                _spread([100 * f.shift_accuracy for f in every if f.shift_accuracy is not None], "%"),
                _spread([f.unseen_gain_pp for f in every if f.unseen_gain_pp is not None], "points"),
                _spread([100 * f.clean_accuracy for f in every], "%"),
            )
            rows.append([*values, str(len(every)), *shares])
    return rows if len(rows) > 1 else []


def _spread(values: Sequence[float], unit: str) -> str:
    if len(values) < 2:
        return ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} {unit}"


def sentences(record: FleetRecord) -> list[str]:
    """How many runs are done, what failed, and how to read the figures."""
    counts = {state: record.count(state) for state in (DONE, FAILED, WAITING)}
    told = [f"{counts[DONE]} of {len(record.runs)} runs are done, {counts[FAILED]} failed, {counts[WAITING]} wait."]
    told += [
        f"{run.name} failed (exit code {run.exit_code}): {run.message or 'nothing was said'}"
        for run in record.runs
        if run.state == FAILED
    ]
    if counts[DONE]:
        told.append(
            "Figures are of the graph that ships, and each interval stands for itself: `qrobust compare` pairs runs "
            "on the same test images. A star marks the best of a column among runs that break no bound."
        )
    if record.at_once > 1:
        told.append(f"{record.at_once} runs were made at a time: their latencies disturbed each other.")
    return told


def fleet_lines(record: FleetRecord) -> list[str]:
    """For the terminal."""
    from qrobust.report.markdown import table

    lines = [*table(runs_table(record)), ""]
    if over_seeds := seeds_table(record):
        lines += [*table(over_seeds), ""]
    return [*lines, *sentences(record)]


def fleet_html(record: FleetRecord) -> str:
    """One page without requests; its links lead to the reports of runs that lie beside it."""
    rows = runs_table(record)
    return (
        environment()
        .get_template("fleet.html")
        .render(
            record=record,
            contents={},
            header=["run", *rows[0]],
            rows=list(zip(record.runs, rows[1:], strict=True)),
            seeds=seeds_table(record),
            sentences=sentences(record),
        )
    )


def fleet_csv(record: FleetRecord) -> str:
    """A header, then a line per run; intervals as two columns, what is not known empty."""
    names = [entry.name for entry in fields(FleetFigures)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = [part for name in names for part in ([f"{name}_low", f"{name}_high"] if "_interval" in name else [name])]
    writer.writerow(["run", *record.axes, "state", "duration_s", *header])
    for run in record.runs:
        values = [part for name in names for part in _cells(run, name)]
        line = [run.name, *run.values.values(), run.state, f"{run.duration_s:.1f}", *values]
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in line])
    return buffer.getvalue()


def _cells(made: FleetRun, name: str) -> list[object]:
    value = getattr(made.figures, name) if made.figures else None
    if "_interval" in name:
        return list(value) if value is not None else ["", ""]
    return ["" if value is None else value]
