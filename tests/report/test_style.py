"""Colours of the report can be told apart and read, in light, dark and print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qrobust.report

STYLE = (Path(qrobust.report.__file__).parent / "templates" / "style.html").read_text()
# A page's own colours, by scheme: a later block overrides what it names.
BLOCKS = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
SCHEMES = ("light", "dark", "print")
# WCAG 2's bounds for text and for shapes.
READABLE, VISIBLE = 4.5, 3.0


def colours(scheme: str) -> dict[str, tuple[float, float, float]]:
    """Linear RGB of every variable, in [0, 1]."""
    found = {}
    for block in (BLOCKS[0], BLOCKS[SCHEMES.index(scheme)]):
        for name, digits in re.findall(r"--([a-z0-9]+): #([0-9a-f]{3,6})", block):
            found[name] = linear(digits)
    return found


def linear(digits: str) -> tuple[float, float, float]:
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    values = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return red, green, blue


def luminance(colour: tuple[float, float, float]) -> float:
    red, green, blue = colour
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, float, float], two: tuple[float, float, float]) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_has_the_largest_contrast() -> None:
    assert contrast(linear("000"), linear("ffffff")) == pytest.approx(21)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["ink", "soft", "link", "better", "worse", "same"])
def test_text_is_readable_on_page_and_tiles(scheme: str, name: str) -> None:
    found = colours(scheme)
    assert min(contrast(found[name], found[ground]) for ground in ("page", "card")) >= READABLE


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["float", "int8", "calibrator", "scales", "stage", "tune", "norm", "other"])
def test_marks_are_visible_on_the_page(scheme: str, name: str) -> None:
    found = colours(scheme)
    assert contrast(found[name], found["page"]) >= VISIBLE


SHADES = dict(re.findall(r"\.(a\d|[gl]\d|z) \{ fill: #([0-9a-f]{3,6}); \}", STYLE))


@pytest.mark.parametrize("shade", SHADES)
def test_numbers_are_readable_on_every_shade(shade: str) -> None:
    on_dark = f".on-{shade}," in STYLE or f".on-{shade} " in STYLE
    assert contrast(linear("fff" if on_dark else "111"), linear(SHADES[shade])) >= READABLE


def test_a_higher_accuracy_is_a_lighter_shade() -> None:
    levels = [luminance(linear(SHADES[f"a{i}"])) for i in range(10)]
    assert levels == sorted(levels)
