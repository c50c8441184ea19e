"""The only module that imports onnx: read a graph, its nodes, who makes and who reads a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from qrobust.errors import InputError
from qrobust.paths import check_file

# The second output of a graph that tells how far a calibrator's gate is open.
CORRECTION = "correction"
OPSET = 21
LOOPS = ("Loop", "Scan")
Node: TypeAlias = onnx.NodeProto
Graph: TypeAlias = onnx.GraphProto


def one_product() -> bytes:
    """A graph of one matrix product: `activations` uint8 `(1, 2)` times two weights of 127, `sums` int32 `(1, 1)`."""
    helper, types = onnx.helper, onnx.TensorProto
    weights = onnx.numpy_helper.from_array(np.full((2, 1), 127, np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["activations", "weights"], ["sums"])],
        "one_product",
        [helper.make_tensor_value_info("activations", types.UINT8, [1, 2])],
        [helper.make_tensor_value_info("sums", types.INT32, [1, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: there is no such file or it is not ONNX.
    """
    try:
        return onnx.load(path)
    except FileNotFoundError as error:
        raise InputError(f"onnx: no file {error.filename or path}") from error
    except Exception as error:  # protobuf raises its own types
        raise InputError(f"onnx: {path} is not a readable ONNX file ({error})") from error


def with_outputs(path: Path, names: Iterable[str]) -> bytes:
    """A file whose graph has these values for outputs."""
    proto = onnx.load(path)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(proto.SerializeToString())


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as plain values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """An initializer's values."""
    return onnx.numpy_helper.to_array(tensor)


def all_graphs(graph: Graph) -> Iterator[Graph]:
    """A graph, and those inside its nodes: the branches of an If, the bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    yield from all_graphs(inner)


def check_bounded(path: Path) -> None:
    """Refuse a file that may keep onnxruntime busy for ever.

    Raises:
        InputError: it has a Loop or a Scan, which repeat a graph as often as data say, or weights in what is no
            regular file. What is not ONNX at all is left to onnxruntime.
    """
    if path.suffix == ".ort":  # strings have their length before them and a zero after them
        content, outside = path.read_bytes(), list[Path]()
        found = {kind for kind in LOOPS if len(kind).to_bytes(4, "little") + kind.encode() + b"\0" in content}
    else:
        try:
            proto = onnx.load(path, load_external_data=False)
        except Exception:  # protobuf raises its own types
            return
        wholes: list[Any] = [proto.graph, *proto.functions]
        nodes = [node for part in wholes for graph in all_graphs(part) for node in graph.node]
        found = {node.op_type for node in nodes if node.op_type in LOOPS and node.domain in ("", "ai.onnx")}
        outside = [path.parent / location for location in _external_data(proto) if "\0" not in location]
    if found:
        raise InputError(
            f"onnx: {path} has {' and '.join(sorted(found))}; expected a graph without loops, whose time is bounded"
        )
    for file in outside:
        if file.exists():  # what is missing is told where onnxruntime misses it
            check_file(file, "onnx")


def _external_data(proto: onnx.ModelProto) -> list[str]:
    """The files that hold weights for a graph, as it names them."""
    entries = (e for g in all_graphs(proto.graph) for tensor in g.initializer for e in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def is_quantized(path: Path) -> bool:
    """Whether operators of quantization or on integers are named in a file, an ONNX or an ORT one."""
    content = path.read_bytes()
    return any(kind in content for kind in (b"QuantizeLinear", b"QLinear", b"MatMulInteger", b"ConvInteger"))


def files_of(path: Path) -> list[Path]:
    """A graph's own file, then those in which it keeps weights; one in onnxruntime's own format keeps them inside."""
    if path.suffix == ".ort":
        return [path]
    return [path, *(path.parent / name for name in _external_data(onnx.load(path, load_external_data=False)))]


def complaint(path: Path) -> str | None:
    """What is wrong with a file that onnxruntime refuses, where the file itself tells."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf raises its own types
        return "it is not an ONNX file, or not a whole one"
    if not proto.graph.node:
        return "it holds no graph"
    known = {"", "ai.onnx", *(function.domain for function in proto.functions)}
    custom = sorted(
        {
            f"{node.domain}:{node.op_type}"
            for graph in all_graphs(proto.graph)
            for node in graph.node
            if node.domain not in known and not node.domain.startswith(("ai.onnx.", "com.microsoft", "com.ms."))
        }
    )
    if custom:
        return f"it needs custom operators: {', '.join(custom)}"
    folder = path.parent.resolve()
    for location in _external_data(proto):
        if "\0" in location:
            return f"its external data {location!r} is no path"
        if not (folder / location).resolve().is_relative_to(folder):
            return f"its external data {location!r} lies outside its folder"
        if not (folder / location).is_file():
            return f"its external data {location!r} is missing"
    return None


QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class GraphView:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: Graph) -> None:
        graphs = list(all_graphs(graph))
        self.nodes = [node for part in graphs for node in part.node]
        self.constants = {tensor.name: tensor for part in graphs for tensor in part.initializer}
        self.changeable = {value.name for value in graph.input if value.name in self.constants}
        self.results = {value.name for part in graphs for value in part.output}
        self.producer = {value: node for node in self.nodes for value in node.output if value}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                if value:
                    self.readers[value].append(node)

    def numbers(self, value: str) -> np.ndarray | None:
        """A constant's numbers; None for what is computed."""
        return array(self.constants[value]) if value in self.constants else None

    def optional(self, node: Node, index: int) -> str:
        """Name of an input that may be missing: then empty."""
        return node.input[index] if len(node.input) > index else ""

    def grid(self, node: Node) -> tuple[np.ndarray | None, np.ndarray, str]:
        """Scale (None: computed), zero point and integer type of a QuantizeLinear or DequantizeLinear."""
        scale = self.numbers(node.input[1])
        zero = self.numbers(self.optional(node, 2))
        if zero is not None:
            return scale, zero, str(zero.dtype)
        source = self.numbers(node.input[0]) if node.op_type == DEQUANTIZE else None
        maker = self.producer.get(node.input[0])
        if source is not None:
            kind = str(source.dtype)
        elif node.op_type == DEQUANTIZE and maker is not None and maker.op_type == QUANTIZE:
            kind = self.grid(maker)[2]
        else:
            kind = "uint8"
        return scale, np.zeros(1, np.int64), kind


def label(node: Node) -> str:
    """A node's name, or what else finds it in the file."""
    return node.name or f"({node.op_type} of {node.input[0] if node.input else 'nothing'})"
