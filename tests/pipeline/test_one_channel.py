"""A network of one channel, from the command line to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import qrobust
from PIL import Image

from qrobust.data.target_images import open_target_images
from qrobust.models.registry import find_model
from qrobust.preprocessing import Preprocessing
from qrobust.storage import read_json, read_npz

NETWORK = """
from torch import nn
from qrobust.models.resnet import SmallResNet
def net(num_classes, channels=1):
    network = SmallResNet(8, num_classes, width=8)
    network.conv1 = nn.Conv2d(channels, 8, 3, 1, 1, bias=False)
    return network
def two(num_classes):
    return net(num_classes, 2)
"""
SIDE, COUNT = 16, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, bright on the left or on top; a network that tells them apart by luma; a corruption data set."""
    root = tmp_path_factory.mktemp("grey")
    (root / "mine.py").write_text(NETWORK)
    labels = np.arange(COUNT) % 2
    images = np.random.default_rng(0).integers(0, 120, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    images[labels == 0, :, : SIDE // 2] += 100
    images[labels == 1, : SIDE // 2] += 100
    np.savez(root / "data.npz", images=images, labels=labels)
    (root / "set").mkdir()
    np.save(root / "set" / "fog.npy", np.concatenate([images[:10]] * 5))
    np.save(root / "set" / "labels.npy", np.concatenate([labels[:10]] * 5))
    torch.manual_seed(0)
    network = find_model(f"{root / 'mine.py'}:net").build(2)
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    inputs, targets = (torch.from_numpy(luma)[:, None] / 255 - 0.4) / 0.25, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(30):
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(network.state_dict(), root / "weights.pt")
    return root


def quantize(folder: Path, *options: object, model: str = "net") -> tuple[int, str]:
    result = qrobust(
        "quantize",
        "--model",
        f"{folder / 'mine.py'}:{model}",
        "--data",
        f"npz:{folder / 'data.npz'}",
        "--calibration-images",
        16,
        "--threads",
        1,
        "-q",
        "--out",
        folder / "run",
        *options,
    )
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("two", (), "model: expected a network for images of 3 channels or 1, "),
        ("net", ("--normalization", "0.4,0.4,0.4/1,1,1"), "normalization: expected none or 'm/s' with positive s"),
        ("net", ("--normalization", "imagenet"), "for images of 1 channel, got 'imagenet'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    model: str, options: tuple[str, ...], message: str, folder: Path
) -> None:
    code, output = quantize(folder, *options, model=model)
    assert code == 2
    assert message in output.splitlines()[-1]
    assert not (folder / "run").exists()


def test_a_scene_is_read_as_luma(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (SIDE, SIDE), (50 * i, 20, 200)).save(tmp_path / f"{i}.png")
    target_images = open_target_images(
        tmp_path, preprocessing=Preprocessing(size=SIDE, channels=1), class_names=("a", "b"), seed=0
    )
    assert target_images.training.read(slice(None)).shape == (3, 1, SIDE, SIDE)


@pytest.mark.slow
def test_every_stage(folder: Path) -> None:
    run = folder / "run"
    code, output = quantize(folder, "--weights", folder / "weights.pt", "--normalization", "0.4/0.25")
    assert code == 0, output
    measured = ("--shifts", f"contrast,gaussian_noise,stored:{folder / 'set'}", "--severities", 5)
    learned = (*measured, "--train-on", "generic,contrast")
    named = f"{folder / 'mine.py'}:net"
    for command in (
        ("compensate", run, *learned, "--steps", 10, "--batch-size", 16, "--mac-budget", 1),
        ("export", run),
        *(("compensate", run, "--remedy", method) for method in ("bn-reestimate", "auto-contrast", "anti-adversary")),
        ("evaluate", run, "--attack-images", 4),
        ("report", run),
    ):
        quiet = () if command[0] == "report" else ("--model", named, "--threads", 1, "-q")
        result = qrobust(*command, *quiet)
        assert result.exit_code == 0, result.output
    record = read_json(run / "record.json")
    assert record["channels"] == 1
    assert record["summary"]["clean_accuracy"]["float"] > 0.9
    methods = {m["remedy"] for m in record["remedies"]}
    assert methods == {"compensated", "bn-reestimate", "auto-contrast", "anti-adversary"}
    assert record["compensation"]["branches"] == ["residual", "photometric", "geometric"]
    assert record["corruption_sets"][0]["rows"][0]["accuracy"]["float"] > 0.8
    assert record["attacks"]["n"] == 4
    for name, audited in record["audit"].items():
        graph = onnx.load(run / f"{name}.onnx")
        shape = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
        assert shape[1:] == [1, SIDE, SIDE]
        assert audited["integer_ops"] == (0 if name == "float" else audited["quantizable_ops"])
        about = json.loads({p.key: p.value for p in graph.metadata_props}["preprocessing"])
        assert about["input"] == "luma in [0, 1], (N, 1, S, S)"
        assert about["normalization_inside"] == [[0.4], [0.25]]
    assert "Input `(N, 1, 16, 16)`, luma" in (run / "int8.card.md").read_text()
    pictures = read_npz(run / "pictures.npz", "pictures", ("clean",))
    assert all(pixels.shape == (2, 1, SIDE, SIDE) for pixels in pictures.values())
    # Two images, each clean, shifted and calibrated, under two shifts; and those that are wrong most often.
    missed = read_npz(run / "missed.npz", "missed", ("images",))["images"]
    assert missed.shape == (len(record["missed_images"]), 1, SIDE, SIDE)
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 2 * 2 * 3 + len(missed)
    shutil.rmtree(run)
