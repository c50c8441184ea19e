"""Each operator of an imported ONNX file against onnxruntime, on random images, in several versions of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qrobust.deployment.imported import origin_of
from qrobust.deployment.session import open_session
from qrobust.models.onnx_import.file import read_onnx
from qrobust.models.onnx_import.network import as_network
from qrobust.quantization.tracing import folded

RANDOM = np.random.default_rng(0)


def numbers(*shape: int, low: float = -1, high: float = 1) -> np.ndarray:
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """Nodes `(kind, inputs, outputs, attributes)` that make `y` of `x` `(N, 4, 8, 8)` and of constants.

    `x` is made of the images by a convolution, a row `h` `(N, 8)` and tokens `t` `(N, 32, 8)` of `x`.
    """

    nodes: Sequence[tuple[str, str, str, Mapping[str, Any]]]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    opsets: Sequence[int] = (13, 21)


def one(
    kind: str, inputs: str = "x", constants: Mapping[str, np.ndarray] | None = None, *opsets: int, **made: Any
) -> Case:
    return Case([(kind, inputs, "y", made)], constants or {}, opsets or (13, 21))


KERNEL = {"w": numbers(6, 4, 3, 3), "b": numbers(6)}
CASES: dict[str, Case] = {
    "Conv": one("Conv", "x w b", KERNEL, 11, 21, pads=[1, 1, 1, 1]),
    "Conv without bias, strided": one("Conv", "x w", {"w": KERNEL["w"]}, strides=[2, 2]),
    "Conv, dilated": one("Conv", "x w b", KERNEL, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "Conv, depthwise": one("Conv", "x w", {"w": numbers(8, 1, 3, 3)}, group=4),
    "Conv, unequal padding": one("Conv", "x w b", KERNEL, pads=[0, 0, 1, 1], strides=[2, 2]),
    "Conv, SAME_UPPER": one("Conv", "x w b", KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv, SAME_LOWER": one("Conv", "x w b", KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv, VALID": one("Conv", "x w b", KERNEL, auto_pad="VALID"),
    "ConvTranspose": one("ConvTranspose", "x w b", {"w": numbers(4, 6, 3, 3), "b": numbers(6)}, strides=[2, 2]),
    "Gemm": one("Gemm", "h w b", {"w": numbers(5, 8), "b": numbers(5)}, 11, 13, 21, transB=1),
    "Gemm, scaled": one("Gemm", "h w b", {"w": numbers(8, 5), "b": numbers(1)}, alpha=0.5, beta=2.0),
    "MatMul": one("MatMul", "h w", {"w": numbers(8, 5)}),
    "MatMul of tokens": one("MatMul", "t w", {"w": numbers(8, 5)}),
    "MatMul with a bias behind": Case(
        [("MatMul", "t w", "m", {}), ("Add", "b m", "y", {})], {"w": numbers(8, 5), "b": numbers(5)}
    ),
    "MatMul of two": Case([("Transpose", "t", "u", {"perm": [0, 2, 1]}), ("MatMul", "t u", "y", {})]),
    "MatMul from the left": one("MatMul", "w t", {"w": numbers(5, 32)}),
    "BatchNormalization": one(
        "BatchNormalization",
        "x s b m v",
        {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": numbers(4, low=0.5, high=2)},
        11,
        14,
        21,
        epsilon=1e-3,
    ),
    "BatchNormalization of a row": one(
        "BatchNormalization",
        "h s b m v",
        {"s": numbers(8), "b": numbers(8), "m": numbers(8), "v": numbers(8, low=0.5, high=2)},
    ),
    "LayerNormalization": one("LayerNormalization", "t s b", {"s": numbers(8), "b": numbers(8)}, 17, 21, axis=-1),
    "LayerNormalization over three axes": one("LayerNormalization", "x s", {"s": numbers(4, 8, 8)}, 17, axis=1),
    "InstanceNormalization": one("InstanceNormalization", "x s b", {"s": numbers(4), "b": numbers(4)}),
    "GroupNormalization": one("GroupNormalization", "x s b", {"s": numbers(4), "b": numbers(4)}, 21, num_groups=2),
    "LRN": one("LRN", size=3, alpha=0.1, beta=0.7, bias=1.5),
    "LpNormalization": one("LpNormalization", "h", axis=1, p=2),
    "GlobalAveragePool": one("GlobalAveragePool"),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "MaxPool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool, unequal padding": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "MaxPool, SAME_UPPER": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "AveragePool": one("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool, padding not counted": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool, padding counted": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool, SAME_UPPER": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    **{
        kind: one(kind)
        for kind in ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Celu", "Selu", "Softplus", "Softsign")
    },
    **{
        kind: one(kind)
        for kind in ("Exp", "Erf", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Identity", "Dropout")
    },
    "HardSwish": one("HardSwish", "x", None, 14, 21),
    "Mish": one("Mish", "x", None, 18),
    "Gelu": one("Gelu", "x", None, 20),
    "Gelu, tanh": one("Gelu", "x", None, 20, approximate="tanh"),
    "HardSigmoid": one("HardSigmoid"),
    "HardSigmoid of torch": one("HardSigmoid", alpha=1 / 6),
    "PRelu": one("PRelu", "x s", {"s": numbers(4, 1, 1)}),
    "PRelu of one slope": one("PRelu", "x s", {"s": numbers(1)}),
    "Clip to six": one("Clip", "x l u", {"l": np.float32(0), "u": np.float32(6)}),
    "Clip": one("Clip", "x l u", {"l": np.float32(-0.3), "u": np.float32(0.4)}, 11, 21),
    "Clip below": one("Clip", "x l", {"l": np.float32(0)}),
    "Clip above": one("Clip", "x  u", {"u": np.float32(0.2)}),
    "Softmax": one("Softmax", "h", None, 11, 13, 21),
    "Softmax over channels": Case([("Softmax", "x", "s", {"axis": 1}), ("Mul", "s x", "y", {})]),
    "LogSoftmax": one("LogSoftmax", "h", None, 11, 13),
    "Add": one("Add", "x c", {"c": numbers(4, 1, 1)}),
    "Add of two": Case([("Relu", "x", "r", {}), ("Add", "x r", "y", {})]),
    "Sub from a number": one("Sub", "c x", {"c": np.float32(1)}),
    "Mul": one("Mul", "x c", {"c": numbers(1, 4, 1, 1)}),
    "Div by one number": one("Div", "x c", {"c": numbers(1, low=1, high=2)}),
    "Pow": one("Pow", "x c", {"c": np.float32(2)}),
    "Sqrt and Reciprocal": Case(
        [("Abs", "x", "a", {}), ("Add", "a c", "p", {}), ("Sqrt", "p", "r", {}), ("Reciprocal", "r", "y", {})],
        {"c": np.float32(0.5)},
    ),
    "Max": one("Max", "x c", {"c": np.float32(0.1)}),
    "Min": one("Min", "x c", {"c": numbers(4, 1, 1)}),
    "Sum": Case([("Relu", "x", "r", {}), ("Sum", "x r x", "y", {})]),
    "Where": one("Where", "m x c", {"m": RANDOM.random((4, 8, 8)) > 0.5, "c": np.float32(0.25)}),
    "Reshape": one("Reshape", "x s", {"s": whole(0, -1, 8)}),
    "Reshape of a batch that is left open": one("Reshape", "x s", {"s": whole(-1, 4 * 8 * 8)}),
    "Reshape to a shape that is computed": Case(
        [
            ("Shape", "x", "s", {}),
            ("Gather", "s zero", "n", {"axis": 0}),
            ("Unsqueeze", "n first", "u", {}),
            ("Concat", "u rest", "c", {"axis": 0}),
            ("Reshape", "x c", "y", {}),
        ],
        {"zero": np.array(0, np.int64), "first": whole(0), "rest": whole(8, 32)},
    ),
    "Reshape that joins the batch and tokens": Case(
        [("Reshape", "t s", "f", {}), ("MatMul", "f w", "m", {}), ("Reshape", "m r", "y", {})],
        {"s": whole(-1, 8), "w": numbers(8, 3), "r": whole(-1, 32, 3)},
    ),
    "Gather of all, counted from the batch": Case(
        [
            ("Reshape", "h flat", "f", {}),
            ("Shape", "h", "s", {}),
            ("Gather", "s zero", "n", {"axis": 0}),
            ("Range", "zero n one", "r", {}),
            ("Mul", "r wide", "m", {}),
            ("Unsqueeze", "m axis", "u", {}),
            ("Add", "u places", "p", {}),
            ("Gather", "f p", "y", {"axis": 0}),
        ],
        {
            "flat": whole(-1),
            "zero": np.array(0, np.int64),
            "one": np.array(1, np.int64),
            "wide": np.array(8, np.int64),
            "axis": whole(1),
            "places": np.arange(8)[None],
        },
    ),
    "GatherND of a constant": Case(
        [("GatherND", "c i", "g", {}), ("Mul", "x g", "y", {})],
        {"c": numbers(3, 8), "i": RANDOM.integers(0, 3, (8, 2))},
    ),
    "Flatten": one("Flatten"),
    "Squeeze": Case([("GlobalAveragePool", "x", "p", {}), ("Squeeze", "p a", "y", {})], {"a": whole(2, 3)}),
    "Squeeze, old": Case(
        [("GlobalAveragePool", "x", "p", {}), ("Squeeze", "p", "y", {"axes": [2, 3]})], opsets=(11,)
    ),
    "Unsqueeze": one("Unsqueeze", "x a", {"a": whole(1, -1)}),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Transpose and back": Case(
        [
            ("Transpose", "x", "n", {"perm": [0, 2, 3, 1]}),
            ("Relu", "n", "r", {}),
            ("Transpose", "r", "y", {"perm": [0, 3, 1, 2]}),
        ]
    ),
    "Concat": Case([("Relu", "x", "r", {}), ("Concat", "x r", "y", {"axis": 1})]),
    "Concat of a token for each image": Case(
        [
            ("Shape", "x", "s", {}),
            ("Slice", "s zero one", "n", {}),
            ("Concat", "n rest", "c", {"axis": 0}),
            ("Expand", "token c", "e", {}),
            ("Concat", "e t", "y", {"axis": 1}),
        ],
        {"zero": whole(0), "one": whole(1), "rest": whole(1, 8), "token": numbers(1, 1, 8)},
    ),
    "Slice": one("Slice", "x s e a", {"s": whole(1, -3), "e": whole(3, 2**40), "a": whole(1, 3)}),
    "Slice in steps": one("Slice", "x s e a i", {"s": whole(1), "e": whole(8), "a": whole(2), "i": whole(2)}),
    "Slice backwards": one(
        "Slice", "x s e a i", {"s": whole(-1), "e": whole(-(2**40)), "a": whole(3), "i": whole(-1)}
    ),
    "Split": Case(
        [("Split", "x s", "a b", {"axis": 1}), ("Mul", "a c", "m", {}), ("Concat", "b m", "y", {"axis": 1})],
        {"s": whole(1, 3), "c": np.float32(3)},
    ),
    "Split, old": Case(
        [("Split", "x", "a b", {"axis": 1, "split": [1, 3]}), ("Concat", "b a", "y", {"axis": 1})], opsets=(11,)
    ),
    "Split in two": Case(
        [("Split", "x", "a b", {"axis": 1, "num_outputs": 2}), ("Concat", "b a", "y", {"axis": 1})], opsets=(18, 21)
    ),
    "Gather of one": one("Gather", "t i", {"i": np.array(0, np.int64)}, axis=1),
    "Gather of some": one("Gather", "x i", {"i": whole(3, 0, -2)}, axis=1),
    "Pad": one("Pad", "x p", {"p": whole(0, 0, 1, 2, 0, 0, 0, 1)}),
    "Pad, reflect": one("Pad", "x p", {"p": whole(0, 0, 1, 2, 0, 0, 2, 1)}, mode="reflect"),
    "Pad, edge": one("Pad", "x p", {"p": whole(0, 0, 1, 2, 0, 0, 2, 1)}, mode="edge"),
    "Pad of channels": one("Pad", "x p v", {"p": whole(0, 1, 0, 0, 0, 2, 0, 0), "v": np.float32(0.5)}),
    "Expand": Case([("GlobalAveragePool", "x", "p", {}), ("Expand", "p s", "y", {})], {"s": whole(1, 4, 2, 3)}),
    "Tile": one("Tile", "x r", {"r": whole(1, 2, 1, 3)}),
    "ReduceMean": one("ReduceMean", "x", None, 11, 17, axes=[2, 3], keepdims=0),
    "ReduceMean, new": one("ReduceMean", "x a", {"a": whole(2, 3)}, 18, 21, keepdims=1),
    "ReduceMean behind a Transpose": Case(
        [
            ("Transpose", "x", "n", {"perm": [0, 2, 3, 1]}),
            ("ReduceMean", "n", "y", {"axes": [1, 2], "keepdims": 0}),
        ],
        opsets=(13,),
    ),
    "ReduceSum": one("ReduceSum", "x a", {"a": whole(1)}),
    **{kind: one(kind, "x", None, 13, axes=[1], keepdims=0) for kind in ("ReduceMax", "ReduceMin", "ReduceL2")},
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace, CRD": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", blocksize=2),
    "Resize, nearest": one(
        "Resize",
        "x  s",
        {"s": np.array([1, 1, 2, 2], np.float32)},
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Resize, linear": one("Resize", "x  s", {"s": np.array([1, 1, 2, 1.5], np.float32)}, mode="linear"),
    "Einsum": one("Einsum", "t t", equation="nld,nmd->nlm"),
    "Cast of a constant": Case(
        [("Cast", "c", "f", {"to": TensorProto.FLOAT}), ("Mul", "x f", "y", {})], {"c": whole(3)}
    ),
    "ConstantOfShape": Case(
        [
            ("ConstantOfShape", "s", "c", {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])}),
            ("Add", "x c", "y", {}),
        ],
        {"s": whole(4, 1, 1)},
    ),
}
STEM = numbers(4, 3, 1, 1)
HIDDEN = [
    ("GlobalAveragePool", "x", "h_pool", {}),
    ("Flatten", "h_pool", "h_flat", {}),
    ("MatMul", "h_flat h_w", "h", {}),
]
TOKENS = [("Reshape", "x t_s", "t_f", {}), ("Transpose", "t_f", "t", {"perm": [0, 2, 1]})]
MADE = {"h": (HIDDEN, {"h_w": numbers(4, 8)}), "t": (TOKENS, {"t_s": whole(0, 8, 16 * 2)})}


def written(case: Case, opset: int, path: Path, batch: int | str = "N") -> Path:
    """A file of a case."""
    nodes, constants = list(case.nodes), dict(case.constants)
    stem = [("Conv", "images stem", "x", {})]
    read = {name for _, inputs, _, _ in case.nodes for name in inputs.split(" ")}
    for name, (before, needed) in MADE.items():
        if name in read:
            nodes, constants = [*before, *nodes], constants | needed
    graph = helper.make_graph(
        [
            helper.make_node(kind, i.split(" "), o.split(" "), name=f"{kind}_{o}", **g)
            for kind, i, o, g in [*stem, *nodes]
        ],
        "case",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in [*constants.items(), ("stem", STEM)]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


ENDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda z: z,
    "softmax": lambda z: z.softmax(-1),
    "sigmoid": torch.sigmoid,
}


def run(path: Path, images: torch.Tensor) -> torch.Tensor:
    (found,) = open_session(path, 1).run(None, {"images": images.numpy()})
    return torch.from_numpy(found)


def images(n: int) -> torch.Tensor:
    return torch.rand((n, 3, 8, 8), generator=torch.Generator().manual_seed(n)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for name, case in CASES.items() for opset in case.opsets], ids=str
)
def test_an_operator_says_in_torch_what_it_says_in_onnxruntime(name: str, opset: int, tmp_path: Path) -> None:
    path = written(CASES[name], opset, tmp_path / "case.onnx")
    network = as_network(read_onnx(path))
    origin = origin_of(network)
    assert origin is not None
    given = images(4).requires_grad_(True)  # a batch that it has not been read with
    got = ENDS[origin.ending.kinds.get("y", "")](network(given))
    wanted = run(path, given.detach())
    assert len(folded(network, given[:1].detach())(given)) == 4  # it can be traced, and leaves the batch open
    # Float32 rounding of one or two operators on numbers of order one; sums of at most 256 of them.
    assert torch.allclose(got, wanted.reshape(got.shape), rtol=1e-5, atol=2e-6)
    assert got.requires_grad
