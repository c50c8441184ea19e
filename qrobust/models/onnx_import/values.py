"""Values of an ONNX graph while it is read, and the torch.fx graph that grows with them.

Every value is known on images of two batches, of two and of three: what the batches share is a constant, what differs
though no pixel is in it is a batch size, and the shape of what is computed tells which of its axes is the batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

# Images in the two batches.
BATCHES = (2, 3)


class UnsupportedError(Exception):
    """Why an operator has no torch form here; whoever reads the file adds its name."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph.

    Attributes:
        samples: what it is on each of two batches.
        node: that computes it; None where no pixel changes it.
    """

    samples: tuple[torch.Tensor, torch.Tensor]
    node: fx.Node | None = None

    @property
    def is_constant(self) -> bool:
        """Whether neither pixels nor the batch change it."""
        first, second = self.samples
        return self.node is None and (first is second or (first.shape == second.shape and torch.equal(first, second)))

    @property
    def shape(self) -> tuple[int, ...]:
        """On the first batch."""
        return tuple(self.samples[0].shape)

    @property
    def open_shape(self) -> list[int]:
        """With -1 for the axis that grows with the batch.

        Raises:
            UnsupportedError: several do.
        """
        first, second = (tuple(sample.shape) for sample in self.samples)
        found = [a if a == b else -1 for a, b in zip(first, second, strict=True)]
        if found.count(-1) > 1:
            raise UnsupportedError(f"of a batch in several axes, {list(first)}")
        return found


@dataclass(frozen=True)
class Place:
    """Where an operator reads a stored number.

    Attributes:
        name: of the stored tensor.
        operator: the operator's first result.
        index: which of its inputs.
    """

    name: str
    operator: str
    index: int


@dataclass(frozen=True, eq=False)
class Grid:
    """The scales of a constant that was integers.

    Attributes:
        numbers: as they lie along the constant: one, or one for each entry of an axis.
        place: where they are read.
        integers: where the constant's integers are read; None before these are known.
    """

    numbers: torch.Tensor
    place: Place
    integers: Place | None = None

    def moved(self, function: Callable[..., torch.Tensor], *args: int | Sequence[int]) -> Grid:
        """Of the constant with its axes in other places."""
        if self.numbers.numel() == 1:
            return self
        return replace(self, numbers=function(self.numbers, *args))


@dataclass(frozen=True, eq=False)
class Layer:
    """Which stored tensors a layer on integers was read of.

    Attributes:
        weight: scales of its weights, as they lie along the layer's own.
        activation: where the scale of its input is read; None where that is no stored number.
        bias: where its bias is read; None without one, or where that is no stored tensor.
        bias_scale: where the scale of an int32 bias is read; None where the operator has none of its own.
    """

    weight: Grid
    activation: Place | None
    bias: Place | None
    bias_scale: Place | None


# What moves axes and leaves every number as it is.
MOVES = (torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze)


def constant(value: torch.Tensor) -> Value:
    """A value that nothing changes."""
    return Value((value, value))


class Builder:
    """Collects modules and nodes.

    Args:
        images: the input on each batch, `(N, C, S, S)`.
    """

    def __init__(self, images: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.images = Value(images, self.graph.placeholder("images"))
        self.scope = "graph"
        self.grids: WeakKeyDictionary[Value, Grid] = WeakKeyDictionary()
        self.layers: dict[str, Layer] = {}  # by name of the module
        self._names: set[str] = set()

    def call(self, layer: nn.Module, value: Value) -> Value:
        """The result of a module, which is called what the operator is called."""
        with torch.no_grad():
            samples = tuple(layer.eval()(sample) for sample in value.samples)
        if value.node is None:
            return Value((samples[0], samples[1]))
        name = self.name(self.scope)
        self.root.add_module(name, layer)
        return Value((samples[0], samples[1]), self.graph.call_module(name, (value.node,)))

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """The result of a function of values, numbers and lists of them; computed at once where no pixel is in it."""
        found: list[Value] = []
        fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, Value) else None)
        with torch.no_grad():
            samples = tuple(self._on(function, i, args, kwargs) for i in (0, 1))
        if all(value.node is None for value in found):
            made = Value((samples[0], samples[1]))
            if function in MOVES and found[0] in self.grids:
                self.grids[made] = self.grids[found[0]].moved(function, *args[1:])
            return made
        moved = fx.node.map_aggregate((args, kwargs), lambda a: self.argument(a) if isinstance(a, Value) else a)
        return Value((samples[0], samples[1]), self.graph.call_function(function, *moved))

    def _on(self, function: Callable[..., Any], batch: int, args: Any, kwargs: Any) -> torch.Tensor:
        def taken(argument: Any) -> Any:
            return argument.samples[batch] if isinstance(argument, Value) else argument

        given, named = fx.node.map_aggregate((args, kwargs), taken)
        return torch.as_tensor(function(*given, **named))

    def argument(self, value: Value) -> fx.Node | float:
        """What a node of the graph reads: a node, a stored tensor, or a number for a constant without axes."""
        if value.node is not None:
            return value.node
        if not value.is_constant:
            return self._repeated(value)
        if value.samples[0].ndim == 0:
            return float(value.samples[0])
        return self.stored(value.samples[0])

    def stored(self, tensor: torch.Tensor) -> fx.Node:
        """A node that reads a tensor of the network's own."""
        name = self.name(f"{self.scope}_constant")
        if tensor.is_floating_point():  # of a parameter a tracer notes what is done with it, of a buffer it does not
            self.root.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=False))
        else:
            self.root.register_buffer(name, tensor.contiguous())
        return self.graph.get_attr(name)

    def batch_size(self) -> fx.Node:
        """A node that tells how many images there are."""
        return self.graph.call_method("size", (self.images.node, 0))

    def _repeated(self, value: Value) -> fx.Node:
        """What is the same for each image of a batch, such as a class token."""
        row = value.samples[0][:1] if value.samples[0].ndim else value.samples[0]
        same = value.samples[0].ndim > 0 and all(
            len(sample) == n and torch.equal(sample, row.expand(sample.shape))
            for sample, n in zip(value.samples, BATCHES, strict=True)
        )
        if not same:
            raise UnsupportedError("of numbers that depend on the batch")
        sizes = [-1] * (row.ndim - 1)
        return self.graph.call_method("expand", (self.stored(row), self.batch_size(), *sizes))

    def name(self, wanted: str) -> str:
        """A name that no module or tensor has yet."""
        plain = re.sub(r"\W+", "_", wanted).strip("_") or "graph"
        plain = f"_{plain}" if hasattr(nn.Module, plain) or hasattr(fx.GraphModule, plain) else plain
        name, again = plain, 1
        while name in self._names:
            again += 1
            name = f"{plain}_{again}"
        self._names.add(name)
        return name
