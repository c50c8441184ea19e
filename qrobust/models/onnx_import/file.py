"""Adapter to onnx: a file as plain operators and tensors, or one line that says why it is not taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx.inliner
import torch

from qrobust.errors import InputError
from qrobust.paths import check_file

Attribute: TypeAlias = int | float | str | torch.Tensor | Sequence[int] | Sequence[float] | Sequence[str]
CHANNELS = (1, 3)
CONTROL = ("If", "Loop", "Scan", "SequenceMap")
# Beginnings of operators on integers, and types that an image may have.
INTEGERS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantize",
    "QLinear",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
)
# Operators of onnxruntime's own domain that say what ONNX's say of integers.
MICROSOFT, KNOWN = "com.microsoft", ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm")
PIXELS: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.UINT8: torch.uint8,
}


# Of fewer than 8 bits, each in a byte of its own once it is read.
SMALL = ("int4", "uint4", "int2", "uint2")
HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Operator:
    """A node of an ONNX graph.

    Attributes:
        kind: `Conv`, `Gemm`, ...
        name: that the file gives it, which may be empty.
        inputs: names of values; an empty one is an input that is left out.
        outputs: names of values.
        attributes: by name.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What is read of a file.

    Attributes:
        path: of the file.
        sha256: of its content.
        opset: version of ONNX's own operators.
        operators: in order of execution.
        constants: stored tensors by name, those of floating point as float32.
        image: name of the input.
        pixels: type of the input.
        batch: images that the file fixes, or None.
        channels: 1 or 3.
        image_size: side in px that the file fixes, or None.
        layout: `NCHW` or `NHWC`.
        outputs: names of the outputs.
        metadata: strings that its maker left.
        is_half: whether numbers are stored in half precision, in which they are then computed.
        integer: kinds of operators on integers, sorted; none in a float file.
    """

    path: Path
    sha256: str
    opset: int
    operators: tuple[Operator, ...]
    constants: Mapping[str, torch.Tensor]
    image: str
    pixels: torch.dtype
    batch: int | None
    channels: int
    image_size: int | None
    layout: str
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    is_half: bool
    integer: tuple[str, ...] = ()


def read_onnx(path: Path) -> OnnxFile:
    """Read a classifier.

    Raises:
        InputError: it is not ONNX, has control flow, operators of its own, weights in other files, or not one image
            as input.
    """
    check_file(path, "model")
    content = path.read_bytes()
    proto = _parsed(path, content)
    _refuse(path, proto)
    try:
        constants = {tensor.name: _tensor(tensor) for tensor in proto.graph.initializer}
        operators = tuple(_operator(node) for node in proto.graph.node)
    except Exception as error:  # of tensors that are not whole
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model: {path} is not a readable ONNX file ({reason})") from error
    images = [value for value in proto.graph.input if value.name not in constants]
    image, pixels, shape = _image(path, images)
    batch, channels, size, layout = _axes(path, shape)
    return OnnxFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        opset=max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1),
        operators=operators,
        constants=constants,
        image=image,
        pixels=pixels,
        batch=batch,
        channels=channels,
        image_size=size,
        layout=layout,
        outputs=tuple(value.name for value in proto.graph.output),
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        is_half=any(t.data_type in HALVES for t in proto.graph.initializer) or pixels == torch.float16,
        integer=tuple(sorted({o.kind for o in operators if o.kind.startswith(INTEGERS)})),
    )


def _parsed(path: Path, content: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(content)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # protobuf raises its own types
        raise InputError(f"model: {path} is not a readable ONNX file, or not a whole one") from error
    if not proto.graph.node:
        raise InputError(f"model: {path} is not a readable ONNX file: it holds no graph")
    return proto


def _refuse(path: Path, proto: onnx.ModelProto) -> None:
    """Tell what is not taken at all."""
    nodes = proto.graph.node
    control = sorted({node.op_type for node in nodes if node.op_type in CONTROL or _has_graph(node)})
    if control:
        raise InputError(f"model: {path} has control flow ({', '.join(control)}); expected operators alone")
    custom = sorted({f"{node.domain}:{node.op_type}" for node in nodes if not _is_known(node)})
    if custom:
        raise InputError(f"model: {path} needs custom operators: {', '.join(custom)}")
    outside = sorted({e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"})
    if outside:
        raise InputError(
            f"model: {path} keeps weights in other files ({outside[0]}); expected one file, which "
            "onnx.save(onnx.load(FILE), OTHER) makes of them"
        )


def _is_known(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") or (node.domain == MICROSOFT and node.op_type.startswith(KNOWN))


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _image(path: Path, inputs: Sequence[onnx.ValueInfoProto]) -> tuple[str, torch.dtype, list[int | None]]:
    """Name, type and shape of the one input."""
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise InputError(f"model: {path}: expected one image as input, got {len(inputs)} inputs ({names})")
    kind, found = inputs[0].type.tensor_type.elem_type, inputs[0].type.tensor_type.shape.dim
    shape = [axis.dim_value if axis.dim_value > 0 else None for axis in found]
    if len(shape) != 4 or kind not in PIXELS:
        told = f"{onnx.TensorProto.DataType.Name(kind).lower()} {_told(shape)}"
        raise InputError(
            f"model: {path}: expected images (N, C, S, S) or (N, S, S, C) of a float type or uint8, got {told}"
        )
    return inputs[0].name, PIXELS[kind], shape


def _told(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"


def _axes(path: Path, shape: Sequence[int | None]) -> tuple[int | None, int, int | None, str]:
    """Batch, channels, side and layout of an input."""
    batch, *axes = shape
    layout = "NHWC" if axes[2] in CHANNELS and axes[0] not in CHANNELS else "NCHW"
    channels, sides = (axes[0], axes[1:]) if layout == "NCHW" else (axes[2], axes[:2])
    fixed = {side for side in sides if side is not None}
    if (channels or 3) not in CHANNELS or len(fixed) > 1:
        raise InputError(f"model: {path}: expected square images of 3 channels or 1, got {_told(shape)}")
    return batch, channels or 3, fixed.pop() if fixed else None, layout


def _operator(node: onnx.NodeProto) -> Operator:
    attributes = {a.name: _attribute(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return Operator(node.op_type, node.name, tuple(node.input), tuple(node.output), attributes)


def _attribute(value: Any) -> Attribute:
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float | str):
        return value
    return [entry.decode(errors="replace") if isinstance(entry, bytes) else entry for entry in value]


def _tensor(stored: onnx.TensorProto) -> torch.Tensor:
    numbers = onnx.numpy_helper.to_array(stored)
    if numbers.dtype.name in SMALL:
        numbers = numbers.astype("uint8" if numbers.dtype.name.startswith("u") else "int8")
    value = torch.from_numpy(numbers.copy())
    return value.float() if value.is_floating_point() else value


def walk(operators: Sequence[Operator]) -> Iterator[tuple[str, Operator]]:
    """Each value that is computed, with its operator."""
    for operator in operators:
        yield from ((value, operator) for value in operator.outputs if value)
