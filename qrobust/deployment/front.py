"""A calibrator in front of an ONNX file whose own nodes and constants stay, byte for byte."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.deployment.onnx_graph import CORRECTION, OPSET, array
from qrobust.deployment.rescaled import same_but, with_constants
from qrobust.errors import ExportCheckError, InputError
from qrobust.storage import atomic_write

# Names of what stands in front begin so; with a number where those of the file do, too.
OPENING = "qrobust_front"
# The oldest opset that has QuantizeLinear per channel, and the oldest of which files are converted to it.
LEAST_OPSET, CONVERTIBLE = 13, 10
# The first opsets in which an operator is as the calibrator's graph has it, and what it was before.
WARPING, LINEAR, RESIZING, AXES_AS_INPUT, ALLOWING_ZERO = 16, 20, 18, 18, 14
LATER_RESIZE = ("antialias", "axes", "keep_aspect_ratio_policy")
FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class FileInput:
    """What a file takes, from images `(N, C, S, S)` in [0, 1], RGB: `(images - mean) / std`.

    Attributes:
        mean, std: per channel, in the file's order.
        order: `rgb` or `bgr`.
        size: S in px.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str
    size: int


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def opset_in_front(path: Path) -> int:
    """The opset of a file once something stands in front of it: its own, or the oldest that allows it."""
    return max(LEAST_OPSET, opset_of(onnx.load(path, load_external_data=False)))


def converted(path: Path) -> onnx.ModelProto:
    """A file at an opset that something can stand in front of: as it is, if that is possible.

    Raises:
        InputError: its opset is too old to be converted, or onnx's converter refuses it.
    """
    model = onnx.load(path)
    if opset_of(model) >= LEAST_OPSET:
        return model
    if opset_of(model) < CONVERTIBLE:
        raise InputError(f"model: {path} has opset {opset_of(model)}, expected at least {CONVERTIBLE}")
    try:
        return onnx.version_converter.convert_version(model, LEAST_OPSET)
    except Exception as error:  # the converter raises several types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"model: {path} has opset {opset_of(model)} and cannot be converted to {LEAST_OPSET} ({reason})"
        ) from error


def put_in_front(
    path: Path,
    given: FileInput,
    to: Path,
    *,
    calibrator: Path | None = None,
    constants: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write a file's graph with images in [0, 1], RGB `(N, C, S, S)` float32, as its input.

    Args:
        path: of the file.
        given: what it takes.
        to: where it is written.
        calibrator: exported by `deployment.export`, images to images (and the gate); None: only the input is made.
        constants: other numbers for tensors that the file stores, by name; see `with_constants`.
        metadata: added to the file's own, values as JSON unless they are strings.

    Raises:
        InputError: the file cannot be converted to an opset that allows it, or its opset lacks an operator.
        ExportCheckError: the ONNX checker refuses the result.
    """
    model = with_constants(converted(path), constants or {})
    opset, names = opset_of(model), {name for node in model.graph.node for name in (*node.input, *node.output)}
    names |= {node.name for node in model.graph.node} | {tensor.name for tensor in model.graph.initializer}
    opening = next(p for p in _openings() if not any(name.startswith(p) for name in names))
    stored = {tensor.name for tensor in model.graph.initializer}
    own = next(value for value in model.graph.input if value.name not in stored)
    images = "images" if "images" not in names else f"{opening}images"
    front = _Front(images, opening)
    pixels = images
    if calibrator is not None:
        pixels = front.graph(onnx.load(calibrator), opset)
    _as_input(front, pixels, own, given)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:], graph.input[:]
    graph.input.append(_images(images, own, given))
    graph.input.extend(value for value in model.graph.input if value.name != own.name)
    graph.node.extend([*front.nodes, *model.graph.node])
    graph.initializer.extend(front.constants)
    graph.output.extend(front.outputs)
    result.ir_version = max(model.ir_version, IR_VERSIONS.get(opset, 4))
    told = {entry.key: entry.value for entry in model.metadata_props}
    told |= {key: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for key, v in (metadata or {}).items()}
    helper.set_model_props(result, told)
    try:
        onnx.checker.check_model(result)  # not its shapes: others' files often note wrong ones
    except Exception as error:  # the checker raises several types
        raise ExportCheckError(f"export: the ONNX checker refuses {to.name} ({error})") from error
    with atomic_write(to) as part:
        onnx.save_model(result, part)


# Of files that say an older one than their opset needs.
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def _images(name: str, own: onnx.ValueInfoProto, given: FileInput) -> onnx.ValueInfoProto:
    """The new input: of the file's own batch."""
    batch = own.type.tensor_type.shape.dim[0]
    value = helper.make_tensor_value_info(name, FLOAT, [None, len(given.mean), given.size, given.size])
    value.type.tensor_type.shape.dim[0].CopyFrom(batch)
    if not batch.dim_value and not batch.dim_param:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return value


def _openings() -> Iterator[str]:
    return (f"{OPENING}{number or ''}/" for number in itertools.count())


class _Front:
    """Nodes and constants in front of a graph, whose names all have one beginning."""

    def __init__(self, images: str, opening: str) -> None:
        self.images, self.opening = images, opening
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        made = result or f"{self.opening}{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [made], name=f"{self.opening}{kind}_{len(self.nodes)}", **attributes)
        )
        return made

    def constant(self, value: np.ndarray) -> str:
        name = f"{self.opening}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def graph(self, model: onnx.ModelProto, opset: int) -> str:
        """All of a graph of images; what it makes of them, and beside that the gate if it tells it."""
        named = {model.graph.input[0].name: self.images, "": ""}
        names = {name for node in model.graph.node for name in (*node.input, *node.output)}
        named |= {name: f"{self.opening}{name}" for name in names - set(named)}
        values = {tensor.name: array(tensor) for tensor in model.graph.initializer}
        for tensor in model.graph.initializer:
            stored = onnx.TensorProto()
            stored.CopyFrom(tensor)
            stored.name = named.get(tensor.name, f"{self.opening}{tensor.name}")
            self.constants.append(stored)
        for index, node in enumerate(model.graph.node):
            lowered = _at_opset(node, opset, values)
            lowered.name = f"{self.opening}{node.name or f'{node.op_type}_{index}'}"
            lowered.input[:] = [named[name] for name in lowered.input]
            lowered.output[:] = [named[name] for name in lowered.output]
            self.nodes.append(lowered)
        first, *others = model.graph.output
        for value in others:
            assert value.name == CORRECTION
            told = onnx.ValueInfoProto()
            told.CopyFrom(value)
            self.op("Identity", named[value.name], result=CORRECTION)
            self.outputs.append(told)
        return named[first.name]


def _at_opset(node: onnx.NodeProto, opset: int, values: Mapping[str, np.ndarray]) -> onnx.NodeProto:
    """A node of a calibrator's graph as an older opset writes it; it computes the same.

    Raises:
        InputError: that opset has no such operator.
    """
    found = onnx.NodeProto()
    found.CopyFrom(node)
    kind = node.op_type
    if opset >= OPSET:
        return found
    if kind == "GridSample" and opset < WARPING:
        raise InputError(
            f"branches: expected none that moves the image, which opset {opset} of the file cannot, got geometric"
        )
    if kind == "GridSample" and opset < LINEAR:
        _set(found, mode="bilinear")
    if kind == "Resize" and opset < RESIZING:
        _set(found, **dict.fromkeys(LATER_RESIZE))
    if kind == "ReduceMean" and opset < AXES_AS_INPUT:
        _set(found, noop_with_empty_axes=None, axes=[int(axis) for axis in values[node.input[1]].flatten()])
        del found.input[1:]
    if kind == "Reshape" and opset < ALLOWING_ZERO:
        _set(found, allowzero=None)
    return found


def _set(node: onnx.NodeProto, **attributes: Any) -> None:
    """Give a node attributes, and take from it those that are None."""
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    given = {name: value for name, value in attributes.items() if value is not None}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in given.items())


def _as_input(front: _Front, images: str, own: onnx.ValueInfoProto, given: FileInput) -> None:
    """From images in [0, 1] to what a file takes, in the steps in which this is done outside of graphs, too."""
    kind, steps = own.type.tensor_type.elem_type, list[tuple[str, Sequence[str], Mapping[str, Any]]]()
    channels = len(given.mean)
    if given.order == "bgr":
        order = front.constant(np.arange(channels)[::-1].astype(np.int64))
        steps.append(("Gather", [order], {"axis": 1}))
    for numbers, operation, nothing in ((given.mean, "Sub", 0.0), (given.std, "Div", 1.0)):
        if any(number != nothing for number in numbers):
            shaped = np.array(numbers, np.float32).reshape(1, channels, 1, 1)
            steps.append((operation, [front.constant(shaped)], {}))
    if kind == onnx.TensorProto.UINT8:
        limits = [front.constant(np.array(limit, np.float32)) for limit in (0, 255)]
        steps += [("Round", [], {}), ("Clip", limits, {})]
    if kind != FLOAT:
        steps.append(("Cast", [], {"to": kind}))
    if _is_channels_last(own):
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    for index, (operation, others, attributes) in enumerate(steps or [("Identity", [], {})]):
        last = index >= len(steps) - 1
        images = front.op(operation, images, *others, result=own.name if last else "", **attributes)


def _is_channels_last(own: onnx.ValueInfoProto) -> bool:
    """As `models.onnx_import.file` tells it."""
    axes = [axis.dim_value for axis in own.type.tensor_type.shape.dim[1:]]
    return axes[2] in (1, 3) and axes[0] not in (1, 3)


def bit_equal(path: Path, made: Path, given: FileInput, images: torch.Tensor, threads: int = 1) -> bool:
    """Whether a file and a graph that only has another input give the same logits, to the bit.

    Args:
        path: of the file.
        made: of the graph, from `put_in_front`.
        given: what the file takes.
        images: `(N, C, S, S)` in [0, 1].
        threads: of onnxruntime.
    """
    told = "/".join(",".join(map(repr, numbers)) for numbers in (given.mean, given.std))
    own = ForeignClassifier(path, threads, channel_order=given.order)
    if own.dtype != np.uint8:
        own = ForeignClassifier(path, threads, told, given.order)
    return torch.equal(own(images), ForeignClassifier(made, threads)(images))


def same_parts(path: Path, made: Path, but: Collection[str] = ()) -> bool:
    """Whether a graph holds every node, constant and output of a file, byte for byte and in its order.

    Args:
        path: of the file.
        made: of the graph.
        but: constants whose numbers may be others, in the same type and shape.
    """
    return same_but(onnx.load(path).graph, onnx.load(made).graph, but)
