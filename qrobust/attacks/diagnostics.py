"""Checks that distrust an evaluation by attacks: gradients that vanish, the worst case per image, flags."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch

from qrobust.attacks.losses import Loss, cross_entropy
from qrobust.attacks.queries import (
    BATCH,
    check,
    gradients,
    parts,
)
from qrobust.classifier import Classifier
from qrobust.errors import InputError

TOLERANCE = 0.002  # 0.2 points
VANISHING = 0.01  # share of images without gradient that is worth a flag


def worst_case(right: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images that withstand every attack; put the clean ones among them.

    Raises:
        InputError: no attack, or attacks on different numbers of images.
    """
    if len({r.shape for r in right.values()}) != 1:
        raise InputError(
            f"right: expected one bool per image and attack, got {[tuple(r.shape) for r in right.values()]}"
        )
    return torch.stack(list(right.values())).all(0)


def differential_risk(float_right: torch.Tensor, int8_right: torch.Tensor) -> float:
    """Share of images that, under the same adversarial pixels, the float model gets right and INT8 wrong."""
    return float((float_right & ~int8_right).float().mean())


def has_gradient(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss = cross_entropy,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Whether the loss has any gradient at each image `(N,)`; where it has none, a gradient attack is blind.

    Raises:
        InputError: images or labels that fit no classifier, or a classifier without gradient.
    """
    check(images, labels, batch_size=batch_size)
    found = torch.zeros(len(images), dtype=torch.bool)
    for part in parts(len(images), batch_size):
        gradient, _, _ = gradients(classifier, images[part], labels[part], loss)
        found[part] = (gradient.flatten(1) != 0).any(1)
    return found


def zero_gradient_share(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss = cross_entropy,
    batch_size: int = BATCH,
) -> float:
    """Share of images at which the loss has no gradient at all.

    Raises:
        InputError: no image, and as `has_gradient`.
    """
    if not len(images):
        raise InputError("images: expected at least 1, got 0")
    return float((~has_gradient(classifier, images, labels, loss, batch_size)).float().mean())


def reliability_flags(
    name: str,
    white_box: Mapping[float, float],
    *,
    others: Mapping[str, Mapping[float, float]],
    noise: Mapping[float, float],
    chance: float,
    zero_gradients: float,
    by: str = "the gradient",
) -> list[str]:
    """Sentences that begin with UNRELIABLE where robust accuracies contradict each other.

    Args:
        name: of the classifier attacked.
        white_box: robust accuracy by epsilon of the attack with gradients, or of the strongest there is.
        others: the same of attacks without its gradients (black-box, transfer), by name.
        noise: the same of random noise.
        chance: accuracy of guessing, 1 / K for balanced classes.
        zero_gradients: see `zero_gradient_share`.
        by: what to call the attack of `white_box`.

    Raises:
        InputError: no budget.
    """
    if not white_box:
        raise InputError("white_box: expected at least one epsilon, got none")
    flags = []

    def flag(what: str) -> None:
        flags.append(f"UNRELIABLE: {name}: {what}")

    budgets = sorted(white_box)
    for other, accuracy in (*others.items(), ("random noise", noise)):
        for epsilon in budgets:
            if epsilon in accuracy and accuracy[epsilon] + TOLERANCE < white_box[epsilon]:
                flag(
                    f"{other} leaves {accuracy[epsilon]:.1%} at epsilon {epsilon:.4g}, {by} {white_box[epsilon]:.1%}"
                )
    for smaller, larger in pairwise(budgets):
        if white_box[larger] > white_box[smaller] + TOLERANCE:
            flag(
                f"epsilon {larger:.4g} leaves {white_box[larger]:.1%}, less budget ({smaller:.4g}) "
                f"{white_box[smaller]:.1%}"
            )
    if white_box[budgets[-1]] > chance + TOLERANCE:
        flag(f"the largest epsilon, {budgets[-1]:.4g}, leaves {white_box[budgets[-1]]:.1%}, chance is {chance:.1%}")
    if zero_gradients > VANISHING:
        flag(f"{zero_gradients:.1%} of the images have no gradient")
    return flags
