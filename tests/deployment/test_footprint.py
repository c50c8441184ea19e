"""Memory and load time of a graph, measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qrobust.deployment.footprint import footprints
from qrobust.errors import QRobustError

SHAPE = (1, 3, 8, 8)


def linear(path: Path, classes: int) -> Path:
    """A graph of one product, with 192 float32 weights for each class."""
    weights = numpy_helper.from_array(np.ones((192, classes), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_memory_holds_the_weights(tmp_path: Path) -> None:
    small, large = linear(tmp_path / "small.onnx", 10), linear(tmp_path / "large.onnx", 100_000)
    found = footprints({"small": small, "large": large}, {"small": SHAPE, "large": SHAPE})
    weights = 4 * 192 * 100_000
    memory = {name: one.peak_memory_bytes for name, one in found.items()}
    assert memory["small"] is not None
    assert memory["large"] is not None
    # The file is read, parsed and its weights packed: a few copies at once, and never fewer than one.
    assert weights < memory["large"] - memory["small"] < 8 * weights
    assert found["large"].load_ms > 0


def test_what_cannot_be_loaded_is_one_line_and_files_nearby_are_no_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('this ran')")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QRobustError, match="a graph could not be loaded to measure its memory") as caught:
        footprints({"bad": Path("bad.onnx")}, {"bad": SHAPE})
    assert "this ran" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
