"""A classifier maps images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; normalisation lives inside.

C is 3 (red, green, blue) or 1 (luma), as the network was made for.

The float model, its fake-quantized model, the compensated classifier and the ONNX Runtime classifier all have this
shape, so whatever measures one measures all.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from qrobust.device import ask, on_cpu
from qrobust.errors import InputError

Classifier = Callable[[torch.Tensor], torch.Tensor]


class Normalization(nn.Module):
    """`(images - mean) / std` per channel; images in [0, 1].

    Args:
        mean: C numbers, in units of the [0, 1] scale, in the order of the network's channels.
        std: C positive numbers, likewise.
        order: `rgb`, or `bgr` for a network that reads the channels of RGB images the other way round.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], order: str = "rgb") -> None:
        super().__init__()
        self.reverse = order == "bgr"
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.flip(1) if self.reverse else images) - self.mean) / self.std


class NormalizedModel(nn.Module):
    """A network that expects normalised pixels, made a classifier of images in [0, 1].

    Args:
        network: normalised pixels to logits, or to what holds them.
        normalization: of the pixels.
        logits: from what the network returns to logits; None where it returns them.
    """

    def __init__(self, network: nn.Module, normalization: Normalization, logits: nn.Module | None = None) -> None:
        super().__init__()
        self.normalization = normalization
        self.network = network
        self.logits = logits

    @property
    def channels(self) -> int:
        """C of its images."""
        return self.normalization.mean.shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(self.normalization(images))
        return found if self.logits is None else self.logits(found)


class Compensated(nn.Module):
    """A calibrator in front of a frozen classifier: images to logits."""

    def __init__(self, calibrator: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.calibrator = calibrator
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.calibrator(images))


class Signalling(nn.Module):
    """A calibrator in front of a classifier that tells how far its gate is open: images to logits and `(N, 1)`.

    A device that logs the second output sees that its surroundings have changed.

    Args:
        compensated: whose calibrator is a graph that ends in its `correction`, the gate's logit being its last input.
    """

    def __init__(self, compensated: Compensated) -> None:
        super().__init__()
        assert isinstance(compensated.calibrator, fx.GraphModule)
        self.calibrator, self.classifier = copy.deepcopy(compensated.calibrator), compensated.classifier
        graph = self.calibrator.graph
        correction = next(node for node in graph.nodes if node.target == "correction")
        end = next(node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(end):
            gate = graph.call_function(torch.sigmoid, (correction.args[-1],))
        end.args = ((end.args[0], gate),)
        self.calibrator.recompile()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calibrated, gate = self.calibrator(images)
        return self.classifier(calibrated), gate


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
            ask(module, torch.full((1, channels, image_size, image_size), 0.5))
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
        digest.update(on_cpu(value).contiguous().flatten().view(torch.uint8).numpy().tobytes())
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
