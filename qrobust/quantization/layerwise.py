"""Run the float network and its fake-quantized model side by side, and stop at every integer layer on the way.

Bias correction, learned rounding and the sensitivity analysis all ask the same question: what does this
layer get and give in float, and what in the fake-quantized model? The fake-quantized model's layer may be changed
where the walk stops;
whatever follows then sees the changed one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from qrobust.device import device_of
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d, IntegerLinear
from qrobust.quantization.rewrites.fx_utils import public_name

INTEGER_LAYERS = (IntegerConv2d, IntegerLinear)


@dataclass(frozen=True)
class LayerExecution:
    """One layer, in float and in the fake-quantized model.

    Attributes:
        name: as the network's author knows it.
        float_layer: the folded float layer.
        layer: the fake-quantized model's, which may be changed in place.
        quantizer: of the layer's input.
        float_input: what the float layer reads.
        input: what the fake-quantized model's layer reads, on its quantizer's grid.
        bounds: smallest and largest value that survives the quantizer which reads the output, if one does.
    """

    name: str
    float_layer: nn.Conv2d | nn.Linear
    layer: IntegerConv2d | IntegerLinear
    quantizer: ActivationQuantizer
    float_input: torch.Tensor
    input: torch.Tensor
    bounds: tuple[float, float] | None

    def float_output(self) -> torch.Tensor:
        """What the float layer gives."""
        return self.float_layer(self.float_input)

    def output(self) -> torch.Tensor:
        """What the fake-quantized model's layer gives as it is now."""
        return self.layer(self.input)


class _Run:
    """An interpreter that goes node by node and lets go of what nobody reads any more."""

    def __init__(self, graph: fx.GraphModule, images: torch.Tensor) -> None:
        self.interpreter = fx.Interpreter(graph)
        self.interpreter.env = {}
        self.interpreter.args_iter = iter([images])
        self.last_uses = self.interpreter.user_to_last_uses

    def step(self, node: fx.Node) -> None:
        self.interpreter.env[node] = self.interpreter.run_node(node)
        for spent in self.last_uses.get(node, []):
            del self.interpreter.env[spent]

    def value(self, node: fx.Node) -> torch.Tensor:
        return self.interpreter.env[node]


@torch.no_grad()
def execute_layerwise(
    prepared: fx.GraphModule, fake_quantized: fx.GraphModule, images: torch.Tensor
) -> Iterator[LayerExecution]:
    """LayerExecution every integer layer in order of execution.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from.
        fake_quantized: frozen.
        images: one batch `(N, C, S, S)` in [0, 1], moved to where the graphs are; memory is what its activations
            take, twice.
    """
    images = images.to(device_of(prepared))
    floating, quantized = _Run(prepared, images), _Run(fake_quantized, images)
    layers = dict(prepared.named_modules(remove_duplicate=False))
    modules = dict(fake_quantized.named_modules(remove_duplicate=False))
    own = {node.name: node for node in fake_quantized.graph.nodes}
    shared = {node.name for node in prepared.graph.nodes}
    for node in prepared.graph.nodes:
        mirrored = own.get(node.name)
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if mirrored is not None and isinstance(layer, INTEGER_LAYERS):
            source = mirrored.args[0]
            assert isinstance(source, fx.Node)
            quantizer = modules[str(source.target)]
            assert isinstance(quantizer, ActivationQuantizer)
            readers = [modules.get(str(u.target)) if u.op == "call_module" else None for u in mirrored.users]
            bounds = readers[0].bounds() if readers and isinstance(readers[0], ActivationQuantizer) else None
            float_layer = layers[str(node.target)]
            assert isinstance(float_layer, nn.Conv2d | nn.Linear)
            yield LayerExecution(
                public_name(str(node.target)),
                float_layer,
                layer,
                quantizer,
                floating.value(node.args[0]),
                quantized.value(source),
                bounds,
            )
        floating.step(node)
        if mirrored is not None:
            quantized.step(mirrored)
            following = mirrored.next
            while following.op not in ("output", "root") and following.name not in shared:
                quantized.step(following)  # the fake-quantized model's own
                following = following.next
