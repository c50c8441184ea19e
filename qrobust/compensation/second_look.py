"""A second look: the classifier sees each image's negative, too, and believes the one that it knows better."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Validation
from qrobust.record import CleanCost

# Thresholds that are considered at most.
THRESHOLDS = 400


def familiarity(logits: torch.Tensor) -> torch.Tensor:
    """How well a classifier knows images, the free energy of its logits `(N, K)` with the sign turned, `(N,)`.

    Liu et al., "Energy-based out-of-distribution detection", arXiv 2010.03759.
    """
    return torch.logsumexp(logits, 1)


class SecondLook(nn.Module):
    """A classifier that takes an image for a negative where it knows `1 - x` better than `x`, by a threshold.

    Whether an image is a negative is a decision and no correction: half an inversion is grey. Nothing is trained, and
    the classifier stays as it is; it takes twice its time.

    Args:
        classifier: images `(N, C, S, S)` in [0, 1] to logits `(N, K)`.
        threshold: by how much the negative must be known better, in nats; see `choose_threshold`.
    """

    def __init__(self, classifier: nn.Module, threshold: float) -> None:
        super().__init__()
        self.classifier, self.threshold = classifier, threshold

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both, n = self.classifier(torch.cat([images, 1 - images])), images.shape[0]
        as_it_is, negative = both[:n], both[n:]  # unlike `chunk`, this leaves an exported graph's batch open
        turned = familiarity(negative) - familiarity(as_it_is) > self.threshold
        return torch.where(turned[:, None], negative, as_it_is)


@torch.no_grad()
def fit_second_look(classifier: Classifier, validation: Validation, budget: float) -> tuple[float, CleanCost]:
    """The threshold of a second look, chosen on clean validation images, and what it costs on them.

    Args:
        classifier: as it will run.
        validation: whose clean images choose.
        budget: points of clean accuracy that it may cost.
    """
    clean = validation.parts[0]
    looks = [(classifier(images), classifier(1 - images)) for images, _ in validation.batches(clean)]
    as_it_is, negative = (torch.cat(logits) for logits in zip(*looks, strict=True))
    right, turned = ((logits.argmax(1) == clean[1]).double() for logits in (as_it_is, negative))
    better_known = familiarity(negative) - familiarity(as_it_is)
    least = validation.least_clean(validation.clean_value(right), budget)
    threshold = choose_threshold(better_known, right, turned, validation.clean_value, least)
    after = torch.where(better_known > threshold, turned, right)
    return threshold, validation.clean_cost(right, after, budget)


def choose_threshold(
    better_known: torch.Tensor,
    right: torch.Tensor,
    right_turned: torch.Tensor,
    value: Callable[[torch.Tensor], float],
    least: float,
) -> float:
    """The lowest threshold at and above which clean images keep enough accuracy; chosen on clean images alone.

    Args:
        better_known: by how much the classifier knows the negatives of clean images better, in nats `(N,)`.
        right: 1 where it is right of an image as it is, float64 `(N,)`.
        right_turned: 1 where it is right of the negative.
        value: of such scores, the measure that decides.
        least: the value to keep.

    Returns:
        At least 0. Where nothing else keeps enough, so high that no image of these is taken for a negative.
    """
    levels = torch.linspace(1, 0, THRESHOLDS, dtype=torch.float64)
    chosen = max(0.0, float(better_known.max()))
    for threshold in better_known.double().quantile(levels).clamp(min=0).unique().flip(0).tolist():
        if value(torch.where(better_known > threshold, right_turned, right)) < least:
            break
        chosen = threshold
    return chosen
