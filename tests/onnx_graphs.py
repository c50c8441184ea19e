"""Small ONNX graphs, part by part, for tests of the audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Part = Callable[["GraphBuilder", str], str]


class GraphBuilder:
    """Nodes and constants in the order they are asked for; every method returns the name of a value."""

    def __init__(self, shape: Sequence[int | str] = ("n", 3, 8, 8)) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))]

    def const(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        name = name or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    def quantize(self, x: str, scale: Any = 0.02, zero: Any = 128, dtype: Any = np.uint8, **axis: int) -> str:
        return self.op("QuantizeLinear", x, self.const(scale), self.const(zero, dtype), **axis)

    def dequantize(self, x: str, scale: Any = 0.02, zero: Any = 128, dtype: Any = np.uint8, **axis: int) -> str:
        return self.op("DequantizeLinear", x, self.const(scale), self.const(zero, dtype), **axis)

    def qdq(self, x: str, scale: Any = 0.02, zero: Any = 128, dtype: Any = np.uint8, **axis: int) -> str:
        return self.dequantize(self.quantize(x, scale, zero, dtype, **axis), scale, zero, dtype, **axis)

    def int8(self, shape: Sequence[int], scale: Any = 0.01) -> str:
        """Integer weights behind a DequantizeLinear, per tensor or per output channel."""
        values = np.random.default_rng(0).integers(-100, 100, shape)
        axis = {"axis": 0} if np.ndim(scale) else {}
        return self.dequantize(self.const(values, np.int8), scale, np.zeros(np.shape(scale)), np.int8, **axis)

    def int32(self, n: int, scale: Any = 0.0002) -> str:
        axis = {"axis": 0} if np.ndim(scale) else {}
        return self.dequantize(self.const(np.arange(n), np.int32), scale, np.zeros(np.shape(scale)), np.int32, **axis)

    def save(self, path: Path, *outputs: str, domains: Sequence[str] = ()) -> Path:
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, results, self.constants)
        opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(domain, 1) for domain in domains)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def s8(g: GraphBuilder, x: str) -> str:
    return g.qdq(x, zero=0, dtype=np.int8)


def conv_graph(
    path: Path,
    before: Part = lambda g, x: g.qdq(x),
    weight: Part = lambda g, x: g.int8((8, 3, 3, 3)),
    bias: Part | None = lambda g, x: g.int32(8),
    after: Part = lambda g, y: g.qdq(y),
    kind: str = "Conv",
) -> Path:
    """One convolution that runs on integers unless a part is changed; each part gets the image or the output."""
    g = GraphBuilder()
    inputs = [before(g, "images"), weight(g, "images"), *([bias(g, "images")] if bias else [])]
    return g.save(path, after(g, g.op(kind, *inputs, name="compute")))


def gemm_graph(
    path: Path,
    before: Part = lambda g, x: g.qdq(x),
    weight: Part = lambda g, x: g.int8((10, 192)),
    bias: Part | None = lambda g, x: g.int32(10),
    after: Part = lambda g, y: y,
    **factors: float,
) -> Path:
    """The same for a matrix product of the flattened image."""
    g = GraphBuilder()
    flat = before(g, g.op("Flatten", g.qdq("images")))
    inputs = [flat, weight(g, flat), *([bias(g, flat)] if bias else [])]
    return g.save(path, after(g, g.op("Gemm", *inputs, name="compute", transB=1, **factors)))


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIDE = 16
# A linear classifier of an image's mean grey: class k is nearest to 0.1 + 0.235 k, the colours of `save_npz`.
CENTRES = (20 + 60 * np.arange(3)) / 255


def classifier_graph(
    path: Path,
    shape: Sequence[int | str] = ("n", 3, SIDE, SIDE),
    *,
    wants: str = "unit",
    softmax: bool = False,
    dtype: int = TensorProto.FLOAT,
    noise: float = 0.0,
    classes: int = 3,
) -> Path:
    """The classifier above for a graph that is fed pixels as `wants` says."""
    channels = shape[-1] if shape[-1] in (1, 3) else shape[1]
    shape_of = (1, 1, 1, channels) if channels == shape[-1] else (1, channels, 1, 1)
    scale, offset = {
        "unit": (np.ones(channels), np.zeros(channels)),
        "byte": (np.full(channels, 1 / 255), np.zeros(channels)),
        "imagenet": (STD, MEAN),
        "grey": (np.array([0.25]), np.array([0.5])),
    }[wants]
    # |x - c|^2 up to what all classes share: 2 c x - c^2, sharpened.
    centres = np.resize(CENTRES, classes) + noise * np.array([1, -1, 1])[:classes]
    constants = {
        "scale": scale.reshape(shape_of),
        "offset": offset.reshape(shape_of),
        "axes": np.array([1, 2, 3]),
        "w": 200 * 2 * centres[None],
        "b": -200 * centres[None] ** 2,
        "shape": np.array([-1, 1]),
    }
    tensors = [
        numpy_helper.from_array(v.astype(np.int64 if v.dtype.kind == "i" else np.float32), k)
        for k, v in constants.items()
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("MatMul", ["column", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
        *([helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)] if softmax else []),
    ]
    result = helper.make_tensor_value_info("probabilities" if softmax else "logits", TensorProto.FLOAT, None)
    images = helper.make_tensor_value_info("images", dtype, list(shape))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [images], [result], tensors),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path
