"""An ONNX file with other numbers in some of its stored tensors, and nothing else changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from qrobust.deployment.onnx_graph import array
from qrobust.errors import ExportCheckError
from qrobust.storage import atomic_write

# Types of scales and of biases; weights have others.
LEARNED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32)


def with_constants(model: onnx.ModelProto, constants: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """A file with other numbers in stored tensors, in the types that these have.

    Args:
        model: it is not changed.
        constants: by name, of the stored tensors' shapes.

    Raises:
        ExportCheckError: it stores no tensor of that name and shape, or integers of weights.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    left = dict(constants)
    for stored in found.graph.initializer:
        if stored.name not in left:
            continue
        before, after = array(stored), left.pop(stored.name).numpy()
        if before.shape != after.shape or stored.data_type not in LEARNED:
            raise ExportCheckError(
                f"export: {stored.name!r} is {before.dtype} {before.shape}, expected a scale or bias {after.shape}"
            )
        stored.CopyFrom(numpy_helper.from_array(after.astype(before.dtype), stored.name))
    if left:
        raise ExportCheckError(f"export: the file stores no tensor {next(iter(left))!r}")
    return found


def write_with_constants(path: Path, constants: Mapping[str, torch.Tensor], to: Path) -> None:
    """Write a file with other numbers in stored tensors, and with its own input.

    Raises:
        ExportCheckError: more than these tensors would differ; see `with_constants`.
    """
    before = onnx.load(path)
    after = with_constants(before, constants)
    if not same_but(before.graph, after.graph, constants):
        raise ExportCheckError(f"export: {to.name} differs from {path} in more than scales and biases")
    with atomic_write(to) as part:
        onnx.save_model(after, part)


def same_but(before: onnx.GraphProto, after: onnx.GraphProto, names: Collection[str] = ()) -> bool:
    """Whether a graph ends in all nodes of another and begins with its stored tensors and outputs, to the byte.

    Args:
        before: the other.
        after: it may have more nodes in front, and more tensors and outputs behind.
        names: tensors of which only name, type and shape must be the same.
    """
    if not before.node or len(after.initializer) < len(before.initializer):
        return False
    pairs = [
        *zip(before.node, after.node[-len(before.node) :], strict=False),
        *zip(before.output, after.output, strict=False),
    ]
    tensors = list(zip(before.initializer, after.initializer, strict=False))
    alike = [(one, other) for one, other in tensors if one.name in names]
    pairs += [(one, other) for one, other in tensors if one.name not in names]
    return (
        len(after.node) >= len(before.node)
        and len(after.output) >= len(before.output)
        and all(one.SerializeToString() == other.SerializeToString() for one, other in pairs)
        and all(
            (one.name, one.data_type, list(one.dims)) == (other.name, other.data_type, list(other.dims))
            for one, other in alike
        )
    )
