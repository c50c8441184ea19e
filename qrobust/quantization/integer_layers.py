"""Frozen integer layers: what a network is after quantization, in plain torch.

They hold the integers that are exported and compute in float what the integer kernels compute, with
straight-through gradients (Bengio et al., arXiv 1308.3432) so that attacks and calibrators can be
trained through them. `deployment.graph` writes each as QuantizeLinear / DequantizeLinear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.device import on_cpu, strided_depthwise_is_slow
from qrobust.errors import InputError

LARGEST_BIAS = 2.0**31 - 128  # the largest float32 below 2**31


def representable(scale: torch.Tensor, bias: torch.Tensor, input_scale: torch.Tensor) -> torch.Tensor:
    """Weight scales `(out,)`, larger where a bias would not fit into 32 bits, as in a channel of almost no weight."""
    return torch.maximum(scale, bias.abs() / (input_scale * 2.0**30))


def pass_inside(gradient: torch.Tensor, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The gradient where `low < x < high`, else 0; one pass over memory instead of three."""
    return torch.ops.aten.hardtanh_backward(gradient, x, low, high)


class _FakeQuantize(torch.autograd.Function):
    """Round to the grid going forward; going back, pass the gradient where nothing saturated."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, scale: float, low: float, high: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.range = scale * (low - 0.5), scale * (high + 0.5)  # type: ignore[attr-defined]  # torch types ctx without it
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> tuple:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types ctx without it
        return pass_inside(grads[0], x, *ctx.range), None, None, None  # type: ignore[attr-defined]  # set in forward


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to `scale * (q - zero_point)`, q an integer in [qmin, qmax].

    Any shape in, same shape out; `|x - out| <= scale / 2` wherever x is inside the range.
    """

    holds_integers = True  # refused where a float network is expected

    def __init__(self, scale: float, zero_point: int, qmin: int, qmax: int) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.zero_point: torch.Tensor
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.qmin, self.qmax = qmin, qmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zero_point, scale = int(self.zero_point), float(self.scale)
        low, high = self.qmin - zero_point, self.qmax - zero_point
        if not (torch.is_grad_enabled() and x.requires_grad):
            return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        return _FakeQuantize.apply(x, scale, low, high)

    def bounds(self) -> tuple[float, float]:
        """The smallest and largest value that can be represented."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return scale * (self.qmin - zero_point), scale * (self.qmax - zero_point)


class _IntegerLayer(nn.Module, ABC):
    """Integer weights per output channel, and an int32 bias at scale `input_scale * weight_scale`.

    Attributes:
        qmax: largest magnitude a weight may have: 127 for 8 bits, 7 for 4.
    """

    def __init__(
        self,
        weight_int: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor,
        input_scale: torch.Tensor,
        qmax: int = 127,
    ) -> None:
        super().__init__()
        self.qmax = qmax
        self.weight_int: torch.Tensor
        self.weight_scale: torch.Tensor
        self.bias_int: torch.Tensor
        self.bias_scale: torch.Tensor
        self.register_buffer("weight_int", weight_int)
        self.rescale(weight_scale, bias, input_scale)

    def rescale(self, weight_scale: torch.Tensor, bias: torch.Tensor, input_scale: torch.Tensor) -> None:
        """Give the integer weights other scales `(out,)`, and the layer another bias, in place."""
        bias_scale = input_scale * weight_scale
        levels = (bias / bias_scale).round().clamp(-LARGEST_BIAS, LARGEST_BIAS)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias_scale", bias_scale)
        self.register_buffer("bias_int", levels.to(torch.int32))

    def weight(self) -> torch.Tensor:
        """The float weight that the integers stand for."""
        scale = self.weight_scale.view(-1, *[1] * (self.weight_int.ndim - 1))
        return self.weight_int.to(scale.dtype) * scale

    def bias(self) -> torch.Tensor:
        """The float bias that the integers stand for, `(out,)`."""
        return self.bias_int.to(self.bias_scale.dtype) * self.bias_scale

    @abstractmethod
    def compute(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The layer on `x` with another float weight and bias in place of its own."""

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The layer on `x` with another float weight in place of its own."""
        return self.compute(x, weight, self.bias())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(x, self.weight())

    def shift_bias(self, by: torch.Tensor) -> None:
        """Add `by` `(out,)` to the bias, rounded to its integers, in place."""
        by = on_cpu(by).to(torch.float64) / on_cpu(self.bias_scale)  # not every device has float64
        moved = on_cpu(self.bias_int).to(torch.float64) + by.round()
        self.bias_int.copy_(moved.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32))

    def amplify(self, by: float) -> None:
        """Multiply weight and bias by a positive number, in place: the integers stay."""
        self.weight_scale.mul_(by)
        self.bias_scale.mul_(by)


class PaddedConv2d(nn.Conv2d):
    """A float convolution whose zero padding may differ from side to side, as ONNX's may.

    Attributes:
        pads: zeros at the left, right, top and bottom.
    """

    def __init__(self, source: nn.Conv2d, pads: tuple[int, int, int, int]) -> None:
        geometry: Any = (
            source.kernel_size,
            source.stride,
            0,
            source.dilation,
            source.groups,
            source.bias is not None,
        )
        super().__init__(source.in_channels, source.out_channels, *geometry)
        self.weight, self.bias = source.weight, source.bias
        self.pads = pads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.pads))


def zero_padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros that a convolution adds at the left, right, top and bottom."""
    if isinstance(layer, PaddedConv2d):
        return layer.pads
    if isinstance(layer.padding, str):
        raise InputError(f"model: a convolution has padding {layer.padding!r}, expected numbers")
    high, wide = layer.padding
    return wide, wide, high, high


# Input channels and kernel of convolutions that are exported for x86 with a fourth channel of zeros: onnxruntime's
# fast kernels take channels by fours, so that a network's first 3x3 convolution takes half the time. With larger
# kernels the zeros cost in batches what they save, or more (benchmarks/first_convolution.py).
WIDENED, WIDE = (3, 3, 3), 4


class IntegerConv2d(_IntegerLayer):
    """A convolution `(N, C, H, W)` to `(N, out, H', W')` on quantized input.

    Attributes:
        padding: zeros at the left, right, top and bottom.
    """

    holds_integers = True  # refused where a float network is expected

    def __init__(
        self,
        weight_int: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor,
        input_scale: torch.Tensor,
        qmax: int = 127,
        *,
        stride: tuple[int, ...],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(weight_int, weight_scale, bias, input_scale, qmax)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def compute(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, ...],
    groups: int,
) -> torch.Tensor:
    """`F.conv2d` with zeros at the left, right, top and bottom."""
    if groups == x.shape[1] > 1 and max(stride) > 1 and strided_depthwise_is_slow(x):
        dense = convolve(x, weight, bias, (1, 1), padding, dilation, groups)
        return dense[:, :, :: stride[0], :: stride[1]]
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(x, padding), weight, bias, stride, 0, dilation, groups)


class IntegerLinear(_IntegerLayer):
    """A linear layer `(..., in)` to `(..., out)` on quantized input."""

    holds_integers = True  # refused where a float network is expected

    def compute(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, bias)


class GlobalAveragePool(nn.Module):
    """`(N, C, H, W)` to `(N, C, 1, 1)`, as the one operator that runtimes have an integer kernel for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)


class SelfAttention(nn.Module):
    """Queries, keys and values side by side `(N, L, 3 D)` to `(N, L, D)`, in float between integer layers.

    Scaled dot products in `heads` groups of channels (Vaswani et al., arXiv 1706.03762).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
