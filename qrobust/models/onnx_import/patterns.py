"""Several operators that say one: GELU, hardswish and layer norm, as exporters without them write them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qrobust.models.onnx_import.file import Operator

COMMUTING = ("Add", "Mul", "Sum")
# Of a constant that exporters have rounded.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Op:
    """An operator in a pattern.

    Attributes:
        kind: of the operator.
        inputs: an `Op`; a number for a constant of that value; a name, the same of which stand for the same value.
        attributes: that it must have.
    """

    kind: str
    inputs: tuple[Op | float | str, ...]
    attributes: tuple[tuple[str, float], ...] = ()


def _clipped(source: str) -> Op:
    """relu6(x + 3)."""
    return Op("Clip", (Op("Add", (source, 3.0)), 0.0, 6.0))


_ERF = Op("Add", (Op("Erf", (Op("Div", ("x", math.sqrt(2))),)), 1.0))
_ERF_TIMES = Op("Add", (Op("Erf", (Op("Mul", ("x", math.sqrt(0.5))),)), 1.0))
_CUBE = Op("Mul", (Op("Pow", ("x", 3.0)), 0.044715))
_TANH = Op("Add", (Op("Tanh", (Op("Mul", (Op("Add", ("x", _CUBE)), math.sqrt(2 / math.pi))),)), 1.0))


def _gates(erf: Op) -> Iterator[Op]:
    """x (1 + erf) / 2 in the orders in which it is written."""
    yield Op("Mul", (Op("Mul", ("x", erf)), 0.5))
    yield Op("Mul", (Op("Mul", ("x", 0.5)), erf))
    yield Op("Mul", ("x", Op("Mul", (erf, 0.5))))
    yield Op("Div", (Op("Mul", ("x", erf)), 2.0))


_SQUARE = Op("Pow", ("centred", 2.0))
_SELF = Op("Mul", ("centred", "centred"))
# What is to be replaced, and by which operator of x; the first that fits counts.
PATTERNS: tuple[tuple[Op, str, Mapping[str, str | float]], ...] = (
    *((gate, "Gelu", {}) for erf in (_ERF, _ERF_TIMES) for gate in _gates(erf)),
    *((gate, "Gelu", {"approximate": "tanh"}) for gate in _gates(_TANH)),
    (Op("Div", (Op("Mul", ("x", _clipped("x"))), 6.0)), "HardSwish", {}),
    (Op("Mul", (Op("Mul", ("x", _clipped("x"))), 1 / 6)), "HardSwish", {}),
    (Op("Mul", ("x", Op("Div", (_clipped("x"), 6.0)))), "HardSwish", {}),
    (Op("Mul", ("x", Op("Mul", (_clipped("x"), 1 / 6)))), "HardSwish", {}),
    (Op("Mul", ("x", Op("HardSigmoid", ("x",), (("alpha", 1 / 6),)))), "HardSwish", {}),
    (Op("Div", (_clipped("x"), 6.0)), "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    (Op("Mul", (_clipped("x"), 1 / 6)), "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
)


class _Graph:
    """Who makes a value, and which values are constants."""

    def __init__(self, operators: Sequence[Operator], constants: Mapping[str, torch.Tensor]) -> None:
        self.makers = {value: operator for operator in operators for value in operator.outputs if value}
        self.constants = dict(constants)
        for operator in operators:
            value = operator.attributes.get("value")
            if operator.kind == "Constant" and isinstance(value, torch.Tensor):
                self.constants[operator.outputs[0]] = value

    def number(self, value: str) -> float | None:
        """Of a constant that holds one."""
        found = self.constants.get(value)
        return float(found) if found is not None and found.numel() == 1 else None

    def matches(self, value: str, pattern: Op | float | str, bound: dict[str, str]) -> dict[str, str] | None:
        """What the names of a pattern stand for, if a value is what it says; else None."""
        if isinstance(pattern, str):
            return bound | {pattern: value} if bound.get(pattern, value) == value else None
        if isinstance(pattern, float):
            number = self.number(value)
            return bound if number is not None and math.isclose(number, pattern, rel_tol=TOLERANCE) else None
        maker = self.makers.get(value)
        if maker is None or maker.kind != pattern.kind:
            return None
        for name, wanted in pattern.attributes:
            given = maker.attributes.get(name)
            if not isinstance(given, int | float) or not math.isclose(given, wanted, rel_tol=TOLERANCE):
                return None
        inputs = self._inputs(maker)
        orders = [inputs, inputs[::-1]] if pattern.kind in COMMUTING else [inputs]
        return next((f for order in orders if (f := self._all(order, pattern, bound)) is not None), None)

    def _inputs(self, maker: Operator) -> tuple[str | float, ...]:
        if maker.kind == "Clip" and len(maker.inputs) == 1:  # of older versions
            low, high = (maker.attributes.get(name, value) for name, value in (("min", -math.inf), ("max", math.inf)))
            assert isinstance(low, int | float)
            assert isinstance(high, int | float)
            return (maker.inputs[0], float(low), float(high))
        return maker.inputs

    def _all(self, given: Sequence[str | float], pattern: Op, bound: dict[str, str]) -> dict[str, str] | None:
        if len(given) != len(pattern.inputs):
            return None
        found: dict[str, str] | None = bound
        for value, wanted in zip(given, pattern.inputs, strict=True):
            if found is None:
                return None
            if isinstance(value, float):
                found = found if isinstance(wanted, float) and math.isclose(value, wanted) else None
            else:
                found = self.matches(value, wanted, found)
        return found


def combined(operators: Sequence[Operator], constants: Mapping[str, torch.Tensor]) -> list[Operator]:
    """The same operators, where the last of several that say one is that one; the others are then for nothing."""
    graph = _Graph(operators, constants)
    return [_combined(graph, operator) for operator in operators]


def _combined(graph: _Graph, operator: Operator) -> Operator:
    if operator.kind not in ("Mul", "Div", "Add"):
        return operator
    for pattern, kind, attributes in PATTERNS:
        found = graph.matches(operator.outputs[0], pattern, {})
        if found is not None and found["x"] not in graph.constants:
            return replace(operator, kind=kind, inputs=(found["x"],), attributes=dict(attributes))
    return _layer_norm(graph, operator) or operator


def _layer_norm(graph: _Graph, operator: Operator) -> Operator | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + offset over the last axis."""
    if operator.kind != "Add":
        return None
    for square in (_SQUARE, _SELF):
        deviation = Op("Sqrt", (Op("Add", (Op("ReduceMean", (square,)), "epsilon")),))
        pattern = Op("Add", (Op("Mul", (Op("Div", ("centred", deviation)), "scale")), "offset"))
        found = graph.matches(operator.outputs[0], pattern, {})
        centred = graph.makers.get(found["centred"]) if found else None
        if found is None or centred is None or centred.kind != "Sub":
            continue
        x, mean = centred.inputs[0], graph.makers.get(centred.inputs[1])
        epsilon, stored = graph.number(found["epsilon"]), (found["scale"], found["offset"])
        if mean is None or mean.kind != "ReduceMean" or mean.inputs[0] != x or epsilon is None:
            continue
        if not all(name in graph.constants and graph.constants[name].ndim == 1 for name in stored):
            continue
        if mean.attributes.get("axes", None) in ([-1], (-1,)):
            attributes = {"axis": -1, "epsilon": epsilon}
            return replace(operator, kind="LayerNormalization", inputs=(x, *stored), attributes=attributes)
    return None
