"""Where images are few, what some of them chose is judged by the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.compensation import clean_budget, gate
from qrobust.compensation.clean_budget import Averaged
from qrobust.compensation.cross_fitting import FEW, FOLDS, folds_of
from qrobust.compensation.validation import Part, Validation
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.preprocessing import Preprocessing
from qrobust.quantization.integer_layers import IntegerLinear


def validation_of(*parts: Part, primary: Primary = ACCURACY) -> Validation:
    """Sets of images, clean ones first; the fold of an image is its place in its set modulo the folds."""
    found = Validation.__new__(Validation)
    found.parts, found.primary, found.conditions = list(parts), primary, len(parts) - 1
    found.numbers, found.teacher_logits = [torch.arange(len(labels)) for _, labels in parts], []
    return found


def grey(levels: torch.Tensor, label: int) -> Part:
    """Pictures of these grey levels, from 0 to 255, all of one class."""
    images = levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return images, torch.full((len(levels),), label)


def test_an_image_is_in_one_fold_wherever_it_is_shown_and_classes_have_their_share() -> None:
    labels = np.array([0, 1, 2, 2, 2] * 8)
    pixels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    source = array_images(pixels, labels, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    # A veil of nothing: what is rendered shows which image it was.
    conditions = [("translation", 1), ("translation", 2)]
    validation = Validation(Split(source, order), conditions, table="cifar-c", seed=0, limit=60)
    place = {
        int(index): number for index, number in zip(order[:40].tolist(), validation.numbers[0].tolist(), strict=True)
    }
    size = len(validation.parts[1][1])
    for part in (1, 2):
        shown = order[torch.arange((part - 1) * size, part * size) % 40].tolist()
        assert validation.numbers[part].tolist() == [place[index] for index in shown]
    folds = folds_of(validation)
    assert len(folds) == FOLDS
    assert torch.stack([own[0] for _, own in folds]).sum(0).eq(1).all()
    for others, own in folds:
        assert torch.equal(others[0], ~own[0])
        assert (
            torch.bincount(validation.parts[0][1][own[0]], minlength=3).sub(torch.tensor([1.6, 1.6, 4.8])).abs().max()
            < 1
        )


@pytest.mark.parametrize(
    ("n", "primary", "parted"),
    [
        (FEW - 1, ACCURACY, True),
        (FEW, ACCURACY, False),  # enough of them
        (FOLDS - 1, ACCURACY, False),  # too few to part
        (20, Primary("recall:b", 1), False),  # a class that no fold could do without
    ],
)
def test_few_images_are_parted(n: int, primary: Primary, parted: bool) -> None:
    assert bool(folds_of(validation_of(grey(torch.zeros(n), 0), primary=primary))) == parted


def test_a_part_of_fewer_images_than_folds_always_chooses() -> None:
    validation = validation_of(grey(torch.zeros(20), 0), grey(torch.zeros(FOLDS - 1), 0))
    for others, own in folds_of(validation):
        assert (int(own[0].sum()), int(own[1].sum()), bool(others[1].all())) == (4, 0, True)


def test_a_state_that_others_kept_is_judged_where_it_fails() -> None:
    """The end fails on the images of the first fold: without them it would have been kept."""
    validation = validation_of(grey(torch.zeros(10), 0))
    before, fails = torch.ones(10, dtype=torch.float64), torch.arange(10) % FOLDS == 0
    tried = ((1.0, before * ~fails), (0.5, before))
    model: Any = SimpleNamespace()
    scores = clean_budget.cross_fitted_scores(
        Averaged(model, 0.5, 1.0, 1.0, tried), before, validation, budget=0.0, folds=folds_of(validation)
    )
    assert scores.tolist() == (~fails).double().tolist()
    cost = validation.clean_cost(before, scores, 0.0, FOLDS)
    assert (cost.cost_pp, cost.folds) == (pytest.approx(20), FOLDS)


def test_the_start_is_judged_where_all_that_was_tried_costs_too_much() -> None:
    validation = validation_of(grey(torch.zeros(10), 0))
    before = torch.ones(10, dtype=torch.float64)
    model: Any = SimpleNamespace()
    averaged = Averaged(model, 0.0, 1.0, 1.0, ((1.0, 0 * before), (0.5, 0 * before)))
    folds = folds_of(validation)
    assert clean_budget.cross_fitted_scores(averaged, before, validation, budget=0.3, folds=folds).min() == 1


class _Gated(nn.Module):
    """Images of the value of their gate, whose logit is a tenth of their grey level less 10."""

    class Correction(nn.Module):
        def forward(self, images: torch.Tensor, opened: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(opened).view(-1, 1, 1, 1).expand(images.shape)

    def __init__(self) -> None:
        super().__init__()
        self.correction = self.Correction()
        weight = torch.tensor([[1]], dtype=torch.int8)
        self.gate = IntegerLinear(weight, torch.tensor([0.01]), torch.zeros(1), torch.tensor(0.01))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit = 25.5 * images[:, 0, 0, :1] - 10
        return self.correction(images, self.gate(100 * logit))  # type: ignore[no-any-return]  # a module gives a tensor


def test_a_gate_that_others_chose_is_judged_where_it_opens_wrongly() -> None:
    """Clean images of the first fold look shifted (logit 3): the others see no reason to keep the gate shut there."""
    looks_shifted = torch.arange(10) % FOLDS == 0
    clean, shifted = grey(torch.where(looks_shifted, 130, 10), 0), grey(torch.full((10,), 190), 1)
    validation, calibrator = validation_of(clean, shifted), _Gated()

    def classifier(images: torch.Tensor) -> torch.Tensor:
        """Class 0 where the gate is shut, 1 where it is open, else 2."""
        opened = images[:, 0, 0, 0]
        return torch.stack([opened < 0.3, opened > 0.7, (opened - 0.5).abs() <= 0.2], 1).float()

    opened, before = gate.opened_parts(calibrator, classifier, validation), torch.ones(10, dtype=torch.float64)
    trained = {name: value.clone() for name, value in calibrator.gate.state_dict().items()}
    scores = gate.cross_fitted_scores(
        calibrator, classifier, validation, opened=opened, before=before, budget=0.0, folds=folds_of(validation)
    )
    assert scores.tolist() == (~looks_shifted).double().tolist()
    assert all(torch.equal(value, trained[name]) for name, value in calibrator.gate.state_dict().items())
    # On all images together there is a gate that costs nothing: it is set, and would have been said to cost nothing.
    assert gate.set_gate(calibrator, classifier, validation, least_clean=1.0, opened=opened).kept
    assert validation.measure(classifier, calibrator) == (1.0, 1.0)
