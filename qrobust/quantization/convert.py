"""From an observed graph to the fake-quantized model: every layer holds the integers that will be exported."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import fx, nn

from qrobust.device import CPU
from qrobust.errors import InputError, RangeError
from qrobust.quantization.integer_layers import (
    ActivationQuantizer,
    IntegerConv2d,
    IntegerLinear,
    representable,
    zero_padding,
)
from qrobust.quantization.observers import RANGES, Observer, quantization_parameters
from qrobust.quantization.recipe import Bits, Recipe
from qrobust.quantization.rewrites.constants import constants, switched_off
from qrobust.quantization.rewrites.fx_utils import public_name, remove_call, set_module
from qrobust.quantization.target import Target
from qrobust.quantization.tracing import (
    CLAMPS,
    LAYERS,
    calls,
    described,
)

# Clipping of narrow weights: shares of the largest weight that are tried.
CLIPS = torch.linspace(0.3, 1.0, 71)
SMALLEST_SCALE = 1e-20
WIDE = 1e30


def convert(prepared: fx.GraphModule, target: Target, recipe: Recipe, bits: Bits) -> fx.GraphModule:
    """Turn an observed graph into the fake-quantized model.

    Args:
        prepared: with an `Observer` at every quantized tensor; it is not changed.
        target: integer ranges.
        recipe: gives the rule for ranges.
        bits: of each layer, from `Recipe.for_layers`.

    Raises:
        RangeError: an activation was never observed, is not finite, or is constant though weights do not switch it
            off; the message names its node and the nearest layer.
    """

    fixed = {node.name for node in constants(prepared)}
    off = {node.name for node in switched_off(prepared, (Observer,))}

    def parameters(observer: Observer, source: fx.Node, low: int, high: int) -> tuple[float, int]:
        seen = (observer.low, observer.high)
        if seen[0] == seen[1] and source.name in fixed and observer.finite:
            # Such as a temperature or a mask of ones: a grid of zero and the value holds it exactly.
            return quantization_parameters(*seen, low, high) if seen[0] else (1.0, low)
        if seen == (0, 0) and source.name in off:
            return 1.0, low
        where = described(prepared, source)
        if not observer.seen or not observer.finite or seen[0] == seen[1]:
            what = "NaN or infinite" if not observer.finite else "constant" if observer.seen else "never observed"
            raise RangeError(
                f"calibration: activation {where} is {what} (observed {list(seen)}); check the weights and the "
                f"calibration images"
            )
        scale, zero_point = quantization_parameters(*RANGES[recipe.ranges](observer, low, high), low, high)
        if scale < SMALLEST_SCALE:
            raise RangeError(f"calibration: activation {where} has no usable range (observed {list(seen)})")
        return scale, zero_point

    return _frozen(prepared, target, bits, parameters)


def skeleton(prepared: fx.GraphModule, target: Target, bits: Bits) -> fx.GraphModule:
    """A fake-quantized model of the right shape whose integers are still to be loaded."""
    return _frozen(prepared, target, bits, lambda *_: (1.0 / 255, 0))


def _frozen(
    prepared: fx.GraphModule,
    target: Target,
    bits: Bits,
    parameters: Callable[[Observer, fx.Node, int, int], tuple[float, int]],
) -> fx.GraphModule:
    # On the CPU, so that the same float weights become the same integers on every device.
    fake_quantized = copy.deepcopy(prepared).to(CPU)
    widths = _activation_bits(fake_quantized, bits)
    made: dict[int, ActivationQuantizer] = {}
    for node, observer in calls(fake_quantized, Observer):
        assert isinstance(observer, Observer)
        if id(observer) not in made:
            low, high = target.activations(widths[id(observer)])
            found = parameters(observer, node.all_input_nodes[0], low, high)
            made[id(observer)] = ActivationQuantizer(*found, low, high)
        set_module(fake_quantized, str(node.target), made[id(observer)])
    modules = dict(fake_quantized.named_modules(remove_duplicate=False))
    for node, layer in calls(fake_quantized, LAYERS):
        source = node.args[0]
        quantizer = modules.get(str(source.target)) if isinstance(source, fx.Node) else None
        chosen = bits[public_name(str(node.target))]
        if isinstance(quantizer, ActivationQuantizer) and chosen is not None:
            set_module(fake_quantized, str(node.target), _integer_layer(layer, quantizer, target.weights(chosen[0])))
        elif isinstance(quantizer, ActivationQuantizer):
            _keep_float(fake_quantized, node)
    _drop_redundant_clamps(fake_quantized)
    fake_quantized.graph.lint()
    fake_quantized.recompile()
    fake_quantized.delete_all_unused_submodules()
    return fake_quantized.eval().requires_grad_(False)


def _keep_float(graph: fx.GraphModule, node: fx.Node) -> None:
    """Put a clamp that clamps nothing in front of a layer that is to stay in float.

    onnxruntime quantizes the float weights of a layer that stands directly between quantized tensors by itself, to
    a grid of its own.
    """
    name = f"{node.name}_in_float"
    graph.add_submodule(name, nn.Hardtanh(-WIDE, WIDE))
    with graph.graph.inserting_before(node):
        node.update_arg(0, graph.graph.call_module(name, (node.args[0],)))


def _activation_bits(graph: fx.GraphModule, bits: Bits) -> dict[int, int]:
    """Bits of each observer's tensor: the most that a layer reading it asks for, 8 if only others read it."""
    asked: dict[int, set[int]] = {}
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node, observer in calls(graph, Observer):
        readers = asked.setdefault(id(observer), set())
        for user in node.users:
            layer = modules.get(str(user.target)) if user.op == "call_module" else None
            chosen = bits[public_name(str(user.target))] if isinstance(layer, LAYERS) else None
            if chosen is not None:
                readers.add(chosen[1])
    return {key: max(readers, default=8) for key, readers in asked.items()}


def weight_scale(weight: torch.Tensor, limit: int) -> torch.Tensor:
    """Scale per output channel `(out,)` of a symmetric grid of integers in [-limit, limit].

    From 7 bits on it spans the largest weight; below, clipping pays, and the scale is the one of least
    squared error.
    """
    largest = weight.flatten(1).abs().amax(1).clamp(min=1e-12)
    if limit >= 63:
        return largest / limit
    flat = weight.flatten(1)
    errors = []
    for share in CLIPS.tolist():
        scale = (largest * share / limit)[:, None]
        errors.append((((flat / scale).round().clamp(-limit, limit)) * scale - flat).square().sum(1))
    return largest * CLIPS[torch.stack(errors).argmin(0)] / limit


def _integer_layer(
    layer: nn.Module, source: ActivationQuantizer, weight_range: tuple[int, int]
) -> IntegerConv2d | IntegerLinear:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach()
    return integer_layer(layer, weight, weight_scale(weight, weight_range[1]), weight_range, source)


def integer_layer(
    layer: nn.Conv2d | nn.Linear,
    weight: torch.Tensor,
    scale: torch.Tensor,
    weight_range: tuple[int, int],
    source: ActivationQuantizer,
) -> IntegerConv2d | IntegerLinear:
    """An integer layer with the geometry and bias of `layer`.

    Args:
        layer: where stride, padding and bias come from.
        weight: float, of the layer's shape.
        scale: per output channel `(out,)`.
        weight_range: smallest and largest integer.
        source: the quantizer of its input.

    Raises:
        InputError: the layer's padding has no integer kernel.
    """
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
    scale = representable(scale, bias, source.scale)
    integers = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(*weight_range).to(torch.int8)
    integers = integers.contiguous()
    if isinstance(layer, nn.Linear):
        return IntegerLinear(integers, scale, bias, source.scale, weight_range[1])
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise InputError(
            f"model: a convolution with padding {layer.padding!r} ({layer.padding_mode}) has no integer "
            f"kernel; give numeric zero padding"
        )
    return IntegerConv2d(
        integers,
        scale,
        bias,
        source.scale,
        weight_range[1],
        stride=layer.stride,
        padding=zero_padding(layer),
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _drop_redundant_clamps(graph: fx.GraphModule) -> None:
    """A clamp whose result is only ever quantized to a range inside its own, to half a step, says nothing new."""
    half = 0.5 + 1e-3  # of a step, and float rounding
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node, clamp in calls(graph, CLAMPS):
        low, high = (clamp.min_val, clamp.max_val) if isinstance(clamp, nn.Hardtanh) else (0.0, float("inf"))
        quantizers = [modules.get(str(u.target)) if u.op == "call_module" else None for u in node.users]
        inside = all(
            isinstance(q, ActivationQuantizer)
            and q.bounds()[0] >= low - half * float(q.scale)
            and q.bounds()[1] <= high + half * float(q.scale)
            for q in quantizers
        )
        if quantizers and inside:
            remove_call(graph, node)
