from __future__ import annotations

import numpy as np
import pytest

from qrobust.metrics import agreement, expected_calibration_error, flips

LABELS = np.array([0, 1, 2, 3, 4])


def test_flips_are_told_apart() -> None:
    before, after = np.array([0, 1, 0, 0, 4]), np.array([1, 1, 2, 1, 4])
    assert flips(before, after, LABELS) == {"harmful": 0.2, "helpful": 0.2, "neutral": 0.2}
    assert agreement(before, after) == pytest.approx(0.4)


def test_calibration_error_closed_forms() -> None:
    correct = np.array([True] * 70 + [False] * 30)
    assert expected_calibration_error(np.full(100, 0.7), correct) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(100, 1.0), correct) == pytest.approx(0.3)
