"""Attacks on a half-space, whose distance to the border is known exactly."""

from __future__ import annotations

import pytest
import torch

from qrobust.attacks.balls import Ball, L2Ball, LinfBall
from qrobust.attacks.gradient import pgd
from qrobust.errors import InputError

SHAPE = (8, 3, 4, 4)
WEIGHT = torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(0))


def half_space(images: torch.Tensor) -> torch.Tensor:
    """Class 0 on one side of a plane through gray, class 1 on the other."""
    side = ((images - 0.5) * WEIGHT).flatten(1).sum(1)
    return torch.stack([side, -side], 1)


def inputs(distance: float, dual: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images at a known distance from the plane, in the norm whose dual norm of WEIGHT is `dual`."""
    offset = distance * dual / float((WEIGHT**2).sum())
    return (0.5 + offset * WEIGHT).expand(SHAPE).contiguous(), torch.zeros(SHAPE[0], dtype=torch.long)


CASES = [(LinfBall, float(WEIGHT.abs().sum()), 0.02), (L2Ball, float(WEIGHT.norm()), 0.2)]


@pytest.mark.parametrize(("make", "dual", "distance"), CASES)
@pytest.mark.parametrize(("factor", "left"), [(1.05, 0.0), (0.95, 1.0)])
def test_budget_decides_on_a_half_space(
    make: type[Ball], dual: float, distance: float, factor: float, left: float
) -> None:
    images, labels = inputs(distance, dual)
    epsilon = factor * distance
    adversarial = pgd(
        half_space, images, labels, ball=make(epsilon), steps=20, step_size=epsilon / 4,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float((half_space(adversarial).argmax(1) == labels).float().mean()) == left
    excess = make(epsilon).project(adversarial - images) - (adversarial - images)
    assert excess.abs().max() < 1e-6  # float32 rounding of the projection
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_equal_generators_give_equal_images() -> None:
    images, labels = inputs(0.02, float(WEIGHT.abs().sum()))
    runs = [
        pgd(half_space, images, labels, ball=LinfBall(0.01), steps=2, step_size=0.01,
            generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*runs)


def test_epsilon_zero_changes_nothing() -> None:
    images, labels = inputs(0.02, 1.0)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(
        pgd(half_space, images, labels, ball=LinfBall(0), steps=3, step_size=0.1, generator=generator), images
    )


def test_bad_arguments_are_named() -> None:
    images, labels = inputs(0.02, 1.0)
    generator = torch.Generator()
    with pytest.raises(InputError, match="epsilon"):
        LinfBall(-0.1)
    with pytest.raises(InputError, match="steps"):
        pgd(half_space, images, labels, ball=LinfBall(0.1), steps=0, step_size=0.1, generator=generator)
    with pytest.raises(InputError, match="no gradient"):
        pgd(
            lambda x: half_space(x).detach(),
            images,
            labels,
            ball=LinfBall(0.1),
            steps=1,
            step_size=0.1,
            generator=generator,
        )
