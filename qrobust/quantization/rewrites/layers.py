"""Convolutions and linear layers that are functions, or have their padding outside."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.quantization.integer_layers import PaddedConv2d, zero_padding
from qrobust.quantization.rewrites.constants import FOLDED
from qrobust.quantization.rewrites.fx_utils import (
    argument,
    call_before,
    called,
    public_name,
    remove_call,
    set_module,
)
from qrobust.quantization.rewrites.structure import numeric_padding


def explicit_layer(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, nn.Module | None]:
    """A functional convolution or linear layer on stored weights as the module that says the same."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # F.linear's end with the bias
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    stored = [given[n] for n in ("weight", "bias") if given.get(n) is not None]
    if any(n.op != "get_attr" for n in stored):
        return node, None
    weight, *bias = (operator.attrgetter(str(n.target))(graph).detach() for n in stored)
    name = f"{str(stored[0].target).removesuffix(FOLDED).removesuffix('.weight')}_layer"
    if name in dict(graph.named_modules(remove_duplicate=False)):  # a weight that several functions read
        name = f"{name}_{node.name}"
    layer: nn.Conv2d | nn.Linear
    if node.target is F.conv2d:
        geometry = {k: given[k] for k in ("stride", "padding", "dilation", "groups") if k in given}
        channels = weight.shape[1] * given.get("groups", 1)
        layer = nn.Conv2d(channels, len(weight), weight.shape[2:], **geometry, bias=bool(bias))
        numeric_padding(layer, public_name(name))
    else:
        layer = nn.Linear(weight.shape[1], len(weight), bool(bias))
    set_weights(layer, weight, *bias)
    call = call_before(graph, node, layer, given["input"], name)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call, layer


def explicit_norm(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, nn.Module | None]:
    """A functional batch norm on stored statistics as the module that says the same."""
    bound = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    names = [name for name in ("running_mean", "running_var", "weight", "bias") if given[name] is not None]
    stored = [isinstance(given[name], fx.Node) and given[name].op == "get_attr" for name in names]
    if given["training"] or "running_mean" not in names or not all(stored):
        return node, None
    values = {name: operator.attrgetter(str(given[name].target))(graph).detach() for name in names}
    affine = "weight" in values or "bias" in values
    norm = nn.BatchNorm2d(len(values["running_mean"]), given["eps"], affine=affine)
    norm.load_state_dict(values, strict=False)  # without the count of batches, which nothing reads
    call = call_before(graph, node, norm, given["input"], f"{node.name}_norm")
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call, norm


def absorb_padding(graph: fx.GraphModule, node: fx.Node, layer: nn.Conv2d) -> None:
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
        set_module(graph, str(node.target), PaddedConv2d(layer, (left, right, top, bottom)))
    remove_call(graph, source)


def _is_zero_pad(node: fx.Node) -> bool:
    pads, mode, value = (
        argument(node, i, n, d) for i, n, d in ((1, "pad", ()), (2, "mode", "constant"), (3, "value", 0))
    )
    return len(node.args) > 1 and isinstance(pads, list | tuple) and mode == "constant" and not value


def set_weights(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float(), requires_grad=False)
