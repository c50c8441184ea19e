"""Scales and biases that a quantized file stores, as they learn and as they are written back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quantized_files import KINDS, SIZE, quantized_file
from torch import fx

from qrobust.compensation.file_scales import FileScales, most_growths
from qrobust.compensation.retraining import weight_change
from qrobust.deployment.front import same_parts
from qrobust.deployment.rescaled import with_constants, write_with_constants
from qrobust.deployment.session import open_session
from qrobust.errors import ExportCheckError, InputError
from qrobust.models.onnx_import.file import OnnxFile, read_onnx
from qrobust.models.onnx_import.network import as_network

QOPERATOR = [name for name in KINDS if name.startswith("QOperator")]


def images() -> torch.Tensor:
    return torch.randn((16, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def network(file: OnnxFile) -> fx.GraphModule:
    found = as_network(file)
    assert isinstance(found, fx.GraphModule)
    return found


def learning(path: Path) -> FileScales:
    file = read_onnx(path)
    found = network(file)
    return FileScales(found, found.meta["onnx"].layers, file)


def moved(path: Path) -> FileScales:
    """With every scale a little larger, each by another factor, and other biases."""
    found = learning(path)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in dict.fromkeys(found.growths.values()):
            parameter += 0.2 * torch.rand(parameter.shape, generator=generator)
        for parameter in found.biases.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found


def on_runtime(path: Path) -> torch.Tensor:
    session = open_session(path, 1, exact_sums=True)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images().numpy()})[0])


@pytest.mark.parametrize("kind", KINDS)
def test_before_anything_is_learned_it_is_the_file(kind: str, tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind])
    found, file = learning(path), read_onnx(path)
    assert torch.allclose(found.model(images()), network(file)(images()), rtol=1e-5, atol=1e-5)
    constants = found.constants()
    for name, value in constants.items():
        assert value.dtype == file.constants[name].dtype, name
        # A stored product of two scales may have been rounded otherwise.
        assert torch.allclose(value, file.constants[name], rtol=1e-6, atol=0), name
        if name in found.growths or value.dtype == torch.int32:
            assert torch.equal(value, file.constants[name]), name
    assert len(constants) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_is_what_onnxruntime_runs(kind: str, tmp_path: Path) -> None:
    path, to = quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind]), tmp_path / "b.onnx"
    found, before = moved(path), on_runtime(path)
    write_with_constants(path, found.constants(), to)
    wanted, got = on_runtime(to), found.model(images())
    step = float(wanted.abs().max()) / 127
    assert (wanted - before).abs().median() > step  # it is another network
    assert (wanted - got).abs().median() < step / 4
    assert torch.equal(wanted.argmax(1), got.argmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_and_integer_weights_are_the_files_byte_for_byte(kind: str, tmp_path: Path) -> None:
    path, to = quantized_file(tmp_path / "a.onnx", **KINDS[kind]), tmp_path / "b.onnx"
    constants = moved(path).constants()
    write_with_constants(path, constants, to)
    before, after = onnx.load(path).graph, onnx.load(to).graph
    assert [n.SerializeToString() for n in before.node] == [n.SerializeToString() for n in after.node]
    changed = {
        one.name
        for one, other in zip(before.initializer, after.initializer, strict=True)
        if one.SerializeToString() != other.SerializeToString()
    }
    assert changed <= set(constants)
    assert changed
    types = {t.data_type for t in before.initializer if t.name in constants}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}
    assert same_parts(path, to, constants)
    assert not same_parts(path, to)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_that_learns_has_a_gradient(kind: str, tmp_path: Path) -> None:
    found = learning(quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind]))
    found.model(images()).square().sum().backward()
    for parameters in (found.growths, found.biases):
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("kind", QOPERATOR)
def test_an_int32_bias_follows_the_scales_of_its_input_and_weights(kind: str, tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind])
    found, file = learning(path), read_onnx(path)
    with torch.no_grad():
        for parameter in dict.fromkeys(found.growths.values()):
            parameter += float(np.log(2.0))
    constants = found.constants()
    integers = [name for name, value in constants.items() if value.dtype == torch.int32]
    assert integers
    for name in integers:  # of the same numbers in steps four times as long
        assert torch.allclose(constants[name].double(), file.constants[name].double() / 4, rtol=0, atol=1), name


def product_with_bias(path: Path, *, stored: bool) -> Path:
    """A matrix product of integers and an `Add` of a bias behind it, int32 or float, as tf2onnx writes them."""
    bias = np.array([300, -200, 100], np.int32)
    made = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "weight": np.array([[100, -20, 3], [-50, 80, 10], [7, 60, -90]], np.int8),
        "weight_scale": np.float32(0.01),
        "weight_zero": np.int8(0),
        "bias": bias if stored else bias.astype(np.float32) * np.float32(2e-4),
        "bias_scale": np.float32(2e-4),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["product"]),
        *([helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"])] if stored else []),
        helper.make_node("Add", ["product", "b" if stored else "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in made.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path)
    return path


@pytest.mark.parametrize("stored", [True, False])
def test_a_bias_that_is_added_behind_a_product_is_the_products(stored: bool, tmp_path: Path) -> None:
    path, to = product_with_bias(tmp_path / "a.onnx", stored=stored), tmp_path / "b.onnx"
    found = learning(path)
    assert set(found.biases) == {"bias"}
    with torch.no_grad():
        for name, factor in (("scale", 2.0), ("weight_scale", 1.5)):
            found.growths[name] += float(np.log(factor))
        found.biases["bias"] += 0.03
    write_with_constants(path, found.constants(), to)
    expected = torch.tensor([0.09, -0.01, 0.05])
    if stored:  # in steps of 0.04 times 0.015
        assert found.constants()["bias"].tolist() == (expected / 6e-4).round().int().tolist()
        assert float(found.constants()["bias_scale"]) == pytest.approx(6e-4)
    else:
        assert torch.allclose(found.constants()["bias"], expected)
    assert torch.allclose(on_runtime(to), found.model(images()), rtol=0, atol=1e-3)


def test_both_sides_of_a_pool_keep_one_scale(tmp_path: Path) -> None:
    found = learning(quantized_file(tmp_path / "a.onnx"))
    pool = next(o for o in found.file.operators if o.kind == "MaxPool")
    makers = {value: o for o in found.file.operators for value in o.outputs}
    before = makers[pool.inputs[0]].inputs[1]
    after = next(o for o in found.file.operators if o.inputs[0] == pool.outputs[0]).inputs[1]
    assert found.growths[before] is found.growths[after]


def test_effective_weights_move_and_integers_do_not(tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx")
    file, found = read_onnx(path), learning(path)
    with torch.no_grad():
        for layer in found.layers.values():
            found.growths[layer.weight.place.name] += float(np.log(1.5))
    after = network(OnnxFile(**{**vars(file), "constants": {**file.constants, **found.constants()}}))
    change = weight_change(network(file), after)
    assert change.relative_change == pytest.approx(0.5, rel=1e-4)
    assert change.integers_changed == 0


def test_integers_of_weights_are_never_replaced(tmp_path: Path) -> None:
    model = onnx.load(quantized_file(tmp_path / "a.onnx"))
    weights = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4)
    numbers = torch.from_numpy(numpy_helper.to_array(weights).astype(np.float32))
    with pytest.raises(ExportCheckError, match="expected a scale or bias"):
        with_constants(model, {weights.name: numbers})
    with pytest.raises(ExportCheckError, match="stores no tensor 'nothing'"):
        with_constants(model, {"nothing": numbers})


def test_a_bias_of_two_layers_is_refused(tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx", **KINDS["QOperator, U8S8"])
    model = onnx.load(path)
    with_bias, without = [n for n in model.graph.node if n.op_type == "QLinearConv"]
    without.input.append(with_bias.input[8])
    onnx.save(model, path)
    with pytest.raises(InputError, match="is read by several operators, or its scale is, got scales"):
        learning(path)


def clipped(path: Path, *, to: float, scale: float, opset: int = 13) -> Path:
    """A classifier whose activations are clipped to [0, `to`] and quantized on a grid from 0 to 255 `scale`."""
    rng = np.random.default_rng(0)
    made = {
        "x_scale": np.float32(8 / 255),
        "scale": np.float32(scale),
        "zero": np.uint8(0),
        "weight": rng.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8),
        "weight_scale": np.float32(0.02),
        "weight_zero": np.int8(0),
        "low": np.float32(0),
        "high": np.float32(to),
    }
    bounds = {"inputs": ["low", "high"]} if opset > 10 else {"attributes": {"min": 0.0, "max": to}}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"]),
        helper.make_node("Conv", ["xd", "w"], ["c"]),
        helper.make_node("Clip", ["c", *bounds.get("inputs", [])], ["r"], **bounds.get("attributes", {})),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "clipped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in made.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize(("to", "room"), [(6.0, 0.0), (12.0, np.log(2.0))])
def test_a_scale_grows_until_its_values_reach_the_clip_before_it(
    to: float, room: float, opset: int, tmp_path: Path
) -> None:
    found = learning(clipped(tmp_path / "a.onnx", to=to, scale=6 / 255, opset=opset))
    assert most_growths(found.file) == {"scale": pytest.approx(room, abs=2e-5)}
    with torch.no_grad():
        for parameter in found.growths.values():
            parameter += 1.0
    constants = found.constants()
    assert float(constants["scale"]) * 255 <= to * (1 + 1e-6)
    assert float(constants["scale"]) == pytest.approx(to / 255, rel=1e-4)
    assert float(constants["x_scale"]) == pytest.approx(8 / 255 * np.e, rel=1e-5)
    assert found.model(images()).amax() <= to * (1 + 1e-6)


def test_a_scale_behind_a_clip_that_is_at_work_is_free(tmp_path: Path) -> None:
    assert most_growths(read_onnx(clipped(tmp_path / "a.onnx", to=3.0, scale=6 / 255))) == {}


def test_a_clip_that_was_left_out_stays_left_out(tmp_path: Path) -> None:
    path, to = clipped(tmp_path / "a.onnx", to=6.0, scale=6 / 255), tmp_path / "b.onnx"
    found = learning(path)
    with torch.no_grad():
        for parameter in found.growths.values():
            parameter += 0.3
    write_with_constants(path, found.constants(), to)
    assert executed(path, tmp_path)["Clip"] == 0
    assert executed(to, tmp_path) == executed(path, tmp_path)


def executed(path: Path, folder: Path) -> Counter[str]:
    """Kinds of operators that onnxruntime runs in place of the file's."""
    open_session(path, 1, optimized=folder / "run.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "run.onnx").graph.node)
