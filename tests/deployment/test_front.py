"""What stands in front of a file leaves the file's own graph as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from quantized_files import KINDS, SIZE, quantized_file, with_batch, with_input

from qrobust.compensation.calibrator import BRANCHES, Calibrator, Correction
from qrobust.deployment.classifiers import ForeignClassifier, OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.front import FileInput, bit_equal, opset_in_front, put_in_front, same_parts
from qrobust.errors import InputError
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import TARGETS

GIVEN = FileInput((0.5,) * 3, (0.25,) * 3, "rgb", SIZE)
IMAGES = torch.rand((10, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
WITHOUT_WARPING = BRANCHES[:2]


@pytest.fixture(scope="module")
def calibrators(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Exported calibrators that change images, by their branches."""
    made = {}
    for branches in (BRANCHES, WITHOUT_WARPING):
        torch.manual_seed(0)
        module = Calibrator(SIZE, 4, branches).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        observed = observe(module, [IMAGES], Recipe(), leaves=(Correction,))
        made[branches] = tmp_path_factory.mktemp("calibrators") / "c.onnx"
        export(build(observed, TARGETS["x86-vnni"], Recipe()), made[branches], SIZE)
    return made


@pytest.mark.parametrize("opset", [13, 16, 20, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_every_node_and_constant_of_a_file_stays(
    kind: str, opset: int, tmp_path: Path, calibrators: dict[tuple[str, ...], Path]
) -> None:
    path, made = quantized_file(tmp_path / "a.onnx", opset=opset, **KINDS[kind]), tmp_path / "b.onnx"
    put_in_front(path, GIVEN, made, calibrator=calibrators[BRANCHES if opset >= 16 else WITHOUT_WARPING])
    assert same_parts(path, made)
    assert onnx.load(made).opset_import == onnx.load(path).opset_import


def test_a_changed_constant_is_noticed(tmp_path: Path) -> None:
    path, made = quantized_file(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    put_in_front(path, GIVEN, made)
    model = onnx.load(made)
    model.graph.initializer[0].doc_string = "changed"
    onnx.save(model, made)
    assert not same_parts(path, made)


@pytest.mark.parametrize("opset", [13, 16, 19, 21])
def test_the_pair_is_the_file_behind_the_calibrator(
    opset: int, tmp_path: Path, calibrators: dict[tuple[str, ...], Path]
) -> None:
    path, alone, both = quantized_file(tmp_path / "a.onnx", opset=opset), tmp_path / "b.onnx", tmp_path / "c.onnx"
    calibrator = calibrators[BRANCHES if opset >= 16 else WITHOUT_WARPING]
    put_in_front(path, GIVEN, alone)
    put_in_front(path, GIVEN, both, calibrator=calibrator)
    wanted = OnnxClassifier(alone)(OnnxClassifier(calibrator)(IMAGES))
    assert torch.equal(OnnxClassifier(both)(IMAGES), wanted)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_input_of_a_file_is_made_in_front(kind: int, channels_last: bool, order: str, tmp_path: Path) -> None:
    path = with_input(
        quantized_file(tmp_path / "a.onnx", seed=1), tmp_path / "b.onnx", kind, channels_last=channels_last
    )
    numbers = ((0.0,) * 3, (1 / 255,) * 3) if kind == TensorProto.UINT8 else ((0.5,) * 3, (0.25,) * 3)
    given, made = FileInput(*numbers, order, SIZE), tmp_path / "c.onnx"
    put_in_front(path, given, made)
    assert bit_equal(path, made, given, (255 * IMAGES).round() / 255)
    assert ForeignClassifier(made, 1).layout == "NCHW"


def test_a_fixed_batch_stays(tmp_path: Path, calibrators: dict[tuple[str, ...], Path]) -> None:
    path, made = with_batch(quantized_file(tmp_path / "a.onnx"), 2), tmp_path / "b.onnx"
    put_in_front(path, GIVEN, made, calibrator=calibrators[BRANCHES])
    found = OnnxClassifier(made)
    assert found.input_shape(SIZE, 8) == (2, 3, SIZE, SIZE)
    assert torch.equal(found(IMAGES[:5])[:4], torch.cat([found(part) for part in IMAGES[:4].split(2)]))


def test_a_file_that_is_too_old_is_converted_and_says_the_same(tmp_path: Path) -> None:
    path, made = quantized_file(tmp_path / "a.onnx", opset=11, per_channel=False), tmp_path / "b.onnx"
    put_in_front(path, GIVEN, made)
    assert opset_in_front(path) == 13
    assert onnx.load(made).opset_import[0].version == 13
    assert bit_equal(path, made, GIVEN, IMAGES)


def test_no_pixel_is_moved_where_the_opset_cannot(tmp_path: Path, calibrators: dict[tuple[str, ...], Path]) -> None:
    path = quantized_file(tmp_path / "a.onnx", opset=13)
    with pytest.raises(InputError, match="branches: expected none that moves the image, which opset 13"):
        put_in_front(path, GIVEN, tmp_path / "b.onnx", calibrator=calibrators[BRANCHES])


def test_something_stands_in_front_of_what_stands_in_front(
    tmp_path: Path, calibrators: dict[tuple[str, ...], Path]
) -> None:
    path, once, twice = quantized_file(tmp_path / "a.onnx"), tmp_path / "b.onnx", tmp_path / "c.onnx"
    put_in_front(path, GIVEN, once, calibrator=calibrators[BRANCHES])
    as_they_are = FileInput((0.0,) * 3, (1.0,) * 3, "rgb", SIZE)
    put_in_front(once, as_they_are, twice, calibrator=calibrators[WITHOUT_WARPING])
    wanted = OnnxClassifier(once)(OnnxClassifier(calibrators[WITHOUT_WARPING])(IMAGES))
    assert torch.equal(OnnxClassifier(twice)(IMAGES), wanted)


def test_metadata_of_both_are_kept(tmp_path: Path) -> None:
    path, made = quantized_file(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"owner": "somebody"})
    onnx.save(model, path)
    put_in_front(path, GIVEN, made, metadata={"class_names": ["a", "b"]})
    kept = {entry.key: entry.value for entry in onnx.load(made).metadata_props}
    assert kept == {"owner": "somebody", "class_names": '["a", "b"]'}


def test_bytes_are_rounded_and_kept_in_range(tmp_path: Path) -> None:
    path = with_input(quantized_file(tmp_path / "a.onnx"), tmp_path / "b.onnx", TensorProto.UINT8)
    given, made = FileInput((0.0,) * 3, (1 / 255,) * 3, "rgb", SIZE), tmp_path / "c.onnx"
    put_in_front(path, given, made)
    beyond = torch.full((1, 3, SIZE, SIZE), 1.002)  # 255.51, which would be 0 where a byte runs over
    white = torch.ones((1, 3, SIZE, SIZE))
    np.testing.assert_array_equal(OnnxClassifier(made)(beyond), OnnxClassifier(made)(white))
