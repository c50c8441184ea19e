"""ONNX files with more than one image in and logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import evaluate_files, qrobust, save_npz
from onnx import TensorProto, helper
from onnx_graphs import SIDE, classifier_graph, conv_graph

from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.deployment.plain_graph import Interface, plain_graph
from qrobust.errors import InputError

IMAGES = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def changed(
    path: Path,
    inputs: Sequence[tuple[str, int, list[int] | None]] = (),
    outputs: Sequence[str] = (),
    nodes: Sequence[onnx.NodeProto] = (),
) -> Path:
    """A classifier's file with further inputs, nodes and outputs."""
    proto = onnx.load(path)
    for name, kind, shape in inputs:
        proto.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    proto.graph.node.extend(nodes)
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    onnx.save(proto, path)
    return path


def logits(path: Path, folder: Path, interface: Interface) -> torch.Tensor:
    return ForeignClassifier(plain_graph(path, folder, interface)[0], 1)(IMAGES)


def test_a_plain_file_is_left_alone(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "m.onnx")
    assert plain_graph(path, tmp_path, Interface()) == (path, [])


def test_the_output_that_is_named_is_the_one(tmp_path: Path) -> None:
    wanted = logits(classifier_graph(tmp_path / "m.onnx"), tmp_path, Interface())
    path = changed(tmp_path / "m.onnx", outputs=["mean"])
    assert torch.equal(logits(path, tmp_path, Interface(output="logits")), wanted)
    with pytest.raises(InputError, match=r"output: expected the one of .* that holds logits"):
        plain_graph(path, tmp_path, Interface())
    with pytest.raises(InputError, match="did you mean 'logits'"):
        plain_graph(path, tmp_path, Interface(output="logit"))


def test_numbers_beside_the_image_are_fed(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "m.onnx")
    plain = logits(path, tmp_path, Interface())
    kept = [("keep_prob", TensorProto.FLOAT, [1]), ("training", TensorProto.BOOL, None)]
    multiplied = [
        helper.make_node("Mul", ["logits", "keep_prob"], ["fed"]),
        helper.make_node("Not", ["training"], ["inference"]),
        helper.make_node("Cast", ["inference"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["fed", "one"], ["told"]),
    ]
    path = changed(path, kept, ["told"], multiplied)
    interface = Interface(output="told", feed=("keep_prob=0.5",))
    assert torch.allclose(logits(path, tmp_path, interface), plain / 2)
    assert plain_graph(path, tmp_path, interface)[1] == [
        "m.onnx: input 'training' is given false; --feed training=true says otherwise"
    ]
    interface = Interface(output="told", feed=("keep_prob=0.5", "training=true"))
    assert torch.equal(logits(path, tmp_path, interface), 0 * plain)
    with pytest.raises(InputError, match=r"feed: expected a value for .* but the image, got none for keep_prob"):
        plain_graph(path, tmp_path, Interface(output="told"))


@pytest.mark.parametrize("layout", [None, "nhwc"])
def test_an_input_without_a_shape_lies_as_is_said(layout: str | None, tmp_path: Path) -> None:
    wanted = logits(classifier_graph(tmp_path / "m.onnx"), tmp_path, Interface())
    path = classifier_graph(tmp_path / "n.onnx", ("n", SIDE, SIDE, 3) if layout else ("n", 3, SIDE, SIDE))
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    found, _ = plain_graph(path, tmp_path, Interface(layout=layout))
    assert ForeignClassifier(found, 1).layout == (layout or "nchw").upper()
    assert torch.allclose(ForeignClassifier(found, 1)(IMAGES), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("interface", "match"),
    [
        ({"layout": "hwc"}, "layout: expected one of nchw, nhwc, got 'hwc'"),
        ({"feed": ("keep_prob",)}, "feed: expected NAME=VALUE, got 'keep_prob'"),
        ({"feed": ("=1",)}, "feed: expected NAME=VALUE, got '=1'"),
    ],
)
def test_what_makes_no_sense_is_refused(interface: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Interface(**interface)


@pytest.mark.parametrize(
    ("interface", "match"),
    [
        ({"layout": "nhwc", "feed": ("size=1",)}, "layout: expected 3 channels or 1 where nhwc has them"),
        ({"feed": ("imges=1",)}, "feed: expected one of images, size, got 'imges'; did you mean 'images'"),
        ({"feed": ("size=large",)}, "feed: expected a number of int64 for size, got 'large'"),
        ({"feed": ("images=1", "size=1")}, "feed: expected an input of one number, images of"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(interface: dict, match: str, tmp_path: Path) -> None:
    path = changed(classifier_graph(tmp_path / "m.onnx"), [("size", TensorProto.INT64, [])])
    with pytest.raises(InputError, match=match):
        plain_graph(path, tmp_path, Interface(**interface))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (TensorProto.UINT8, "300"),
        (TensorProto.INT64, "9" * 40),
        (TensorProto.INT64, "1.5"),
        (TensorProto.FLOAT, "nan"),
        (TensorProto.FLOAT, "1e400"),
        (TensorProto.BOOL, "maybe"),
        (TensorProto.STRING, "x"),
    ],
)
def test_a_number_that_the_input_cannot_hold_is_refused(kind: int, value: str, tmp_path: Path) -> None:
    path = changed(classifier_graph(tmp_path / "m.onnx"), [("size", kind, [])])
    with pytest.raises(InputError, match=r"feed: expected a number of \w+ for size, got"):
        plain_graph(path, tmp_path, Interface(feed=(f"size={value}",)))


def test_both_commands_take_such_files(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz')}"
    path = changed(classifier_graph(tmp_path / "m.onnx"), [("training", TensorProto.BOOL, [])], ["mean"])
    short = ("--shifts", "contrast", "--severities", "5")
    record = evaluate_files([path], data, tmp_path / "out", *short, "--output", "logits")
    assert record["summary"]["clean_accuracy"] == {"m": 1.0}
    assert record["models"]["m"]["file"] == str(path)
    conv = conv_graph(tmp_path / "c.onnx")
    proto = onnx.load(conv)
    proto.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))
    onnx.save(proto, conv)
    result = qrobust("audit", conv)
    assert (result.exit_code, "--feed: expected a value for every input" in result.output) == (2, True)
    assert qrobust("audit", conv, "--feed", "scale=1").exit_code == 0


def test_scores_have_no_confidence(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz')}"
    first = classifier_graph(tmp_path / "logits.onnx")
    sigmoid = [
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    second = changed(classifier_graph(tmp_path / "sigmoid.onnx"), outputs=["scores"], nodes=sigmoid)
    proto = onnx.load(second)
    del proto.graph.output[0]
    onnx.save(proto, second)
    record = evaluate_files([first, second], data, tmp_path / "out", "--shifts", "contrast", "--severities", "5")
    assert record["models"]["sigmoid"]["output"] == "scores"
    assert {name for row in record["rows"] for name in row["ece"]} == {"logits"}
    assert set(record["confidence"]["classifiers"]) == {"logits"}
    assert set(record["rows"][0]["accuracy"]) == {"logits", "sigmoid"}
    assert (tmp_path / "out" / "report.html").exists()
    assert np.isfinite(record["rows"][0]["accuracy"]["sigmoid"])
