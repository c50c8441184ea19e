"""What a calibrator is chosen by: the primary measure on clean images and on all rendered ones together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qrobust.compensation.validation import Validation
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.preprocessing import Preprocessing

# Grey pictures, a class for each brightness: 24 dark ones, 6 bright ones.
LABELS = np.array([0] * 24 + [1] * 6)
PIXELS = np.repeat(np.where(LABELS == 0, 60, 200), 64).reshape(30, 8, 8, 1).repeat(3, 3).astype(np.uint8)


def always_dark(images: torch.Tensor) -> torch.Tensor:
    """A classifier that knows one class."""
    return torch.stack([torch.ones(len(images)), torch.zeros(len(images))], dim=1)


@pytest.mark.parametrize(
    ("primary", "wanted"),
    [
        (ACCURACY, 0.8),
        (Primary("balanced"), 0.5),
        (Primary("recall:bright", 1), 0.0),
        (Primary("recall:dark", 0), 1.0),
    ],
)
def test_the_primary_measure_is_what_is_measured(primary: Primary, wanted: float) -> None:
    source = array_images(PIXELS, LABELS, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    split = Split(source, torch.arange(30))
    conditions = [("contrast", 1), ("contrast", 2), ("contrast", 3)]
    validation = Validation(split, conditions, table="cifar-c", seed=0, limit=90, primary=primary)
    assert validation.measure(always_dark) == pytest.approx((wanted, wanted))
