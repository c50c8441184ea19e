"""What costs nothing or little, and must be beaten: batch-norm re-estimation, preprocessing, anti-adversary."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.classifier import Classifier, input_gradient
from qrobust.device import CPU_ONLY, Device, device_of
from qrobust.errors import InputError

SMALLEST_SPAN = 1 / 255


def estimated_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a model, of any dimension, that keep statistics.

    Raises:
        InputError: it has none.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise InputError("model: expected batch norms to re-estimate, found none")
    return norms


def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[torch.Tensor], *, device: Device = CPU_ONLY
) -> nn.Module:
    """A copy of a float classifier whose batch norms have the statistics of other images.

    Known to win much under one shift, and to lose under many at once and on clean images: Schneider et al.,
    "Improving robustness against common corruptions by covariate shift adaptation", arXiv 2006.16971.

    Args:
        model: in eval mode, batch norms not yet folded; it is not changed.
        batches: images `(N, C, S, S)` in [0, 1]; every batch weighs the same.
        device: to work on.

    Returns:
        The copy, in eval mode; weights are untouched.

    Raises:
        InputError: the model has no batch norm that keeps statistics, or there are no images.
    """
    model = copy.deepcopy(model)
    for norm in estimated_norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    seen = 0
    with torch.no_grad(), device.holding(model):
        for images in batches:
            model(images.contiguous(memory_format=torch.channels_last).to(device_of(model)))
            seen += len(images)
    if not seen:
        raise InputError("batches: expected images, got none")
    return model.eval()


class AdaptedNorm(nn.Module):
    """A batch norm that mixes the statistics of the batch at hand, of n images, into those it has estimated.

    Args:
        norm: with estimated statistics; it is not changed.
        prior: how many images those count for, N of the paper, at least 0: the batch weighs `n / (N + n)`.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, prior: float) -> None:
        super().__init__()
        self.norm, self.prior = norm, prior

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, share = self.norm, len(x) / (self.prior + len(x))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        mean = torch.lerp(norm.running_mean, mean, share)
        var = torch.lerp(norm.running_var, var, share)
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)


def adapt_batch_norm(model: nn.Module, prior: float = 16) -> nn.Module:
    """A copy of a float classifier that adapts its batch norms to every batch that it is given.

    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation",
    arXiv 2006.16971, with its prior N. What an image is taken for depends on its batch, and statistics that change
    cannot be folded into integers: it exists in torch only.

    Args:
        model: in eval mode, batch norms not yet folded; it is not changed.
        prior: images that the estimated statistics count for, at least 0.

    Raises:
        InputError: the model has no batch norm that keeps statistics, or a negative prior.
    """
    if prior < 0:
        raise InputError(f"prior: expected at least 0 images, got {prior:g}")
    model = copy.deepcopy(model)
    norms = set(estimated_norms(model))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in norms and isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, AdaptedNorm(child, prior))
    return model


class AutoContrast(nn.Module):
    """Stretch each channel of each image to [0, 1]: `(N, C, S, S)` to the same; flat channels stay as they are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        stretched = (images - low) / (high - low).clamp(min=SMALLEST_SPAN)
        return torch.where(high - low < SMALLEST_SPAN, images, stretched)


class Denoise(nn.Module):
    """Mean over 3x3 pixels, at the border over those that are there: `(N, C, S, S)` to the same."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


class AntiAdversary:
    """A classifier that first moves each image towards what it already predicts.

    Alfarra et al., "Combating Adversaries with Anti-Adversaries", arXiv 2103.14347: signed gradient steps on the
    cross-entropy to the classifier's own first prediction. It needs gradients at inference, so it exists in
    torch only, at `2 steps + 1` times the classifier's cost.

    Args:
        classifier: images in [0, 1] to logits, differentiable.
        steps: gradient steps; 2 in the paper.
        step_size: of the [0, 1] scale; 0.15 in the paper.

    Raises:
        InputError: no step, or a step size outside (0, 1].
    """

    def __init__(self, classifier: Classifier, steps: int = 2, step_size: float = 0.15) -> None:
        if steps < 1 or not 0 < step_size <= 1:
            raise InputError(f"anti-adversary: expected steps >= 1 and step_size in (0, 1], got {steps}, {step_size}")
        self.classifier, self.steps, self.step_size = classifier, steps, step_size

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            predicted = self.classifier(images).argmax(1)
        moved = images
        for _ in range(self.steps):
            gradient, _ = input_gradient(
                self.classifier, moved, lambda logits: F.cross_entropy(logits, predicted, reduction="none")
            )
            moved = (moved - self.step_size * gradient.sign()).clamp(0, 1)
        with torch.no_grad():
            return self.classifier(moved)
