"""A classifier maps images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; normalisation lives inside.

C is 3 (red, green, blue) or 1 (luma), as the network was made for.

The float model, its fake-quantized model, the compensated classifier and the ONNX Runtime classifier all have this
shape, so whatever measures one measures all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from qrobust.errors import InputError

Classifier = Callable[[torch.Tensor], torch.Tensor]


class Normalization(nn.Module):
    """`(images - mean) / std` per channel; images in [0, 1].

    Args:
        mean: C numbers, in units of the [0, 1] scale.
        std: C positive numbers, same unit.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class NormalizedModel(nn.Module):
    """A network that expects normalised pixels, made a classifier of images in [0, 1]."""

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        self.network = network

    @property
    def channels(self) -> int:
        """C of its images."""
        return self.normalization.mean.shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalization(images))


class Compensated(nn.Module):
    """A calibrator in front of a frozen classifier: images to logits."""

    def __init__(self, calibrator: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.calibrator = calibrator
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.calibrator(images))


def count_macs(module: nn.Module, image_size: int, channels: int = 3) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one `(1, C, S, S)` image."""
    total = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = layer.weight_int if hasattr(layer, "weight_int") else layer.weight
        assert isinstance(weight, torch.Tensor)
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total += weight.numel() * positions

    handles = [
        layer.register_forward_hook(add)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) or hasattr(layer, "weight_int")
    ]
    try:
        with torch.inference_mode():
            module(torch.full((1, channels, image_size, image_size), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    return total


def input_gradient(
    classifier: Classifier, images: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the summed loss with respect to the images.

    Args:
        classifier: images to logits, differentiable.
        images: `(N, C, H, W)` in [0, 1].
        loss: logits `(N, K)` to one loss per image `(N,)`.

    Returns:
        The gradient, shaped like the images, and the loss of each image.

    Raises:
        InputError: the classifier has no gradient, as an ONNX Runtime classifier has none.
    """
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        losses = loss(classifier(images))
        if not losses.requires_grad:
            raise InputError(
                "classifier: expected a differentiable one; an ONNX graph or a converted model has no gradient"
            )
        (gradient,) = torch.autograd.grad(losses.sum(), images)
    return gradient, losses.detach()


def state_hash(module: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, with its name: equal hashes mean an untouched module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_quantized(model: nn.Module) -> None:
    """Only float networks are quantized.

    Raises:
        InputError: a module is an integer layer, ours or torch.ao's, or prepared to become one.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if getattr(module, "holds_integers", False) or kind.__module__.startswith(("torch.ao.", "torchao.")):
            raise InputError(
                f"model: expected a float network, got one quantized already ({name!r}: {kind.__name__})"
            )


NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def parse_normalization(text: str, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations per channel.

    Args:
        text: `none`; a key of `NORMALIZATIONS`, which are of three channels; or `m,m,m/s,s,s`, of one `m/s`.
        channels: how many the network reads.

    Raises:
        InputError: none of these, or for another number of channels.
    """
    if text == "none":
        return (0.0,) * channels, (1.0,) * channels
    try:
        mean, std = NORMALIZATIONS.get(text) or (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not (len(mean) == len(std) == channels and all(map(math.isfinite, mean + std)) and min(std) > 0):
        presets = [name for name, (known, _) in NORMALIZATIONS.items() if len(known) == channels]
        form = "/".join(",".join(letter * channels) for letter in "ms")
        raise InputError(
            f"normalization: expected {', '.join([*presets, 'none'])} or {form!r} with positive s for images of "
            f"{channels} channel{'s' * (channels > 1)}, got {text!r}"
        )
    return mean, std
