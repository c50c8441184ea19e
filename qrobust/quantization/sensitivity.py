"""Which layer costs what: signal-to-noise ratios of every layer, and what each alone does to the output."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.data.splits import Split
from qrobust.device import CPU_ONLY, Device, ask
from qrobust.quantization.layerwise import INTEGER_LAYERS, execute_layerwise
from qrobust.quantization.recipe import layer_of
from qrobust.quantization.rewrites.fx_utils import public_name, set_module
from qrobust.quantization.tracing import calls
from qrobust.record import Fidelity, LayerEffect, LayerNoise
from qrobust.shifts.filters import to_unit

BATCH = 50
MOST_DB = 200.0


def sqnr_db(signal: torch.Tensor, noisy: torch.Tensor) -> float:
    """`10 log10(|signal|^2 / |signal - noisy|^2)`, at most 200: that is equality, to any purpose."""
    noise = float((signal.double() - noisy.double()).square().sum())
    power = float(signal.double().square().sum())
    return 10 * math.log10(power / noise) if power and noise > power * 1e-20 else MOST_DB * (power > 0)


def layer_noise(prepared: fx.GraphModule, fake_quantized: fx.GraphModule, images: torch.Tensor) -> list[LayerNoise]:
    """Signal-to-noise ratios of every integer layer, in order of execution.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from.
        fake_quantized: frozen.
        images: one batch `(N, C, S, S)` in [0, 1].
    """
    return [
        LayerNoise(
            v.name,
            v.layer.qmax.bit_length() + 1,
            sqnr_db(v.float_layer.weight, v.layer.weight()),
            sqnr_db(v.float_input, v.quantizer(v.float_input)),
            sqnr_db(v.float_output(), v.output()),
        )
        for v in execute_layerwise(prepared, fake_quantized, images)
    ]


@torch.no_grad()
def divergence(float_logits: torch.Tensor, logits: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """Mean KL divergence, in nats, of the probabilities of `logits` from those of `float_logits`.

    Args:
        float_logits: `(N, K)`.
        logits: `(N, K)`.
        weights: of the images `(N,)`, which sum to 1. Default: all alike.
    """
    if weights is not None:
        pairs = logits.log_softmax(1), float_logits.log_softmax(1)
        each = F.kl_div(*pairs, reduction="none", log_target=True).sum(1)
        return float(weights.to(each) @ each)
    return float(F.kl_div(logits.log_softmax(1), float_logits.log_softmax(1), reduction="batchmean", log_target=True))


@torch.no_grad()
def logits_on(model: nn.Module, split: Split) -> torch.Tensor:
    """Logits `(N, K)` of a classifier, wherever it is, on a split's images."""
    return torch.cat([ask(model, to_unit(images)) for images, _ in split.batches(BATCH)])


def fidelity(
    reference: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> Fidelity:
    """Compare logits `(N, K)` of a fake-quantized model with the float network's `reference`; labels `(N,)`.

    The divergence is that of `divergence` with these weights; agreement and accuracy are shares of the images.
    """
    predicted = logits.argmax(1)
    same, right = (float((predicted == wanted).float().mean()) for wanted in (reference.argmax(1), labels))
    return Fidelity(len(labels), divergence(reference, logits, weights), same, right)


def layer_effects(
    prepared: fx.GraphModule,
    fake_quantized: fx.GraphModule,
    validation: Split,
    progress: Callable[[str], None] = lambda _: None,
    *,
    device: Device = CPU_ONLY,
) -> list[LayerEffect]:
    """What each integer layer alone costs, in order of execution.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from; it is left as it was.
        fake_quantized: frozen.
        validation: images to measure on; the work is one pass over them per layer.
        progress: called with each layer's name once it is measured.
        device: to work on.
    """
    with device.holding(prepared, fake_quantized):
        return _layer_effects(prepared, fake_quantized, validation, progress)


def _layer_effects(
    prepared: fx.GraphModule, fake_quantized: fx.GraphModule, validation: Split, progress: Callable[[str], None]
) -> list[LayerEffect]:
    quantized = {str(node.target): (node, layer) for node, layer in calls(fake_quantized, INTEGER_LAYERS)}
    quantizers = dict(fake_quantized.named_modules(remove_duplicate=False))
    reference = logits_on(prepared, validation)
    right = float((reference.argmax(1) == validation.labels).float().mean())
    effects = []
    for target, (node, layer) in quantized.items():
        source = node.args[0]
        assert isinstance(source, fx.Node)
        original = prepared.get_submodule(target)
        set_module(prepared, target, nn.Sequential(quantizers[str(source.target)], layer))
        try:
            logits = logits_on(prepared, validation)
        finally:
            set_module(prepared, target, original)
        accuracy = float((logits.argmax(1) == validation.labels).float().mean())
        name = public_name(target)
        effects.append(LayerEffect(name, len(validation), right - accuracy, divergence(reference, logits)))
        progress(name)
    return effects


def worst_layers(effects: list[LayerEffect], count: int) -> tuple[str, ...]:
    """Names of the layers whose quantization alone moves the output most."""
    ranked = sorted(effects, key=lambda e: e.divergence, reverse=True)
    return tuple(dict.fromkeys(layer_of(e.name) for e in ranked))[:count]
