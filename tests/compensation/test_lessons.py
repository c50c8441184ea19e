"""What compensation learned from is not measured on, and what was made stays until it is replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import qrobust
from PIL import Image

from qrobust.cli.console import _LogBar
from qrobust.compensation import fit as fitting
from qrobust.compensation import training
from qrobust.data.loading import open_data
from qrobust.data.target_images import open_target_images
from qrobust.errors import ExportCheckError, InputError, RangeError
from qrobust.pipeline import baselines as alternatives
from qrobust.pipeline import stages
from qrobust.pipeline.provenance import trained_differently, validation_measures
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import TORCH_ONLY
from qrobust.pipeline.stage import choices_key
from qrobust.preprocessing import Preprocessing
from qrobust.progress import Reporter, progress_callback
from qrobust.quantization import qat
from qrobust.record import PhaseFit, TargetImages, TrainingProvenance, read_record, to_json
from qrobust.report.model_card import model_card
from qrobust.report.verdict import verdict
from qrobust.shifts.registry import _own_shift
from qrobust.storage import read_json, write_sealed


def edit_stage(run: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Change what a stage left, and return it."""
    path = run / "stages" / f"{name}.json"
    found = read_json(path) | changes
    write_sealed(path, found)
    return found


def save_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(folder / f"{name}.png")


def contents(run: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "checkpoints" not in p.parts}


def test_images_that_come_and_go_change_the_listing_and_not_only_the_count(tmp_path: Path) -> None:
    for name in "01":
        save_images(tmp_path / name, [f"a{i}" for i in range(30)])
    before = open_data(f"imagefolder:{tmp_path}", seed=0, calibration_images=4).summary()
    (tmp_path / "0" / "a0.png").touch()
    assert open_data(f"imagefolder:{tmp_path}", seed=0, calibration_images=4).summary() == before
    (tmp_path / "0" / "a0.png").rename(tmp_path / "0" / "z0.png")  # as many as before, every index another image
    after = open_data(f"imagefolder:{tmp_path}", seed=0, calibration_images=4).summary()
    for name, split in before.items():
        assert after[name].fingerprint == split.fingerprint
        assert after[name].listing != split.listing


def test_images_other_than_those_quantized_with_are_refused(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    splits = json.loads((run / "stages" / "quantize.json").read_text())["splits"]
    edit_stage(run, "quantize", splits=splits | {"training": splits["training"] | {"n": 3, "listing": "other"}})
    before = contents(run)
    for arguments in (
        ("evaluate", run),
        ("compensate", run),
        ("compensate", run, "--remedy", "bn-reestimate"),
        ("compensate", run, "--compare"),
    ):
        result = qrobust(*arguments, "-q")
        assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
        assert "data: expected the images of digits that the run was quantized with, got others" in result.output
        assert f"training split held 3, now {splits['training']['n']}" in result.output
    assert contents(run) == before
    edit_stage(run, "quantize", splits=splits | {"test": splits["test"] | {"n": 3}})  # as --test-images may make it
    assert qrobust("evaluate", run, "-q", "--attacks", "none", "--threads", 1).exit_code == 0


def test_a_scene_whose_images_changed_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run, folder = shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "scene"
    save_images(folder, [f"{i:02d}" for i in range(20)])
    target_images = open_target_images(
        folder, preprocessing=Preprocessing(size=32), class_names=[str(i) for i in range(10)], seed=0
    )
    training_images = json.loads((run / "stages" / "compensate.json").read_text())["provenance"]
    spec = f"imagefolder:{folder}"
    edit_stage(
        run,
        "compensate",
        provenance=training_images | {"target_images": spec, "target_splits": to_json(target_images.summary())},
    )
    measure = ("evaluate", run, "--target-images", folder, "-q", "--attacks", "none", "--threads", 1)
    assert qrobust(*measure).exit_code == 0
    save_images(folder, ["0a"])
    result = qrobust(*measure)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert "that calibrator learned from, got others (12 to learn from then, now 13)" in result.output
    respelled = f"{tmp_path}/./scene/"
    assert "got others" in qrobust("evaluate", run, "--target-images", respelled, "-q").output
    other = tmp_path / "other"  # of which nothing was learned
    save_images(other, [f"{i:02d}" for i in range(9)])
    measure = ("evaluate", run, "--target-images", other, "-q", "--attacks", "none", "--threads", 1)
    assert qrobust(*measure).exit_code == 0


def made(provenance: TrainingProvenance | None, *trained_on: str) -> Any:
    """What a stage left, as far as a comparison asks."""
    return SimpleNamespace(provenance=provenance, trained_on=trained_on or ("fog",))


USUAL = TrainingProvenance(images=100, labels=True, severities=(5,), severity_table="cifar-c", steps=9)
WITH_TARGET = replace(USUAL, target_images="imagefolder:a")


def compared(**stages: Any) -> dict[str, str]:
    found = {name.replace("_", "-"): stage for name, stage in stages.items()}
    folder = SimpleNamespace(result=lambda kind, name: found.get(name))
    opened_run: Any = SimpleNamespace(require_folder=lambda: folder)
    return trained_differently(opened_run)


def test_remedies_that_learned_from_the_same_are_compared() -> None:
    assert compared(compensate=made(USUAL), finetune=made(USUAL), denoise=made(None)) == {}


def test_what_is_of_use_to_one_remedy_alone_may_differ() -> None:
    assert compared(compensate=made(USUAL), bn_reestimate=made(replace(USUAL, labels=False))) == {}
    assert compared(compensate=made(WITH_TARGET, "fog", "imagefolder:a"), finetune=made(USUAL)) == {}


def test_what_one_of_two_remedies_does_not_know_may_differ() -> None:
    assert compared(compensate=made(USUAL), finetune=made(replace(USUAL, steps=None, severities=()))) == {}


@pytest.mark.parametrize(
    ("changed", "name", "why"),
    [
        ({"images": 7}, "finetune", "images: 7 instead of 100"),
        ({"severities": (1, 3)}, "finetune", "severities: 1, 3 instead of 5"),
        ({"labels": False}, "finetune", "labels: False instead of True"),
        ({"target_images": "b"}, "bn_reestimate", "target images: b instead of imagefolder:a"),
        ({"target_images": None}, "bn_reestimate", "target images: None instead of imagefolder:a"),
        ({"steps": 7}, "finetune", "steps: 7 instead of 9"),
        ({"severity_table": "imagenet-c"}, "finetune", "severity table: imagenet-c instead of cifar-c"),
    ],
)
def test_remedies_that_learned_from_other_things_are_not_compared(
    changed: dict[str, Any], name: str, why: str
) -> None:
    found = compared(compensate=made(WITH_TARGET), **{name: made(replace(WITH_TARGET, **changed))})
    assert found == {name.replace("_", "-"): f"trained with different settings than calibrator ({why})"}


def test_without_a_calibrator_the_first_remedy_says_what_others_are_compared_with() -> None:
    assert compared(bn_reestimate=made(USUAL), finetune=made(USUAL, "contrast")) == {
        "bn-reestimate": "trained with different settings than finetune (shifts: fog instead of contrast)"
    }


def test_a_figure_without_labels_is_not_called_accuracy() -> None:
    def measures(labels: bool, target_images: bool | None, conditions: bool = True) -> tuple[str, str]:
        found = validation_measures(labels=labels, target_labelled=target_images, shifted=conditions)
        return found.clean, found.shift

    assert measures(True, None) == measures(True, True) == ("accuracy", "accuracy")
    assert measures(False, None) == ("agreement with float", "agreement with float")
    assert measures(True, False, conditions=False) == ("accuracy", "fit to what the float model expects")
    clean, shift = measures(False, True)
    assert clean == "agreement with float"
    assert shift == "mean of agreement with float and fit to what the float model expects"


def test_a_training_that_is_killed_leaves_what_was_there(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = contents(run)

    class Kill(BaseException):
        pass

    def killed(*_: object, **__: object) -> torch.Tensor:
        raise Kill

    monkeypatch.setattr(training, "step_loss", killed)
    with pytest.raises(Kill):
        qrobust("compensate", run, "--steps", 20, "-q", "--threads", 1)
    assert contents(run) == before
    assert qrobust("report", run).exit_code == 0


@pytest.mark.slow  # three times what comes after a training, and one
def test_what_is_chosen_after_training_asks_for_no_other_training(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One calibrator's training is kept, and goes with the calibrator."""

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    def compensate(*options: object) -> str:
        result = qrobust("compensate", run, "--threads", 1, *options)
        assert result.exit_code == 0, result.output
        return result.output

    run = shutil.copytree(finished_run, tmp_path / "run")
    finished = run / "checkpoints" / "finished"
    first, kept = (run / "calibrator.safetensors").read_bytes(), sorted(finished.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(training, "step_loss", refuse)
        assert "only what comes after training is done" in compensate("--clean-budget", 0)
        stage = json.loads((run / "stages" / "compensate.json").read_text())
        assert stage["provenance"]["clean_budget"] == 0
        compensate("--clean-budget", 0.3)
    assert (run / "calibrator.safetensors").read_bytes() == first
    assert "only what comes after" not in compensate("--steps", 10)
    assert len(kept) == len(sorted(finished.iterdir()))
    assert not set(kept) & set(finished.iterdir())
    compensate("--remedy", "none")
    assert not (run / "checkpoints").exists()


def test_a_training_that_leaves_nothing_to_quantize_names_the_rate_and_can_be_done_again(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = contents(run)

    def dead(*_: object) -> None:
        raise RangeError("calibration: activation 'down_3' is constant")

    monkeypatch.setattr(fitting, "_frozen", dead)
    result = qrobust("compensate", run, "--steps", 5, "--batch-size", 16, "-q", "--threads", 1)
    assert (result.exit_code, len(result.output.strip().splitlines()[-1:])) == (2, 1), result.output
    assert "learning-rate: training left the calibrator without a usable range" in result.output
    assert "expected a rate smaller than 0.004" in result.output
    assert contents(run) == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished"]


def test_a_training_that_ends_below_its_start_is_told(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    accuracies = {
        "start_clean_accuracy": 0.9,
        "start_shift_accuracy": 0.5,
        "clean_accuracy": 0.6,
        "shift_accuracy": 0.55,
    }
    worse = PhaseFit(**accuracies, best_step=5, diverged=False)
    monkeypatch.setattr(fitting, "train_calibrator", lambda *_, **__: worse)
    result = qrobust("compensate", run, "--steps", 5, "-q", "--threads", 1)
    assert "warning: training (float) ended below where it began on validation images" in result.output
    assert "learning_rate smaller than 0.004 or more steps than 5 may help" in result.output


def test_a_calibrator_that_was_not_exported_is_said_to_be_left_out(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "stages" / "export.json").unlink()
    result = qrobust("evaluate", run, "-q", "--attacks", "none", "--threads", 1)
    assert result.exit_code == 0
    assert "the calibrator is left out: it was trained, but not exported; `qrobust export" in result.output


def test_a_comparison_goes_on_without_a_calibrator(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(_: object) -> None:
        raise InputError("classifier: its gradient vanishes")

    monkeypatch.setattr(stages, "compensate", vanished)
    monkeypatch.setattr(stages, "LADDER", ())
    monkeypatch.setattr(stages, "BASELINES", ("denoise",))
    run = shutil.copytree(finished_run, tmp_path / "run")
    result = qrobust("compensate", run, "--compare", "all", "--steps", 21, "-q", "--threads", 1, "--attacks", "none")
    assert result.exit_code == 0, result.output
    assert "warning: calibrator left out: classifier: its gradient vanishes" in result.output
    methods = {row["remedy"] for row in read_json(run / "record.json")["remedies"]}
    assert methods == {"denoise", "anti-adversary"}


def test_without_compensation_nothing_of_it_is_left(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert qrobust("compensate", run, "--remedy", "none", "-q").exit_code == 0
    assert not [name for name in ("calibrator.safetensors", "pictures.npz") if (run / name).exists()]


def test_the_time_left_is_of_the_steps_that_are_made_here() -> None:
    """Not of those that a checkpoint had, nor of what came before the first."""
    bar = _LogBar("train", 4000)
    bar.start = 0.0
    progress = progress_callback(bar)
    before = time.time()
    progress(3000, 4000, "")
    assert bar.start >= before
    for step in range(3001, 3101):
        progress(step, 4000, "")
    assert (bar.done, bar.length) == (100, 1000)


def test_a_card_tells_what_its_graph_is_and_is_not(finished_run: Path) -> None:
    record = read_record(finished_run / "record.json")
    remedy = record.remedies[0]
    assert "float take" in model_card(record, "compensated")
    assert remedy.provenance is not None
    provenance = replace(remedy.provenance, severities=(2, 4), batch_norm_images=256)
    count, remedy = provenance.images, replace(remedy, provenance=provenance)
    sure = {"int8": 0.633, "compensated": 0.41}
    target = TargetImages(images="imagefolder:a", labelled=False, n=7, confidence=sure)
    record = replace(record, remedies=(remedy,), target_images=target)
    card = model_card(record, "compensated")
    assert f"at severity 2, 4; on 256 images drawn from {count} training images" in card
    assert "mean confidence 41.0 %, of INT8 63.3 %" in card
    assert "diverged" not in card
    record = replace(record, remedies=(replace(remedy, diverged=True),), target_images=None, weights=None)
    assert "Its training diverged" in model_card(record, "compensated")
    assert "Training of INT8 + calibrator diverged" in " ".join(verdict(record))
    assert "weights that it came with" in model_card(record, "int8")


def test_a_broken_image_of_a_scene_can_be_left_out(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the data, digits, are no files of which any could be."""
    run, folder = shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "scene"
    save_images(folder, [f"{i:02d}" for i in range(10)])
    (folder / "bad.png").write_bytes(b"no image")
    opened = []
    monkeypatch.setattr(
        stages, "compensate", lambda opened_run: opened.append(len(opened_run.target_images.training))
    )
    assert qrobust("compensate", run, "--target-images", folder).exit_code == 2
    result = qrobust("compensate", run, "--target-images", folder, "--skip-bad-images")
    assert "target_images: left out 1 files that cannot be decoded" in result.output
    assert opened == [6]


def test_the_flag_for_a_scene_does_not_stop_a_run_without_one(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"skip_bad_images": True}))  # as a scene's command left it
    assert Run.open(run, Reporter()).data.summary() == Run.open(finished_run, Reporter()).data.summary()


def test_trainings_go_on_only_with_the_images_and_the_code_that_they_began_with(
    finished_run: Path, tmp_path: Path
) -> None:
    target_images, own = tmp_path / "scene", tmp_path / "own.py"
    save_images(target_images, [f"{i:02d}" for i in range(10)])
    own.write_text("def dim(images, strength, generators):\n    return images * (1 - strength)\n")

    def key(**choices: object) -> str:
        _own_shift.cache_clear()
        return choices_key(Run.open(finished_run, Reporter(), **choices), "float")

    def keys() -> tuple[str, str, str]:
        return key(), key(target_images=f"imagefolder:{target_images}"), key(train_on=(f"{own}:dim",))

    before = keys()
    assert keys() == before
    save_images(target_images, ["0a"])
    own.write_text(own.read_text().replace("(1 - strength)", "(1 - strength / 2)"))
    after = keys()
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False]


@pytest.mark.slow  # two evaluations and a comparison
def test_a_comparison_keeps_what_it_leaves_out(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = contents(run)
    monkeypatch.setattr(stages, "LADDER", ())
    monkeypatch.setattr(stages, "BASELINES", ("auto-contrast",))
    options = ("--mac-budget", "0.0001", "--attacks", "none")
    result = qrobust("compensate", run, "--compare", "all", *options, "-q", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "calibrator left out: mac_budget: expected at least" in result.output
    record = read_json(run / "record.json")
    assert record["compensation"] is None
    assert record["summary"]["macs"]["calibrator"] is None
    assert {row["seen_by_remedy"] for row in record["rows"]} == {False}
    assert {row["remedy"] for row in read_json(run / "record.json")["remedies"]} == {"auto-contrast", TORCH_ONLY}
    assert (run / "stages" / "compensate.json").read_bytes() == before[run / "stages" / "compensate.json"]
    assert qrobust("evaluate", run, "-q", "--attacks", "none", "--threads", 1).exit_code == 0
    assert qrobust("report", run).exit_code == 0
    assert "compensated" in {row["remedy"] for row in read_json(run / "record.json")["remedies"]}


@pytest.mark.slow  # three trainings
def test_fine_tuning_that_diverges_at_once_is_refused_and_a_training_outlives_its_export(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportCheckError("parity: no")

    run = shutil.copytree(finished_run, tmp_path / "run")
    finetune = ("compensate", run, "--remedy", "finetune", "--steps", 5, "-q", "--threads", 1)
    with monkeypatch.context() as patch:
        patch.setattr(alternatives, "export_checked", refuse)
        assert qrobust(*finetune).exit_code == 3
        assert len(list((run / "checkpoints").glob("finetune-*.pt"))) == 1
    assert qrobust(*finetune).exit_code == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished"]
    monkeypatch.setattr(qat.F, "cross_entropy", lambda *_, **__: torch.tensor(torch.nan))
    result = qrobust(*finetune, "--learning-rate", "0.5")
    assert result.exit_code == 2, result.output
    assert "learning-rate: training (finetune) diverged at step 0, before anything was learned" in result.output


@pytest.mark.parametrize(
    ("name", "command"), [("twin.safetensors", "quantize"), ("calibrator.safetensors", "compensate")]
)
def test_damaged_integers_are_one_line(name: str, command: str, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:100])
    result = qrobust("export", run, "-q")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert f"{name} cannot be read" in result.output
    assert f"run `qrobust {command}` again" in result.output


def test_what_learns_nothing_needs_nothing_to_learn_from(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    undefined = ("--train-on", "inversion", "--severities", "3")
    assert (
        "expected one defined for" in qrobust("compensate", run, "--remedy", "bn-reestimate", *undefined, "-q").output
    )
    assert qrobust("compensate", run, "--remedy", "auto-contrast", *undefined, "-q").exit_code == 0
    stage = json.loads((run / "stages" / "auto-contrast.json").read_text())
    assert (stage["trained_on"], stage["provenance"]) == ([], None)


def test_a_scene_that_is_misspelt_is_guessed(run_copy: Path) -> None:
    result = qrobust("compensate", run_copy, "--scenario", "nigth")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "--scenario: expected one of night, fog" in result.output
    assert "got 'nigth'; did you mean 'night'?" in result.output


def test_the_module_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "qrobust", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("qrobust, version")
