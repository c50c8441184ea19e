"""What a remedy that trains the classifier may cost on clean images: part of the way from the start to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Rows, Validation

# How often the way between the start, which costs nothing, and what costs too much is halved.
HALVINGS = 3


@dataclass(frozen=True)
class Averaged:
    """A model on the way from the start of a training to its end.

    Attributes:
        model: frozen to its integers.
        share: of the way, from 0 (the start) to 1.
        clean_accuracy, shift_accuracy: on validation images, as deployed.
        tried: shares of the way that were tried, and the scores of each on clean validation images `(n,)`.
    """

    model: fx.GraphModule
    share: float
    clean_accuracy: float
    shift_accuracy: float
    tried: tuple[tuple[float, torch.Tensor], ...] = ()


@torch.no_grad()
def between(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The state that lies `share` of the way from start to end; what is no floating-point number is the end's."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def within_clean_budget(
    trainable: nn.Module,
    start: dict[str, torch.Tensor],
    convert: Callable[[], fx.GraphModule],
    deploy: Callable[[nn.Module], Classifier],
    validation: Validation,
    *,
    least_clean: float,
) -> Averaged:
    """Go from the end of a training back towards its start until clean images cost no more than allowed.

    Weights between the two ends of a fine-tuning keep most of what either is good at: Wortsman et al., "Robust
    fine-tuning of zero-shot models", arXiv 2109.01903.

    Args:
        trainable: at the end of its training; it ends as what is returned.
        start: its state before.
        convert: `trainable` as it is now to a model frozen to its integers.
        deploy: such a model to the classifier as it runs.
        validation: images to choose by.
        least_clean: clean validation accuracy to keep, as a fraction.

    Returns:
        The end, where it keeps enough clean accuracy; else of the states that are tried and keep enough, the one
        nearest to it; without any, the start.
    """
    end = {name: value.detach().clone() for name, value in trainable.state_dict().items()}

    def at(share: float) -> tuple[fx.GraphModule, Classifier]:
        trainable.load_state_dict(between(start, end, share))
        model = convert()
        return model, deploy(model)

    share, high, found, tried = 1.0, 1.0, None, list[tuple[float, torch.Tensor]]()
    for _ in range(HALVINGS + 1):
        model, deployed = at(share)
        tried.append((share, validation.clean_scores(deployed)))
        clean = validation.clean_value(tried[-1][1])
        if clean >= least_clean:
            found = Averaged(model, share, clean, validation.shifted(deployed))
        else:
            high = share
        if found and found.share == 1:
            break
        share = ((found.share if found else 0.0) + high) / 2
    if found is None:
        model, deployed = at(0.0)
        found = Averaged(model, 0.0, *validation.measure(deployed))
    trainable.load_state_dict(between(start, end, found.share))
    return replace(found, tried=tuple(tried))


def cross_fitted_scores(
    averaged: Averaged,
    before: torch.Tensor,
    validation: Validation,
    *,
    budget: float,
    folds: Sequence[tuple[Rows, Rows]],
) -> torch.Tensor:
    """Scores on each clean image of the state that other images would have kept of those that were tried `(n,)`.

    Args:
        averaged: what all images kept.
        before: scores on clean images of the start, from which the budget counts, and which is kept where all that
            was tried costs more `(n,)`.
        validation: images to choose and to judge by.
        budget: points that clean images may lose.
        folds: rows that choose and rows that judge, which are together all.
    """
    scores = torch.zeros(len(before), dtype=torch.float64)
    for others, own in folds:
        choosing, rows = validation.of_rows(others), others[0]
        least = choosing.least_clean(choosing.clean_value(before[rows]), budget)
        keeping = [one for one in averaged.tried if choosing.clean_value(one[1][rows]) >= least]
        _, kept = max(keeping, key=lambda one: one[0], default=(0.0, before))
        scores[own[0]] = kept[own[0]]
    return scores
