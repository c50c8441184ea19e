"""The integers of a quantized file as a torch network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quantized_files import KINDS, SIZE, float_file, quantized_file

from qrobust.classifier import Normalization, NormalizedModel
from qrobust.deployment.export import export
from qrobust.deployment.session import open_session
from qrobust.errors import InputError
from qrobust.models.onnx_import.file import read_onnx
from qrobust.models.onnx_import.integers import Quantize
from qrobust.models.onnx_import.network import as_network
from qrobust.models.registry import find_model
from qrobust.models.resnet import SmallResNet
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import TARGETS


def one_node(path: Path, *nodes: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int = 17) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_says_what_onnxruntime_says_before_it_fuses(kind: str, tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx", seed=3, **KINDS[kind])
    images = torch.randn((40, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    session = open_session(path, 1, level="none")
    wanted = torch.from_numpy(session.run(None, {"x": images.numpy()})[0])
    got = as_network(read_onnx(path))(images)
    # Sums in another order may lie on the other side of halfway between two steps: few do, by one step.
    step = np.unique(np.diff(np.unique(wanted.numpy()))).min()
    assert float((wanted - got).abs().max()) <= 1.01 * step
    assert float((wanted == got).double().mean()) > 0.95


def test_rounding_is_to_even_and_saturates() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 300.0, -300.0])
    assert Quantize(1.0, 10, 0, 255)(x).tolist() == [10, 12, 10, 255, 0]


def test_gradients_pass_where_nothing_saturates(tmp_path: Path) -> None:
    grid = {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
    path = one_node(
        tmp_path / "a.onnx",
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        constants=grid,
    )
    images = torch.linspace(-100, 100, 48).reshape(1, 3, 4, 4).requires_grad_()
    as_network(read_onnx(path))(images).sum().backward()
    inside = (images > 0.5 * -128.5) & (images < 0.5 * 127.5)
    assert torch.equal(images.grad, inside.float())


def test_weights_may_be_quantized_in_the_graph_along_an_axis(tmp_path: Path) -> None:
    scales = np.array([0.01, 0.02], np.float32)
    weights = np.random.default_rng(0).normal(0, 1, (2, 3, 1, 1)).astype(np.float32)
    path = one_node(
        tmp_path / "a.onnx",
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"]),
        constants={"w": weights, "s": scales, "z": np.zeros(2, np.int8)},
    )
    wanted = np.clip(np.rint(weights / scales[:, None, None, None]), -128, 127) * scales[:, None, None, None]
    network = as_network(read_onnx(path))
    (found,) = (m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    np.testing.assert_array_equal(found.weight.numpy(), wanted)


def test_a_bias_in_float_is_rounded_as_onnxruntime_rounds_it(tmp_path: Path) -> None:
    scales, bias = np.array([0.01, 0.02], np.float32), np.array([0.1234, -0.0567], np.float32)
    grid = {"s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}
    path = one_node(
        tmp_path / "a.onnx",
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd", "b"], ["y"]),
        constants={
            **grid,
            "w": np.ones((2, 3, 1, 1), np.int8),
            "ws": scales,
            "wz": np.zeros(2, np.int8),
            "b": bias,
        },
    )
    (found,) = (m for m in as_network(read_onnx(path)).modules() if isinstance(m, torch.nn.Conv2d))
    # 0.1234 is 24.68 steps of 0.5 * 0.01, -0.0567 is -5.67 steps of 0.5 * 0.02.
    assert found.bias.tolist() == pytest.approx([25 * 0.005, -6 * 0.01])


def per_channel(path: Path, zero: list[int]) -> Path:
    grid = {"s": np.array([0.5, 0.25, 1.5], np.float32), "z": np.array(zero, np.int8)}
    return one_node(
        path,
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "input_quantizer"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        constants=grid,
    )


def test_activations_may_have_a_scale_per_channel(tmp_path: Path) -> None:
    path = per_channel(tmp_path / "a.onnx", [0, 0, 0])
    images = 60 * torch.randn((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    (wanted,) = open_session(path, 1, level="none").run(None, {"x": images.numpy()})
    assert torch.equal(as_network(read_onnx(path))(images), torch.from_numpy(wanted))


def test_activations_with_a_zero_point_per_channel_are_refused_by_name(tmp_path: Path) -> None:
    path = per_channel(tmp_path / "a.onnx", [0, 1, 2])
    with pytest.raises(InputError, match="QuantizeLinear 'input_quantizer' of what the image changes, with a zero"):
        as_network(read_onnx(path))


@pytest.mark.parametrize(
    ("bits", "target", "storage"),
    [("w8a8", "x86-vnni", "int8"), ("w8a8", "arm64", "int8"), ("w4a4", "x86-vnni", "int4")],
)
def test_a_graph_of_qrobusts_becomes_the_model_that_it_was_made_of(
    bits: str, target: str, storage: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = SmallResNet(8, 3, 4)
    model = NormalizedModel(network, Normalization((0.5,) * 3, (0.25,) * 3)).eval()
    images, recipe = torch.rand((16, 3, SIZE, SIZE)), Recipe(bits)
    fake_quantized = build(observe(model, [images], recipe), TARGETS[target], recipe)
    export(fake_quantized, tmp_path / "a.onnx", SIZE, storage=storage)
    with torch.inference_mode():
        assert torch.equal(as_network(read_onnx(tmp_path / "a.onnx"))(images), fake_quantized(images))


def test_a_softmax_behind_which_numbers_are_rounded_is_left_out(tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx")
    images = torch.randn((4, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    wanted = as_network(read_onnx(path))(images)
    model = onnx.load(path)
    for name, value in {"p_scale": np.array(1 / 256, np.float32), "p_zero": np.array(0, np.uint8)}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["p"]))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p", "p_scale", "p_zero"], ["p_levels"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["p_levels", "p_scale", "p_zero"], ["rounded"]))
    model.graph.output[0].name = "rounded"
    onnx.save(model, path)
    assert torch.equal(as_network(read_onnx(path))(images), wanted)


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"is quantized already \(DequantizeLinear, QuantizeLinear\); expected the"):
        find_model(str(path))
    with pytest.raises(InputError, match=r"expected a file that is quantized, .* is float; `qrobust run --model"):
        find_model(str(float_file(tmp_path / "b.onnx")), quantized=True)
