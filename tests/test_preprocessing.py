"""Preprocessing: rules against Pillow, torchvision and torch; rebuilt from a file by the code for devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import evaluate_files, make_folder, qrobust
from onnx_graphs import classifier_graph
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from qrobust.classifier import Normalization
from qrobust.data.folders import flat_images
from qrobust.data.loading import open_data
from qrobust.deployment.infer import prepare
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN, read_kept
from qrobust.models.registry import ModelSpec, find_model, preset_of
from qrobust.pipeline.deploy import deploy
from qrobust.pipeline.run import Run
from qrobust.preprocessing import (
    FILTERS,
    RESIZES,
    Preprocessing,
    PreprocessingConfig,
    choose_size,
    resolve,
)
from qrobust.progress import Reporter
from qrobust.record.typed_json import from_json
from qrobust.storage import read_json, write_json

SIZE = 24
# Odd, not square, longer than eight times the shorter side, smaller and larger than SIZE, SIZE itself.
SIDES = ((31, 47), (64, 33), (20, 20), (9, 120), (200, 3), (1, 1), (61, 61), (SIZE, SIZE), (SIZE, 50))


def pictures(folder: Path, sides: tuple[tuple[int, int], ...]) -> Path:
    """Of each size one in colour, one in grey, one half transparent, one of 16 bits, one turned by its EXIF entry."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for n, (width, height) in enumerate(sides):
        values = rng.integers(0, 256, (height, width, 4), np.uint8)
        Image.fromarray(values[:, :, :3]).save(folder / f"{n}-rgb.png")
        Image.fromarray(values[:, :, 0]).save(folder / f"{n}-grey.png")
        Image.fromarray(values).save(folder / f"{n}-rgba.png")
        Image.fromarray(values[:, :, 0].astype(np.uint16) * 251).save(folder / f"{n}-deep.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        Image.fromarray(values[:, :, :3]).save(folder / f"{n}-turned.jpg", exif=exif)
    return folder


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("resize", RESIZES)
def test_every_image_is_rebuilt_from_metadata_alone(resize: str, channels: int, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", SIDES if resize != "none" else ((SIZE, SIZE),))
    source = flat_images(folder)
    ways = [(name, True) for name in FILTERS] + [("bilinear", False)]
    for interpolation, antialias in ways:
        declared = Preprocessing(
            size=SIZE,
            resize=resize,
            crop_ratio=0.83,
            fill=114,
            channels=channels,
            interpolation=interpolation,
            antialias=antialias,
        )
        source.prepare(declared)
        steps = json.loads(json.dumps(declared.as_metadata()))["steps"]
        ours = source.read(range(len(source))).float().div_(255)
        theirs = np.stack([prepare(source.name_of(i), steps) for i in range(len(source))])
        assert theirs.dtype == np.float32
        assert torch.equal(ours, torch.from_numpy(theirs)), interpolation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "resized"), [(24, 27), (24, 24), (23, 31)])
def test_a_crop_is_torchvision_s(crop: int, resized: int, interpolation: str) -> None:
    transform = ImageClassification(
        crop_size=crop,
        resize_size=resized,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        interpolation=InterpolationMode(interpolation),
    )
    ours = Preprocessing(size=crop, crop_ratio=crop / resized, interpolation=interpolation)
    assert ours.shorter_side == resized
    rng = np.random.default_rng(0)
    for width, height in ((31, 47), (64, 33), (20, 20), (61, 61)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        wanted = transform(Image.fromarray(pixels)).mul(255).round().to(torch.uint8)
        assert np.array_equal(ours.apply(pixels), wanted.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("height", "width"), [(90, 40), (40, 90)])
def test_columns_come_first_whatever_version_of_pillow_is_here(height: int, width: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    by_hand = image.resize((24, height), Image.Resampling.BILINEAR).resize((24, 24), Image.Resampling.BILINEAR)
    ours = Preprocessing(size=24, resize="stretch").apply(np.asarray(image))
    assert np.array_equal(ours, np.asarray(by_hand))


def test_without_antialiasing_it_is_torch_s_interpolation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 47, 3), np.uint8)
    ours = Preprocessing(size=24, resize="stretch", antialias=False).apply(pixels)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    wanted = torch.nn.functional.interpolate(planes, (24, 24), mode="bilinear", align_corners=False)[0]
    # Half a grey level is what rounding changes.
    assert np.abs(ours - wanted.permute(1, 2, 0).numpy()).max() <= 0.5 + 1e-9
    plain = Preprocessing(size=24, resize="stretch").apply(pixels)
    assert np.abs(ours.astype(int) - plain).max() > 20


def test_a_letterbox_is_the_whole_image_and_grey() -> None:
    fitted = Preprocessing(size=8, resize="letterbox", fill=114).apply(np.full((4, 16, 3), 200, np.uint8))
    assert fitted[:, 0, 0].tolist() == [114] * 3 + [200] * 2 + [114] * 3


def test_images_that_have_the_size_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for resize in ("stretch", "letterbox", "none"):
        assert np.array_equal(Preprocessing(size=24, resize=resize).apply(pixels), pixels)
    cropped = Preprocessing(size=24)
    assert not np.array_equal(cropped.apply(pixels), pixels)
    assert np.array_equal(cropped.for_images_of(24).apply(pixels), pixels)
    assert cropped.for_images_of(25) == cropped


def test_with_none_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    data = open_data(f"imagefolder:{make_folder(tmp_path)}", seed=0, calibration_images=8)
    data.prepared(Preprocessing(size=24, resize="none"))
    with pytest.raises(InputError, match=r"^data: .*\.png: expected 24 x 24 px with --resize none, got 16 x 16$"):
        data.test.read(slice(0, 1))


def test_a_bgr_network_gets_what_opencv_reads() -> None:
    images = torch.rand(2, 3, 4, 4)
    inside = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bgr")(images)
    assert torch.equal(inside[:, 0], (images[:, 2] - 0.1) / 0.5)
    assert torch.equal(inside[:, 2], (images[:, 0] - 0.3) / 0.7)


# -- who says what

NOTHING = PreprocessingConfig()
PRESET = PreprocessingConfig(
    resize="crop", image_size=224, crop_ratio=224 / 232, interpolation="bicubic", normalization="imagenet"
)


def resolved(chosen: PreprocessingConfig, preset: PreprocessingConfig = PRESET, native: int | None = None) -> Any:
    size = choose_size(chosen, preset, native, "net")
    return resolve(chosen, preset, size, native_size=native, channels=3)


def test_the_user_comes_before_the_model() -> None:
    preset = resolved(NOTHING)
    assert (preset.size, preset.shorter_side, preset.interpolation) == (224, 232, "bicubic")
    assert preset.mean == (0.485, 0.456, 0.406)
    own = resolved(PreprocessingConfig(resize="stretch", image_size=96, normalization="none", interpolation="box"))
    assert (own.size, own.resize, own.interpolation, own.mean) == (96, "stretch", "box", (0.0, 0.0, 0.0))
    assert resolved(PreprocessingConfig(image_size=96), NOTHING).shorter_side == 109


@pytest.mark.parametrize(
    ("native", "given", "size", "shorter"),
    [(32, None, 32, 32), (32, 64, 64, 64), (224, None, 224, 224), (300, None, 224, 232), (300, 299, 299, 309)],
)
def test_images_no_larger_than_the_network_reads_are_used_whole(
    native: int, given: int | None, size: int, shorter: int
) -> None:
    found = resolved(PreprocessingConfig(image_size=given), native=native)
    assert (found.size, found.shorter_side) == (size, shorter)


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"resize": "squash"}, "resize: expected one of crop, stretch, letterbox, none, got 'squash'"),
        ({"resize": "stretch", "crop_ratio": 0.9}, "crop_ratio: expected with --resize crop only, got stretch"),
        ({"resize": "crop", "fill": 9}, "fill: expected with --resize letterbox only, got crop"),
        ({"crop_ratio": 1.2}, "crop_ratio: expected at most 1, got 1.2"),
        ({"interpolation": "bicubic", "antialias": False}, "antialias: expected true with --interpolation bicubic"),
        ({"normalization": "0.5/1"}, "normalization: expected imagenet, cifar10, none or"),
    ],
)
def test_choices_that_make_no_sense(choices: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        resolved(PreprocessingConfig(**choices))
    with pytest.raises(InputError, match="channel_order: expected rgb for a network of one channel"):
        Preprocessing(size=32, channels=1, channel_order="bgr")


def test_torchvision_s_presets() -> None:
    found = find_model("torchvision:resnet50").preset
    assert (found.image_size, found.resize, found.interpolation) == (224, "crop", "bilinear")
    assert (resolved(found).shorter_side, found.normalization) == (232, "imagenet")
    assert find_model("torchvision:efficientnet_b0").preset.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("mode", "ratio", "wanted"), [("center", 0.95, ("crop", 252)), ("squash", 1.0, ("stretch", None))]
)
def test_a_timm_network_says_it_itself(mode: str, ratio: float, wanted: tuple[str, int | None]) -> None:
    about = {
        "input_size": (3, 240, 240),
        "crop_pct": ratio,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    spec = ModelSpec("net.py:make", lambda _: torch.nn.Flatten(), NOTHING, version="1")
    network = torch.nn.Flatten()
    network.pretrained_cfg = about  # type: ignore[assignment]  # as timm does
    found = resolved(NOTHING, preset_of(spec, network))
    assert (found.resize, found.shorter_side if mode == "center" else None) == wanted
    assert (found.size, found.interpolation, found.std) == (240, "bicubic", (0.25, 0.25, 0.25))
    strange = SimpleNamespace(pretrained_cfg={"mean": 3})
    assert preset_of(spec, strange) == NOTHING  # type: ignore[arg-type]  # has the attribute alone


# -- a run

NET = """
import torch
from torch import nn


def net(num_classes):  # reads BGR; class 0 is blue, as cv2.imread gives it
    conv = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        for i in range(3):
            conv.weight[i, i, 1, 1] = 1
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def coloured(root: Path) -> Path:
    """Odd pictures of noise that is a little stronger in blue, green or red; at the sides, in another colour."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 30)):
        for channel, name in ((2, "a-blue"), (1, "b-green"), (0, "c-red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                height, width = rng.integers(20, 60, 2)
                pixels = rng.integers(0, 200, (height, width, 3))
                pixels[..., channel] += int(rng.integers(0, 40))
                pixels[:, : width // 8, (channel + 1) % 3] += 50
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pictures of odd sizes, letterboxed for a network that reads BGR."""
    root = tmp_path_factory.mktemp("preprocessed")
    (root / "net.py").write_text(NET)
    data = f"imagefolder:{coloured(root / 'data')}"
    model, quiet = ("--model", f"{root / 'net.py'}:net"), ("--threads", 1, "-q")
    how = ("--image-size", 25, "--resize", "letterbox", "--fill", 90, "--no-antialias", "--channel-order", "bgr")
    how = (*how, "--normalization", "0.4,0.4,0.4/0.3,0.3,0.3", "--calibration-images", 16)
    for command in (
        ("quantize", *model, "--data", data, *how, "--out", root / "run", *quiet),
        ("evaluate", root / "run", *model, "--shifts", "contrast", "--severities", 3, "--attack-images", 0, *quiet),
        ("report", root / "run"),
    ):
        result = qrobust(*command)
        assert result.exit_code == 0, result.output
    return root


@pytest.mark.parametrize("graph", ["float", "int8"])
def test_a_deployed_folder_predicts_what_was_measured(graph: str, run: Path, tmp_path: Path) -> None:
    """In a process that finds neither qrobust nor torch nor onnx."""
    kept, record = read_kept(run / "run" / "predictions", [CLEAN]), read_json(run / "run" / "record.json")
    paths = np.array(sorted((run / "data" / "test").glob("*/*.png")))[kept.indices]
    deploy(run / "run", tmp_path / "deployed", graph=graph)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("qrobust", "torch", "onnx"):
        (blocked / f"{name}.py").write_text("raise ImportError('there is none')")
    command = [sys.executable, tmp_path / "deployed" / "infer.py", *paths]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(blocked)},
    )
    assert done.returncode == 0, done.stderr
    found = [line.split("\t")[1] for line in done.stdout.splitlines()]
    prediction = kept.predictions[CLEAN][graph].prediction
    assert found == [record["class_names"][index] for index in prediction]
    assert (
        0.6 < (prediction == kept.labels).mean() < 1
    )  # neither chance nor certain, so that a wrong pixel would show
    declared = record["preprocessing"]
    assert (declared["resize"], declared["fill"], declared["channel_order"]) == ("letterbox", 90, "bgr")


def test_predict_prints_class_and_confidence(run: Path) -> None:
    path = next((run / "data" / "test").glob("*/*.png"))
    result = qrobust("predict", run / "run" / "int8.onnx", path)
    assert result.exit_code == 0, result.output
    shown, name, confidence = result.output.strip().split("\t")
    names = read_json(run / "run" / "record.json")["class_names"]
    assert (shown, name in names) == (str(path), True)
    assert 1 / len(names) <= float(confidence) <= 1


def test_what_predict_cannot_read_is_one_line(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("no image")
    for arguments, message in (
        ([run / "run" / "int8.onnx", text], f"image: cannot read image {text}"),
        ([run / "run" / "int8.onnx", tmp_path / "b.png"], f"image: no file {tmp_path / 'b.png'}"),
        ([tmp_path / "c.onnx", text], f"onnx: no file {tmp_path / 'c.onnx'}"),
        ([text, text], "onnx: "),
        ([classifier_graph(tmp_path / "d.onnx"), text], "onnx: expected a graph whose metadata has preprocessing"),
    ):
        result = qrobust("predict", *arguments)
        assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
        assert message in result.output


def test_evaluate_onnx_prepares_images_as_a_run_s_graph_says(run: Path, tmp_path: Path) -> None:
    options = ("--shifts", "contrast", "--severities", 3)
    found = evaluate_files([run / "run" / "int8.onnx"], f"imagefolder:{run / 'data'}", tmp_path / "own", *options)
    record = read_json(run / "run" / "record.json")
    assert found["summary"]["clean_accuracy"]["int8"] == record["summary"]["clean_accuracy"]["int8"]
    assert found["preprocessing"]["resize"] == "letterbox"
    assert found["preprocessing"]["mean"] is None


def test_a_folder_of_an_earlier_version_keeps_its_size(run: Path, tmp_path: Path) -> None:
    stage = run / "run" / "stages" / "quantize.json"
    whole = read_json(stage)
    try:
        write_json(stage, {key: value for key, value in whole.items() if key != "preprocessing"})
        opened = Run.open(run / "run", Reporter(), model=f"{run / 'net.py'}:net")
        assert opened.preprocessing == from_json(Preprocessing, whole["preprocessing"], stage)
    finally:
        write_json(stage, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "image_size: the images differ in size and it is not known what "),
        (("--image-size", 24), "normalization: expected what "),
        (("--resize", "none", "--normalization", "none"), "image_size: the images differ in size"),
    ],
)
def test_own_code_without_size_or_normalisation_is_refused(options: tuple, message: str, run: Path) -> None:
    out = run / "refused"
    model = f"{run / 'net.py'}:net"
    data = f"imagefolder:{run / 'data'}"
    few = ("--calibration-images", 16, "--threads", 1)
    result = qrobust("quantize", "--model", model, "--data", data, "--out", out, *few, *options)
    assert result.exit_code == 2
    assert message.replace("_", "-") in result.output.splitlines()[-1].replace("_", "-")
    assert not out.exists()
