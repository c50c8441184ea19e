"""Products with a gate, and attention."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from qrobust.quantization.integer_layers import SelfAttention
from qrobust.quantization.rewrites.affine import depthwise, producing_layer, scale_channels
from qrobust.quantization.rewrites.fx_utils import call_before, shape_of


def product(graph: fx.GraphModule, node: fx.Node, gate: fx.Node) -> None:
    """Let `node` be its argument times `gate`."""
    with graph.graph.inserting_before(node):
        product = graph.graph.call_function(torch.mul, (node.args[0], gate))
    product.meta = dict(node.meta)
    node.replace_all_uses_with(product)
    graph.graph.erase_node(node)


def hard_gate(graph: fx.GraphModule, node: fx.Node, times_input: bool) -> None:
    """hardsigmoid(x) = clip(x / 6 + 1/2, 0, 1), hardswish(x) = x hardsigmoid(x) (arXiv 1905.02244).

    There is no integer HardSigmoid kernel. A depthwise convolution whose quantizer ends at 0 and 1 is integer,
    rounds once, and needs nothing new in fake-quantized model or export. An integer Add of a constant to a rescaled
    input would be
    about as fast, but needs one integer tensor read on two scales.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    channels = shape_of(source)[1:2]
    weight, bias = torch.full(channels, 1 / 6), torch.full(channels, 0.5)
    if not times_input and producing_layer(graph, source) is not None:
        inner = scale_channels(graph, source, node, weight, bias)
    elif len(shape_of(source)) in (2, 4):
        inner = depthwise(graph, source, node, weight, bias)
    else:
        return
    gate = call_before(graph, node, nn.Hardtanh(0, 1), inner, f"{node.name}_gate")
    if times_input:
        product(graph, node, gate)
    else:
        node.replace_all_uses_with(gate)
        graph.graph.erase_node(node)


def self_attention(graph: fx.GraphModule, node: fx.Node, layer: nn.MultiheadAttention) -> None:
    """Split plain self-attention into two linear layers and what is between them; others stay as they are."""
    source = node.args[0]
    results = [user for user in node.users if user.users]
    plain = (
        all(a is source for a in node.args)
        and len(node.args) == 3
        and len(shape_of(source)) == 3
        and not any(v for k, v in node.kwargs.items() if k != "average_attn_weights" and k != "need_weights")
        and layer.batch_first
        and layer.in_proj_weight is not None
        and layer.bias_k is None
        and not layer.add_zero_attn
        and all(u.target is operator.getitem and u.args[1] == 0 for u in results)
    )
    if not plain or not results:
        return
    width = layer.embed_dim
    inward, outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
    inward.weight, inward.bias = layer.in_proj_weight, layer.in_proj_bias
    outward.weight, outward.bias = layer.out_proj.weight, layer.out_proj.bias
    value: Any = source
    parts = {"in": inward, "heads": SelfAttention(layer.num_heads), "out": outward}
    for name, part in parts.items():
        value = call_before(graph, node, part, value, f"{node.name}_{name}")
        value.meta = dict(results[0].meta)
    for result in results:
        result.replace_all_uses_with(value)
    for user in [*node.users, node]:
        graph.graph.erase_node(user)
