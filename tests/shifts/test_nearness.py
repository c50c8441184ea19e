"""Near and far: the table is what was measured, of every shift that can be measured by name."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from qrobust.shifts.nearness import DISTANCES, THRESHOLD, is_far
from qrobust.shifts.registry import SHIFTS, SUITES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_table_is_what_was_measured() -> None:
    found = json.loads((BENCHMARKS / "results" / "near_far.json").read_text())
    # Rounded to three digits.
    assert found["threshold"] == pytest.approx(THRESHOLD, abs=5e-4)
    assert found["threshold"] == pytest.approx(sum(found["left_out_distance"].values()) / 6)
    assert {name: one["distance"] for name, one in found["shifts"].items()} == pytest.approx(DISTANCES, abs=5e-4)
    assert {name for name, one in found["shifts"].items() if one["far"]} == {n for n in DISTANCES if is_far(n)}
    assert found["draws"] == 10_000
    assert found["split"] == "validation"


def test_every_shift_is_classed_but_random_operations() -> None:
    assert set(DISTANCES) == set(SHIFTS) - {*SUITES["generic"]}
    assert not any(is_far(name) for name in (*SUITES["generic"], "mine.py:dim", "clean"))


def test_a_distance_is_relative_to_what_a_shift_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from near_far import relative_distance

    moved = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    nothing, same = torch.zeros(1, 2, dtype=torch.float64), moved.clone()
    assert relative_distance(moved, nothing) == 1
    assert relative_distance(moved, torch.cat([same, nothing])) == 0
    # The nearest of the first is 3 away from it, of the second 2.
    draws = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    assert relative_distance(moved, draws) == pytest.approx(math.sqrt(9 + 4) / 5)
    sys.modules.pop("near_far")
