"""From a file to a torch network: operator by operator, on two batches at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import fx, nn

from qrobust.errors import InputError
from qrobust.models.onnx_import import elementwise, integers, layers, shapes
from qrobust.models.onnx_import.file import OnnxFile, Operator
from qrobust.models.onnx_import.patterns import combined
from qrobust.models.onnx_import.site import Site
from qrobust.models.onnx_import.values import BATCHES, Builder, Layer, UnsupportedError, Value, constant

RULES: dict[str, shapes.Rule] = {**layers.RULES, **elementwise.RULES, **shapes.RULES, **integers.RULES}
# They may become nothing, and then another operator's value would bear their name.
MOVING = ("Identity", "Dropout", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Pad")
# They change nothing at the end of a file.
PASSING = ("Identity", "Cast")
# Of images that a file leaves open.
USUAL_SIZE = 224


@dataclass(frozen=True)
class Ending:
    """How a file ends that is not taken into the network.

    Attributes:
        kinds: by name of the file's output, `softmax` or `sigmoid`.
        outputs: by name of the file's output, the value that the network returns for it.
    """

    kinds: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """What a network was made of.

    Attributes:
        file: without its operators and tensors.
        ending: what the file does behind the logits.
        layers: by name of the module, what layers on integers were read of.
    """

    file: OnnxFile
    ending: Ending
    layers: Mapping[str, Layer] = field(default_factory=dict)


def as_network(file: OnnxFile) -> nn.Module:
    """A torch network of the images `(N, C, S, S)` that the file takes, as float; it returns logits.

    With several outputs it returns a dictionary of them. A softmax or a sigmoid at the end is left out: the logits
    are what goes into it. `meta["onnx"]` is its `Origin`.

    Raises:
        InputError: an operator has no torch form here; the message names it.
    """
    try:
        return _network(file)
    except InputError:
        raise
    except Exception as error:  # of a graph whose parts do not fit together
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model: {file.path}: its graph cannot be read ({reason})") from error


def _network(file: OnnxFile) -> nn.Module:
    size = file.image_size or USUAL_SIZE
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((n, file.channels, size, size), generator=generator) for n in BATCHES]
    if file.pixels == torch.uint8:
        images = [torch.round(255 * batch) for batch in images]
    ending = _ending(file)
    operators = _needed(combined(file.operators, file.constants), ending.outputs.values())
    reader = _Reader(file, operators, Builder((images[0], images[1])), ending)
    for operator in operators:
        reader.read(operator)
    return reader.network()


def _ending(file: OnnxFile) -> Ending:
    """What is left out at the end."""
    makers = {value: operator for operator in file.operators for value in operator.outputs}
    kinds, outputs = {}, {}
    for output in file.outputs:
        outputs[output], _ = _before(output, makers, PASSING)
        _, maker = _before(output, makers, (*PASSING, "QuantizeLinear", "DequantizeLinear"))
        if maker is not None and maker.kind in ("Softmax", "Sigmoid"):
            kinds[output] = maker.kind.lower()
            outputs[output] = maker.inputs[0]
    return Ending(kinds, outputs)


def _before(value: str, makers: Mapping[str, Operator], passing: Sequence[str]) -> tuple[str, Operator | None]:
    """What a value is before operators of some kinds, and the operator that makes that."""
    maker = makers.get(value)
    for _ in makers:  # not more often, where they lead in a circle
        if maker is None or maker.kind not in passing:
            break
        value = maker.inputs[0]
        maker = makers.get(value)
    return value, maker


def _needed(operators: Sequence[Operator], outputs: Iterable[str]) -> list[Operator]:
    """Those that an output depends on, in order."""
    wanted, found = set(outputs), []
    for operator in reversed(operators):
        if wanted.intersection(operator.outputs):
            wanted.update(operator.inputs)
            found.append(operator)
    return found[::-1]


class _Reader:
    """Values by name while operators are read."""

    def __init__(self, file: OnnxFile, operators: Sequence[Operator], builder: Builder, ending: Ending) -> None:
        self.file, self.builder, self.ending = file, builder, ending
        self.values: dict[str, Value] = {name: constant(tensor) for name, tensor in file.constants.items()}
        self.readers = Counter([*(name for o in operators for name in o.inputs), *ending.outputs.values()])
        self.left = self.readers.copy()
        image = builder.images
        if file.layout == "NHWC":
            image = builder.apply(torch.permute, image, [0, 2, 3, 1])
        self.values[file.image] = image

    def read(self, operator: Operator) -> None:
        """Add what an operator computes."""
        rule = RULES.get(operator.kind)
        if rule is None:
            raise self._refused(operator, "has no torch form here")
        self.builder.scope = self._scope(operator)
        unknown = [name for name in operator.inputs if name and name not in self.values]
        if unknown:
            raise self._refused(operator, f"reads {unknown[0]!r}, which nothing makes")
        inputs = [self.values[name] if name else None for name in operator.inputs]
        readers = partial(self._readers, operator)
        site = Site(operator, self.builder, inputs, self.file.opset, self.file.batch, readers)
        try:
            found = rule(site)
        except UnsupportedError as error:
            raise self._refused(operator, f"{error} has no torch form here") from error
        except Exception as error:  # torch refuses shapes and types by many
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._refused(operator, f"cannot be said in torch ({reason})") from error
        results = found if isinstance(found, tuple) else (found,)
        for name, result in zip(operator.outputs, results, strict=False):
            self.values[name] = result
            if result.node is not None and operator.kind not in MOVING:
                result.node.meta["onnx"] = (name, operator.kind, operator.name)
        for name in operator.inputs:  # samples of large images take memory
            self.left[name] -= 1
            if not self.left[name]:
                self.values.pop(name, None)

    def _readers(self, operator: Operator, place: int) -> int:
        return self.readers[operator.inputs[place]]

    def _refused(self, operator: Operator, why: str) -> InputError:
        name = f" {operator.name!r}" if operator.name else ""
        return InputError(f"model: {self.file.path}: {operator.kind}{name} {why}")

    def _scope(self, operator: Operator) -> str:
        """A name for what an operator becomes: of its weights where they have one, else its own."""
        for name in operator.inputs[1:2]:
            if name in self.file.constants and name.endswith((".weight", "/kernel", "_weight")):
                return name.removesuffix(".weight").removesuffix("/kernel").removesuffix("_weight")
        parts = [part for part in operator.name.split("/") if part]
        if len(parts) > 1 and parts[-1].partition("_")[0] == operator.kind:  # as torch names them
            parts = parts[:-1]
        return parts[-1] if parts else operator.kind.lower()

    def _row(self, value: Value) -> Value:
        """Without axes of length 1 behind the classes, as a global pool leaves them."""
        self.builder.scope = "logits"
        flat = value.node is not None and len(value.shape) == 4 and value.shape[2:] == (1, 1)
        return self.builder.apply(torch.flatten, value, 1) if flat else value

    def network(self) -> nn.Module:
        """What all operators make."""
        unknown = [value for value in self.ending.outputs.values() if value not in self.values]
        if unknown:
            raise InputError(f"model: {self.file.path}: nothing makes its output {unknown[0]!r}")
        found = {name: self._row(self.values[value]) for name, value in self.ending.outputs.items()}
        dead = [name for name, value in found.items() if value.node is None]
        if dead:
            raise InputError(f"model: {self.file.path}: its output {dead[0]!r} does not depend on the image")
        nodes = {name: value.node for name, value in found.items()}
        self.builder.graph.output(next(iter(nodes.values())) if len(nodes) == 1 else nodes)
        network = fx.GraphModule(self.builder.root, self.builder.graph, "OnnxNetwork")
        if self.file.integer:
            integers.fused(network)
            if self.file.pixels == torch.uint8:
                integers.pixels(network)
        network.graph.eliminate_dead_code()
        network.recompile()
        network.delete_all_unused_submodules()
        network.meta["onnx"] = Origin(
            replace(self.file, constants={}, operators=()), self.ending, self.builder.layers
        )
        return network.eval().requires_grad_(False)
