"""An operator where it stands: its inputs as values, its attributes as what they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qrobust.models.onnx_import.file import Operator
from qrobust.models.onnx_import.values import Builder, Place, UnsupportedError, Value


@dataclass(frozen=True, eq=False)
class Site:
    """What a rule is given.

    Attributes:
        operator: of the file.
        builder: grows the torch network.
        inputs: values; None for one that is left out.
        opset: version of ONNX's own operators.
        batch: images that the file fixes, or None.
        readers: how many operators and outputs read the first result of each operator that gave an input.
    """

    operator: Operator
    builder: Builder
    inputs: Sequence[Value | None]
    opset: int
    batch: int | None
    readers: Callable[[int], int]

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return len(self.inputs) > place and self.inputs[place] is not None

    def value(self, place: int = 0) -> Value:
        """An input that must be there."""
        found = self.inputs[place] if len(self.inputs) > place else None
        if found is None:
            raise UnsupportedError(f"without its input {place + 1}")
        return found

    def place(self, place: int) -> Place:
        """Where the operator reads that input."""
        return Place(self.operator.inputs[place], self.operator.outputs[0], place)

    def tensor(self, place: int, what: str) -> torch.Tensor:
        """An input that must be a constant."""
        found = self.value(place)
        if not found.is_constant:
            raise UnsupportedError(f"with {what} that the image or the batch changes")
        return found.samples[0]

    def numbers(self, place: int, name: str) -> list[int] | None:
        """Whole numbers that are an input in newer versions and an attribute in older ones; None: left out."""
        if name in self.operator.attributes:
            return self.integers(name, [])
        return [int(n) for n in self.tensor(place, name).flatten()] if self.has(place) else None

    def integer(self, name: str, default: int) -> int:
        """An attribute of one whole number."""
        found = self.operator.attributes.get(name, default)
        assert isinstance(found, int)
        return found

    def number(self, name: str, default: float) -> float:
        """An attribute of one number."""
        found = self.operator.attributes.get(name, default)
        assert isinstance(found, int | float)
        return float(found)

    def text(self, name: str, default: str) -> str:
        """An attribute of characters."""
        return str(self.operator.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of whole numbers."""
        found = self.operator.attributes.get(name, default)
        assert isinstance(found, Sequence)
        return [int(n) for n in found]
