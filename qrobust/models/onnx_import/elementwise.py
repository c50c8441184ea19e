"""Rules for what is computed number by number: activations, arithmetic, comparisons."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import nn

from qrobust.models.onnx_import.layers import with_bias
from qrobust.models.onnx_import.site import Site
from qrobust.models.onnx_import.values import UnsupportedError, Value, constant

Rule = Callable[[Site], Value]


def _module(make: Callable[[Site], nn.Module]) -> Rule:
    """The module that says the same of its one input."""
    return lambda site: site.builder.call(make(site), site.value())


def _function(function: Callable[..., Any]) -> Rule:
    """A function of all inputs."""
    return lambda site: site.builder.apply(function, *(site.value(i) for i in range(len(site.inputs))))


def _arithmetic(function: Callable[..., Any]) -> Rule:
    """A function of two inputs, of which a constant without axes is a number."""

    def rule(site: Site) -> Value:
        return site.builder.apply(function, *_operands(site))

    return rule


def _operands(site: Site) -> tuple[Value, Value]:
    first, second = site.value(0), site.value(1)
    return _plain(first, second), _plain(second, first)


def _plain(value: Value, other: Value) -> Value:
    """A constant of one number without its axes, where that changes no shape."""
    if value.is_constant and value.samples[0].numel() == 1 and 0 < len(value.shape) <= len(other.shape):
        return constant(value.samples[0].reshape(()))
    return value


def addition(site: Site) -> Value:
    return with_bias(site) or _arithmetic(operator.add)(site)


def division(site: Site) -> Value:
    first, second = _operands(site)
    if not first.samples[0].is_floating_point():  # towards zero, as C divides whole numbers
        return site.builder.apply(torch.div, first, second, rounding_mode="trunc")
    return site.builder.apply(operator.truediv, first, second)


def clip(site: Site) -> Value:
    low, high = (_bound(site, place, name) for place, name in ((1, "min"), (2, "max")))
    if low == 0 and high == 6:
        return site.builder.call(nn.ReLU6(), site.value())
    if low == 0 and high == math.inf:
        return site.builder.call(nn.ReLU(), site.value())
    if low == -math.inf and high == math.inf:
        return site.value()
    return site.builder.call(nn.Hardtanh(low, high), site.value())


def _bound(site: Site, place: int, name: str) -> float:
    least = -math.inf if name == "min" else math.inf
    found = float(site.tensor(place, "bounds")) if site.has(place) else site.number(name, least)
    # The largest numbers of the type are no bounds.
    return least if abs(found) >= torch.finfo(torch.float32).max else found


def hard_sigmoid(site: Site) -> Value:
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        return site.builder.call(nn.Hardsigmoid(), site.value())
    scaled = site.builder.apply(operator.mul, site.value(), alpha)
    return site.builder.call(nn.Hardtanh(0, 1), site.builder.apply(operator.add, scaled, beta))


def softmax(site: Site) -> Value:
    return _over_classes(site, nn.Softmax)


def log_softmax(site: Site) -> Value:
    return _over_classes(site, nn.LogSoftmax)


def _over_classes(site: Site, kind: type[nn.Softmax] | type[nn.LogSoftmax]) -> Value:
    rank, axis = len(site.value().shape), site.integer("axis", -1 if site.opset >= 13 else 1)
    # In older versions it is over all axes from this one on.
    if site.opset < 13 and any(size != 1 for size in site.value().shape[axis % rank + 1 :]):
        raise UnsupportedError(f"over several axes, from {axis}")
    return site.builder.call(kind(dim=axis), site.value())


def slopes(site: Site) -> Value:
    slope = site.tensor(1, "slopes").float()
    if slope.numel() == 1:
        return site.builder.call(nn.LeakyReLU(float(slope)), site.value())
    shape = site.value().shape
    if (
        slope.numel() != shape[1]
        or slope.shape[1 - len(shape) :].numel() != slope.numel()
        or slope.ndim < len(shape) - 1
    ):
        raise UnsupportedError(f"with slopes of shape {list(slope.shape)}")
    layer = nn.PReLU(slope.numel())
    layer.weight = nn.Parameter(slope.flatten(), requires_grad=False)
    return site.builder.call(layer, site.value())


def gelu(site: Site) -> Value:
    return site.builder.call(nn.GELU(approximate=site.text("approximate", "none")), site.value())


def power(site: Site) -> Value:
    first, second = _operands(site)
    return site.builder.apply(torch.pow, first, second)


def cast(site: Site) -> Value:
    kinds = {1: torch.float32, 10: torch.float32, 11: torch.float32, 16: torch.float32, 9: torch.bool}
    kinds |= {2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64}
    kind = kinds.get(site.integer("to", 1))
    if kind is None:
        raise UnsupportedError(f"to type {site.integer('to', 1)}")
    value = site.value()
    if value.samples[0].dtype == kind:
        return value
    if value.node is not None:  # images are float here, whatever the file takes
        raise UnsupportedError(f"of what the image changes, to {kind}")
    first, second = (sample.to(kind) for sample in value.samples)
    return constant(first) if value.is_constant else Value((first, second))


def fold(function: Callable[..., Any]) -> Rule:
    """A function of two, over any number of inputs."""

    def rule(site: Site) -> Value:
        values = [site.value(i) for i in range(len(site.inputs))]
        return reduce(lambda one, other: site.builder.apply(function, one, other), values)

    return rule


def larger(one: torch.Tensor | float, other: torch.Tensor | float) -> torch.Tensor:
    """Of two tensors, or a tensor and a number, the larger of each pair."""
    tensor, bound = (other, one) if isinstance(one, int | float) else (one, other)
    assert not isinstance(tensor, int | float)
    return torch.clamp(tensor, min=bound) if isinstance(bound, int | float) else torch.maximum(tensor, bound)


def smaller(one: torch.Tensor | float, other: torch.Tensor | float) -> torch.Tensor:
    """Likewise the smaller of each pair."""
    tensor, bound = (other, one) if isinstance(one, int | float) else (one, other)
    assert not isinstance(tensor, int | float)
    return torch.clamp(tensor, max=bound) if isinstance(bound, int | float) else torch.minimum(tensor, bound)


def mean_of_inputs(site: Site) -> Value:
    return site.builder.apply(operator.truediv, fold(operator.add)(site), len(site.inputs))


def identity(site: Site) -> Value:
    return site.value()


def dropout(site: Site) -> Value:
    if site.has(2) and bool(site.tensor(2, "a mode")):
        raise UnsupportedError("in training mode")
    if any(site.operator.outputs[1:]):
        raise UnsupportedError("with a mask")
    return site.value()


RULES: dict[str, Rule] = {
    "Relu": _module(lambda site: nn.ReLU()),
    "Sigmoid": _module(lambda site: nn.Sigmoid()),
    "Tanh": _module(lambda site: nn.Tanh()),
    "HardSwish": _module(lambda site: nn.Hardswish()),
    "LeakyRelu": _module(lambda site: nn.LeakyReLU(site.number("alpha", 0.01))),
    "Elu": _module(lambda site: nn.ELU(site.number("alpha", 1.0))),
    "Celu": _module(lambda site: nn.CELU(site.number("alpha", 1.0))),
    "Selu": _module(lambda site: nn.SELU()),
    "Softplus": _module(lambda site: nn.Softplus()),
    "Softsign": _module(lambda site: nn.Softsign()),
    "Mish": _module(lambda site: nn.Mish()),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "PRelu": slopes,
    "Clip": clip,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "Add": addition,
    "Sub": _arithmetic(operator.sub),
    "Mul": _arithmetic(operator.mul),
    "Div": division,
    "Pow": power,
    "Mod": _arithmetic(torch.remainder),
    "Max": fold(larger),
    "Min": fold(smaller),
    "Sum": fold(operator.add),
    "Mean": mean_of_inputs,
    "Equal": _arithmetic(torch.eq),
    "Greater": _arithmetic(torch.gt),
    "GreaterOrEqual": _arithmetic(torch.ge),
    "Less": _arithmetic(torch.lt),
    "LessOrEqual": _arithmetic(torch.le),
    "And": _function(torch.logical_and),
    "Or": _function(torch.logical_or),
    "Not": _function(torch.logical_not),
    "Where": _function(torch.where),
    "Sqrt": _function(torch.sqrt),
    "Reciprocal": _function(torch.reciprocal),
    "Exp": _function(torch.exp),
    "Log": _function(torch.log),
    "Erf": _function(torch.erf),
    "Abs": _function(torch.abs),
    "Neg": _function(torch.neg),
    "Floor": _function(torch.floor),
    "Ceil": _function(torch.ceil),
    "Round": _function(torch.round),
    "Sign": _function(torch.sign),
    "Cast": cast,
    "CastLike": identity,
    "Identity": identity,
    "Dropout": dropout,
}
