"""What an attack raises: logits `(N, K)` and labels `(N,)` to one number per image `(N,)`, higher is worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Minus the logarithm of the label's softmax; its gradient vanishes where the model is very sure."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The highest other logit minus the label's: above zero exactly where the image is misclassified."""
    label = labels.view(-1, 1)
    others = logits.scatter(1, label, -torch.inf)
    return others.amax(1) - logits.gather(1, label).squeeze(1)


def dlr(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio of Croce and Hein, arXiv 2003.01690: the margin over (first - third logit).

    Neither adding to the logits nor scaling them changes it. Two classes have no third logit: there the
    margin itself is returned, whose gradient has the direction that a positive divisor would leave.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)
