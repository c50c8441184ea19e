"""From attacks to figures: whole pixels, transfer, sweeps, the worst case, and when not to believe them.

Accuracies are fractions. `right` is a bool per image `(N,)`: still classified as its label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Protocol

import torch

from qrobust.attacks.balls import LEVELS, Ball
from qrobust.attacks.losses import Loss, cross_entropy
from qrobust.attacks.queries import BATCH, check, gradients, is_right, parts
from qrobust.classifier import Classifier
from qrobust.errors import InputError

TOLERANCE = 0.002  # 0.2 points
VANISHING = 0.01  # share of images without gradient that is worth a flag


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
        source: what the attacker has: the session's own twin, the float model, the session itself.
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
        ball.epsilon: transfer(
            attack, source, target, pixels, labels, ball=ball, seed=seed, batch_size=batch_size
        )
        for ball in sorted(balls, key=lambda ball: ball.epsilon)
    }  # fmt: skip


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
