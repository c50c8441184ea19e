"""What inside a network tells what its images should have looked like: its features, and its trained statistics."""

from __future__ import annotations

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.quantization.integer_layers import IntegerLinear


def logits_and_features(model: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A classifier's logits `(N, K)` and its features `(N, F)`: what the linear layer that ran last has read.

    Args:
        model: images to logits, float or quantized.
        images: `(N, C, S, S)` in [0, 1]; differentiable.

    Returns:
        The features are None for a model without linear layers.
    """
    read: list[torch.Tensor] = []
    layers = model.modules() if isinstance(model, nn.Module) else ()
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for layer in layers
        if isinstance(layer, nn.Linear | IntegerLinear)
    ]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, read[-1].flatten(1) if read else None


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a model that keep statistics."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]


def statistics_distance(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """How far images are from what each batch norm saw in training: means and deviations per channel.

    Squared differences of the means in units of the trained deviation, and of the deviations' ratio from 1, averaged
    over channels and layers: 0 where a batch looks like the training images. The prior of Yin et al., "Dreaming to
    Distill" (arXiv 1912.08795), on the images that a calibrator makes instead of synthesised ones.

    Args:
        model: float, in eval mode, with batch norms (see `norms`).
        images: `(N, C, S, S)` in [0, 1]; differentiable.
    """
    distances: list[torch.Tensor] = []

    def compare(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        var, mean = torch.var_mean(inputs[0].float(), (0, 2, 3))
        scale = (norm.running_var + norm.eps).sqrt()
        ratio = (var + norm.eps).sqrt() / scale
        distances.append((((mean - norm.running_mean) / scale).square() + (ratio - 1).square()).mean())

    handles = [norm.register_forward_pre_hook(compare) for norm in norms(model)]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(distances).mean()
