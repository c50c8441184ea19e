"""Attacks without a search: the worst of given variants, and random noise as the baseline of all others."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qrobust.attacks.norms import Ball
from qrobust.attacks.queries import BATCH, check, margins
from qrobust.classifier import Classifier
from qrobust.errors import InputError


def worst_of(
    classifier: Classifier, variants: Iterable[torch.Tensor], labels: torch.Tensor, batch_size: int = BATCH
) -> torch.Tensor:
    """Of several variants of every image, such as rotations, the one the classifier finds hardest.

    Args:
        classifier: any, an ONNX Runtime classifier too.
        variants: each `(N, C, H, W)` in [0, 1]; read one at a time, so a generator keeps memory small.
        labels: `(N,)` int64.
        batch_size: images per call.

    Returns:
        Per image the variant of largest margin, `(N, C, H, W)`; of equals the first.

    Raises:
        InputError: no variant, or one that does not fit the labels.
    """
    worst: torch.Tensor | None = None
    for images in variants:
        check(images, labels, batch_size=batch_size)
        margin = margins(classifier, images, labels, batch_size)
        if worst is None:
            worst, highest = images.clone(), margin
            continue
        higher = margin > highest
        worst[higher], highest[higher] = images[higher], margin[higher]
    if worst is None:
        raise InputError("variants: expected at least one, got none")
    return worst


def random_noise(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    ball: Ball,
    generator: torch.Generator,
    tries: int = 1,
    batch_size: int = BATCH,
) -> torch.Tensor:
    """Random perturbations of full length: signs for L-infinity, directions for L2; the best of `tries`.

    What an attack does not beat is no attack. Needs no gradient. Args as for `pgd`, `tries` at least 1.
    """
    check(images, labels, tries=tries, batch_size=batch_size)

    def noisy() -> torch.Tensor:
        direction = ball.steepest(torch.randn(images.shape, generator=generator))
        return (images + ball.epsilon * direction).clamp(0, 1)

    return worst_of(classifier, (noisy() for _ in range(tries)), labels, batch_size)
