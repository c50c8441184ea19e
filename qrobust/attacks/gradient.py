"""Gradient attacks: one loop, the norm handed to it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qrobust.attacks.balls import Ball
from qrobust.classifier import Classifier, input_gradient
from qrobust.errors import InputError


def pgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Projected gradient descent of Madry et al., arXiv 1706.06083: raise the cross-entropy.

    Args:
        classifier: differentiable; a session has no gradient and is refused.
        images: `(N, 3, H, W)` in [0, 1].
        labels: `(N,)` int64.
        ball: the budget.
        steps: gradient steps, at least 1.
        step_size: length of a step in the ball's norm.
        generator: draws the random start.

    Returns:
        Adversarial images in [0, 1], within the ball: of each image's steps the one of highest loss.

    Raises:
        InputError: no steps, or no gradient reaches the image.
    """
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    adversarial = (images + ball.start(images, generator)).clamp(0, 1)
    best = images.clone()
    best_loss = torch.full((len(images),), -torch.inf)
    for _ in range(steps):
        gradient, loss = input_gradient(
            classifier, adversarial, lambda z: F.cross_entropy(z, labels, reduction="none")
        )
        _keep_higher(best, best_loss, adversarial, loss)
        moved = adversarial + step_size * ball.steepest(gradient) - images
        adversarial = (images + ball.project(moved)).clamp(0, 1)
    with torch.no_grad():
        _keep_higher(best, best_loss, adversarial, F.cross_entropy(classifier(adversarial), labels, reduction="none"))
    return best


def _keep_higher(best: torch.Tensor, best_loss: torch.Tensor, images: torch.Tensor, loss: torch.Tensor) -> None:
    higher = loss > best_loss
    best[higher] = images[higher]
    best_loss[higher] = loss[higher]
