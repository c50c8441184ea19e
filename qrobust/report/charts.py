"""Charts of plain numbers: rows of dots, curves, scatter plots, heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import markupsafe

from qrobust.report.svg import BOLD, LETTER, Scale, around, figure, line, mark, path, rect, text

ROW, TOP, BOTTOM = 22, 8, 40


@dataclass(frozen=True)
class Look:
    """How a series is told apart: by colour, and by shape and stroke where there is no colour.

    Attributes:
        name: what it is called.
        colour: class of its colour.
        shape: of its points.
    """

    name: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Axis:
    """What a chart's horizontal axis shows.

    Attributes:
        label: its name with unit.
        low: value at its start; None for what values need.
        high: value at its end; likewise.
    """

    label: str
    low: float | None = None
    high: float | None = None

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale:
        """For these values, between two places in px."""
        found = around(values, start, end)
        return Scale(
            found.low if self.low is None else self.low, found.high if self.high is None else self.high, start, end
        )


@dataclass(frozen=True)
class Row:
    """A line of a chart of rows.

    Attributes:
        name: what it is of.
        values: one per series; None for what was not measured.
    """

    name: str
    values: tuple[float | None, ...]


def dot_rows(
    rows: Sequence[Row], series: Sequence[Look], axis: Axis, label: str, *, width: float = 520
) -> markupsafe.Markup:
    """A row per name with a point per series, and a bar between the outermost points.

    Args:
        rows: from top to bottom.
        series: how each value of a row looks.
        axis: of all values.
        label: what it shows, for who does not see it.
        width: in px.
    """
    left = 16 + min(width / 3, LETTER * max(len(row.name) for row in rows))
    bottom = TOP + ROW * len(rows)
    shown = [value for row in rows for value in row.values if value is not None]
    scale = axis.scale(shown, left, width - 16)
    parts = _below(scale, axis.label, TOP, bottom)
    for index, row in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(text(left - 10, y + 4, cut(row.name, (left - 10) / LETTER), anchor="end"))
        there = [value for value in row.values if value is not None]
        if len(there) > 1:
            parts.append(line(scale(min(there)), y, scale(max(there)), y, "join"))
        for value, look in zip(row.values, series, strict=True):
            if value is not None:
                told = f"{row.name}, {look.name}: {value:.3g}"
                parts.append(mark(look.shape, scale(value), y, look.colour, told))
    return figure(width, bottom + BOTTOM, parts, label)


def _below(scale: Scale, label: str, top: float, bottom: float) -> list[str]:
    """A horizontal axis: grid lines, numbers, name."""
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), top, scale(tick), bottom, "zero" if tick == 0 else "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick:g}", "tick", "middle"))
    parts.append(text((scale.start + scale.end) / 2, bottom + 32, label, "axis", "middle"))
    return parts


def cut(name: str, letters: float) -> str:
    """The end of a name that is too long, since layers and files differ there."""
    most = int(letters)
    return name if len(name) <= most else f"…{name[1 - most :]}"


@dataclass(frozen=True)
class Curve:
    """A series over places that all curves of a chart share.

    Attributes:
        look: how it is told apart.
        values: one per place, in per cent; None for what was not measured.
    """

    look: Look
    values: tuple[float | None, ...]


def curves(
    title: str, places: Sequence[str], lines: Sequence[Curve], label: str, *, width: float = 210, height: float = 150
) -> markupsafe.Markup:
    """Percentages over a few places, such as severities.

    Args:
        title: above it.
        places: names of the places, evenly spaced.
        lines: the curves.
        label: what it shows, for who does not see it.
        width: in px.
        height: likewise.
    """
    left, right, top, bottom = 30.0, width - max(10.0, LETTER * len(places[-1]) / 2), 26.0, height - 20
    x = Scale(0, max(1, len(places) - 1), left + 8, right)
    y = Scale(0, 100, bottom, top)
    parts = [text(0, 13, cut(title, width / BOLD), "title")]
    for tick in (0, 50, 100):
        parts += [line(left, y(tick), right, y(tick), "grid"), text(left - 5, y(tick) + 4, f"{tick}", "tick", "end")]
    parts += [text(x(i), bottom + 15, name, "tick", "middle") for i, name in enumerate(places)]
    for curve in lines:
        points = [(x(i), y(value)) for i, value in enumerate(curve.values) if value is not None]
        if len(points) > 1:
            parts.append(path(points, f"curve {curve.look.colour}"))
        for i, value in enumerate(curve.values):
            if value is not None:
                told = f"{curve.look.name}, {places[i]}: {value:.1f} %"
                parts.append(mark(curve.look.shape, x(i), y(value), curve.look.colour, told))
    return figure(width, height, parts, label)


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot, with its name beside it.

    Attributes:
        look: how it is told apart; its name is drawn.
        x: value.
        y: value.
        x_interval: of x, or None.
        y_interval: of y, or None.
    """

    look: Look
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def scatter(
    points: Sequence[Point], x_label: str, y_label: str, label: str, *, zero: bool = True, width: float = 480
) -> markupsafe.Markup:
    """Points with names and intervals.

    Args:
        points: to draw.
        x_label: name of the horizontal axis, with unit.
        y_label: of the vertical one, written above it.
        label: what it shows, for who does not see it.
        zero: the horizontal axis begins at 0; else zero lines are drawn.
        width: in px.
    """
    height, top = 300.0, 30.0
    every_x = [v for p in points for v in (p.x, *(p.x_interval or ()))]
    every_y = [v for p in points for v in (p.y, *(p.y_interval or ()))]
    x = around(every_x if zero else [0.0, *every_x], 46, width - 20, zero=zero)
    y = around(every_y, height - BOTTOM, top, margin=0.12)
    parts = [text(0, 14, y_label, "axis"), *_below(x, x_label, top, height - BOTTOM)]
    for tick in y.ticks():
        parts.append(line(46, y(tick), width - 20, y(tick), "zero" if tick == 0 else "grid"))
        parts.append(text(40, y(tick) + 4, f"{tick:g}", "tick", "end"))
    placed: list[tuple[float, float, float]] = [(x(p.x), x(p.x), y(p.y)) for p in points]
    for point in points:
        place_x, place_y, colour = x(point.x), y(point.y), point.look.colour
        if point.x_interval:
            parts.append(line(x(point.x_interval[0]), place_y, x(point.x_interval[1]), place_y, f"bar {colour}"))
        if point.y_interval:
            parts.append(line(place_x, y(point.y_interval[0]), place_x, y(point.y_interval[1]), f"bar {colour}"))
        parts.append(
            mark(point.look.shape, place_x, place_y, colour, f"{point.look.name}: {point.x:.3g}, {point.y:.1f}")
        )
        parts.append(_name(point.look.name, place_x, place_y, width, placed, crossed=point.x_interval is not None))
    return figure(width, height, parts, label)


def _name(
    name: str, x: float, y: float, width: float, placed: list[tuple[float, float, float]], *, crossed: bool
) -> str:
    """A point's name beside it, where no other name or point is; `placed` gets it.

    Args:
        name: to write.
        x: of the point, in px.
        y: likewise.
        width: of the plot.
        placed: left, right and middle height of what is there.
        crossed: an interval runs through the point from left to right, so the name stands above or below.
    """
    shown = cut(name, 40)
    long = LETTER * len(shown)
    sides = [("start", x + 9, x + 9 + long), ("end", x - 9 - long, x - 9)]
    free = [
        (anchor, left, right, y + shift)
        for shift in ((-12, 13, -25, 26, -38, 39) if crossed else (0, -13, 13, -26, 26, -39, 39))
        for anchor, left, right in sides
        if left >= 0
        and right <= width
        and not any(
            left < other[1] + 4 and right > other[0] - 4 and abs(y + shift - other[2]) < 12 for other in placed
        )
    ]
    start = x + 9 if x + 9 + long <= width else max(0.0, width - long)
    anchor, left, right, place = (free or [("start", start, start + long, y - 13)])[0]
    placed.append((left, right, place))
    return text(left if anchor == "start" else right, place + 4, shown, "", anchor)


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        shade: class of its colour, see `accuracy_shade` and `gain_shade`.
        shown: the number written in it.
        told: what a pointer over it shows.
        strong: written in bold.
    """

    shade: str
    shown: str
    told: str
    strong: bool = False


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell | None]]], label: str
) -> markupsafe.Markup:
    """Cells with their numbers, a row per name.

    Args:
        title: above it.
        columns: names.
        rows: name, and a cell per column; None for what was not measured.
        label: what it shows, for who does not see it.
    """
    left = 12 + min(24, max(len(name) for name, _ in rows)) * LETTER
    wide, high, top = 42.0, 22.0, 40.0
    width = max(left + wide * len(columns) + 4, BOLD * len(title))
    parts = [text(0, 13, title, "title")]
    parts += [text(left + wide * (i + 0.5), top - 7, name, "tick", "middle") for i, name in enumerate(columns)]
    for index, (name, cells) in enumerate(rows):
        y = top + high * index
        parts.append(text(left - 8, y + 15, cut(name, 24), anchor="end"))
        for column, cell in enumerate(cells):
            if cell:
                x = left + wide * column
                parts.append(rect(x + 0.5, y + 0.5, wide - 1, high - 1, cell.shade, cell.told))
                look = f"on-{cell.shade}{' strong' if cell.strong else ''}"
                parts.append(text(x + wide / 2, y + 15, cell.shown, look, "middle"))
    return figure(width, top + high * len(rows) + 4, parts, label)


def accuracy_shade(share: float) -> str:
    """Class of an accuracy's colour, in steps of ten points: `a0` (least) to `a9`."""
    return f"a{min(9, int(10 * share))}"


def gain_shade(points: float) -> str:
    """Class of a change's colour: `l3` (a loss of 15 points or more) to `z` (less than 1) to `g3`."""
    size = abs(points)
    if size < 1:
        return "z"
    return f"{'g' if points > 0 else 'l'}{1 if size < 5 else 2 if size < 15 else 3}"
