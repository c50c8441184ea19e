"""What a calibrator is chosen by: the primary measure on clean images and on all rendered ones together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.fit import shifted_limit, validation_limit
from qrobust.compensation.validation import Validation, condition_size
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.preprocessing import Preprocessing
from qrobust.shifts.filters import to_unit

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


def test_without_labels_answers_are_compared_with_those_on_unshifted_images() -> None:
    """Clean images weigh as much as both conditions; the divergence is that of torch's distributions."""
    source = array_images(PIXELS, LABELS, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    conditions = [("brightness", 1), ("brightness", 5)]

    def brightness(images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([3 * mean, -mean], 1)

    split = Split(source, torch.arange(30))
    validation = Validation(split, conditions, table="cifar-c", seed=0, limit=90, teacher=brightness, by_labels=False)
    assert validation.teacher_divergence(brightness, lambda images: images) == validation.teacher_divergence(
        brightness
    )
    expected = []
    for images, _ in validation.parts:  # every part is of all 30 images
        said, wanted = (
            torch.distributions.Categorical(logits=brightness(to_unit(some)))
            for some in (images, split.read(slice(None)))
        )
        expected.append(torch.distributions.kl_divergence(wanted, said).mean().item())
    assert expected[0] == 0 < expected[1] < expected[2]
    assert validation.teacher_divergence(brightness) == pytest.approx((expected[1] + expected[2]) / 4, rel=1e-5)
    others, _ = validation.folds(3)[0]
    assert validation.of_rows(others).teacher_divergence(brightness) == pytest.approx(
        validation.teacher_divergence(brightness), rel=0.2
    )


def test_conditions_share_their_own_limit() -> None:
    """Of 100 images, 90 clean ones; 60 under shift are 30 for each of two conditions."""
    source = array_images(np.zeros((100, 8, 8, 3), np.uint8), np.zeros(100, np.int64), None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    conditions = [("contrast", 1), ("contrast", 2)]
    validation = Validation(
        Split(source, torch.arange(100)), conditions, table="cifar-c", seed=0, limit=90, shifted_limit=60
    )
    assert [len(labels) for _, labels in validation.parts] == [90, 30, 30]


@pytest.mark.parametrize(
    ("images", "conditions", "limit", "size"),
    [(100, 2, 60, 30), (25, 2, 60, 25), (100, 50, 60, 20), (100, 0, 60, 60)],
)
def test_images_of_a_condition(images: int, conditions: int, limit: int, size: int) -> None:
    assert condition_size(images, conditions, limit) == size


@pytest.mark.parametrize(("steps", "limit"), [(10, 128), (4000, 6000)])
def test_a_short_training_is_chosen_by_fewer_images_under_shift(steps: int, limit: int) -> None:
    config = CalibratorConfig(steps=steps, batch_size=128)
    assert shifted_limit(config, 32, 3) == limit
    assert validation_limit(32, 3) == 6000
