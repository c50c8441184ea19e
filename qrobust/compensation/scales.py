"""The remedy `scales`: integer weights stay to the byte; scales per channel, activation ranges and biases learn."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d, IntegerLinear, representable
from qrobust.quantization.qat import Thawed, TrainableQuantizer, thaw


class RescaledLayer(Thawed):
    """An integer layer whose scales per output channel and bias learn; its integers do not.

    `scale[o] * integers[o] * x + bias[o]`: as many numbers learn as the layer has output channels, twice.
    """

    def __init__(self, layer: IntegerConv2d | IntegerLinear) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: not a submodule, its buffers are no state of this one
        self.fixed_weight: torch.Tensor
        self.start: torch.Tensor
        # No state, but they go along to another device.
        self.register_buffer("fixed_weight", layer.weight(), persistent=False)
        self.register_buffer("start", layer.weight_scale.log(), persistent=False)
        self.log_scale = nn.Parameter(layer.weight_scale.log())
        self.bias = nn.Parameter(layer.bias().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Scaling weights, not what comes out: their gradient costs less than passes over the activations in float32.
        growth = (self.log_scale - self.start).exp().view(-1, *[1] * (self.fixed_weight.ndim - 1))
        return self.layer[0].compute(x, self.fixed_weight * growth, self.bias)

    def frozen(self, source: ActivationQuantizer) -> IntegerConv2d | IntegerLinear:
        """The same integers with the scales and the bias that they have now; the int32 bias follows its input's."""
        layer, bias = copy.deepcopy(self.layer[0]), self.bias.detach()
        layer.rescale(representable(self.log_scale.detach().exp(), bias, source.scale), bias, source.scale)
        return layer


def prepare_scales(fake_quantized: fx.GraphModule) -> fx.GraphModule:
    """A copy whose scales, activation ranges and biases learn; `convert_qat` gives it the same integers back.

    The operators stay those of the model: no clamp comes back that quantization made superfluous.
    """

    def make(_: str, module: nn.Module) -> nn.Module:
        if isinstance(module, ActivationQuantizer):
            return TrainableQuantizer(module, learn=True)
        assert isinstance(module, IntegerConv2d | IntegerLinear)
        return RescaledLayer(module)

    return thaw(fake_quantized, make)
