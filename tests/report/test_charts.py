"""Scales, shades, and what charts draw."""

from __future__ import annotations

import re

import pytest

from qrobust.report.charts import (
    Axis,
    Cell,
    Curve,
    Look,
    Point,
    Row,
    accuracy_shade,
    curves,
    cut,
    dot_rows,
    gain_shade,
    heat_map,
    scatter,
)
from qrobust.report.svg import Scale, around, round_step

LOOK = Look("INT8", "c-int8", "square")


def test_a_scale_is_linear() -> None:
    scale = Scale(10, 20, 100, 200)
    assert [scale(value) for value in (10, 15, 20)] == [100, 150, 200]


def test_a_scale_may_run_downwards() -> None:
    assert Scale(0, 100, 300, 0)(25) == 225


def test_ticks_are_round_and_inside() -> None:
    assert Scale(0.3, 9.7, 0, 1).ticks(6) == [2, 4, 6, 8]


@pytest.mark.parametrize(("least", "step"), [(1, 1), (1.1, 2), (3, 5), (6, 10), (0.03, 0.05), (150, 200)])
def test_a_step_is_one_two_or_five_times_a_power_of_ten(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


def test_equal_values_have_a_scale() -> None:
    scale = around([5.0, 5.0], 0, 100)
    assert scale.low < 5 < scale.high


def test_nothing_has_a_scale() -> None:
    assert around([], 0, 100)(0) == 50


def test_a_name_that_is_too_long_keeps_its_end() -> None:
    assert cut("features.12.conv.0", 8) == "….conv.0"


@pytest.mark.parametrize(("share", "shade"), [(0, "a0"), (0.099, "a0"), (0.1, "a1"), (0.95, "a9"), (1, "a9")])
def test_accuracies_have_ten_shades(share: float, shade: str) -> None:
    assert accuracy_shade(share) == shade


@pytest.mark.parametrize(
    ("points", "shade"), [(0.9, "z"), (-0.9, "z"), (1, "g1"), (-1, "l1"), (5, "g2"), (-14.9, "l2"), (15, "g3")]
)
def test_gains_and_losses_have_shades_of_their_own(points: float, shade: str) -> None:
    assert gain_shade(points) == shade


def test_a_point_lies_where_its_value_is() -> None:
    drawn = dot_rows([Row("a", (0.0,)), Row("b", (100.0,))], [LOOK], Axis("x", 0, 100), "label", width=640)
    places = [float(x) for x in re.findall(r"translate\(([\d.]+) ", drawn)]
    assert places[1] == 640 - 16
    assert places[0] < places[1]


def test_what_was_not_measured_is_not_drawn() -> None:
    drawn = curves("t", ["0", "1", "2"], [Curve(LOOK, (10.0, None, 30.0))], "label")
    assert drawn.count('class="mark ') == 2
    assert heat_map("t", ["1", "2"], [("a", [Cell("z", "0", ""), None])], "label").count("<rect") == 1


def test_names_at_points_do_not_cover_each_other() -> None:
    points = [Point(Look(f"graph {i}", "c-int8", "square"), 1.0, 50 + 0.1 * i) for i in range(4)]
    drawn = scatter([*points, Point(LOOK, 2.0, 60)], "x", "y", "label")
    places = re.findall(r'x="([\d.]+)" y="([\d.]+)" class="" text-anchor="(\w+)">graph', drawn)
    assert len(places) == 4
    assert len({(anchor, y) for _, y, anchor in places}) == 4


def test_a_name_is_text() -> None:
    drawn = dot_rows([Row("<b>", (1.0,))], [LOOK], Axis("<i>"), '"label"')
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert 'aria-label="&#34;label&#34;"' in drawn
