"""Post-training quantization: observe, freeze, and rebuild a frozen twin from its saved state."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import fx, nn

from qrobust.errors import InputError
from qrobust.quantization.backend import freeze, prepare
from qrobust.quantization.target import Target


def quantize(
    model: nn.Module,
    target: Target,
    calibration_images: Iterable[torch.Tensor],
    *,
    observer: str = "histogram",
    leaves: tuple[type[nn.Module], ...] = (),
) -> fx.GraphModule:
    """Turn a float network into its fake-quantized twin.

    Args:
        model: in eval mode; it is not changed.
        target: integer types and ranges.
        calibration_images: batches `(N, 3, S, S)` in [0, 1] on which ranges are observed.
        observer: `histogram` (least squared error) or `moving-average`.
        leaves: module classes that stay in float.

    Raises:
        InputError: the model cannot be traced, or an activation has no finite range.
    """
    prepared = None
    for images in calibration_images:
        if prepared is None:
            prepared = prepare(model, target, images[:1], observer=observer, leaves=leaves)
        observe(prepared, images)
    if prepared is None:
        raise InputError("calibration_images: expected at least one batch, got none")
    return freeze(prepared)


def observe(prepared: fx.GraphModule, images: torch.Tensor) -> None:
    """Let a prepared graph see a batch `(N, 3, S, S)`.

    Raises:
        InputError: an activation is NaN or infinite; the message names its node.
    """
    failure = None
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # observers warn of infinities, which are an error here
        try:
            if torch.isfinite(prepared(images)).all():
                return
        except RuntimeError as error:  # a histogram of NaN
            failure = error
        node = _first_non_finite(prepared, images)
    if node is None:
        raise failure or InputError("calibration: the output is not finite")
    raise InputError(
        f"calibration: activation {node!r} holds NaN or infinity; check the weights and the images"
    ) from failure


def _first_non_finite(prepared: fx.GraphModule, images: torch.Tensor) -> str | None:
    """The first node whose output is not finite."""
    interpreter = fx.Interpreter(prepared)
    interpreter.env = {}
    interpreter.args_iter = iter([images])
    for node in prepared.graph.nodes:
        try:
            value = interpreter.env[node] = interpreter.run_node(node)
        except RuntimeError:
            return str(node.args[0])
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            return str(node.name)
    return None


def restore(
    model: nn.Module,
    target: Target,
    image_size: int,
    state: dict[str, torch.Tensor],
    *,
    leaves: tuple[type[nn.Module], ...] = (),
) -> fx.GraphModule:
    """Rebuild a twin from the float model and the state dict of the twin."""
    gray = torch.full((1, 3, image_size, image_size), 0.5)
    twin = quantize(model, target, [gray], observer="moving-average", leaves=leaves)
    twin.load_state_dict(state)
    return twin
