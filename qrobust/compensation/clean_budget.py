"""What a remedy that trains the classifier may cost on clean images: part of the way from the start to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Validation

# How often the way between the start, which costs nothing, and what costs too much is halved.
HALVINGS = 3


@dataclass(frozen=True)
class Averaged:
    """A model on the way from the start of a training to its end.

    Attributes:
        model: frozen to its integers.
        share: of the way, from 0 (the start) to 1.
        clean_accuracy, shift_accuracy: on validation images, as deployed.
    """

    model: fx.GraphModule
    share: float
    clean_accuracy: float
    shift_accuracy: float


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

    share, high, found = 1.0, 1.0, None
    for _ in range(HALVINGS + 1):
        model, deployed = at(share)
        clean = validation.clean(deployed)
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
    return found
