"""Rules that say what a traced network does with the few operators that have integer kernels: plain torch.fx.

Each is exact in float up to rounding. Per-channel factors and offsets (a batch norm, a product with a constant,
the inner part of a hard sigmoid) go into the convolution before them, else into the one behind them, else become
a depthwise 1x1 convolution of their own. SiLU and hardswish become products with their gate.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.classifier import Normalization
from qrobust.errors import InputError
from qrobust.integer import GlobalAveragePool, PaddedConv2d, SelfAttention, zero_padding

IN_PLACE: dict[object, Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu, torch.sigmoid_: torch.sigmoid,
}  # fmt: skip
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
MEANS = (torch.mean, "mean")


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module | None:  # noqa: A002 - torch's names
    if min == 0 and max is None:
        return nn.ReLU()
    if isinstance(min, int | float) and (max is None or isinstance(max, int | float)):
        return nn.Hardtanh(min, math.inf if max is None else max)
    return None


def _max_pool(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module | None:  # fmt: skip
    return None if return_indices else nn.MaxPool2d(kernel_size, stride, padding, dilation, False, ceil_mode)


# Functions and methods, and what builds the module that says the same from their arguments after the first.
MODULES: dict[object, Callable[..., nn.Module | None]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, F.relu6: nn.ReLU6, F.hardtanh: nn.Hardtanh,
    torch.clamp: _clamp, "clamp": _clamp, torch.clip: _clamp, "clip": _clamp,
    F.leaky_relu: nn.LeakyReLU, F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
    F.silu: nn.SiLU, F.hardswish: nn.Hardswish, F.hardsigmoid: nn.Hardsigmoid, F.gelu: nn.GELU,
    F.avg_pool2d: nn.AvgPool2d, F.max_pool2d: _max_pool, torch.max_pool2d: _max_pool,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d, F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}  # fmt: skip


def called(graph: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def replace(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> fx.Node:
    """Put a call of `module` where `node` was, on its first argument."""
    call = _call_before(graph, node, module, node.args[0], f"{node.name}_explicit")
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call


def remove_call(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let the users of a one-argument call read its argument instead."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # such a call's argument is a node
    graph.graph.erase_node(node)


def _call_before(graph: fx.GraphModule, node: fx.Node, module: nn.Module, source: Any, name: str) -> fx.Node:
    """Call `module` on `source`, before `node`, with a result shaped like the node's."""
    graph.add_submodule(name, module.eval())
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    return call


def out_of_place(graph: fx.GraphModule) -> None:
    """Operators that change their argument return a new tensor, which everything behind them reads instead."""
    modules = [called(graph, node) for node in graph.graph.nodes]
    changing = [_in_place(n, m) for n, m in zip(graph.graph.nodes, modules, strict=True)]
    for module in modules:
        _let_argument_be(module)
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in [n for n, changes in zip(list(graph.graph.nodes), changing, strict=True) if changes]:
        if node.op == "call_method":
            node.target = str(node.target)[:-1]
        elif node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
        elif node.op == "call_function":
            arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            arguments.arguments["inplace"] = False
            node.args, node.kwargs = arguments.args, arguments.kwargs
        for user in list(node.args[0].users):
            if order[user] > order[node]:
                user.replace_input_with(node.args[0], node)


def _let_argument_be(module: nn.Module | None) -> None:
    if module is not None and hasattr(module, "inplace"):
        module.inplace = False  # type: ignore[assignment]  # a plain attribute, not a tensor


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name[:-1])
    if node.op == "call_function" and getattr(node.target, "__module__", None) == F.__name__:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]  # a function here
        return bool(arguments.arguments.get("inplace", False))
    return node.target in IN_PLACE or bool(getattr(module, "inplace", False))


def separate_repeated_modules(graph: fx.GraphModule) -> None:
    """A module called twice becomes two: what follows each call is observed and folded separately."""
    seen: set[int] = set()
    for node in graph.graph.nodes:
        module = called(graph, node)
        if id(module) in seen and module is not None:
            node.target = f"{node.name}_again"
            graph.add_submodule(node.target, copy.deepcopy(module))
        seen.add(id(module))


def explicit_padding(graph: fx.GraphModule) -> None:
    """Give every convolution numeric zero padding.

    Raises:
        InputError: a convolution pads with something else than the same number of zeros on both sides.
    """
    for node in graph.graph.nodes:
        layer = called(graph, node)
        if isinstance(layer, nn.Conv2d):
            _numeric_padding(layer, str(node.target))


def _numeric_padding(layer: nn.Conv2d, name: str) -> None:
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "valid":
        layer.padding = (0, 0)
    elif layer.padding == "same" and not any(span % 2 for span in spans):
        layer.padding = (spans[0] // 2, spans[1] // 2)
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return
    raise InputError(
        f"model: layer {name!r} has padding {layer.padding!r} ({layer.padding_mode}), which no integer "
        f"kernel has; put a padding layer (nn.ReflectionPad2d, nn.ZeroPad2d, ...) before a convolution without"
    )


def rewrite(graph: fx.GraphModule, node: fx.Node) -> None:
    """Apply whatever rule fits a node that has `tensor_meta` (and `value` where its result is no tensor).

    Raises:
        InputError: a pool or a batch norm that no integer kernel computes, or a dropout that stays on.
    """
    module = called(graph, node)
    if module is None and node.target in MODULES:
        made = _as_module(node)
        if made is None:
            return
        node, module = replace(graph, node, made), made
    elif module is None and node.target in (F.conv2d, F.linear):
        node, module = _explicit_layer(graph, node)
    if isinstance(module, nn.Conv2d):
        _absorb_padding(graph, node, module)
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or _is_idle(node):
        remove_call(graph, node)
    elif module is None and node.target in MEANS and _is_spatial_mean(node):
        _global_pool(graph, node)
    elif module is None and (affine := _constant_affine(graph, node)) is not None:
        _rewrite_affine(graph, node, *affine)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        _batch_norm(graph, node, module)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        replace(graph, node, _explicit_average(node))
    elif isinstance(module, nn.AdaptiveMaxPool2d) and not module.return_indices:
        replace(graph, node, _explicit_maximum(node))
    elif isinstance(module, nn.AvgPool2d) and module.ceil_mode and module.count_include_pad:
        replace(graph, node, _average_without_counted_padding(module))
    elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
        replace(graph, node, nn.LeakyReLU(float(module.weight)))
    elif isinstance(module, nn.SiLU):
        _product(graph, node, _call_before(graph, node, nn.Sigmoid(), node.args[0], f"{node.name}_gate"))
    elif isinstance(module, nn.MultiheadAttention):
        _self_attention(graph, node, module)
    elif isinstance(module, nn.Hardswish | nn.Hardsigmoid):
        _hard_gate(graph, node, isinstance(module, nn.Hardswish))


def _value(node: fx.Node) -> Any:
    return node.meta.get("value", node)


def _as_module(node: fx.Node) -> nn.Module | None:
    """The module for a function or method, or None where its arguments are tensors."""
    args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), _value)
    made = MODULES[node.target](*args, **{k: v for k, v in kwargs.items() if k != "inplace"})
    _let_argument_be(made)
    return made


def _is_idle(node: fx.Node) -> bool:
    """A dropout or stochastic depth that is switched off."""
    if node.op != "call_function":
        return False
    if node.target not in DROPOUTS and getattr(node.target, "__name__", "") != "stochastic_depth":
        return False
    arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]  # a function here
    arguments.apply_defaults()
    if not arguments.arguments["training"]:
        return True
    name = node.target.__name__  # type: ignore[union-attr]  # a function here
    raise InputError(f"model: {name} at {node.name!r} stays on in evaluation; give it training=self.training")


def _shape(node: object) -> tuple[int, ...]:
    """Of a tensor; nothing for what is none."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if isinstance(meta, fx.passes.shape_prop.TensorMetadata) else ()


# Convolutions and linear layers


def _explicit_layer(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, nn.Module | None]:
    """A functional convolution or linear layer on stored weights as the module that says the same."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # F.linear's end with the bias
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    stored = [given[n] for n in ("weight", "bias") if given.get(n) is not None]
    if any(n.op != "get_attr" for n in stored):
        return node, None
    weight, *bias = (operator.attrgetter(str(n.target))(graph).detach() for n in stored)
    name = f"{str(stored[0].target).removesuffix('.weight')}_layer"
    layer: nn.Conv2d | nn.Linear
    if node.target is F.conv2d:
        geometry = {k: given[k] for k in ("stride", "padding", "dilation", "groups") if k in given}
        channels = weight.shape[1] * given.get("groups", 1)
        layer = nn.Conv2d(channels, len(weight), weight.shape[2:], **geometry, bias=bool(bias))
        _numeric_padding(layer, name)
    else:
        layer = nn.Linear(weight.shape[1], len(weight), bool(bias))
    _set_weights(layer, weight, *bias)
    call = _call_before(graph, node, layer, given["input"], name)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call, layer


def _absorb_padding(graph: fx.GraphModule, node: fx.Node, layer: nn.Conv2d) -> None:
    """Zeros that a layer of their own puts around the image become the convolution's own padding."""
    source = node.args[0]
    padding = called(graph, source)
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    if isinstance(padding, nn.ZeroPad2d) or (isinstance(padding, nn.ConstantPad2d) and padding.value == 0):
        pads = tuple(padding.padding)
    elif source.target is F.pad and _is_zero_pad(source):
        pads = tuple(source.args[1])  # type: ignore[arg-type]  # checked just now
    else:
        return
    if len(pads) != 4 or min(pads) < 0:
        return
    left, right, top, bottom = (p + own for p, own in zip(pads, zero_padding(layer), strict=True))
    if left == right and top == bottom and not isinstance(layer, PaddedConv2d):
        layer.padding = (top, left)
    else:
        node.target = f"{node.target}_padded"
        graph.add_submodule(str(node.target), PaddedConv2d(layer, (left, right, top, bottom)))
    remove_call(graph, source)


def _is_zero_pad(node: fx.Node) -> bool:
    pads, mode, value = (
        _argument(node, i, n, d) for i, n, d in ((1, "pad", ()), (2, "mode", "constant"), (3, "value", 0))
    )
    return len(node.args) > 1 and isinstance(pads, list | tuple) and mode == "constant" and not value


# Products with a gate


def _product(graph: fx.GraphModule, node: fx.Node, gate: fx.Node) -> None:
    """Let `node` be its argument times `gate`."""
    with graph.graph.inserting_before(node):
        product = graph.graph.call_function(torch.mul, (node.args[0], gate))
    product.meta = dict(node.meta)
    node.replace_all_uses_with(product)
    graph.graph.erase_node(node)


def _hard_gate(graph: fx.GraphModule, node: fx.Node, times_input: bool) -> None:
    """hardsigmoid(x) = clip(x / 6 + 1/2, 0, 1), hardswish(x) = x hardsigmoid(x) (arXiv 1905.02244).

    There is no integer HardSigmoid kernel. A depthwise convolution whose quantizer ends at 0 and 1 is integer,
    rounds once, and needs nothing new in twin or export. An integer Add of a constant to a rescaled input would be
    about as fast, but needs one integer tensor read on two scales.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    channels = _shape(source)[1:2]
    weight, bias = torch.full(channels, 1 / 6), torch.full(channels, 0.5)
    if not times_input and _producer(graph, source) is not None:
        inner = _scale_channels(graph, source, node, weight, bias)
    elif len(_shape(source)) in (2, 4):
        inner = _depthwise(graph, source, node, weight, bias)
    else:
        return
    gate = _call_before(graph, node, nn.Hardtanh(0, 1), inner, f"{node.name}_gate")
    if times_input:
        _product(graph, node, gate)
    else:
        node.replace_all_uses_with(gate)
        graph.graph.erase_node(node)


def _self_attention(graph: fx.GraphModule, node: fx.Node, layer: nn.MultiheadAttention) -> None:
    """Split plain self-attention into two linear layers and what is between them; others stay as they are."""
    source = node.args[0]
    results = [user for user in node.users if user.users]
    plain = (
        all(a is source for a in node.args) and len(node.args) == 3 and len(_shape(source)) == 3
        and not any(v for k, v in node.kwargs.items() if k != "average_attn_weights" and k != "need_weights")
        and layer.batch_first and layer.in_proj_weight is not None and layer.bias_k is None
        and not layer.add_zero_attn and all(u.target is operator.getitem and u.args[1] == 0 for u in results)
    )  # fmt: skip
    if not plain or not results:
        return
    width = layer.embed_dim
    inward, outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
    inward.weight, inward.bias = layer.in_proj_weight, layer.in_proj_bias
    outward.weight, outward.bias = layer.out_proj.weight, layer.out_proj.bias
    value: Any = source
    parts = {"in": inward, "heads": SelfAttention(layer.num_heads), "out": outward}
    for name, part in parts.items():
        value = _call_before(graph, node, part, value, f"{node.name}_{name}")
        value.meta = dict(results[0].meta)
    for result in results:
        result.replace_all_uses_with(value)
    for user in [*node.users, node]:
        graph.graph.erase_node(user)


# Per-channel factors and offsets


def _batch_norm(graph: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
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
    if len(_shape(source)) in (2, 4):
        _rewrite_affine(graph, node, source, weight, bias)


def _constant_affine(
    graph: fx.GraphModule, node: fx.Node
) -> tuple[fx.Node, torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """The tensor, factor and offset per channel of arithmetic between an image tensor and a constant."""
    kind = next((k for k, names in _ARITHMETIC.items() if node.target in names), None)
    if kind is None or len(node.args) != 2 or node.kwargs or len(_shape(node)) != 4:
        return None
    places = [i for i in (0, 1) if _shape(node.args[i]) == _shape(node) and node.args[i].op != "get_attr"]  # type: ignore[union-attr]  # has a shape, so is a node
    if len(places) != 1 or _reads_pixels(graph, node.args[places[0]]):
        return None
    constant = _per_channel(graph, node.args[1 - places[0]], _shape(node)[1])
    if constant is None or (kind == "divide" and places == [1]):
        return None
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    weight, bias = {
        "add": (one, constant), "multiply": (constant, zero), "divide": (one / constant, zero),
        "subtract": (one, -constant) if places == [0] else (-one, constant),
    }[kind]  # fmt: skip
    source = node.args[places[0]]
    assert isinstance(source, fx.Node)
    return source, weight, bias


_ARITHMETIC: dict[str, tuple[object, ...]] = {
    "add": (operator.add, torch.add, "add"), "subtract": (operator.sub, torch.sub, "sub"),
    "multiply": (operator.mul, torch.mul, "mul"), "divide": (operator.truediv, torch.div, "div"),
}  # fmt: skip


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
    """Between a node and the images there is only arithmetic, which three channels can do in float."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        if node.op == "get_attr" or not isinstance(called(graph, node), Normalization | None):
            return False
        node = next((a for a in node.args if _shape(a)), None)
    return isinstance(node, fx.Node)


def _rewrite_affine(
    graph: fx.GraphModule, node: fx.Node, source: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    """Let `node` be `weight * source + bias`, unless it is arithmetic on pixels."""
    if _reads_pixels(graph, source):
        return
    result = _scale_channels(graph, source, node, weight, bias)
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def _scale_channels(
    graph: fx.GraphModule, source: fx.Node, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> fx.Node:
    """`weight * source + bias` per channel, for the users of `node`; nothing else may need the source."""
    producer = _producer(graph, source)
    readers = [called(graph, user) for user in node.users]
    if producer is not None:
        before = 0 if producer.bias is None else producer.bias.detach().double()
        scale = weight.double().view(-1, *[1] * (producer.weight.ndim - 1))
        _set_weights(producer, producer.weight.detach().double() * scale, before * weight + bias)
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
            _set_weights(reader, (kernel * factor).flatten(0, 1), moved)
        return source
    return _depthwise(graph, source, node, weight, bias)


def _producer(graph: fx.GraphModule, source: fx.Node) -> nn.Conv2d | nn.Linear | None:
    """The layer whose output channels are those of `source`, where nothing else reads them."""
    layer = called(graph, source)
    if len(source.users) != 1:
        return None
    if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and len(_shape(source)) == 2):
        return layer
    dims = source.args[1:] if source.target == "permute" else ()
    if source.target is torch.permute:
        dims = tuple(_argument(source, 1, "dims", ()))  # type: ignore[arg-type]  # torch takes nothing else
    inner = source.args[0] if [d % 4 for d in dims if isinstance(d, int)] == [0, 3, 1, 2] else None
    layer = called(graph, inner)
    if isinstance(inner, fx.Node) and isinstance(layer, nn.Linear) and len(inner.users) == 1:
        return layer
    return None


def _can_absorb(reader: nn.Module | None, bias: torch.Tensor) -> bool:
    """A convolution in front of which an affine map can vanish: padding must not show the offset's absence."""
    return isinstance(reader, nn.Conv2d) and (not bias.any() or not any(zero_padding(reader)))


def _set_weights(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float(), requires_grad=False)


def _depthwise(
    graph: fx.GraphModule, source: fx.Node, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> fx.Node:
    """`weight * source + bias` as a depthwise 1x1 convolution before `node`; `source` is (N, C, H, W) or (N, C)."""
    channels = len(weight)
    convolution = nn.Conv2d(channels, channels, 1, groups=channels)
    _set_weights(convolution, weight.double().view(-1, 1, 1, 1), bias.double())
    flat = len(_shape(source)) == 2
    if flat:
        with graph.graph.inserting_before(node):
            source = graph.graph.call_function(torch.reshape, (source, (-1, channels, 1, 1)))
    result = _call_before(graph, node, convolution, source, f"{node.name}_channels")
    if flat:
        with graph.graph.inserting_before(node):
            result = graph.graph.call_function(torch.flatten, (result, 1))
        result.meta = dict(node.meta)
    return result


# Pools


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _is_spatial_mean(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", None)
    if not isinstance(dims, list | tuple):
        return False
    return len(_shape(node.args[0])) == 4 and sorted(d % 4 for d in dims) == [2, 3]


def _global_pool(graph: fx.GraphModule, node: fx.Node) -> None:
    keepdim = _argument(node, 2, "keepdim", False)
    pool = replace(graph, node, GlobalAveragePool())
    if not keepdim:
        users = list(pool.users)
        with graph.graph.inserting_after(pool):
            flat = graph.graph.call_function(torch.flatten, (pool, 1))
        flat.meta = dict(pool.meta)
        for user in users:
            user.replace_input_with(pool, flat)


def _sizes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _shape(node.args[0])[-2:], _shape(node)[-2:]


def _unequal(kind: str, size: tuple[int, ...], want: tuple[int, ...]) -> InputError:
    return InputError(
        f"model: an adaptive {kind} from {size} to {want} has windows of unequal size, which no integer "
        f"kernel computes; choose --image-size so that one side divides the other"
    )


def _explicit_maximum(node: fx.Node) -> nn.Module:
    size, want = _sizes(node)
    if size == want:
        return nn.Identity()
    if any(s % w for s, w in zip(size, want, strict=True)):
        raise _unequal("maximum pool", size, want)
    return nn.MaxPool2d((size[0] // want[0], size[1] // want[1]))


def _average_without_counted_padding(pool: nn.AvgPool2d) -> nn.Module:
    """The same pool for onnxruntime, whose integer kernel divides wrongly where windows are cut and padding counts.

    It divides a cut window by the size of a whole one (measured on 1.32; its float kernel and torch do not).
    """
    plain = nn.AvgPool2d(
        pool.kernel_size, pool.stride, ceil_mode=True, count_include_pad=False, divisor_override=pool.divisor_override
    )
    if pool.padding in (0, (0, 0)):
        return plain
    high, wide = (pool.padding,) * 2 if isinstance(pool.padding, int) else pool.padding
    return nn.Sequential(nn.ZeroPad2d((wide, wide, high, high)), plain)


def _explicit_average(node: fx.Node) -> nn.Module:
    size, want = _sizes(node)
    if want == (1, 1):
        return GlobalAveragePool()
    if size == want:
        return nn.Identity()
    if all(s % w == 0 for s, w in zip(size, want, strict=True)):
        return nn.AvgPool2d((size[0] // want[0], size[1] // want[1]))
    # Repeat every cell and average again: exact where each window touches its cells alike.
    common = [math.gcd(s, w) for s, w in zip(size, want, strict=True)]
    repeat = nn.Upsample(scale_factor=tuple(w // c for w, c in zip(want, common, strict=True)), mode="nearest")
    average = [s // c for s, c in zip(size, common, strict=True)]
    if average == [1, 1]:
        return repeat
    pool = nn.Sequential(repeat, nn.AvgPool2d((average[0], average[1])))
    cells = torch.arange(float(size[0] * size[1])).square().view(1, 1, *size)
    if torch.allclose(pool(cells), F.adaptive_avg_pool2d(cells, (want[0], want[1]))):
        return pool
    raise _unequal("pool", size, want)
