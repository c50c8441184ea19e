"""Square attack: a random search by windows that needs scores but no gradient, so it works on ONNX Runtime."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from qrobust.attacks.norms import Ball, LinfBall
from qrobust.attacks.queries import BATCH, check, margins
from qrobust.classifier import Classifier

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; arXiv 1912.00049, section 5


def square(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator,
    queries: int = 1000,
    share: float = 0.8,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Square attack of Andriushchenko et al., arXiv 1912.00049.

    Args:
        classifier: any, an ONNX Runtime classifier too; only its logits are used.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` int64.
        ball: the budget.
        generator: draws the search. Numbers are drawn for all images of the call, so the batch size does
            not matter, but the company of an image does.
        queries: calls per image, at least 1.
        share: part of the image that the first windows cover.
        batch_size: images per call.

    Returns:
        Adversarial images in [0, 1], within the ball, of largest margin; where the search fools, the first
        found; misclassified images as they are.

    Raises:
        InputError: a count below 1, or images or labels that fit no classifier.
    """
    check(images, labels, queries=queries, batch_size=batch_size)
    start, propose = (_stripes, _signs) if isinstance(ball, LinfBall) else (_bumps, _exchange)
    highest = margins(classifier, images, labels, batch_size)
    best = images.clone()
    standing = (highest <= 0).nonzero().squeeze(1)
    side = min(images.shape[2:])
    for query in range(queries):
        if not len(standing):
            break
        if query == 0:
            perturbation = ball.epsilon * ball.steepest(start(images, generator))[standing]
        else:
            covered = share / 2 ** sum(query * 10_000 > h * queries for h in HALVINGS)
            width = round(math.sqrt(covered * images.shape[2] * images.shape[3]))
            draws = torch.rand((len(images), 5 + images.shape[1]), generator=generator)[standing]
            perturbation = propose(best[standing] - images[standing], draws, width, side, ball)
        candidate = (images[standing] + ball.project(perturbation)).clamp(0, 1)
        margin = margins(classifier, candidate, labels[standing], batch_size)
        better = torch.ones_like(margin, dtype=torch.bool) if query == 0 else margin > highest[standing]
        best[standing[better]], highest[standing[better]] = candidate[better], margin[better]
        standing = standing[highest[standing] <= 0]
    return best


def _stripes(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vertical stripes of random sign."""
    n, channels, _, width = images.shape
    return (torch.rand((n, channels, 1, width), generator=generator) - 0.5).sign().expand_as(images)


def _signs(perturbation: torch.Tensor, draws: torch.Tensor, width: int, side: int, ball: Ball) -> torch.Tensor:
    """One window of full height, its sign drawn anew per channel."""
    width = min(max(width, 1), max(side - 1, 1))
    changed = perturbation.clone()
    sign = (draws[:, 5:] - 0.5).sign()[:, :, None, None]
    changed[_window(perturbation, draws[:, 0], draws[:, 1], width)] = ball.epsilon * sign
    return changed


def _bumps(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Tiles with a bump each, of random sign; about five along the shorter side."""
    n, channels, height, width = images.shape
    tile = max(min(height, width) // 5, 1)
    rows, columns = height // tile, width // tile
    sign = (torch.rand((n, channels, rows, columns), generator=generator) - 0.5).sign()
    tiled = torch.kron(sign, torch.ones(tile, tile)) * _bump(tile).repeat(rows, columns)
    return F.pad(tiled, (0, width - columns * tile, 0, height - rows * tile))


def _exchange(perturbation: torch.Tensor, draws: torch.Tensor, width: int, side: int, ball: Ball) -> torch.Tensor:
    """A bump is added to one window, which takes the length of another window and what is unused."""
    width = min(max(width, 3) // 2 * 2 + 1, side)
    channels = perturbation.shape[1]
    receiver = _window(perturbation, draws[:, 0], draws[:, 1], width)
    donor = _window(perturbation, draws[:, 2], draws[:, 3], width)
    bump = _bump(width)
    bump = torch.where((draws[:, 4] < 0.5).view(-1, 1, 1, 1), bump, bump.T)
    sign = (draws[:, 5:] - 0.5).sign()[:, :, None, None]

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (x**2).sum((2, 3), keepdim=True)

    present = perturbation[receiver]
    changed = perturbation.clone()
    changed[donor] = 0
    changed[receiver] = 0
    unused = (ball.epsilon**2 - energy(perturbation).sum(1, keepdim=True)).clamp(min=0)
    available = energy(perturbation) - energy(changed) + unused / channels
    direction = sign * bump + present / energy(present).sqrt().clamp(min=1e-12)
    changed[receiver] = direction / energy(direction).sqrt().clamp(min=1e-12) * available.clamp(min=0).sqrt()
    return changed


def _window(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    """Index of one square window per image, `(N, C, width, width)`, placed by two draws in [0, 1)."""
    n, channels, height, breadth = images.shape
    inside = torch.arange(width)
    rows = (top * (height - width + 1)).long().view(-1, 1, 1, 1) + inside.view(1, 1, -1, 1)
    columns = (left * (breadth - width + 1)).long().view(-1, 1, 1, 1) + inside.view(1, 1, 1, -1)
    return torch.arange(n).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns


def _bump(width: int) -> torch.Tensor:
    """A pyramid up in the upper half and one down in the lower, of length 1; eq. 2 of the paper."""
    upper = width // 2
    bump = torch.cat([_pyramid(upper, width), -_pyramid(width - upper, width)])
    return bump / bump.norm()


def _pyramid(height: int, width: int) -> torch.Tensor:
    """Falls from the middle outwards: at distance d the sum of 1 / k^2 from k = d + 1 on."""
    rows = (torch.arange(height) - height // 2).abs().view(-1, 1)
    columns = (torch.arange(width) - width // 2).abs().view(1, -1)
    distance = torch.maximum(rows, columns)
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2
    return terms.flip(0).cumsum(0).flip(0)[distance]
