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


@pytest.mark.parametrize(
    ("budget", "lost", "keeps"), [(0.0, 0, True), (0.0, 1, False), (0.3, 1, True), (0.3, 2, False)]
)
def test_a_budget_of_less_than_an_image_is_one(budget: float, lost: int, keeps: bool) -> None:
    """Of 30 images one is 3.3 points; of no budget there is none to lose."""
    source = array_images(PIXELS, LABELS, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    validation = Validation(Split(source, torch.arange(30)), [], table="cifar-c", seed=0, limit=90)
    before = torch.arange(30) < 24
    after = before & (torch.arange(30) >= lost)
    least = validation.least_clean(validation.clean_value(before), budget)
    assert (validation.clean_value(after) >= least) == keeps
    cost = validation.clean_cost(before, after, budget)
    assert (cost.n, cost.budget_pp) == (30, budget)
    assert cost.cost_pp == pytest.approx(100 * lost / 30)
    assert cost.allowed_pp == pytest.approx(100 / 30 if budget else 0)


def test_clean_scores_are_those_that_are_measured() -> None:
    source = array_images(PIXELS, LABELS, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    balanced = Primary("balanced")
    validation = Validation(Split(source, torch.arange(30)), [], table="cifar-c", seed=0, limit=90, primary=balanced)
    scores = validation.clean_scores(always_dark)
    assert scores.tolist() == [1.0] * 24 + [0.0] * 6
    assert validation.clean_value(scores) == validation.clean(always_dark) == 0.5
