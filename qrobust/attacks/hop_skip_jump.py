"""An attack that sees predictions only: no gradient, no logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from qrobust.attacks.norms import LEVELS, Ball
from qrobust.attacks.queries import (
    BATCH,
    check,
    is_right,
    parts,
)
from qrobust.classifier import Classifier

STARTS = 32  # random images and other images of the call that are tried as a first adversarial
GRID = 16  # points asked at once in a search along a line
PROBES = 100  # of the first estimate of the border's direction; then 100 sqrt(t), as in the paper


def hop_skip_jump(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator,
    queries: int = 2000,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """HopSkipJump of Chen et al., arXiv 1904.02144: walk along the border towards the image.

    It differs from the paper in two ways. Probes are as long as one uint8 step per pixel where the paper's
    would be shorter, because an integer classifier does not see less. It stops once inside the ball.

    Args:
        classifier: any, an ONNX Runtime classifier too; only its predictions are used.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` int64.
        ball: the budget, and the norm in which the distance shrinks.
        generator: seeds every image's search. The batch size does not matter, but the company of an image
            does: other images are among the starts.
        queries: predictions per image, at least 1; never more are asked.
        batch_size: images per call.

    Returns:
        Adversarial images in [0, 1] within the ball, and the given image where none was found.

    Raises:
        InputError: a count below 1, or images or labels that fit no classifier.
    """
    check(images, labels, queries=queries, batch_size=batch_size)
    result = images.clone()
    seeds = torch.randint(0, 2**62, (len(images),), generator=generator)
    for i in is_right(classifier, images, labels, batch_size).nonzero().flatten().tolist():
        image, label = images[i : i + 1], labels[i : i + 1]

        def fools(points: torch.Tensor, label: torch.Tensor = label) -> torch.Tensor:
            return ~is_right(classifier, points, label.expand(len(points)), batch_size)

        own = torch.Generator().manual_seed(int(seeds[i]))
        noise = torch.rand((STARTS, *image.shape[1:]), generator=own)
        others = images[torch.randperm(len(images), generator=own)[:STARTS]]
        starts = torch.cat([noise, others])
        walk = _walk(fools, image, starts, ball, queries - 1, own)  # one went to the image itself
        result[i] = (image + walk)[0]
    return result


def _walk(
    fools: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    starts: torch.Tensor,
    ball: Ball,
    queries: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The perturbation `(1, C, H, W)` that was found, or zeros."""
    left = queries

    def ask(points: torch.Tensor) -> torch.Tensor:
        """Which points fool; those that the budget is too short for count as if they did not."""
        nonlocal left
        answers = torch.zeros(len(points), dtype=torch.bool)
        answers[:left] = fools(points[:left])
        left -= min(left, len(points))
        return answers

    starts = starts[ask(starts)]
    nothing = torch.zeros_like(image)
    if not len(starts) or ball.epsilon == 0:
        return nothing
    perturbation = starts[ball.length(starts - image).argmin()] - image
    perturbation = _shorten(ask, image, perturbation, ball)
    hop = 0
    while ball.length(perturbation) > ball.epsilon * (1 + 1e-6):  # float32: a projection may miss by a hair
        hop += 1
        count = min(round(PROBES * math.sqrt(hop)), left // 2)  # the other half is to walk with
        if not count:
            return nothing
        direction = _direction(ask, image + perturbation, count, generator)
        length = ball.length(perturbation) / math.sqrt(hop)
        lengths = length / 2.0 ** torch.arange(GRID)
        jumps = (image + perturbation + lengths.view(-1, 1, 1, 1) * ball.steepest(direction)).clamp(0, 1)
        landed = ask(jumps).nonzero().flatten()
        if len(landed):
            jump = jumps[landed[0]].unsqueeze(0)
            perturbation = _shorten(ask, image, jump - image, ball)
    return perturbation


def _direction(
    ask: Callable[[torch.Tensor], torch.Tensor], border: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Where beyond a point on the border most random probes fool: an estimate of the border's normal."""
    probe = math.sqrt(border.numel()) / LEVELS  # about one uint8 step per pixel
    noise = torch.randn((count, *border.shape[1:]), generator=generator)
    points = (border + probe * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    answers = torch.cat([ask(points[part]) for part in parts(count, BATCH)]).float() * 2 - 1
    if answers.abs().mean() != answers.mean().abs():  # both answers came: their mean carries no direction
        answers = answers - answers.mean()
    return (answers.view(-1, 1, 1, 1) * (points - border)).mean(0, keepdim=True)


def _shorten(
    ask: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, perturbation: torch.Tensor, ball: Ball
) -> torch.Tensor:
    """Towards the image as far as it still fools; the ball's own radius is tried first."""

    def at(radius: float) -> torch.Tensor:
        return replace(ball, epsilon=radius).project(perturbation)

    low, high = 0.0, float(ball.length(perturbation))
    inside = at(ball.epsilon)
    if ask(image + inside):
        return inside
    for _ in range(3):
        radii = torch.linspace(low, high, GRID + 1)[1:].tolist()
        candidates = torch.cat([at(radius) for radius in radii])
        landed = ask(image + candidates).nonzero().flatten().tolist()
        first = landed[0] if landed else GRID - 1  # the end itself fools but for float32 rounding
        low, high = (radii[first - 1] if first else low), radii[first]
    return at(high)
