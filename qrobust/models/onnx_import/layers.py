"""Rules for layers: convolutions, matrix products, norms and pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.models.onnx_import.site import Site
from qrobust.models.onnx_import.values import UnsupportedError, Value, constant


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.float().contiguous(), requires_grad=False)


def _pads(site: Site, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Top, left, bottom and right, in px."""
    kind = site.text("auto_pad", "NOTSET")
    if kind in ("NOTSET", ""):
        return site.integers("pads", [0, 0, 0, 0])
    if kind == "VALID":
        return [0, 0, 0, 0]
    begins, ends = [], []
    for size, k, s, d in zip(site.value().shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if kind == "SAME_UPPER" else more)
        ends.append(more if kind == "SAME_UPPER" else less)
    return [*begins, *ends]


def _two(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def convolution(site: Site) -> Value:
    x, weight = site.value(), site.tensor(1, "weights")
    if len(x.shape) != 4:
        raise UnsupportedError(f"on {len(x.shape)} axes")
    kernel, groups = weight.shape[2:], site.integer("group", 1)
    strides, dilations = site.integers("strides", [1, 1]), site.integers("dilations", [1, 1])
    top, left, bottom, right = _pads(site, kernel, strides, dilations)
    padding = (top, left) if (top, left) == (bottom, right) else (0, 0)
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        _two(kernel),
        _two(strides),
        padding,
        _two(dilations),
        groups,
        bias=site.has(2),
    )
    layer.weight = _parameter(weight)
    if site.has(2):
        layer.bias = _parameter(site.tensor(2, "a bias"))
    if (top, left) != (bottom, right):
        x = site.builder.call(nn.ZeroPad2d((left, right, top, bottom)), x)
    return site.builder.call(layer, x)


def transposed_convolution(site: Site) -> Value:
    weight, groups = site.tensor(1, "weights"), site.integer("group", 1)
    pads, more = site.integers("pads", [0, 0, 0, 0]), site.integers("output_padding", [0, 0])
    if pads[:2] != pads[2:] or "output_shape" in site.operator.attributes or len(site.value().shape) != 4:
        raise UnsupportedError("with this padding")
    if site.text("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedError("with automatic padding")
    layer = nn.ConvTranspose2d(
        len(weight),
        weight.shape[1] * groups,
        _two(weight.shape[2:]),
        _two(site.integers("strides", [1, 1])),
        _two(pads),
        _two(more),
        groups,
        bias=site.has(2),
        dilation=_two(site.integers("dilations", [1, 1])),
    )
    layer.weight = _parameter(weight)
    if site.has(2):
        layer.bias = _parameter(site.tensor(2, "a bias"))
    return site.builder.call(layer, site.value())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """From weights `(in, out)`."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias is not None)
    layer.weight = _parameter(weight.t())
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def general_product(site: Site) -> Value:
    """`Gemm`: alpha A B + beta C."""
    a, b = site.value(0), site.value(1)
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    if site.integer("transA", 0):
        a = site.builder.apply(torch.transpose, a, 0, 1)
    if site.integer("transB", 0):
        b = site.builder.apply(torch.transpose, b, 0, 1)
    c = site.value(2) if site.has(2) else None
    if (
        b.is_constant
        and a.node is not None
        and (c is None or (c.is_constant and c.samples[0].numel() in (1, b.shape[1])))
    ):
        weight = alpha * b.samples[0].float()
        bias = None if c is None else (beta * c.samples[0].float()).flatten().expand(b.shape[1])
        return site.builder.call(_linear(weight, bias), a)
    product = site.builder.apply(torch.matmul, a, b)
    product = product if alpha == 1 else site.builder.apply(torch.mul, product, alpha)
    if c is None:
        return product
    return site.builder.apply(torch.add, product, c if beta == 1 else site.builder.apply(torch.mul, c, beta))


def matrix_product(site: Site) -> Value:
    a, b = site.value(0), site.value(1)
    if b.is_constant and len(b.shape) == 2 and len(a.shape) >= 2:
        return site.builder.call(_linear(b.samples[0], None), a)
    return site.builder.apply(torch.matmul, a, b)


def with_bias(site: Site) -> Value | None:
    """An addition that is the bias of the matrix product before it, which nothing else reads."""
    for place in (0, 1):
        product, bias = site.value(place), site.value(1 - place)
        node = product.node
        layer = (
            site.builder.root.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else 0
        )
        if not (isinstance(layer, nn.Linear) and layer.bias is None and bias.is_constant):
            continue
        if bias.samples[0].numel() == math.prod(bias.shape[-1:]) == layer.out_features and site.readers(place) == 1:
            layer.bias = _parameter(bias.samples[0].flatten())
            first, second = (sample + layer.bias for sample in product.samples)
            return Value((first, second), node)
    return None


def batch_norm(site: Site) -> Value:
    if site.integer("training_mode", 0) or any(site.operator.outputs[1:]):
        raise UnsupportedError("in training mode")
    scale, offset, mean, variance = (site.tensor(i, "statistics").float() for i in range(1, 5))
    kind = nn.BatchNorm2d if len(site.value().shape) == 4 else nn.BatchNorm1d
    layer = kind(len(scale), eps=site.number("epsilon", 1e-5))
    layer.weight, layer.bias = _parameter(scale), _parameter(offset)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return site.builder.call(layer, site.value())


def layer_norm(site: Site) -> Value:
    shape, axis = site.value().shape, site.integer("axis", -1)
    sizes = list(shape[axis % len(shape) :])
    layer = nn.LayerNorm(sizes, eps=site.number("epsilon", 1e-5))
    layer.weight = _parameter(site.tensor(1, "a scale").expand(sizes))
    layer.bias = _parameter(site.tensor(2, "an offset").expand(sizes) if site.has(2) else torch.zeros(sizes))
    return site.builder.call(layer, site.value())


def instance_norm(site: Site) -> Value:
    return _groups(site, site.value().shape[1], site.tensor(1, "a scale"), site.tensor(2, "an offset"))


def group_norm(site: Site) -> Value:
    groups, channels = site.integer("num_groups", 1), site.value().shape[1]
    scale, offset = site.tensor(1, "a scale"), site.tensor(2, "an offset")
    if len(scale) != channels:  # before opset 21 they are of groups
        scale, offset = (numbers.repeat_interleave(channels // groups) for numbers in (scale, offset))
    return _groups(site, groups, scale, offset)


def _groups(site: Site, groups: int, scale: torch.Tensor, offset: torch.Tensor) -> Value:
    layer = nn.GroupNorm(groups, len(scale), eps=site.number("epsilon", 1e-5))
    layer.weight, layer.bias = _parameter(scale), _parameter(offset)
    return site.builder.call(layer, site.value())


def local_response_norm(site: Site) -> Value:
    size = site.integer("size", 1)
    if size % 2 == 0:  # torch's window then lies otherwise
        raise UnsupportedError("over an even number of channels")
    layer = nn.LocalResponseNorm(
        size, site.number("alpha", 1e-4), site.number("beta", 0.75), site.number("bias", 1.0)
    )
    return site.builder.call(layer, site.value())


def unit_length(site: Site) -> Value:
    return site.builder.apply(F.normalize, site.value(), p=site.integer("p", 2), dim=site.integer("axis", -1))


def global_average(site: Site) -> Value:
    return site.builder.call(nn.AdaptiveAvgPool2d(1), _image(site))


def global_maximum(site: Site) -> Value:
    return site.builder.call(nn.AdaptiveMaxPool2d(1), _image(site))


def _image(site: Site) -> Value:
    if len(site.value().shape) != 4:
        raise UnsupportedError(f"on {len(site.value().shape)} axes")
    return site.value()


def maximum_pool(site: Site) -> Value:
    if len(site.operator.outputs) > 1 and site.operator.outputs[1]:
        raise UnsupportedError("with indices")
    x, kernel = _image(site), site.integers("kernel_shape", [])
    strides, dilations = site.integers("strides", [1, 1]), site.integers("dilations", [1, 1])
    pads = _pads(site, kernel, strides, dilations)
    ceil = bool(site.integer("ceil_mode", 0))
    inside = all(2 * pad <= k for pad, k in zip(pads, [*kernel, *kernel], strict=True))
    if pads[:2] == pads[2:] and inside:
        layer = nn.MaxPool2d(_two(kernel), _two(strides), _two(pads), _two(dilations), ceil_mode=ceil)
        return site.builder.call(layer, x)
    if ceil or any(d > 1 for d in dilations):
        raise UnsupportedError("with unequal padding")
    top, left, bottom, right = pads
    # A window that reaches into the padding holds the nearest pixel, too: repeated, that changes no maximum.
    padded = site.builder.call(nn.ReplicationPad2d((left, right, top, bottom)), x)
    return site.builder.call(nn.MaxPool2d(_two(kernel), _two(strides)), padded)


def average_pool(site: Site) -> Value:
    x, kernel, strides = _image(site), site.integers("kernel_shape", []), site.integers("strides", [1, 1])
    if any(d > 1 for d in site.integers("dilations", [1, 1])):
        raise UnsupportedError("with dilations")
    pads, counted = _pads(site, kernel, strides, [1, 1]), bool(site.integer("count_include_pad", 0))
    ceil = bool(site.integer("ceil_mode", 0))
    inside = all(2 * pad <= k for pad, k in zip(pads, [*kernel, *kernel], strict=True))
    if pads[:2] == pads[2:] and inside:
        layer = nn.AvgPool2d(_two(kernel), _two(strides), _two(pads), ceil, counted)
        return site.builder.call(layer, x)
    if ceil:
        raise UnsupportedError("with unequal padding and cut windows")
    top, left, bottom, right = pads
    padding, pool = nn.ZeroPad2d((left, right, top, bottom)), nn.AvgPool2d(_two(kernel), _two(strides))
    found = site.builder.call(pool, site.builder.call(padding, x))
    if counted:
        return found
    shares = pool(padding(torch.ones(1, 1, *x.shape[2:])))
    return site.builder.apply(torch.mul, found, constant(1 / shares))


RULES: dict[str, Callable[[Site], Value]] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": general_product,
    "MatMul": matrix_product,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "LpNormalization": unit_length,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_maximum,
    "MaxPool": maximum_pool,
    "AveragePool": average_pool,
}
