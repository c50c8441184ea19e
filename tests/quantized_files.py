"""Small classifiers that onnxruntime's own tools quantized, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

SIZE, CHANNELS = 16, 32
LEVELS = np.array([0.08, 0.31, 0.55], np.float32)  # mean pixels of the three classes of `conftest.save_npz`
NORMALIZATION = "0.5,0.5,0.5/0.25,0.25,0.25"
KINDS: dict[str, dict[str, Any]] = {
    "QDQ, U8S8": {"activation": QuantType.QUInt8, "per_channel": True},
    "QDQ, S8S8": {"activation": QuantType.QInt8, "per_channel": False},
    "QOperator, U8S8": {"activation": QuantType.QUInt8, "per_channel": True, "kind": QuantFormat.QOperator},
    "QOperator, S8S8": {"activation": QuantType.QInt8, "per_channel": False, "kind": QuantFormat.QOperator},
}


def float_file(path: Path, *, opset: int = 17, seed: int | None = None) -> Path:
    """A classifier of normalised images by their mean pixel, with a residual addition and pools; or a random one."""
    rng = np.random.default_rng(seed)
    made = {
        "stem": np.full((CHANNELS, 3, 3, 3), 0.25 / 27, np.float32),
        "stem_bias": np.full(CHANNELS, 0.5, np.float32),
        "block": np.eye(CHANNELS, dtype=np.float32)[:, :, None, None] / 2,
        "head": np.repeat(40 * 2 * LEVELS[:, None] / CHANNELS / 1.5, CHANNELS, axis=1).astype(np.float32),
        "head_bias": -40 * LEVELS**2,
    }
    if seed is not None:
        made = {name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in made.items()}
    nodes = [
        helper.make_node("Conv", ["x", "stem", "stem_bias"], ["c"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "block"], ["d"], "block"),
        helper.make_node("Add", ["d", "m"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head", "head_bias"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in made.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


class _Images(CalibrationDataReader):
    def __init__(self) -> None:
        levels = np.linspace(-2, 2, 32, dtype=np.float32)[:, None, None, None]
        noise = np.random.default_rng(0).normal(0, 0.5, (32, 3, SIZE, SIZE))
        self.left = [{"x": (levels + noise).astype(np.float32)}]

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]  # onnxruntime's has the type of None
        return self.left.pop() if self.left else None


def quantized_file(
    path: Path,
    *,
    activation: QuantType = QuantType.QUInt8,
    per_channel: bool = True,
    kind: QuantFormat = QuantFormat.QDQ,
    **options: Any,
) -> Path:
    """`float_file` with int8 weights, by `quantize_static`."""
    source = float_file(path.with_suffix(".float.onnx"), **options)
    quantize_static(
        source,
        path,
        _Images(),
        quant_format=kind,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    return path


def with_input(path: Path, to: Path, kind: int, *, channels_last: bool = False) -> Path:
    """The same file with pixels of another type or layout, which it makes its own of."""
    model = onnx.load(path)
    axes = ["N", SIZE, SIZE, 3] if channels_last else ["N", 3, SIZE, SIZE]
    nodes, last = [], "pixels"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [last], ["as_float"], "as_float", to=TensorProto.FLOAT))
        last = "as_float"
    if kind == TensorProto.UINT8:
        for operation, number in (("Div", 255), ("Sub", 0.5), ("Div", 0.25)):
            name = f"{operation}_{number}"
            model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), f"{name}_by"))
            nodes.append(helper.make_node(operation, [last, f"{name}_by"], [name], name))
            last = name
    order = [0, 3, 1, 2] if channels_last else [0, 1, 2, 3]
    nodes.append(helper.make_node("Transpose", [last], ["x"], "planes", perm=order))
    rest = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.input.append(helper.make_tensor_value_info("pixels", kind, axes))
    onnx.save(model, to)
    return to


def with_batch(path: Path, batch: int) -> Path:
    """The same file for so many images at once alone."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def with_softmax(path: Path) -> Path:
    """The same file with probabilities for its output."""
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1))
    model.graph.output[0].name = "probabilities"
    onnx.save(model, path)
    return path
