"""Each reason against onnxruntime: the graph stays in float, and repairing the named thing makes it integer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import qrobust
from onnx_graphs import GraphBuilder, Part, conv_graph, gemm_graph, s8

from qrobust.deployment.audit import explained_audit
from qrobust.deployment.diagnosis import REMEDIES
from qrobust.record import ExplainedAudit

Values = Any


def two_readers(g: GraphBuilder, y: str) -> str:
    return g.op("Add", g.qdq(y), g.qdq(y, 0.05))


def relu(g: GraphBuilder, y: str) -> str:
    return g.op("Relu", y, name="relu")


def clip6(g: GraphBuilder, y: str) -> str:
    return g.op("Clip", y, g.const(0.0), g.const(6.0), name="clip")


def int4(g: GraphBuilder, name: str = "w4") -> str:
    values = [i % 7 for i in range(8 * 27)]
    g.constants.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT4, [8, 3, 3, 3], values))
    return name


def int4_dequantized(g: GraphBuilder, _: str) -> str:
    return g.op("DequantizeLinear", int4(g), g.const(0.1))


def int4_cast(g: GraphBuilder, _: str) -> str:
    return g.dequantize(g.op("Cast", int4(g), to=onnx.TensorProto.INT8), 0.1, 0, np.int8)


def per_channel_input(g: GraphBuilder, x: str) -> str:
    return g.qdq(x, [0.02] * 3, [128] * 3, axis=1)


def dynamic_input(g: GraphBuilder, x: str) -> str:
    g.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [x], ["xq", "xs", "xz"]))
    return g.op("DequantizeLinear", "xq", "xs", "xz")


def run_time_bias(g: GraphBuilder, x: str) -> str:
    return g.op("Expand", g.op("ReduceMax", x, keepdims=0), g.const([8], np.int64), name="expand")


def uint8_weight(g: GraphBuilder, _: str) -> str:
    return g.dequantize(g.const(np.full((8, 3, 3, 3), 130), np.uint8), 0.01)


CONV: dict[str, tuple[str, dict[str, Values], dict[str, Values]]] = {
    # what is wrong: (the code and a part of the sentence, the changed parts, the parts that repair it)
    "graph input": (
        "input-not-quantized: its input images is the graph's float input",
        {"before": lambda g, x: x},
        {},
    ),
    "float producer": (
        "input-not-quantized: its input tanh_out comes in float from tanh (Tanh)",
        {"before": lambda g, x: g.op("Tanh", g.qdq(x), name="tanh")},
        {"before": lambda g, x: g.qdq(g.op("Tanh", g.qdq(x), name="tanh"))},
    ),
    "per-channel input": ("input-per-channel: its input has 3 scales", {"before": per_channel_input}, {}),
    "16-bit input": (
        "input-type: its input is uint16",
        {"before": lambda g, x: g.qdq(x, dtype=np.uint16), "after": lambda g, y: g.qdq(y, dtype=np.uint16)},
        {},
    ),
    "16-bit output": (
        "input-type: its activations are uint16",
        {"after": lambda g, y: g.qdq(y, dtype=np.uint16)},
        {},
    ),
    "weight computed": (
        "weight-not-quantized: its weight abs_out comes in float from abs (Abs)",
        {
            "weight": lambda g, x: g.op(
                "Abs", g.op("Mul", g.int8((8, 3, 3, 3)), g.op("ReduceMax", x, keepdims=0)), name="abs"
            ),
            "bias": None,
        },
        {
            "weight": lambda g, x: g.qdq(
                g.op("Abs", g.op("Mul", g.int8((8, 3, 3, 3)), g.op("ReduceMax", x, keepdims=0)), name="abs"),
                0.01,
                0,
                np.int8,
            ),
            "bias": None,
        },
    ),
    "int4 weight": (
        "weight-type: its weight is int4",
        {"weight": int4_dequantized, "bias": None},
        {"weight": int4_cast, "bias": None},
    ),
    "bias computed": ("bias-float: its bias expand_out comes in float from expand", {"bias": run_time_bias}, {}),
    "int8 bias": (
        "bias-type: its bias is int8",
        {"bias": lambda g, x: g.dequantize(g.const(np.arange(8), np.int8), 0.0002, 0, np.int8)},
        {},
    ),
    "bias with a zero point": (
        "bias-zero-point: its bias has a zero point",
        {"bias": lambda g, x: g.dequantize(g.const(np.arange(8), np.int32), 0.0002, 3, np.int32)},
        {},
    ),
    "bias scale": (
        "bias-scale: its bias has scale 0.001, input times weight is 0.0002",
        {"bias": lambda g, x: g.int32(8, 0.001)},
        {},
    ),
    "one bias scale for many": (
        "bias-scale: its bias has scale 0.0002, input times weight is 0.0002 to 0.0004 (8 scales)",
        {"weight": lambda g, x: g.int8((8, 3, 3, 3), [0.01] * 7 + [0.02])},
        {
            "weight": lambda g, x: g.int8((8, 3, 3, 3), [0.01] * 7 + [0.02]),
            "bias": lambda g, x: g.int32(8, [0.0002] * 7 + [0.0004]),
        },
    ),
    "run-time scale": (
        "bias-scale: its input, weight or bias has a scale that is computed",
        {"before": dynamic_input},
        {},
    ),
    "graph result": ("output-is-result: its output is a result of the graph", {"after": lambda g, y: y}, {}),
    "float reader": (
        "output-not-quantized: its output goes in float to tanh (Tanh)",
        {"after": lambda g, y: g.qdq(g.op("Tanh", y, name="tanh"))},
        {"after": lambda g, y: g.qdq(g.op("Tanh", g.qdq(y), name="tanh"))},
    ),
    "float reader behind an activation": (
        "output-not-quantized: its output goes in float through relu (Relu) to tanh (Tanh)",
        {"after": lambda g, y: g.op("Tanh", relu(g, y), name="tanh")},
        {"after": lambda g, y: g.op("Tanh", g.qdq(relu(g, y), zero=0), name="tanh")},
    ),
    "two readers": (
        "output-readers: its output has 2 readers",
        {"after": two_readers},
        {"after": lambda g, y: g.op("Add", *[g.qdq(y)] * 2)},
    ),
    "relu on a signed grid": (
        "activation-not-folded: relu (Relu) keeps 0 to inf, but the grid of",
        {"after": lambda g, y: g.qdq(relu(g, y))},
        {"after": lambda g, y: g.qdq(relu(g, y), zero=0)},
    ),
    "relu6 on a wider grid": (
        "activation-not-folded: clip (Clip) keeps 0 to 6, but the grid of",
        {"after": lambda g, y: g.qdq(clip6(g, y), 8 / 255, 0)},
        {"after": lambda g, y: g.qdq(clip6(g, y), 6 / 255, 0)},
    ),
    "transposed convolution": (
        "no-integer-kernel: onnxruntime has no integer form of ConvTranspose",
        {"kind": "ConvTranspose", "weight": lambda g, x: g.int8((3, 8, 3, 3))},
        {},
    ),
}
GEMM: dict[str, tuple[str, dict[str, Values], dict[str, Values]]] = {
    "flattened in float": (
        "input-not-quantized: its input Flatten2_out comes in float from Flatten2 (Flatten)",
        {"before": lambda g, x: x},
        {},
    ),
    "float weight": (
        "weight-float: its weight c8 is a float constant",
        {"weight": lambda g, x: g.const(np.ones((10, 192)))},
        {},
    ),
    "blocks of weights": (
        "weight-blocks: its weight has a scale for each block of an axis",
        {
            "weight": lambda g, x: g.op(
                "DequantizeLinear",
                g.const(np.ones((10, 192)), np.int8),
                g.const(np.full((10, 6), 0.01)),
                axis=1,
                block_size=32,
            ),
            "bias": None,
        },
        {"bias": None},
    ),
    "float bias": ("bias-float: its bias c11 is a float constant", {"bias": lambda g, x: g.const(np.ones(10))}, {}),
    "alpha": ("gemm-factors: with a bias, alpha and beta must be 1, it has alpha 0.5", {"alpha": 0.5}, {}),
    "beta": ("gemm-factors: with a bias, alpha and beta must be 1, it has alpha 1 and beta 0.5", {"beta": 0.5}, {}),
    "half quantized output": (
        "output-readers: its output has 2 readers",
        {"after": lambda g, y: g.op("Add", g.qdq(y), y)},
        {"after": lambda g, y: g.op("Add", *[g.qdq(y)] * 2)},
    ),
}
CASES = [(conv_graph, name, *case) for name, case in CONV.items()]
CASES += [(gemm_graph, name, *case) for name, case in GEMM.items()]


def explained(path: Path, **options: Any) -> tuple[ExplainedAudit, list[str]]:
    audited = explained_audit(path, 8, **options)
    assert {b.node for b in audited.blocked} <= {"compute"}
    return audited, [f"{r.code}: {r.why}" for b in audited.blocked for r in b.reasons]


@pytest.mark.parametrize(("build", "name", "reason", "broken", "repaired"), CASES, ids=[c[1] for c in CASES])
def test_named_reason_is_the_one(
    build: Callable[..., Path], name: str, reason: str, broken: dict, repaired: dict, tmp_path: Path
) -> None:
    audited, reasons = explained(build(tmp_path / "broken.onnx", **broken))
    assert audited.integer_ops == audited.integer_macs == 0 < audited.total_macs
    assert len(reasons) == 1, reasons
    assert reasons[0].startswith(reason)
    audited, reasons = explained(build(tmp_path / "repaired.onnx", **repaired))
    assert audited.integer_ops == audited.quantizable_ops == 1, reasons
    assert audited.integer_mac_share == 1
    assert audited.misread_sums == {}


def test_signed_activations_fuse_on_arm_only(tmp_path: Path) -> None:
    """A residual sum of int8 activations: nothing fuses as on x86, all of it as on ARM, and the numbers agree."""
    g = GraphBuilder()
    first = s8(g, g.op("Conv", s8(g, "images"), g.int8((3, 3, 1, 1)), name="first"))
    second = s8(g, g.op("Conv", first, g.int8((3, 3, 1, 1)), name="second"))
    path = g.save(tmp_path / "s8.onnx", s8(g, g.op("Add", first, second, name="add")))
    audited = explained_audit(path, 8, signed_activations=False)
    assert [(b.node, [r.code for r in b.reasons]) for b in audited.blocked] == [
        ("first", ["signed-activations"]),
        ("second", ["signed-activations"]),
    ]
    assert [i.nodes for i in audited.float_islands] == [{"add": "Add"}]
    audited = explained_audit(path, 8, signed_activations=True)
    assert (audited.integer_ops, audited.blocked, audited.float_islands) == (2, (), ())
    assert audited.other_ops["QLinearAdd"] == 1


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("type-mismatch: its input is int8, its output uint8", {"before": s8}),
        (
            "weight-sign: its activations are int8 but its weight is uint8",
            {"before": s8, "after": s8, "weight": uint8_weight},
        ),
    ],
)
def test_types_that_arm_does_not_mix(reason: str, parts: dict, tmp_path: Path) -> None:
    _, reasons = explained(conv_graph(tmp_path / "mixed.onnx", **parts), signed_activations=True)
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)
    repaired = conv_graph(tmp_path / "s8.onnx", before=s8, after=s8)
    assert explained(repaired, signed_activations=True)[0].integer_ops == 1


def test_two_faults_are_both_named(tmp_path: Path) -> None:
    parts: dict[str, Values] = {"before": lambda g, x: x, "after": lambda g, y: y}
    _, reasons = explained(conv_graph(tmp_path / "g.onnx", **parts))
    assert [r.partition(":")[0] for r in reasons] == ["input-not-quantized", "output-is-result"]


def test_constants_that_are_inputs_too(tmp_path: Path) -> None:
    path = conv_graph(tmp_path / "g.onnx")
    proto = onnx.load(path)
    value_info = onnx.helper.make_tensor_value_info
    proto.graph.input.extend(value_info(c.name, c.data_type, c.dims) for c in proto.graph.initializer)
    onnx.save(proto, tmp_path / "open.onnx")
    audited, reasons = explained(tmp_path / "open.onnx")
    assert audited.integer_ops == 0
    assert [r.partition(":")[0] for r in reasons] == ["constants-are-inputs"]
    assert explained(path)[0].integer_ops == 1


ISLANDS: dict[str, tuple[str, Part, Part]] = {
    "mean": (
        "no-integer-kernel: onnxruntime has no integer form of ReduceMean on CPUs; over whole images Global",
        lambda g, y: g.qdq(g.op("ReduceMean", y, g.const([2, 3], np.int64), name="island")),
        lambda g, y: g.qdq(g.op("GlobalAveragePool", y, name="island")),
    ),
    "relu": (
        "activation-not-folded: island (Relu) keeps 0 to inf",
        lambda g, y: g.qdq(g.op("Relu", y, name="island")),
        lambda g, y: g.qdq(g.op("Relu", y), zero=0),
    ),
    "max pool": (
        "scales-differ: island (MaxPool) must have one grid",
        lambda g, y: g.qdq(g.op("MaxPool", y, name="island", kernel_shape=[2, 2]), 0.03),
        lambda g, y: g.qdq(g.op("MaxPool", y, kernel_shape=[2, 2])),
    ),
    "sum": (
        "output-readers: its output has 2 readers",
        lambda g, y: two_readers(g, g.op("Add", y, y, name="island")),
        lambda g, y: g.qdq(g.op("Add", y, y)),
    ),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_float_islands(name: str, tmp_path: Path) -> None:
    reason, broken, repaired = ISLANDS[name]
    after = lambda part: lambda g, y: part(g, g.qdq(y))  # noqa: E731 - a part behind a quantized convolution
    audited, _ = explained(conv_graph(tmp_path / "broken.onnx", after=after(broken)))
    (island,) = audited.float_islands
    assert "island" in island.nodes
    assert f"{island.reasons[0].code}: {island.reasons[0].why}".startswith(reason)
    audited, _ = explained(conv_graph(tmp_path / "repaired.onnx", after=after(repaired)))
    assert audited.float_islands == ()


def test_island_that_onnxruntime_made_of_one_operator_and_moved(tmp_path: Path) -> None:
    """HardSwish is written out as two operators without names, in another layout than the file's."""

    def between_convolutions(g: GraphBuilder, y: str) -> str:
        inner = g.qdq(g.op("HardSwish", g.qdq(y)))
        return g.qdq(g.op("Conv", inner, g.int8((4, 8, 3, 3)), name="second"))

    audited, _ = explained(conv_graph(tmp_path / "g.onnx", after=between_convolutions))
    assert audited.integer_ops == 2
    (island,) = audited.float_islands
    assert sorted(island.nodes.values()) == ["HardSigmoid", "Mul"]
    assert [r.why for r in island.reasons] == ["onnxruntime has no integer form of HardSigmoid on CPUs"]


@pytest.mark.parametrize(
    ("build", "scales"),
    [
        (gemm_graph, {"bias": lambda g, x: g.int32(10, 0.001)}),
        (
            conv_graph,
            {
                "weight": lambda g, x: g.int8((8, 3, 3, 3), 1e-5),
                "bias": lambda g, x: g.int32(8, 9e-7),
                "after": lambda g, y: g.qdq(y, 1e-7),
            },
        ),
    ],
)
def test_misread_bias_gives_wrong_sums(build: Callable[..., Path], scales: dict, tmp_path: Path) -> None:
    """onnxruntime takes the bias for input scale times weight scale: unoptimised, the file says something else."""
    path = build(tmp_path / "g.onnx", **scales)
    audited, _ = explained(path)
    assert list(audited.misread_sums) == ["compute"]
    assert audited.integer_ops == 1
    results = results_of(path)
    # The largest bias is 7 or 9 integers; read at a fifth of its scale (or 4.5 times less) it loses most of itself.
    factor = 0.001 - 0.0002 if build is gemm_graph else 9e-7 - 2e-7
    assert np.abs(results[0] - results[1]).max() > 4 * factor
    assert "wrong sums" in qrobust("audit", path).output


def results_of(path: Path) -> list[np.ndarray]:
    """As the file says, and as onnxruntime makes it faster."""
    images, found = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32), []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        found.append(onnxruntime.InferenceSession(str(path), options).run(None, {"images": images})[0])
    return found


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_along_another_axis_give_wrong_sums(axis: int, tmp_path: Path) -> None:
    def weight(g: GraphBuilder, _: str) -> str:
        values = np.random.default_rng(0).integers(-100, 100, (3, 3, 3, 3))
        return g.dequantize(g.const(values, np.int8), [0.001, 0.01, 0.1], [0, 0, 0], np.int8, axis=axis)

    path = conv_graph(tmp_path / "g.onnx", weight=weight, bias=None, after=lambda g, y: g.qdq(y, 0.5))
    audited, _ = explained(path)
    assert audited.integer_ops == 1
    said, done = results_of(path)
    # Accumulators are exact, so results differ by a step of the output's grid at most, or by a wrong sum.
    assert (np.abs(said - done).max() > 1) == (list(audited.misread_sums) == ["compute"]) == (axis == 1)


def test_faults_together_are_told_of_without_a_traceback(tmp_path: Path) -> None:
    path = conv_graph(
        tmp_path / "g.onnx",
        before=lambda g, x: g.qdq(x, [0.1, 0.2, 0.3], [0, 0, 0], axis=1),
        weight=lambda g, _: g.int8((8, 3, 3, 3), np.full(8, 0.01)),
    )
    _, reasons = explained(path)
    assert [reason.split(":")[0] for reason in reasons] == ["input-per-channel"]

    def random(g: GraphBuilder, _: str) -> str:
        found = g.op("RandomNormal", shape=[8, 3, 3, 3])
        g.nodes[-1].name = ""
        return found

    _, reasons = explained(conv_graph(tmp_path / "r.onnx", weight=random, bias=None))
    assert "RandomNormal of nothing" in reasons[0]


def test_every_reason_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit-an-onnx-file.md").read_text()
    assert [code for code in REMEDIES if f"`{code}`" not in page] == []
