"""Reverse adversarial examples: images moved, within a budget, to where a classifier finds them easier.

After "Brain-inspired reverse adversarial examples", arXiv 1905.12171.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qrobust.attacks.norms import Ball
from qrobust.attacks.queries import check
from qrobust.classifier import Classifier, input_gradient
from qrobust.errors import InputError


def reverse_adversarial(
    classifier: Classifier,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    momentum: float = 0.0,
) -> torch.Tensor:
    """Lower the cross-entropy to `targets` by moving the images, inside a ball and [0, 1].

    Args:
        classifier: differentiable.
        images: `(N, C, H, W)` float32 in [0, 1].
        targets: class indices `(N,)`: labels, or the float teacher's predictions.
        ball: the budget.
        steps: at least 1.
        step_size: length of a step in the ball's norm, above 0.
        momentum: share of the previous direction that is kept, in [0, 1).

    Returns:
        Images in [0, 1] within the ball: of each image's steps the one of lowest loss, so that more
        steps never mean a higher loss.

    Raises:
        InputError: an argument out of range, or no gradient.
    """
    if not isinstance(ball, Ball):
        raise InputError(f"ball: expected an LinfBall or L2Ball, got {ball!r}")
    for name, value in (("images", images), ("targets", targets)):
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: expected a tensor, got {type(value).__name__}")
    for name, number in (("step_size", step_size), ("momentum", momentum)):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise InputError(f"{name}: expected a number, got {number!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps: expected an integer, at least 1, got {steps}")
    if not 0 < step_size < float("inf"):
        raise InputError(f"step_size: expected a number above 0, got {step_size}")
    if targets.shape != images.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(f"targets: expected {len(images)} integers, got {targets.dtype} {tuple(targets.shape)}")
    check(images, targets)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum: expected a number in [0, 1), got {momentum}")

    def losses(logits: torch.Tensor) -> torch.Tensor:
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
            raise InputError(
                f"targets: expected class indices from 0 to {logits.shape[1] - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}"
            )
        return F.cross_entropy(logits, targets, reduction="none")

    current, best = images.clone(), images.clone()
    best_loss = torch.full((len(images),), torch.inf, device=images.device)
    direction = torch.zeros_like(images)
    for _ in range(steps):
        gradient, loss = input_gradient(classifier, current, losses)
        lower = loss < best_loss
        best[lower], best_loss[lower] = current[lower], loss[lower]
        scale = gradient.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, 1, 1, 1)
        direction = momentum * direction + gradient / scale
        moved = current - step_size * ball.steepest(direction) - images
        current = (images + ball.project(moved)).clamp(0, 1)
    with torch.no_grad():
        loss = losses(classifier(current))
    lower = loss < best_loss
    best[lower] = current[lower]
    return best
