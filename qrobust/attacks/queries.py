"""How attacks ask a classifier: in batches of bounded size, checking what comes back."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qrobust.attacks.losses import Loss, margin
from qrobust.classifier import Classifier, input_gradient
from qrobust.errors import InputError

BATCH = 128


def check(images: torch.Tensor, labels: torch.Tensor, **counts: int) -> None:
    """Refuse what no attack can work on.

    Args:
        images: `(N, C, H, W)` float32 in [0, 1].
        labels: `(N,)` int64.
        counts: named numbers that must be at least 1.

    Raises:
        InputError: shape, range or a count is wrong.
    """
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: expected at least 1, got {count}")
    if images.ndim != 4 or images.dtype != torch.float32:
        raise InputError(f"images: expected float32 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # written so that NaN is refused too
        raise InputError(f"images: expected values in [0, 1], got {float(images.min())} to {float(images.max())}")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(f"labels: expected {len(images)} integers, got {labels.dtype} {tuple(labels.shape)}")


def parts(n: int, batch_size: int) -> Iterator[slice]:
    """Slices that cover `n` items."""
    return (slice(start, start + batch_size) for start in range(0, n, batch_size))


def margins(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, batch_size: int = BATCH
) -> torch.Tensor:
    """The margin of each image `(N,)`, without gradient; any classifier, one on ONNX Runtime too.

    Raises:
        InputError: the logits are not finite `(N, K)`, or a label is not below K.
    """
    return _ask(classifier, images, labels, batch_size, margin)


def is_right(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, batch_size: int = BATCH
) -> torch.Tensor:
    """Whether each image `(N,)` is classified as its label. A tie goes to the lower class, as argmax has it.

    Raises as `margins`.
    """
    return _ask(classifier, images, labels, batch_size, lambda logits, label: logits.argmax(1) == label).bool()


def _ask(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, batch_size: int, summary: Loss
) -> torch.Tensor:
    found = [images.new_zeros(0)]
    for part in parts(len(images), batch_size):
        with torch.no_grad():
            logits = classifier(images[part])
        _check_logits(logits, labels[part])
        found.append(summary(logits, labels[part]))
    return torch.cat(found)


def gradients(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of the loss at each image, the losses `(N,)` and the margins `(N,)`, from one pass.

    Raises:
        InputError: no gradient reaches the images, or the logits are wrong.
    """
    seen = []

    def objective(logits: torch.Tensor) -> torch.Tensor:
        _check_logits(logits, labels)
        seen.append(margin(logits.detach(), labels))
        return loss(logits, labels)

    gradient, losses = input_gradient(classifier, images, objective)
    return gradient, losses, seen[0]


def _check_logits(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2 or not torch.isfinite(logits).all():
        raise InputError(f"classifier: expected finite logits ({len(labels)}, K > 1), got {tuple(logits.shape)}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise InputError(
            f"labels: expected 0 to {logits.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
