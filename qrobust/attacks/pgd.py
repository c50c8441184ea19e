"""Gradient attacks: one loop for all norms, the geometry handed to it.

Random numbers are drawn for all images of a call at once, so the batch size changes nothing but the last
bits of a classifier's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from qrobust.attacks.losses import Loss, cross_entropy
from qrobust.attacks.norms import Ball
from qrobust.attacks.queries import (
    BATCH,
    check,
    gradients,
    margins,
    parts,
)
from qrobust.classifier import Classifier

MOMENTUM, RISING = 0.75, 0.75  # alpha and rho of arXiv 2003.01690


class _Best:
    """Of all points seen, per image the one of largest margin; so a fooling one before any other."""

    def __init__(self, images: torch.Tensor, margin: torch.Tensor) -> None:
        self.images, self.margin = images.clone(), margin.clone()

    def see(self, images: torch.Tensor, margin: torch.Tensor, at: torch.Tensor | slice = slice(None)) -> None:
        """Offer points for the images at the given places."""
        higher = (margin > self.margin[at]).view(-1, 1, 1, 1)
        self.images[at] = torch.where(higher, images, self.images[at])
        self.margin[at] = torch.maximum(margin, self.margin[at])


def fgsm(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Fast gradient sign method of Goodfellow et al., arXiv 1412.6572: one step to the border of the ball.

    Args and result as for `pgd`. Nothing is random; `generator` is there so that attacks can be exchanged.
    """
    del generator
    check(images, labels, batch_size=batch_size)
    adversarial = images.clone()
    for part in parts(len(images), batch_size):
        gradient, _, _ = gradients(classifier, images[part], labels[part], cross_entropy)
        adversarial[part] = (images[part] + ball.epsilon * ball.steepest(gradient)).clamp(0, 1)
    return adversarial


def pgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Projected gradient descent of Madry et al., arXiv 1706.06083: raise the cross-entropy.

    Args:
        classifier: differentiable; an ONNX Runtime classifier has no gradient and is refused.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` int64.
        ball: the budget.
        generator: draws the random starts.
        steps: gradient steps of each restart, at least 1.
        step_size: length of a step in the ball's norm; 2.5 epsilon / steps when not given.
        restarts: random starts, at least 1; later ones try only images that still stand.
        batch_size: images in memory at once.

    Returns:
        Adversarial images in [0, 1], within the ball: of each image's points, the given image among them,
        the one of largest margin, so one that fools if any did.

    Raises:
        InputError: a count below 1, images or labels that fit no classifier, or no gradient.
    """
    check(images, labels, steps=steps, restarts=restarts, batch_size=batch_size)
    size = 2.5 * ball.epsilon / steps if step_size is None else step_size

    def climb(clean: torch.Tensor, target: torch.Tensor, current: torch.Tensor) -> _Best:
        best = _Best(current, torch.full((len(clean),), -torch.inf))
        for _ in range(steps):
            gradient, _, margin = gradients(classifier, current, target, cross_entropy)
            best.see(current, margin)
            current = _inside(clean, current + size * ball.steepest(gradient), ball)
        best.see(current, margins(classifier, current, target))
        return best

    return _restarted(classifier, images, labels, ball, generator, restarts, batch_size, climb)


def apgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator,
    steps: int = 100,
    loss: Loss = cross_entropy,
    restarts: int = 1,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Auto-PGD of Croce and Hein, arXiv 2003.01690: momentum, and a step that halves where progress stops.

    Args:
        classifier, images, labels, ball, generator, restarts, batch_size: as for `pgd`.
        steps: gradient steps of each restart, at least 1.
        loss: `cross_entropy` or `dlr` of `qrobust.attacks.losses`.

    Returns and raises as `pgd`.
    """
    check(images, labels, steps=steps, restarts=restarts, batch_size=batch_size)
    checkpoints = _checkpoints(steps)

    def climb(clean: torch.Tensor, target: torch.Tensor, current: torch.Tensor) -> _Best:
        previous = current
        gradient, losses, margin = gradients(classifier, current, target, loss)
        best = _Best(current, margin)
        top, top_loss, top_gradient = current.clone(), losses.clone(), gradient.clone()
        size = 2 * ball.epsilon * torch.ones(len(clean), 1, 1, 1)
        rises, halved = torch.zeros(len(clean)), torch.zeros(len(clean), dtype=torch.bool)
        checked, checked_loss = 0, losses.clone()
        for step in range(1, steps + 1):
            trial = _inside(clean, current + size * ball.steepest(gradient), ball)
            if step > 1:
                trial = current + MOMENTUM * (trial - current) + (1 - MOMENTUM) * (current - previous)
            previous, current = current, _inside(clean, trial, ball)
            gradient, new_losses, margin = gradients(classifier, current, target, loss)
            best.see(current, margin)
            rises += new_losses > losses
            losses = new_losses
            higher = losses > top_loss
            top[higher], top_loss[higher], top_gradient[higher] = current[higher], losses[higher], gradient[higher]
            if step in checkpoints:
                few = rises < RISING * (step - checked)
                halved = few | (~halved & (top_loss <= checked_loss))
                size[halved] /= 2
                current, previous = current.clone(), previous.clone()
                current[halved], previous[halved] = top[halved], top[halved]
                gradient[halved], losses[halved] = top_gradient[halved], top_loss[halved]
                rises.zero_()
                checked, checked_loss = step, top_loss.clone()
        return best

    return _restarted(classifier, images, labels, ball, generator, restarts, batch_size, climb)


def _checkpoints(steps: int) -> set[int]:
    """Steps at which APGD looks back: 22 % of all, then intervals that shrink by 3 % down to 6 %."""
    share, interval, found = 0.0, 0.22, set()
    while share < 1:
        share += interval
        interval = max(interval - 0.03, 0.06)
        found.add(math.ceil(share * steps))
    return found


def _inside(images: torch.Tensor, points: torch.Tensor, ball: Ball) -> torch.Tensor:
    """Back into the ball, then into [0, 1]; the images are in [0, 1], so the second never leaves the first."""
    return (images + ball.project(points - images)).clamp(0, 1)


def _restarted(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    ball: Ball,
    generator: torch.Generator,
    restarts: int,
    batch_size: int,
    climb: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], _Best],
) -> torch.Tensor:
    best = _Best(images, margins(classifier, images, labels, batch_size))
    for restart in range(restarts):
        starts = _inside(images, images + ball.start(images, generator), ball)
        standing = torch.arange(len(images)) if restart == 0 else (best.margin <= 0).nonzero().squeeze(1)
        for part in parts(len(standing), batch_size):
            at = standing[part]
            found = climb(images[at], labels[at], starts[at])
            best.see(found.images, found.margin, at)
    return best.images
