"""A graph without surprises: nothing in place, no module twice, numeric padding."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qrobust.errors import InputError
from qrobust.quantization.rewrites.fx_utils import (
    called,
    note_origin,
    public_name,
    set_module,
)

# Between the name of a module and the number of its call, where it is called more than once.
AGAIN = "__call"
# Hooks that compute a layer's weight before each call.
WEIGHING = (BasePruningMethod, SpectralNorm, WeightNorm)
IN_PLACE: dict[object, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
}


def out_of_place(graph: fx.GraphModule) -> None:
    """Operators that change their argument return a new tensor, which everything behind them reads instead."""
    modules = [called(graph, node) for node in graph.graph.nodes]
    changing = [_in_place(n, m) for n, m in zip(graph.graph.nodes, modules, strict=True)]
    for module in modules:
        let_argument_be(module)
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


def let_argument_be(module: nn.Module | None) -> None:
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


def own_weights(graph: fx.GraphModule) -> None:
    """Layers whose weights are computed (pruning masks, weight and spectral norm), or shared, get plain ones."""
    seen: dict[int, nn.Module] = {}
    for node in graph.graph.nodes:
        layer = called(graph, node)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, WEIGHING):
                hook(layer, ())
        plain = not parametrize.is_parametrized(layer) and isinstance(layer.weight, nn.Parameter)
        if not plain or seen.setdefault(id(layer.weight), layer) is not layer:
            set_module(graph, str(node.target), _with_plain_weights(layer))


@torch.no_grad()
def _with_plain_weights(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    names = (
        ("in_features", "out_features")
        if isinstance(layer, nn.Linear)
        else ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    )
    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    made = kind(**{name: getattr(layer, name) for name in names}, bias=layer.bias is not None)
    made.weight.copy_(layer.weight)
    if made.bias is not None and layer.bias is not None:
        made.bias.copy_(layer.bias)
    return made.train(layer.training).requires_grad_(False)


def separate_repeated_modules(graph: fx.GraphModule) -> None:
    """A module called twice becomes two: what follows each call is observed and folded separately."""
    seen: dict[int, int] = {}
    for node in graph.graph.nodes:
        module = called(graph, node)
        if module is None:
            continue
        calls = seen[id(module)] = seen.get(id(module), 0) + 1
        if calls > 1:
            name = f"{node.target}{AGAIN}{calls}"
            note_origin(graph, name, node)
            node.target = name
            graph.add_submodule(name, copy.deepcopy(module))


def explicit_parts(graph: fx.GraphModule) -> None:
    """An operator that takes all parts of a tensor at once (`torch.cat(torch.split(x, 1, 1), 3)`) names each of them.

    Only a tensor can have a quantizer, not a tuple of them. The nodes need `tensor_meta`, and the new ones get it.
    """
    for node in list(graph.graph.nodes):
        metas = node.meta.get("tensor_meta")
        if type(metas) not in (tuple, list) or not all(isinstance(m, TensorMetadata) for m in metas):
            continue  # a tensor's own metadata is a named tuple
        readers = [u for u in node.users if u.op != "output" and u.target is not operator.getitem]
        if not readers:
            continue
        parts = []
        with graph.graph.inserting_before(node.next):
            for place, meta in enumerate(metas):
                parts.append(graph.graph.call_function(operator.getitem, (node, place)))
                parts[-1].meta["tensor_meta"] = meta
        for reader in readers:
            arguments = fx.node.map_arg((reader.args, reader.kwargs), partial(_instead, node, tuple(parts)))
            reader.args, reader.kwargs = arguments


def _instead(whole: fx.Node, parts: tuple[fx.Node, ...], node: fx.Node) -> fx.node.Argument:
    return parts if node is whole else node


def explicit_padding(graph: fx.GraphModule) -> None:
    """Give every convolution numeric zero padding.

    Raises:
        InputError: a convolution pads with something else than the same number of zeros on both sides.
    """
    for node in graph.graph.nodes:
        layer = called(graph, node)
        if isinstance(layer, nn.Conv2d):
            numeric_padding(layer, public_name(str(node.target)))


def numeric_padding(layer: nn.Conv2d, name: str) -> None:
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
