"""SVG by hand: shapes, axes and scales. Colours are classes of the page's style, for light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import markupsafe

from qrobust.text import printable

# How wide a letter of a figure's text is on average, in px; bold ones are wider.
LETTER, BOLD = 6.8, 7.6


@dataclass(frozen=True)
class Scale:
    """From a value to a place on an axis.

    Attributes:
        low: value at the axis' start.
        high: value at its end.
        start: its place, in px.
        end: likewise; below `start` on a vertical axis.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Place of a value, in px."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values from `low` to `high`, at most so many."""
        step = round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below a positive number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def around(values: Iterable[float], start: float, end: float, *, zero: bool = False, margin: float = 0.06) -> Scale:
    """A scale that shows all values with a margin.

    Args:
        values: to show.
        start: place of the low end, in px.
        end: place of the high end.
        zero: the scale begins at 0, for what cannot be negative.
        margin: share of the span that is added on each side.
    """
    shown = list(values) or [0.0]
    low, high = (0.0 if zero else min(shown)), max(shown)
    span = high - low or abs(high) or 1.0
    return Scale(low if zero else low - margin * span, high + margin * span, start, end)


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def tip(content: str) -> str:
    """What a pointer over a shape shows."""
    return f"<title>{_escaped(content)}</title>" if content else ""


def text(x: float, y: float, content: str, look: str = "", anchor: str = "start") -> str:
    """A line of text.

    Args:
        x: in px.
        y: of its baseline.
        content: any name; shown, never obeyed.
        look: classes.
        anchor: `start`, `middle` or `end`: what of the text is at `x`.
    """
    return f'<text x="{number(x)}" y="{number(y)}" class="{look}" text-anchor="{anchor}">{_escaped(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    """A straight line between two points, in px."""
    return f'<path d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}" class="{look}"/>'


def path(points: Iterable[tuple[float, float]], look: str) -> str:
    """A line through points, in px."""
    return f'<path d="M{"L".join(f"{number(x)} {number(y)}" for x, y in points)}" class="{look}"/>'


def rect(x: float, y: float, width: float, height: float, look: str, told: str = "") -> str:
    """A rectangle, in px."""
    size = f'width="{number(width)}" height="{number(height)}"'
    return f'<rect x="{number(x)}" y="{number(y)}" {size} class="{look}">{tip(told)}</rect>'


# Outlines around 0, so that shape alone tells series apart; the ring is seen around another mark at its place.
SHAPES = {
    "ring": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "square": "M-4-4h8v8h-8z",
    "diamond": "M0-5.8L5.8 0L0 5.8L-5.8 0z",
    "triangle": "M0-5.2L5.2 4.2H-5.2z",
    "wedge": "M0 5.2L5.2-4.2H-5.2z",
    "plus": "M-1.8-5.2h3.6v3.4h3.4v3.6h-3.4v3.4h-3.6v-3.4h-3.4v-3.6h3.4z",
}


def mark(shape: str, x: float, y: float, look: str, told: str = "") -> str:
    """A point of a series.

    Args:
        shape: one of `SHAPES`.
        x: of its middle, in px.
        y: likewise.
        look: classes.
        told: what a pointer over it shows.
    """
    place = f'transform="translate({number(x)} {number(y)})"'
    return f'<path d="{SHAPES[shape]}" {place} class="mark {look}">{tip(told)}</path>'


def figure(width: float, height: float, parts: Iterable[str], label: str) -> markupsafe.Markup:
    """A drawing of its own.

    Args:
        width: in px; a narrower screen shrinks it.
        height: likewise.
        parts: what the functions above return.
        label: what it shows, for who does not see it.
    """
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    inside = "".join(parts)
    # Every text in it went through `_escaped`.
    return markupsafe.Markup(f'<svg {size} role="img" aria-label="{_escaped(label)}">{inside}</svg>')


def _escaped(content: str) -> markupsafe.Markup:
    return markupsafe.escape(printable(content))
