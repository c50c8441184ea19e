"""Per-channel factors and offsets: batch norms, products with constants."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from qrobust.classifier import Normalization
from qrobust.errors import InputError
from qrobust.quantization.integer_layers import zero_padding
from qrobust.quantization.rewrites.fx_utils import (
    argument,
    call_before,
    called,
    divides,
    shape_of,
)
from qrobust.quantization.rewrites.layers import set_weights


def batch_norm(graph: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(
            f"model: batch norm {node.target!r} has no running statistics, so its output depends on the batch; "
            f"train it with track_running_stats=True"
        )
    weight = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        weight = weight * norm.weight.detach()
    bias = -norm.running_mean * weight
    if norm.bias is not None:
        bias = bias + norm.bias.detach()
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if len(shape_of(source)) in (2, 4):
        rewrite_affine(graph, node, source, weight, bias)


def constant_affine(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, torch.Tensor, torch.Tensor] | None:
    """The tensor, factor and offset per channel of arithmetic between an image tensor and a constant."""
    kind = next((k for k, names in _ARITHMETIC.items() if node.target in names), None)
    if kind is None or len(node.args) != 2 or node.kwargs or len(shape_of(node)) != 4 or divides(node):
        return None
    places = [i for i in (0, 1) if shape_of(node.args[i]) == shape_of(node) and node.args[i].op != "get_attr"]  # type: ignore[union-attr]  # has a shape, so is a node
    if len(places) != 1 or _reads_pixels(graph, node.args[places[0]]):
        return None
    constant = _per_channel(graph, node.args[1 - places[0]], shape_of(node)[1])
    if constant is None or (kind == "divide" and places == [1]):
        return None
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    weight, bias = {
        "add": (one, constant),
        "multiply": (constant, zero),
        "divide": (one / constant, zero),
        "subtract": (one, -constant) if places == [0] else (-one, constant),
    }[kind]
    source = node.args[places[0]]
    assert isinstance(source, fx.Node)
    return source, weight, bias


_ARITHMETIC: dict[str, tuple[object, ...]] = {
    "add": (operator.add, torch.add, "add"),
    "subtract": (operator.sub, torch.sub, "sub"),
    "multiply": (operator.mul, torch.mul, "mul"),
    "divide": (operator.truediv, torch.div, "div"),
}


def _per_channel(graph: fx.GraphModule, constant: object, channels: int) -> torch.Tensor | None:
    """A number or a stored tensor with one value per channel, as `(channels,)`."""
    if isinstance(constant, int | float):
        return torch.full((channels,), float(constant), dtype=torch.float64)
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    value = operator.attrgetter(str(constant.target))(graph).detach().double()
    if value.numel() == 1 or (value.numel() == channels and value.shape[-3:] == (channels, 1, 1)):
        return value.reshape(-1).expand(channels)
    return None


def _reads_pixels(graph: fx.GraphModule, node: object) -> bool:
    """Between a node and the images there is only arithmetic, which so few channels can do in float."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        if node.op == "get_attr" or not isinstance(called(graph, node), Normalization | None):
            return False
        node = next((a for a in node.args if shape_of(a)), None)
    return isinstance(node, fx.Node)


def rewrite_affine(
    graph: fx.GraphModule, node: fx.Node, source: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    """Let `node` be `weight * source + bias`, unless it is arithmetic on pixels."""
    if _reads_pixels(graph, source):
        return
    result = scale_channels(graph, source, node, weight, bias)
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def scale_channels(
    graph: fx.GraphModule, source: fx.Node, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> fx.Node:
    """`weight * source + bias` per channel, for the users of `node`; nothing else may need the source."""
    producer = producing_layer(graph, source)
    readers = [called(graph, user) for user in node.users]
    if producer is not None:
        before = 0 if producer.bias is None else producer.bias.detach().double()
        scale = weight.double().view(-1, *[1] * (producer.weight.ndim - 1))
        set_weights(producer, producer.weight.detach().double() * scale, before * weight + bias)
        return source
    if readers and all(_can_absorb(reader, bias) for reader in readers):
        for reader in readers:
            assert isinstance(reader, nn.Conv2d)
            # One row of the weight per input channel that its group reads.
            kernel = reader.weight.detach().double().unflatten(0, (reader.groups, -1))
            per_group = (1, -1) if reader.groups == 1 else (reader.groups, -1)
            factor = weight.double().view(*per_group)[:, None, :, None, None]
            offset = bias.double().view(*per_group)[:, None, :, None, None]
            before = 0 if reader.bias is None else reader.bias.detach().double()
            moved = before + (kernel * offset).sum((2, 3, 4)).flatten()
            set_weights(reader, (kernel * factor).flatten(0, 1), moved)
        return source
    return depthwise(graph, source, node, weight, bias)


def producing_layer(graph: fx.GraphModule, source: fx.Node) -> nn.Conv2d | nn.Linear | None:
    """The layer whose output channels are those of `source`, where nothing else reads them."""
    layer = called(graph, source)
    if len(source.users) != 1:
        return None
    if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and len(shape_of(source)) == 2):
        return layer
    dims = source.args[1:] if source.target == "permute" else ()
    if source.target is torch.permute:
        dims = tuple(argument(source, 1, "dims", ()))  # type: ignore[arg-type]  # torch takes nothing else
    inner = source.args[0] if [d % 4 for d in dims if isinstance(d, int)] == [0, 3, 1, 2] else None
    layer = called(graph, inner)
    if isinstance(inner, fx.Node) and isinstance(layer, nn.Linear) and len(inner.users) == 1:
        return layer
    return None


def _can_absorb(reader: nn.Module | None, bias: torch.Tensor) -> bool:
    """A convolution in front of which an affine map can vanish: padding must not show the offset's absence."""
    return isinstance(reader, nn.Conv2d) and (not bias.any() or not any(zero_padding(reader)))


def depthwise(
    graph: fx.GraphModule, source: fx.Node, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> fx.Node:
    """`weight * source + bias` as a depthwise 1x1 convolution before `node`; `source` is (N, C, H, W) or (N, C)."""
    channels = len(weight)
    convolution = nn.Conv2d(channels, channels, 1, groups=channels)
    set_weights(convolution, weight.double().view(-1, 1, 1, 1), bias.double())
    flat = len(shape_of(source)) == 2
    if flat:
        with graph.graph.inserting_before(node):
            source = graph.graph.call_function(torch.reshape, (source, (-1, channels, 1, 1)))
    result = call_before(graph, node, convolution, source, f"{node.name}_channels")
    if flat:
        with graph.graph.inserting_before(node):
            result = graph.graph.call_function(torch.flatten, (result, 1))
        result.meta = dict(node.meta)
    return result
