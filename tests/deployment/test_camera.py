"""A graph that takes frames makes of them what `infer.py` makes of the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from qrobust.deployment.camera import with_camera
from qrobust.deployment.infer import prepare
from qrobust.errors import InputError
from qrobust.preprocessing import FILTERS, Preprocessing

SIDE = 24
# Height and width: wide, tall, too long, small, as it should be, and almost that.
FRAMES = ((31, 47), (61, 33), (20, 150), (9, 11), (SIDE, SIDE), (SIDE, 25))


def identity(channels: int) -> onnx.ModelProto:
    """A graph that gives back its images."""
    shape = ["batch", channels, SIDE, SIDE]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"class_names": '["a"]', "preprocessing": "{}"})
    return model


def made(declared: Preprocessing, frames: np.ndarray) -> np.ndarray:
    model = with_camera(identity(declared.channels), declared.steps())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"frames": frames})[0]


def expected(declared: Preprocessing, frame: np.ndarray, folder: Path) -> np.ndarray:
    Image.fromarray(frame).save(folder / "frame.png")
    return prepare(folder / "frame.png", declared.steps())


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("resize", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize(("interpolation", "antialias"), [*((name, True) for name in FILTERS), ("bilinear", False)])
def test_pixels_are_those_of_a_file_to_a_grey_level(
    interpolation: str, antialias: bool, resize: str, channels: int, tmp_path: Path
) -> None:
    declared = Preprocessing(
        size=SIDE,
        resize=resize,
        crop_ratio=0.83,
        fill=114,
        channels=channels,
        interpolation=interpolation,
        antialias=antialias,
    )
    rng, differing = np.random.default_rng(0), []
    for height, width in FRAMES:
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        ours, theirs = made(declared, frame[None])[0], expected(declared, frame, tmp_path)
        assert ours.shape == theirs.shape
        levels = np.abs(ours - theirs) * 255
        assert levels.max() < 1.01
        differing.append((levels > 0.5).mean())
    assert np.mean(differing) < 0.02


def test_frames_of_a_batch_are_made_alike() -> None:
    declared = Preprocessing(size=SIDE)
    frames = np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), np.uint8)
    assert np.array_equal(made(declared, frames), np.concatenate([made(declared, frame[None]) for frame in frames]))


def test_frames_that_need_no_resizing_stay_as_they_are() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    found = made(Preprocessing(size=SIDE, resize="none"), frames)
    assert np.array_equal(found, frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def test_the_file_tells_what_it_takes() -> None:
    declared = Preprocessing(size=SIDE)
    told = {entry.key: entry.value for entry in with_camera(identity(3), declared.steps()).metadata_props}
    assert told["class_names"] == '["a"]'
    assert json.loads(told["preprocessing"])["steps_inside"] == declared.steps()


def test_a_step_that_no_graph_can_take_is_refused() -> None:
    with pytest.raises(InputError, match="camera: expected a step that can be part of a graph, got 'dream'"):
        with_camera(identity(3), [{"do": "dream"}])
