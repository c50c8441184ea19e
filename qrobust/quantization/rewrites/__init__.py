"""Rules that say what a traced network does with the few operators that have integer kernels: plain torch.fx.

Each is exact in float up to rounding. Per-channel factors and offsets (a batch norm, a product with a constant,
the inner part of a hard sigmoid) go into the convolution before them, else into the one behind them, else become
a depthwise 1x1 convolution of their own. SiLU and hardswish become products with their gate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.errors import InputError
from qrobust.quantization.rewrites.affine import batch_norm, constant_affine, rewrite_affine
from qrobust.quantization.rewrites.attention import hard_gate, product, self_attention
from qrobust.quantization.rewrites.fx_utils import (
    call_before,
    called,
    remove_call,
    replace,
    value_of,
)
from qrobust.quantization.rewrites.layers import absorb_padding, explicit_layer, explicit_norm
from qrobust.quantization.rewrites.pools import (
    average_without_counted_padding,
    explicit_average,
    explicit_maximum,
    global_pool,
    is_spatial_mean,
)
from qrobust.quantization.rewrites.structure import let_argument_be

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
MEANS = (torch.mean, "mean")


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module | None:  # noqa: A002 - torch's names
    if min == 0 and max is None:
        return nn.ReLU()
    if isinstance(min, int | float) and (max is None or isinstance(max, int | float)):
        return nn.Hardtanh(min, math.inf if max is None else max)
    return None


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module | None:
    return None if return_indices else nn.MaxPool2d(kernel_size, stride, padding, dilation, False, ceil_mode)


# Functions and methods, and what builds the module that says the same from their arguments after the first.
MODULES: dict[object, Callable[..., nn.Module | None]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    torch.clamp: _clamp,
    "clamp": _clamp,
    torch.clip: _clamp,
    "clip": _clamp,
    F.leaky_relu: nn.LeakyReLU,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    F.gelu: nn.GELU,
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}


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
        node, module = explicit_layer(graph, node)
    elif module is None and node.target is F.batch_norm:
        node, module = explicit_norm(graph, node)
    if isinstance(module, nn.Conv2d):
        absorb_padding(graph, node, module)
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or _is_idle(node):
        remove_call(graph, node)
    elif module is None and node.target in MEANS and is_spatial_mean(node):
        global_pool(graph, node)
    elif module is None and (affine := constant_affine(graph, node)) is not None:
        rewrite_affine(graph, node, *affine)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        batch_norm(graph, node, module)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        replace(graph, node, explicit_average(node))
    elif isinstance(module, nn.AdaptiveMaxPool2d) and not module.return_indices:
        replace(graph, node, explicit_maximum(node))
    elif isinstance(module, nn.AvgPool2d) and module.ceil_mode and module.count_include_pad:
        replace(graph, node, average_without_counted_padding(module))
    elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
        replace(graph, node, nn.LeakyReLU(float(module.weight)))
    elif isinstance(module, nn.SiLU):
        product(graph, node, call_before(graph, node, nn.Sigmoid(), node.args[0], f"{node.name}_gate"))
    elif isinstance(module, nn.MultiheadAttention):
        self_attention(graph, node, module)
    elif isinstance(module, nn.Hardswish | nn.Hardsigmoid):
        hard_gate(graph, node, isinstance(module, nn.Hardswish))


def _as_module(node: fx.Node) -> nn.Module | None:
    """The module for a function or method, or None where its arguments are tensors."""
    args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), value_of)
    made = MODULES[node.target](*args, **{k: v for k, v in kwargs.items() if k != "inplace"})
    let_argument_be(made)
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
