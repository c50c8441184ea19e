"""Rules for files that are quantized: integers in a file become the same integers in torch, as float numbers.

QuantizeLinear rounds to integers, DequantizeLinear makes numbers of them, and the operators between compute in float
what integer kernels compute; operators on integers (QLinearConv, ...) are read as these three. Gradients go straight
through the rounding (Bengio et al., arXiv 1308.3432), where nothing saturated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from qrobust.models.onnx_import import elementwise, layers
from qrobust.models.onnx_import.site import Site
from qrobust.models.onnx_import.values import MOVES, Grid, Layer, Place, UnsupportedError, Value, constant

# Integers that are read, and those that a QuantizeLinear may make.
KINDS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32)
ROUNDED = KINDS[:4]
# What leaves every number as it is.
MOVING = (*MOVES, torch.flatten, torch.reshape)
LARGEST_BIAS = 2.0**31 - 128  # the largest float32 below 2**31


class _Round(torch.autograd.Function):
    """`factor * clamp(round(x / scale), low, high)`; going back, the gradient of `factor / scale * x` inside."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        scale: float,
        low: float,
        high: float,
        factor: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.about = scale * (low - 0.5), scale * (high + 0.5), factor / scale  # type: ignore[attr-defined]  # torch types ctx without it
        return torch.div(x, scale).round_().clamp_(low, high).mul_(factor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> tuple:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types ctx without it
        low, high, slope = ctx.about  # type: ignore[attr-defined]  # set in forward
        inside = torch.ops.aten.hardtanh_backward(grads[0], x, low, high)
        return inside if slope == 1 else inside * slope, None, None, None, None


class Quantize(nn.Module):
    """Any tensor to integers `round(x / scale) + zero_point` in [low, high], as float."""

    def __init__(self, scale: float, zero_point: int, low: int, high: int, place: Place | None = None) -> None:
        super().__init__()
        self.scale, self.zero_point, self.low, self.high = scale, zero_point, low, high
        self.places = () if place is None else (place,)  # where the file says the scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.levels(x, 1.0) + self.zero_point

    def levels(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        """Integers without the zero point, times a factor."""
        found: torch.Tensor = _Round.apply(
            x, self.scale, self.low - self.zero_point, self.high - self.zero_point, factor
        )
        return found


class Dequantize(nn.Module):
    """Integers as float to the numbers that they stand for, `scale * (q - zero_point)`."""

    def __init__(self, scale: float, zero_point: int, place: Place | None = None) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self.places = () if place is None else (place,)  # where the file says the scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.zero_point) * self.scale


class FakeQuantize(nn.Module):
    """`Quantize` and `Dequantize` of one grid in one step."""

    def __init__(self, quantize: Quantize, dequantize: Dequantize) -> None:
        super().__init__()
        self.quantize = quantize
        self.places = (*quantize.places, *dequantize.places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantize.levels(x, self.quantize.scale)


def _zero_point(site: Site, place: int, like: torch.Tensor) -> torch.Tensor:
    """A zero point of the scale's shape; 0 where it is left out."""
    if not site.has(place):
        return torch.zeros_like(like, dtype=torch.uint8)
    found = site.tensor(place, "a zero point")
    if found.dtype not in KINDS:
        raise UnsupportedError(f"with integers of type {str(found.dtype).removeprefix('torch.')}")
    return found.expand(like.shape) if found.numel() == 1 else found.reshape(like.shape)


def _along(numbers: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """One number per channel where it meets the numbers of a tensor."""
    if numbers.numel() == 1:
        return numbers.reshape(())
    shape = [1] * rank
    shape[axis % rank] = numbers.numel()
    return numbers.reshape(shape)


def _level(zero: torch.Tensor) -> int:
    """Of what the image changes, one zero point for all channels."""
    if bool((zero != zero.flatten()[0]).any()):
        raise UnsupportedError("of what the image changes, with a zero point per channel,")
    return int(zero.flatten()[0])


def _scale(site: Site, index: int) -> Grid:
    """Scales as they are stored."""
    found = site.tensor(index, "a scale").float()
    if not bool((torch.isfinite(found) & (found > 0)).all()):
        raise UnsupportedError("with a scale that is no positive number")
    return Grid(found, site.place(index))


def _quantized(site: Site, x: Value, stored: Grid, zero: torch.Tensor, axis: int) -> Value:
    scale, place = stored.numbers, stored.place
    if zero.dtype not in ROUNDED:
        raise UnsupportedError(f"to integers of type {str(zero.dtype).removeprefix('torch.')}")
    limits = torch.iinfo(zero.dtype)
    if x.node is not None:
        if scale.numel() > 1:
            x = site.builder.apply(torch.div, x, constant(_along(scale, axis, len(x.shape))))
            return site.builder.call(Quantize(1.0, _level(zero), limits.min, limits.max), x)
        return site.builder.call(Quantize(float(scale), _level(zero), limits.min, limits.max, place), x)
    s, z = (_along(numbers.float(), axis, len(x.shape)) for numbers in (scale, zero))
    return site.builder.apply(lambda v: (torch.round(v / s) + z).clamp(limits.min, limits.max), x)


def _dequantized(site: Site, index: int, stored: Grid, zero: torch.Tensor, axis: int) -> Value:
    """The numbers that the integers of an input stand for."""
    x, scale = site.value(index), stored.numbers
    if x.node is not None:
        if scale.numel() == 1:
            return site.builder.call(Dequantize(float(scale), _level(zero), stored.place), x)
        found = site.builder.call(Dequantize(1.0, _level(zero)), x)
        return site.builder.apply(torch.mul, found, constant(_along(scale, axis, len(x.shape))))
    s, z = (_along(numbers.float(), axis, len(x.shape)) for numbers in (scale, zero))
    numbers = site.builder.apply(lambda v: (v.float() - z) * s, x)
    site.builder.grids[numbers] = Grid(s, stored.place, site.place(index))
    return numbers


def _axis(site: Site) -> int:
    if site.integer("block_size", 0):
        raise UnsupportedError("with blocks of scales")
    return site.integer("axis", 1)


def quantize(site: Site) -> Value:
    scale = _scale(site, 1)
    if not site.has(2) and site.integer("output_dtype", 2) not in (0, 2):
        raise UnsupportedError("to integers of a type without a zero point")
    return _quantized(site, site.value(), scale, _zero_point(site, 2, scale.numbers), _axis(site))


def dequantize(site: Site) -> Value:
    scale = _scale(site, 1)
    return _dequantized(site, 0, scale, _zero_point(site, 2, scale.numbers), _axis(site))


def _operand(site: Site, place: int, axis: int = 1) -> Value:
    """The numbers of an input of integers, whose scale and zero point follow it."""
    scale = _scale(site, place + 1)
    return _dequantized(site, place, scale, _zero_point(site, place + 2, scale.numbers), axis)


def _result(site: Site, found: Value, place: int) -> Value:
    """A result as integers, where a scale for it is given."""
    if not site.has(place):
        return found
    scale = _scale(site, place)
    return _quantized(site, found, scale, _zero_point(site, place + 1, scale.numbers), 1)


def _bias(site: Site, place: int) -> list[Value]:
    """An int32 bias, at the scale of the input times that of the weights."""
    if not site.has(place):
        return []
    grid = _scale(site, 1).numbers * _scale(site, 4).numbers
    return [constant(site.tensor(place, "a bias").float() * grid)]


def _noted(
    site: Site, found: Value, weight: Value, activation: Place | None, bias: Place | None, bias_scale: Place | None
) -> Value:
    """Note which stored tensors a layer was read of; returns it.

    Args:
        site: of the operator.
        found: what the layer's rule returned.
        weight: its weights as the file has them.
        activation, bias, bias_scale: see `Layer`.
    """
    node, grid = found.node, site.builder.grids.get(weight)
    layer = site.builder.root.get_submodule(str(node.target)) if node and node.op == "call_module" else None
    if grid is None or not isinstance(layer, nn.Conv2d | nn.Linear):
        return found
    if isinstance(layer, nn.Linear) and not site.integer("transB", 0):  # torch has them as (out, in)
        grid = grid.moved(torch.transpose, 0, 1)
    assert node is not None
    site.builder.layers[str(node.target)] = Layer(grid, activation, bias, bias_scale)
    return found


def _on_integers(site: Site, rule: Callable[[Site], Value], axis: int, bias: int | None) -> Value:
    """A layer whose operator holds input, weights and bias as integers."""
    weight, more = _operand(site, 3, axis), [] if bias is None else _bias(site, bias)
    found = rule(replace(site, inputs=[_operand(site, 0), weight, *more]))
    return _noted(site, found, weight, site.place(1), site.place(bias) if bias and more else None, None)


def convolution(site: Site) -> Value:
    return _result(site, _on_integers(site, layers.convolution, 0, 8), 6)


def matrix_product(site: Site) -> Value:
    return _result(site, _on_integers(site, layers.matrix_product, -1, None), 6)


def general_product(site: Site) -> Value:
    """`QGemm` of onnxruntime."""
    columns = 0 if site.integer("transB", 0) else 1
    return _result(site, _on_integers(site, layers.general_product, columns, 6), 7)


def _of_two(function: Callable[..., torch.Tensor]) -> Callable[[Site], Value]:
    def rule(site: Site) -> Value:
        return _result(site, site.builder.apply(function, _operand(site, 0), _operand(site, 3)), 6)

    return rule


def _of_one(rule: Callable[[Site], Value]) -> Callable[[Site], Value]:
    """A rule for one input, on integers."""

    def on_integers(site: Site) -> Value:
        if site.integer("channels_last", 0):
            raise UnsupportedError("with channels last")
        return _result(site, rule(replace(site, inputs=[_operand(site, 0)])), 3)

    return on_integers


def _with_integers(rule: Callable[[Site], Value]) -> Callable[[Site], Value]:
    """A layer of integers; its bias may be stored in float, and onnxruntime rounds it to the grid of its sums."""

    def noted(site: Site) -> Value:
        weight, before, moved = site.value(1), _before(site, ()), _before(site, MOVING)
        activation = moved.places[0] if moved and moved.places else None
        if not site.has(2):
            return _noted(site, rule(site), weight, activation, None, None)
        bias, grid = site.value(2), site.builder.grids.get(site.value(2))
        if grid is not None:  # of int32
            return _noted(site, rule(site), weight, activation, grid.integers, grid.place)
        found = rule(replace(site, inputs=[*site.inputs[:2], _rounded(site, bias, before)]))
        return _noted(site, found, weight, activation, site.place(2), None)

    return noted


def _before(site: Site, passing: Sequence[object]) -> Dequantize | None:
    """What makes numbers of the integers that an operator is given, if that is what comes before it.

    Args:
        site: of the operator.
        passing: functions that may lie between.
    """
    node = site.value(0).node
    while node and node.op == "call_function" and node.target in passing and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    found = site.builder.root.get_submodule(str(node.target)) if node and node.op == "call_module" else None
    return found if isinstance(found, Dequantize) else None


def _rounded(site: Site, bias: Value, before: Dequantize | None) -> Value:
    """A bias as the kernel has it: on the grid of its sums, where the layer is one of integers."""
    grid = site.builder.grids.get(site.value(1))
    if grid is None or before is None or not bias.is_constant or bias.samples[0].numel() == 0:
        return bias
    steps = (before.scale * grid.numbers).flatten()
    if steps.numel() not in (1, bias.samples[0].numel()):
        return bias
    stored = bias.samples[0].float()
    levels = (stored.flatten() / steps).round().clamp(-LARGEST_BIAS, LARGEST_BIAS)
    return constant((levels * steps).reshape(stored.shape))


def addition(site: Site) -> Value:
    """`Add`, which may be the bias of the matrix product before it."""
    found = elementwise.addition(site)
    name = str(found.node.target) if found.node else ""
    layer = site.builder.layers.get(name)
    if layer is None or layer.bias is not None or all(site.value(i).node is not found.node for i in (0, 1)):
        return found
    index = 0 if site.value(1).node is found.node else 1
    grid = site.builder.grids.get(site.value(index))
    bias = grid.integers if grid else site.place(index)
    site.builder.layers[name] = replace(layer, bias=bias, bias_scale=grid.place if grid else None)
    return found


def concatenation(site: Site) -> Value:
    values = [_operand(site, place) for place in range(2, len(site.inputs), 3)]
    return _result(site, site.builder.apply(torch.cat, values, site.integer("axis", 0)), 0)


def fused(graph: fx.GraphModule) -> None:
    """Rounding to integers and back in one step, wherever nothing lies between."""
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not (isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        first, last = (graph.get_submodule(str(n.target)) for n in (before, node))
        if not (isinstance(first, Quantize) and isinstance(last, Dequantize)):
            continue
        if (first.scale, first.zero_point) == (last.scale, last.zero_point):
            graph.set_submodule(str(node.target), FakeQuantize(first, last))
            node.args = before.args


RULES: dict[str, Callable[[Site], Value]] = {
    "Conv": _with_integers(layers.convolution),
    "Gemm": _with_integers(layers.general_product),
    "MatMul": _with_integers(layers.matrix_product),
    "Add": addition,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "QLinearConv": convolution,
    "QLinearMatMul": matrix_product,
    "QGemm": general_product,
    "QLinearAdd": _of_two(operator.add),
    "QLinearMul": _of_two(operator.mul),
    "QLinearConcat": concatenation,
    "QLinearGlobalAveragePool": _of_one(layers.global_average),
    "QLinearAveragePool": _of_one(layers.average_pool),
    "QLinearSigmoid": _of_one(lambda site: site.builder.call(nn.Sigmoid(), site.value())),
    "QLinearLeakyRelu": _of_one(
        lambda site: site.builder.call(nn.LeakyReLU(site.number("alpha", 0.01)), site.value())
    ),
}


def pixels(graph: fx.GraphModule) -> None:
    """Round what a file of bytes is given, as its input is rounded that stands behind a calibrator."""
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    users: Sequence[fx.Node] = list(image.users)
    graph.add_submodule("bytes", Quantize(1.0, 0, 0, 255))
    with graph.graph.inserting_after(image):
        rounded = graph.graph.call_module("bytes", (image,))
    for user in users:
        user.replace_input_with(image, rounded)
