"""What every attack has in common: its type, pixels projected to uint8, one loop over batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from qrobust.attacks.norms import LEVELS, Ball
from qrobust.attacks.queries import (
    BATCH,
    is_right,
)
from qrobust.classifier import Classifier
from qrobust.errors import InputError


class Attack(Protocol):
    """What all attacks here have in common; set the rest with `functools.partial`."""

    def __call__(
        self,
        classifier: Classifier,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        ball: Ball,
        generator: torch.Generator,
    ) -> torch.Tensor: ...


def on_pixels(classifier: Classifier) -> Classifier:
    """The classifier behind a uint8 image: what a black-box attack on a device talks to. No gradient."""
    return lambda images: classifier((LEVELS * images).round() / LEVELS)


def to_uint8_inside(adversarial: torch.Tensor, pixels: torch.Tensor, ball: Ball) -> torch.Tensor:
    """The adversarial image as a device can show it: uint8, and still within the ball.

    Args:
        adversarial: `(N, C, H, W)` in [0, 1].
        pixels: the clean images, uint8 `(N, C, H, W)`.
        ball: the budget. L-infinity keeps the largest multiple of 1/255 within epsilon; a budget below
            1/255 therefore returns the pixels as they are. L2 gives up the most doubtful roundings.

    Returns:
        uint8 `(N, C, H, W)`.

    Raises:
        InputError: shapes or types do not fit.
    """
    if pixels.dtype != torch.uint8 or pixels.shape != adversarial.shape:
        raise InputError(
            f"pixels: expected uint8 {tuple(adversarial.shape)}, got {pixels.dtype} {tuple(pixels.shape)}"
        )
    perturbation = adversarial.double() - pixels.double() / LEVELS
    return (pixels + ball.whole(perturbation)).clamp(0, LEVELS).to(torch.uint8)


def craft(
    attack: Attack, source: Classifier, pixels: torch.Tensor, labels: torch.Tensor, *, ball: Ball, seed: int
) -> torch.Tensor:
    """The pixels that an attack on `source` shows: uint8, inside the ball; at epsilon 0 those given.

    Args and errors as for `transfer`.
    """
    if ball.epsilon == 0:
        return pixels
    generator = torch.Generator().manual_seed(seed)
    adversarial = attack(source, pixels.float() / LEVELS, labels, ball=ball, generator=generator)
    return to_uint8_inside(adversarial, pixels, ball)


def transfer(
    attack: Attack,
    source: Classifier,
    target: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    seed: int,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Attack one classifier, round to uint8 inside the ball, score on another; the same twice is white-box.

    Args:
        attack: runs on `source`.
        source: what the attacker has: the graph's own fake-quantized model, the float model, the graph itself.
        target: what is scored; any classifier.
        pixels: clean images, uint8 `(N, C, H, W)`.
        labels: `(N,)` int64.
        ball: the budget.
        seed: of the attack.
        batch_size: images per call of `target`.

    Returns:
        `right`, a bool per image.
    """
    shown = craft(attack, source, pixels, labels, ball=ball, seed=seed)
    return is_right(target, shown.float() / LEVELS, labels, batch_size)


def sweep(
    attack: Attack,
    source: Classifier,
    target: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    balls: Iterable[Ball],
    seed: int,
    batch_size: int = BATCH,
) -> dict[float, torch.Tensor]:
    """`transfer` over several budgets.

    Every budget starts from the same seed. Epsilon 0 gives clean accuracy, without running the attack.

    Returns:
        `right` by epsilon, in rising order.
    """
    return {
        ball.epsilon: transfer(attack, source, target, pixels, labels, ball=ball, seed=seed, batch_size=batch_size)
        for ball in sorted(balls, key=lambda ball: ball.epsilon)
    }
