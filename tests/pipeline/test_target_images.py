"""Real images of a new scene: opened and split, learned from with and without labels, measured."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import qrobust
from PIL import Image, ImageOps

from qrobust.cli.parsing import choices
from qrobust.compensation.batches import mixed_batch
from qrobust.compensation.validation import Validation, information
from qrobust.data.loading import open_data
from qrobust.data.splits import TrainingData
from qrobust.data.target_images import open_target_images
from qrobust.errors import InputError
from qrobust.pipeline.provenance import training_conditions
from qrobust.pipeline.run import Run
from qrobust.preprocessing import Preprocessing
from qrobust.progress import Reporter
from qrobust.shifts.rendering import render

SMALLER = ("--mac-budget", "0.04", "--branches", "photometric")
LONGER = ("--steps", "300", "--batch-size", "32")
NAMES = tuple(str(digit) for digit in range(10))


def save_scene(root: Path, *, labelled: bool, count: int = 100) -> Path:
    """Digits as a faint camera shows them."""
    training = open_data("digits", seed=7).training
    pixels = render(training.read(slice(0, count)), "contrast", 5, table="cifar-c", seed=3)
    for index, (image, label) in enumerate(zip(pixels, training.labels.tolist(), strict=False)):
        folder = root / NAMES[label] if labelled else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return root


@pytest.mark.parametrize("labelled", [True, False])
def test_splits_are_disjoint_and_seeded(labelled: bool, tmp_path: Path) -> None:
    folder = save_scene(tmp_path, labelled=labelled, count=50)
    target_images = open_target_images(folder, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)
    parts = [target_images.training, target_images.validation, target_images.test]
    assert [len(p) for p in parts] == [30, 10, 10]
    assert sorted(torch.cat([p.indices for p in parts]).tolist()) == list(range(50))
    assert target_images.labelled == labelled
    assert (target_images.training.labels >= 0).all() == labelled
    again = open_target_images(folder, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)
    assert torch.equal(again.test.indices, target_images.test.indices)
    assert not torch.equal(
        open_target_images(folder, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=1).test.indices,
        target_images.test.indices,
    )


def test_a_scene_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least 5 images in .*, got 0"):
        open_target_images(tmp_path, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)
    with pytest.raises(InputError, match="no folder"):
        open_target_images(tmp_path / "none", preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)
    both = save_scene(tmp_path / "both", labelled=True, count=20)
    save_scene(both, labelled=False, count=3)
    with pytest.raises(InputError, match="got both"):
        open_target_images(both, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)
    strange = tmp_path / "strange" / "cat"
    strange.mkdir(parents=True)
    with pytest.raises(InputError, match=r"^target_images: class folder 'cat'"):
        open_target_images(strange.parent, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0)


def test_a_scene_is_read_before_anything_is_trained(finished_run: Path, tmp_path: Path) -> None:
    folder = save_scene(tmp_path / "scene", labelled=False, count=20)
    (folder / "004.png").write_text("no image")
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = sorted(run.rglob("*"))
    result = qrobust("compensate", run, "--target-images", folder, "-q")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert "--target-images: cannot decode image" in result.output
    assert "004.png" in result.output
    assert sorted(run.rglob("*")) == before
    target_images = open_target_images(
        folder, preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0, skip_bad=True
    )
    assert sum(map(len, (target_images.training, target_images.validation, target_images.test))) == 19
    assert target_images.training.source.skipped == (str(folder / "004.png"),)


def test_information_is_one_when_sure_and_balanced_and_nothing_when_not() -> None:
    sure = 100 * torch.eye(4)
    assert information(sure).item() == pytest.approx(1, abs=1e-4)
    assert information(sure[:1].expand(4, 4)).item() == pytest.approx(0, abs=1e-4)
    assert information(torch.zeros(8, 4)).item() == pytest.approx(0, abs=1e-6)
    # Half sure: two classes, each image undecided between two of the four.
    half = torch.tensor([[50.0, 50, 0, 0], [0, 0, 50, 50]])
    assert information(half).item() == pytest.approx(math.log(2) / math.log(4), abs=1e-4)


def test_batches_hold_scene_images_without_a_clean_twin(tmp_path: Path) -> None:
    data = open_data("digits", seed=0)
    target_images = open_target_images(
        save_scene(tmp_path, labelled=False), preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0
    )
    options = {"batch_size": 64, "step": 3, "seed": 0}
    alone = mixed_batch(TrainingData(data.training, [], "cifar-c", target_images.training), torch.ones(0), **options)
    assert alone.paired.sum() == 16
    assert (alone.labels[~alone.paired] == -1).all()
    assert torch.equal(alone.clean[~alone.paired], alone.shifted[~alone.paired])
    fog = TrainingData(data.training, [("fog", 5)], "cifar-c", target_images.training)
    both = mixed_batch(fog, torch.ones(1), **options)
    assert both.paired.sum() == 40
    assert not (both.aligned & ~both.paired).any()


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_a_calibrator_learns_from_a_scene(labelled: bool, finished_run: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", save_scene(tmp_path / "scene", labelled=labelled, count=200)
    shutil.copytree(finished_run, run)
    for command in (
        ("compensate", run, "--target-images", folder, "--train-on", "none", *LONGER, *SMALLER, "-q"),
        ("export", run, "-q"),
        ("evaluate", run, "--attack-images", "0", "-q"),
        ("report", run),
    ):
        result = qrobust(*command)
        assert result.exit_code == 0, result.output
    record = json.loads((run / "record.json").read_text())
    target_images = record["target_images"]
    assert record["compensation"]["trained_on"] == [f"imagefolder:{folder}"]
    assert target_images["n"] == 40
    assert target_images["labelled"] == labelled
    if labelled:
        assert target_images["gain"]["compensated"]["gain_pp"] > 0
        assert "gains" in (run / "report.md").read_text()
    else:
        # What the labels that the folder does not have would say.
        hidden = open_data("digits", seed=7).training.labels[:200].numpy()
        with np.load(run / "predictions" / "scene" / "clean-0.npz") as kept:
            right = {g: (kept[f"{g}.prediction"] == hidden[kept["index"]]).mean() for g in ("int8", "compensated")}
        assert right["compensated"] > right["int8"]
        assert "accuracy is not known" in (run / "report.md").read_text()
    result = qrobust("compensate", run, "--remedy", "finetune")
    assert result.exit_code == 2
    assert "finetune learns from shifts" in result.output


def test_validation_counts_a_scene_like_a_cell(tmp_path: Path) -> None:
    data = open_data("digits", seed=0)
    target_images = open_target_images(
        save_scene(tmp_path, labelled=True), preprocessing=Preprocessing(size=32), class_names=NAMES, seed=0
    )
    validation = Validation(
        data.validation, [], table="cifar-c", seed=0, limit=100, target_images=target_images.validation
    )
    _, shifted = validation.measure(lambda x: torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10))
    assert shifted == pytest.approx((target_images.validation.labels == 0).float().mean().item())


def test_files_take_no_folder_of_a_scene(tmp_path: Path) -> None:
    words = ("a.onnx", "--data", "digits", "--out", tmp_path / "out")
    result = qrobust("evaluate-onnx", *words, "--target-images", "x")
    assert (result.exit_code, "give the images as --data imagefolder:DIR" in result.output) == (2, True)
    result = qrobust("evaluate-onnx", *words, "--scenario", "night,imagefolder:x")
    assert (result.exit_code, "--target-images DIR" in result.output) == (2, True)


def test_runs_of_earlier_versions_learn_from_what_they_did(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in ("train_on", "scenario_share")}

    def kept(**entries: object) -> Run:
        (run / "config.json").write_text(json.dumps(old | entries))
        return Run.open(run, Reporter())

    assert training_conditions(kept(shifts=["fog", "contrast"], hold_out=["fog"])) == [("contrast", 5)]
    alone = kept(shifts=[], scene_images="imagefolder:x", scene_alone=True)
    assert (alone.config.shifts.target_images, training_conditions(alone)) == ("imagefolder:x", [])
    both = kept(shifts=["fog"], target_images="imagefolder:x", target_images_alone=False)
    assert (both.config.shifts.target_images, training_conditions(both)) == ("imagefolder:x", [("fog", 5)])
    changed = Run.open(run, Reporter(), **choices({"train_on": ("contrast",)}))
    assert (changed.config.shifts.target_images, training_conditions(changed)) == (None, [("contrast", 5)])


def test_bad_options_leave_the_calibrator_that_is_there(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for options in (
        ("--shifts", "fogg"),
        ("--branches", "magic"),
        ("--target-images", tmp_path / "none"),
        ("--mac-budget", "0.0001"),
    ):
        result = qrobust("compensate", run, *options)
        assert result.exit_code == 2, result.output
        assert {"compensate", "export", "evaluate"} <= {path.stem for path in (run / "stages").glob("*.json")}


def test_scenes_of_equal_size_do_not_share_predictions(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    predictions = []
    for name in ("faint", "clear"):
        folder = save_scene(tmp_path / name, labelled=True)
        if name == "clear":
            for path in folder.rglob("*.png"):
                ImageOps.autocontrast(Image.open(path)).save(path)
        result = qrobust("evaluate", run, "--target-images", folder, "--attacks", "none", "-q")
        assert result.exit_code == 0, result.output
        with np.load(run / "predictions" / "scene" / "clean-0.npz") as found:
            predictions.append(found["float.prediction"].tolist())
    assert predictions[0] != predictions[1]
