"""A signal from images without labels and without a clean twin: the statistics that a trained network expects."""

from __future__ import annotations

import torch
from torch import nn


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
        images: `(N, 3, S, S)` in [0, 1]; differentiable.
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
