"""An ONNX file as the network of a run: quantized, compensated, and opened again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import qrobust, save_npz
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
LEVELS = np.array([0.08, 0.31, 0.55], np.float32)  # mean pixels of the three classes of `save_npz`


def save(path: Path) -> Path:
    """A trained classifier as TensorFlow's converters write it: bytes, channels last, a softmax at the end."""
    grey = np.full((64, 3, 3, 3), 1 / 27, np.float32)
    weights = {
        "axes": np.array([2, 3], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "grey/kernel": grey,
        "head/kernel": np.repeat(40 * 2 * LEVELS[None] / 64, 64, axis=0),
        "head/bias": -40 * LEVELS**2,
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "grey/kernel"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "head/kernel"], ["p"]),
        helper.make_node("Add", ["p", "head/bias"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tf",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The file, the folder of its run, and what the command printed."""
    folder = tmp_path_factory.mktemp("onnx")
    path, out = save(folder / "net.onnx"), folder / "out"
    data = f"npz:{save_npz(folder / 'd.npz', 300)}"
    result = qrobust("quantize", "--model", path, "--data", data, "--calibration-images", 32, "--out", out)
    assert result.exit_code == 0, result.output
    return path, out, result.output


def test_a_file_is_quantized_as_it_says_of_itself(quantized: tuple[Path, Path, str]) -> None:
    path, out, output = quantized
    assert f"model: {path} (opset 13, NHWC) as a torch network; differs from the file by " in output
    assert "without the softmax at its end" in output
    assert "random weights" not in output
    stage = json.loads((out / "stages" / "quantize.json").read_text())
    audited, measured = stage["audit"]["int8"], stage["quantization"]["validation"]
    assert audited["integer_ops"] == audited["quantizable_ops"] == 2
    assert measured["accuracy"]["float"] == 1
    assert measured["agreement"] >= 0.95


@pytest.mark.slow  # trains a calibrator
def test_it_is_compensated_and_measured(quantized: tuple[Path, Path, str]) -> None:
    _, out, _ = quantized
    shifts = ("--shifts", "contrast", "--severities", 5, "--train-on", "generic,contrast")
    for command in (
        ("compensate", out, *shifts, "--steps", 10, "--batch-size", 16, "--mac-budget", 1),
        ("export", out),
        ("evaluate", out, "--attack-images", 4),
        ("report", out),
    ):
        threads = () if command[0] == "report" else ("--threads", 1)
        result = qrobust(*command, *threads)
        assert result.exit_code == 0, result.output
    record = json.loads((out / "record.json").read_text())
    assert record["summary"]["clean_accuracy"]["float"] > 0.9
    assert record["attacks"]["n"] == 4  # through the gradients of the imported network


def test_one_that_tells_nothing_of_the_images_is_refused(quantized: tuple[Path, Path, str], tmp_path: Path) -> None:
    path, out, _ = quantized
    data = f"npz:{out.parent / 'd.npz'}"
    # As if its input were pixels in [0, 1]: all are black to it.
    given = ("--model", path, "--data", data, "--normalization", "none")
    result = qrobust("quantize", *given, "--calibration-images", 32, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Error: --model: float accuracy on " in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_file_by_that_name_is_refused(quantized: tuple[Path, Path, str]) -> None:
    path, out, _ = quantized
    kept = path.read_bytes()
    path.write_bytes(b"")
    try:
        result = qrobust("compensate", out)
    finally:
        path.write_bytes(kept)
    assert result.exit_code == 2
    assert f"--model: {path} is not a readable ONNX file" in result.output
