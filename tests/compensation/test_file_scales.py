"""Scales and biases that a quantized file stores, as they learn and as they are written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantized_files import KINDS, SIZE, quantized_file
from torch import fx

from qrobust.compensation.file_scales import FileScales
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
        for parameter in dict.fromkeys(found.log_scales.values()):
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
    # exp(log(s)) is s but for its last bit, so that a value on the edge of two levels may fall on either.
    assert (found.model(images()) - network(file)(images())).abs().median() < 1e-5
    constants = found.constants()
    for name, value in constants.items():
        assert value.dtype == file.constants[name].dtype, name
        assert torch.allclose(value.double(), file.constants[name].double(), rtol=1e-6, atol=1e-7), name
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
    for parameters in (found.log_scales, found.biases):
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("kind", QOPERATOR)
def test_an_int32_bias_follows_the_scales_of_its_input_and_weights(kind: str, tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind])
    found, file = learning(path), read_onnx(path)
    with torch.no_grad():
        for parameter in dict.fromkeys(found.log_scales.values()):
            parameter += float(np.log(2.0))
    constants = found.constants()
    integers = [name for name, value in constants.items() if value.dtype == torch.int32]
    assert integers
    for name in integers:  # of the same numbers in steps four times as long
        assert torch.allclose(constants[name].double(), file.constants[name].double() / 4, rtol=0, atol=1), name


def test_both_sides_of_a_pool_keep_one_scale(tmp_path: Path) -> None:
    found = learning(quantized_file(tmp_path / "a.onnx"))
    pool = next(o for o in found.file.operators if o.kind == "MaxPool")
    makers = {value: o for o in found.file.operators for value in o.outputs}
    before = makers[pool.inputs[0]].inputs[1]
    after = next(o for o in found.file.operators if o.inputs[0] == pool.outputs[0]).inputs[1]
    assert found.log_scales[before] is found.log_scales[after]


def test_effective_weights_move_and_integers_do_not(tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx")
    file, found = read_onnx(path), learning(path)
    with torch.no_grad():
        for layer in found.layers.values():
            found.log_scales[layer.weight.place.name] += float(np.log(1.5))
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
