"""What the audit counts, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import qrobust
from onnx_graphs import GraphBuilder, conv_graph, gemm_graph, s8

from qrobust.deployment.audit import audit, check_share, explained_audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.session import open_session
from qrobust.errors import ExportCheckError, InputError
from qrobust.record import Audit


def floats(g: GraphBuilder, *shape: int) -> str:
    return g.const(np.random.default_rng(0).normal(size=shape))


def flat(g: GraphBuilder) -> str:
    return g.op("Flatten", "images")


def dynamic(g: GraphBuilder) -> str:
    g.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["images"], ["xq", "xs", "xz"]))
    weight = g.const(np.ones((8, 3, 3, 3)), np.int8)
    return g.op("Cast", g.op("ConvInteger", "xq", weight, "xz"), to=1)


def looped(g: GraphBuilder) -> str:
    inner = GraphBuilder()
    inner.op("Conv", "images", inner.const(np.ones((8, 3, 3, 3))))
    result = [onnx.helper.make_tensor_value_info("Conv0_out", 1, None)]
    branch = onnx.helper.make_graph(inner.nodes, "branch", [], result, inner.constants)
    many = g.op("Greater", g.op("ReduceMax", "images", keepdims=0), g.const(0.5))
    return g.op("If", many, then_branch=branch, else_branch=branch)


# Images are 3 x 8 x 8. Multiply-accumulates by hand: positions x channels out x (channels in / groups x kernel).
MACS: dict[str, tuple[Callable[[GraphBuilder], str], int, str]] = {
    "convolution": (lambda g: g.op("Conv", "images", floats(g, 20, 3, 3, 3)), 36 * 20 * 27, "Conv"),
    "strided": (
        lambda g: g.op("Conv", "images", floats(g, 20, 3, 3, 3), strides=[2, 2], pads=[1] * 4),
        16 * 20 * 27,
        "Conv",
    ),
    "depthwise": (lambda g: g.op("Conv", "images", floats(g, 6, 1, 3, 3), group=3), 36 * 6 * 9, "Conv"),
    "with relu": (lambda g: g.op("Relu", g.op("Conv", "images", floats(g, 20, 3, 1, 1))), 64 * 20 * 3, "FusedConv"),
    "transposed": (lambda g: g.op("ConvTranspose", "images", floats(g, 3, 5, 3, 3)), 64 * 3 * 5 * 9, "ConvTranspose"),
    "Gemm": (lambda g: g.op("Gemm", flat(g), floats(g, 192, 10)), 1920, "Gemm"),
    "Gemm of columns": (
        lambda g: g.op("Gemm", floats(g, 192, 4), g.op("Transpose", flat(g), perm=[1, 0]), transA=1),
        768,
        "Gemm",
    ),
    "MatMul per channel": (lambda g: g.op("MatMul", "images", floats(g, 8, 5)), 3 * 8 * 8 * 5, "MatMul"),
    "MatMul of two": (lambda g: g.op("MatMul", "images", g.op("Relu", "images")), 3 * 8 * 8 * 8, "MatMul"),
    "Einsum": (lambda g: g.op("Einsum", "images", floats(g, 8, 5), equation="nchw, wk -> nchk"), 960, "Einsum"),
    "dynamic": (dynamic, 36 * 8 * 27, ""),
    "inside If": (looped, 36 * 8 * 27, "Conv"),
}


@pytest.mark.parametrize("batch", ["n", 4])
@pytest.mark.parametrize("name", MACS)
def test_macs_of_one_image(name: str, batch: str | int, tmp_path: Path) -> None:
    build, macs, kind = MACS[name]
    g = GraphBuilder((batch, 3, 8, 8))
    audited = audit(g.save(tmp_path / "g.onnx", build(g)))
    assert audited.total_macs == macs
    assert audited.integer_macs == (0 if kind else macs)
    assert audited.float_compute == ({kind: 1} if kind else {})
    assert audited.quantizable_ops == 1
    # Shares are rounded to four places, each by at most half of the last one.
    assert sum(audited.time_share.values()) == pytest.approx(1, abs=5e-5 * len(audited.time_share))


def test_layouts_with_the_channels_last(tmp_path: Path) -> None:
    g = GraphBuilder(("n", "h", "w", 3))
    path = g.save(
        tmp_path / "g.onnx", g.op("Conv", g.op("Transpose", "images", perm=[0, 3, 1, 2]), floats(g, 2, 3, 3, 3))
    )
    assert audit(path, 10).total_macs == 64 * 2 * 27


def test_names_may_be_missing(tmp_path: Path) -> None:
    g = GraphBuilder()
    g.op("Conv", g.op("Conv", "images", floats(g, 4, 3, 1, 1)), floats(g, 5, 4, 1, 1))
    for node in g.nodes:
        node.name = ""
    audited = explained_audit(g.save(tmp_path / "none.onnx", "Conv1_out"))
    assert audited.total_macs == 64 * (12 + 20)
    assert [b.node for b in audited.blocked] == ["(Conv of images)", "(Conv of Conv0_out)"]


def test_old_files_whose_constants_are_inputs(tmp_path: Path) -> None:
    """Before IR version 4 every constant had to be listed as an input, also one that onnxruntime merges away."""
    g = GraphBuilder()
    ones = onnx.helper.make_tensor("ones", onnx.TensorProto.FLOAT, [1], [1.0])
    weights = [g.op("ConstantOfShape", g.const([3, 3, 1, 1], np.int64), value=ones) for _ in range(2)]
    result = g.op("Conv", g.op("Conv", "images", weights[0]), weights[1])
    proto = onnx.load(g.save(tmp_path / "g.onnx", result))
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(c.name, c.data_type, c.dims) for c in proto.graph.initializer
    )
    onnx.save(proto, tmp_path / "old.onnx")
    assert explained_audit(tmp_path / "old.onnx").total_macs == 2 * 64 * 9


def test_a_file_that_was_already_optimised(tmp_path: Path) -> None:
    for path, share in ((conv_graph(tmp_path / "int8.onnx"), 1), (gemm_graph(tmp_path / "float.onnx", alpha=2.0), 0)):
        done = path.with_suffix(".done.onnx")
        open_session(path, 1, done)
        assert explained_audit(done).integer_mac_share == audit(path).integer_mac_share == share


def test_work_that_is_not_known_is_named_and_gates(tmp_path: Path) -> None:
    g = GraphBuilder(("n", 8, 8, 3))
    rows = g.op("Squeeze", g.op("Conv", "images", floats(g, 1, 8, 1, 1)), g.const([1], np.int64))
    path = g.save(tmp_path / "g.onnx", g.op("LSTM", rows, floats(g, 1, 16, 3), floats(g, 1, 16, 4), hidden_size=4))
    audited = audit(path)
    assert audited.unknown_macs == {"LSTM": 1}
    assert audited.float_compute == {"Conv": 1, "LSTM": 1}
    assert audited.total_macs == 8 * 3 * 8
    with pytest.raises(ExportCheckError, match="of LSTM are not known"):
        check_share(audited, 0.5, None)
    assert "not counted, their work is not known: 1 LSTM" in qrobust("audit", path).output


def test_dynamic_quantization_is_called_so(tmp_path: Path) -> None:
    g = GraphBuilder()
    result = qrobust("audit", g.save(tmp_path / "g.onnx", dynamic(g)))
    assert "1 of 1 convolutions" in result.output
    assert "quantized dynamically: 1 DynamicQuantizeLinear" in result.output


def test_dynamic_quantization_that_onnxruntime_fuses_is_called_so(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    g = GraphBuilder((1, 3, 4, 4))
    rows = g.op("Reshape", "images", g.const([1, 48], np.int64))
    g.save(tmp_path / "float.onnx", g.op("MatMul", rows, floats(g, 48, 5)))
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx")
    assert "quantized dynamically: 1 DynamicQuantizeMatMul" in qrobust("audit", tmp_path / "dynamic.onnx").output


@pytest.mark.parametrize("size", [0, -4])
def test_sizes_that_no_image_has_are_one_line(size: int, tmp_path: Path) -> None:
    g = GraphBuilder(("n", 3, "h", "w"))
    path = g.save(tmp_path / "g.onnx", g.op("Conv", "images", floats(g, 2, 3, 1, 1)))
    result = qrobust("audit", path, "--image-size", size)
    assert (result.exit_code, result.output) == (2, f"Error: --image-size: expected at least 1, got {size}\n")


def test_what_onnxruntime_says_comes_without_its_sources(tmp_path: Path) -> None:
    g = GraphBuilder()
    path = g.save(tmp_path / "g.onnx", g.op("Conv", "images", floats(g, 2, 3, 1, 1)))
    proto = onnx.load(path)
    proto.ir_version = 99
    path.write_bytes(proto.SerializeToString())
    result = qrobust("audit", path)
    assert (result.exit_code, "(Unsupported model IR version: 99" in result.output) == (2, True), result.output


def test_shares_gate() -> None:
    audited = Audit(
        integer_ops=1,
        quantizable_ops=4,
        integer_compute={"QLinearConv": 1},
        float_compute={"Conv": 3},
        other_ops={},
        integer_macs=90,
        total_macs=100,
        integer_mac_share=0.9,
        unknown_macs={},
        time_share={},
    )
    check_share(audited, 0.9, 0.25)
    with pytest.raises(ExportCheckError, match=r"90\.0% of the multiply-accumulates"):
        check_share(audited, 0.95, None)
    with pytest.raises(ExportCheckError, match="1 of 4 operators"):
        check_share(audited, None, 0.5)


def test_command_prints_reasons_and_gates(tmp_path: Path) -> None:
    path = conv_graph(tmp_path / "g.onnx", after=lambda g, y: y)
    result = qrobust("audit", path)
    assert result.exit_code == 0
    for part in (
        "0 of 1 convolutions",
        "left in float: 1 Conv",
        "compute: its output is a result",
        "to do: put Quant",
    ):
        assert part in result.output
    assert qrobust("audit", path, "--min-integer", 0).exit_code == 0
    assert qrobust("audit", path, "--min-integer", "1/100").exit_code == 3
    assert qrobust("audit", path, "--min-integer-nodes", 1).exit_code == 3
    assert qrobust("audit", path, "--min-integer", 95).exit_code == 2
    both = qrobust("audit", path, "--min-integer", 0.5, "--min-integer-nodes", 1)
    assert both.exit_code == 3
    assert "0.0% of the multiply-accumulates" in both.output
    assert "0 of 1 operators" in both.output
    told = json.loads(qrobust("audit", path, "--json").output)
    assert told["blocked"][0]["reasons"][0]["code"] == "output-is-result"
    assert told["blocked"][0]["macs"] == told["total_macs"] == 36 * 8 * 27


def test_target_decides_on_signed_activations(tmp_path: Path) -> None:
    g = GraphBuilder()
    image = s8(g, "images")
    path = g.save(tmp_path / "g.onnx", s8(g, g.op("Add", s8(g, g.op("Conv", image, g.int8((3, 3, 1, 1)))), image)))
    for target, integer in (("x86-vnni", 0), ("x86-avx2", 0), ("arm64", 1)):
        assert json.loads(qrobust("audit", path, "--target", target, "--json").output)["integer_ops"] == integer


def test_signed_session_says_what_the_unfused_graph_says(tmp_path: Path) -> None:
    """int8 kernels against QuantizeLinear, float operators and DequantizeLinear as the file has them."""
    path = conv_graph(
        tmp_path / "g.onnx", before=s8, after=lambda g, y: g.op("Reshape", s8(g, y), g.const([0, -1], np.int64))
    )
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fused = OnnxClassifier(path, 1, signed_activations=True)(images)
    session = open_session(path, 1, level="none")
    unfused = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    # A sum that lies on the border between two integers may be rounded to either: one step of the output grid.
    assert (fused - unfused).abs().max() <= 0.02 * 1.001
    assert ((fused - unfused).abs() > 0.01).float().mean() < 0.01


def refused(path: Path, match: str, *options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        audit(path, *options)  # type: ignore[arg-type]  # an image size at most
    assert "\n" not in str(caught.value)
    result = qrobust("audit", path, *[o for size in options for o in ("--image-size", size)])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: onnx: ")


def test_files_that_are_not_onnx(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.onnx"
    refused(path, "no file")
    refused(tmp_path, "expected a regular file, .* is a folder")
    for content, match in (
        (b"nonsense", "not an ONNX file, or not a whole one"),
        (b"", "holds no graph"),
        (conv_graph(tmp_path / "whole.onnx").read_bytes()[:-300], "not an ONNX file, or not a whole one"),
    ):
        path.write_bytes(content)
        refused(path, match)
    assert capfd.readouterr().err == ""  # onnxruntime keeps its log to itself


def test_custom_operators(tmp_path: Path) -> None:
    g = GraphBuilder()
    refused(
        g.save(tmp_path / "g.onnx", g.op("Swirl", "images", domain="my.ops"), domains=["my.ops"]),
        "needs custom operators: my.ops:Swirl",
    )
    refused(g.save(tmp_path / "g.onnx", g.op("Swirl", "images")), "Swirl")


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    g = GraphBuilder()
    whole = onnx.load(g.save(tmp_path / "g.onnx", g.op("Gemm", flat(g), floats(g, 192, 10))))
    path = folder / "g.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="w.bin")
    assert audit(path).total_macs == 1920
    (folder / "w.bin").rename(tmp_path / "w.bin")
    refused(path, "external data 'w.bin' is missing")
    proto = onnx.load(path, load_external_data=False)
    for location in ("../w.bin", str(tmp_path / "w.bin")):
        for entry in proto.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        onnx.save(proto, path)
        refused(path, "lies outside its folder")


def conv_of(shape: list[int | str], tmp_path: Path, *others: str) -> Path:
    g = GraphBuilder(shape)
    g.inputs += [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in others]
    result = g.op("Relu", "images") if len(shape) != 4 else g.op("Conv", "images", floats(g, 8, 3, 3, 3))
    for name in others:
        result = g.op("Add", result, name)
    return g.save(tmp_path / "g.onnx", result)


def test_inputs_that_are_not_one_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one image input, has 2: \['images', 'mask'\]"):
        audit(conv_of([1, 3, 8, 8], tmp_path, "mask"))
    refused(conv_of([1, 192], tmp_path), "must have an image input")
    refused(conv_of(["n", 3, "h", "w"], tmp_path), "leaves the size of 'images' .* open: --image-size is needed")
    assert audit(conv_of(["n", "c", 8, 8], tmp_path)).quantizable_ops == 1
    assert audit(conv_of(["n", "c", "h", "w"], tmp_path), 8).total_macs == 36 * 8 * 27
    refused(conv_of([1, 3, 8, 8], tmp_path), r"takes images \[1, 3, 8, 8\], got --image-size 9", 9)
    refused(conv_of(["n", 3, "h", "w"], tmp_path), "cannot run .*Conv", 1)
    g = GraphBuilder()
    g.inputs = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.INT64, [1, 3, 8, 8])]
    refused(g.save(tmp_path / "int.onnx", g.op("Cast", "images", to=1)), r"has 'images' tensor\(int64\)")


def test_bytes_as_image(tmp_path: Path) -> None:
    g = GraphBuilder()
    g.inputs = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [1, 3, 8, 8])]
    path = g.save(tmp_path / "g.onnx", g.op("Conv", g.op("Cast", "images", to=1), floats(g, 8, 3, 3, 3)))
    assert audit(path).total_macs == 36 * 8 * 27


def test_nothing_to_audit(tmp_path: Path) -> None:
    g = GraphBuilder()
    refused(g.save(tmp_path / "g.onnx", g.op("Relu", "images")), "no convolution and no matrix product")


def test_two_results_matter_to_a_classifier_only(tmp_path: Path) -> None:
    g = GraphBuilder()
    path = g.save(tmp_path / "g.onnx", g.op("Conv", "images", floats(g, 8, 3, 3, 3)), g.op("Relu", "images"))
    assert audit(path).quantizable_ops == 1
    with pytest.raises(InputError, match="one output"):
        OnnxClassifier(path, 1)


def test_graph_that_onnxruntime_cannot_run(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"after": lambda g, y: g.qdq(y, [0.02] * 8, [128] * 8, axis=1)}
    refused(conv_graph(tmp_path / "g.onnx", **wrong), "cannot run .*node conv.*|cannot run .*node compute")
