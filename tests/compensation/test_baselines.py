"""Batch-norm re-estimation, preprocessing and the anti-adversary against closed forms; then as methods of a run."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import qrobust
from torch import nn
from torch.nn import functional as F

from qrobust.classifier import NormalizedModel, state_hash
from qrobust.compensation import retraining
from qrobust.compensation.baselines import (
    AntiAdversary,
    AutoContrast,
    Denoise,
    adapt_batch_norm,
    reestimate_batch_norm,
)
from qrobust.errors import ExportCheckError, InputError
from qrobust.pipeline.baselines import make_baseline
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES
from qrobust.pipeline.stage import stage
from qrobust.progress import Reporter
from qrobust.record import StageResult, read_record
from qrobust.remedies import LADDER
from qrobust.report.model_card import model_card
from qrobust.report.verdict import float_operators
from qrobust.storage import read_json, write_sealed


def test_reestimated_statistics_are_those_of_the_images(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    before = state_hash(model)
    again = reestimate_batch_norm(model, images.split(8))
    inside = model[0](images)
    assert state_hash(model) == before
    assert not again.training
    assert torch.allclose(again[1].running_mean, inside.mean((0, 2, 3)), atol=1e-6)
    # Variances are means over batches of the unbiased variance within each.
    within = torch.stack([model[0](part).var((0, 2, 3)) for part in images.split(8)]).mean(0)
    assert torch.allclose(again[1].running_var, within, rtol=1e-4)
    assert torch.equal(again[0].weight, model[0].weight)


def test_reestimation_undoes_a_change_of_brightness_and_contrast(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )
    model(images)
    model = reestimate_batch_norm(model.eval(), [images])
    faint = 0.3 * images + 0.2
    adapted = reestimate_batch_norm(model, [faint])
    assert torch.allclose(adapted(faint), model(images), atol=2e-2)
    assert (model(faint) - model(images)).abs().max() > 0.1


def test_reestimation_refuses_what_it_cannot_do(small_model: NormalizedModel) -> None:
    with pytest.raises(InputError, match="expected images, got none"):
        reestimate_batch_norm(small_model, [])
    with pytest.raises(InputError, match="expected batch norms"):
        reestimate_batch_norm(nn.Conv2d(3, 3, 1), [torch.rand(1, 3, 8, 8)])


def test_adapted_norms_mix_the_batch_into_what_was_estimated(
    small_model: NormalizedModel, images: torch.Tensor
) -> None:
    torch.manual_seed(0)
    before = state_hash(small_model)
    forgetful = copy.deepcopy(small_model).train()  # takes the batch's own statistics
    with torch.no_grad():
        assert torch.allclose(adapt_batch_norm(small_model, 0)(images), forgetful(images), atol=1e-4)
        assert torch.allclose(adapt_batch_norm(small_model, 1e9)(images), small_model(images), atol=1e-4)
    assert state_hash(small_model) == before
    norm = nn.BatchNorm1d(1).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(5.0)
    x = torch.tensor([[1.0], [5.0]])  # mean 3, variance 4; two images count as much as a prior of 2
    wanted = (x - 2.5) / (4.5 + norm.eps) ** 0.5
    assert torch.allclose(adapt_batch_norm(nn.Sequential(norm), 2)(x), wanted)


def test_adapting_refuses_what_it_cannot_do(small_model: NormalizedModel) -> None:
    with pytest.raises(InputError, match="prior: expected at least 0 images, got -1"):
        adapt_batch_norm(small_model, -1)
    with pytest.raises(InputError, match="expected batch norms"):
        adapt_batch_norm(nn.Conv2d(3, 3, 1))


def test_auto_contrast_is_pillows(digit_pixels: torch.Tensor) -> None:
    from PIL import Image, ImageOps

    faint = (digit_pixels.float() * 0.4 + 60).round().to(torch.uint8)
    ours = AutoContrast()(faint.float() / 255)
    for image, stretched in zip(faint, ours, strict=True):
        wanted = ImageOps.autocontrast(Image.fromarray(image.permute(1, 2, 0).numpy()))
        theirs = torch.tensor(list(wanted.tobytes())).view(32, 32, 3).permute(2, 0, 1)
        assert (255 * stretched - theirs).abs().max() <= 1
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.equal(AutoContrast()(flat), flat)


def test_denoise_is_the_mean_of_those_that_are_there() -> None:
    images = torch.rand(2, 3, 6, 6)
    smooth = Denoise()(images)
    assert torch.allclose(smooth[:, :, 2, 3], images[:, :, 1:4, 2:5].mean((2, 3)))
    assert torch.allclose(smooth[:, :, 0, 0], images[:, :, :2, :2].mean((2, 3)))


def test_anti_adversary_moves_towards_its_own_prediction(small_model: NormalizedModel, images: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def watching(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return small_model(x)

    logits = AntiAdversary(watching, steps=3, step_size=0.01)(images)
    first = small_model(images)
    predicted = first.argmax(1)
    assert F.cross_entropy(logits, predicted) < F.cross_entropy(first, predicted)
    assert (seen[-1] - images).abs().max() <= 0.03 + 1e-6
    assert seen[-1].min() >= 0
    assert seen[-1].max() <= 1
    for options in ({"steps": 0}, {"step_size": 0.0}, {"step_size": 2.0}):
        with pytest.raises(InputError, match="anti-adversary"):
            AntiAdversary(small_model, **options)


@pytest.mark.slow
def test_methods_are_compared_and_taken_back(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrobust.pipeline import stages

    # The first stage is trained as the others are; what it trains, tests/compensation/test_ladder.py knows.
    monkeypatch.setattr(stages, "LADDER", ("calibrator", "scales", "scales+calibrator", "finetune"))
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    result = qrobust("compensate", run, "--compare", "all", "--attack-images", "0", "-q")
    assert result.exit_code == 0, result.output
    assert any(first in result.output for first in ("Ship ", "Undecided: ", "Nothing is recommended"))
    record = json.loads((run / "record.json").read_text())
    rows = {row["remedy"]: row for row in record["remedies"]}
    assert set(rows) == {
        "compensated",
        "bn-reestimate",
        "calibrator+bn-reestimate",
        "scales",
        "scales+calibrator",
        "finetune",
        "auto-contrast",
        "denoise",
        "anti-adversary",
    }
    # The calibrator that was there is the one that is compared.
    before = json.loads((finished_run / "record.json").read_text())
    assert rows["compensated"]["gain_pp"] == before["summary"]["compensation_gain_pp"]
    assert (
        rows["finetune"]["trained_on"]
        == rows["bn-reestimate"]["trained_on"]
        == ["contrast", "gaussian_noise", "inversion"]
    )
    assert rows["auto-contrast"]["trained_on"] == []
    # What has to be approved again: of the integers of INT8, nothing on the lower rungs.
    for name in ("scales", "scales+calibrator"):
        assert rows[name]["weight_change"]["integers_changed"] == 0
    assert rows["compensated"]["weight_change"] == {"relative_change": 0.0, "integers_changed": 0.0}
    for name in ("scales", "finetune"):
        assert rows[name]["validation"]["clean_accuracy"] > 0
        assert rows[name]["clean_harmful_flips"] <= 1 - rows[name]["clean_agreement"]
    assert rows["anti-adversary"]["runtime"] == "torch"
    for name, audited in record["audit"].items():
        assert name == "float" or audited["integer_ops"] == audited["quantizable_ops"], name
    page = (run / "report.html").read_text()
    assert "Which way to compensate" in page

    assert qrobust("compensate", run, "--remedy", "none").exit_code == 0
    assert qrobust("evaluate", run, "-q").exit_code == 0
    assert qrobust("report", run).exit_code == 0
    record = json.loads((run / "record.json").read_text())
    assert list(record["summary"]["clean_accuracy"]) == ["float", "int8"]
    assert record["remedies"] == []


def test_unknown_method_and_scene_are_refused(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    result = qrobust("compensate", run, "--remedy", "magic")
    assert result.exit_code == 2
    assert "--remedy: expected one of calibrator, none" in result.output
    result = qrobust("compensate", run, "--scenario", "mars")
    assert result.exit_code == 2
    assert "--scenario: expected one of night, fog" in result.output
    result = qrobust("compensate", run, "--scenario", "night", "--shifts", "fog")
    assert result.exit_code == 2
    assert "either --scenario or --shifts" in result.output


def test_every_graph_has_a_card(finished_run: Path) -> None:
    record = json.loads((finished_run / "record.json").read_text())
    for name, accuracy in record["summary"]["clean_accuracy"].items():
        card = (finished_run / f"{name}.card.md").read_text()
        assert card.startswith(f"# {name}.onnx")
        assert f"- clean: {100 * accuracy:.1f} %" in card
    count = record["compensation"]["training_images"]
    training_images = f"inversion at severity 5; on {count} training images of `digits` with labels, disjoint"
    assert training_images in card
    assert "Measured on shifts never seen in training: rotation; seen: contrast" in card


def test_cards_tell_what_their_own_graph_learned_from(finished_run: Path, tmp_path: Path) -> None:
    """Not what the last command was asked for."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    learned = read_json(run / "record.json")["compensation"]["training_images"]
    later = (
        "--remedy",
        "auto-contrast",
        "--few-shot",
        20,
        "--no-labels",
        "--scenario",
        "fog",
        "--severities",
        5,
        "--clean-budget",
        2,
    )
    assert qrobust("compensate", run, *later, "-q").exit_code == 0
    assert "Not measured yet" in (run / "auto-contrast.card.md").read_text()
    assert qrobust("evaluate", run, "-q", "--attacks", "none").exit_code == 0
    assert qrobust("report", run).exit_code == 0
    card = (run / "compensated.card.md").read_text()
    assert f"on {learned} training images of `digits` with labels" in card
    assert "to cost at most 0.3 points of clean validation accuracy" in card
    assert "nothing, it is not trained" in (run / "auto-contrast.card.md").read_text()
    rows = {row["remedy"]: row for row in read_json(run / "record.json")["remedies"]}
    assert rows["auto-contrast"]["provenance"] is None
    assert rows["compensated"]["provenance"]["images"] == learned
    assert rows["compensated"]["classifier_hash"]["before"] == rows["compensated"]["classifier_hash"]["after"]

    assert qrobust("export", run, "-q").exit_code == 0
    assert "Not measured yet" in (run / "compensated.card.md").read_text()
    result = qrobust("compensate", run, "--remedy", "none")
    assert (result.exit_code, "only float and INT8 are left" in result.output) == (0, True)
    assert not list(run.glob("compensated.*")) + list(run.glob("auto-contrast.*"))


def test_flags_stand_on_the_card_of_their_graph(finished_run: Path) -> None:
    record = read_record(finished_run / "record.json")
    flags = ("UNRELIABLE: int8, Linf: pgd-10 from float leaves 20.0% at epsilon 0.01",)
    record = replace(record, attacks=replace(record.attacks, flags=flags))
    flagged = {name for name in ("float", "int8", "compensated") if "UNRELIABLE" in model_card(record, name)}
    assert flagged == {"int8"}


def test_float_operators_are_listed_with_their_share_of_the_time(finished_run: Path) -> None:
    audited = replace(
        read_record(finished_run / "record.json").audit["compensated"],
        float_compute={},
        other_ops={"GridSample": 1, "Mul": 3, "Reshape": 9, "QLinearAdd": 2, "DequantizeLinear": 1},
        time_share={"QLinearConv": 0.8, "Mul": 0.03, "GridSample": 0.05, "Reshape": 0.07, "QLinearAdd": 0.05},
    )
    sentence = float_operators(audited)
    assert sentence == (
        "4 operators in float take 8.0 % of its time on one thread (1 GridSample 5.0 %, 3 Mul 3.0 %)."
    )
    for file in ("report.md", "report.html", "compensated.card.md"):
        assert "operators in float take" in (finished_run / file).read_text()


def test_checkpoints_of_other_trainings_stay(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "float-0123456789ab.pt").write_bytes(b"of a calibrator that was killed")
    assert qrobust("compensate", run, "--remedy", "denoise", "-q", "--threads", 1).exit_code == 0
    assert sorted(p.name for p in checkpoints.iterdir()) == ["finished", "float-0123456789ab.pt"]


def test_methods_that_learned_from_other_shifts_are_left_out_and_said(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")

    def measured(*options: object) -> tuple[str, set[str]]:
        result = qrobust("evaluate", run, "--attacks", "none", "-q", "--threads", 1, *options)
        assert result.exit_code == 0, result.output
        summary = json.loads((run / "stages" / "evaluate.json").read_text())["summary"]
        return result.output, set(summary["clean_accuracy"])

    for method in ("denoise", "bn-reestimate"):
        assert qrobust("compensate", run, "--remedy", method, "-q", "--threads", 1).exit_code == 0
    graphs = {"float", "int8", "compensated", "denoise", "bn-reestimate"}
    assert measured()[1] == graphs
    # Measuring on other shifts is another question than learning from them.
    assert measured("--shifts", "fog")[1] == graphs
    stage = run / "stages" / "bn-reestimate.json"
    write_sealed(stage, read_json(stage) | {"trained_on": ["fog"]})
    output, names = measured()
    assert (
        "bn-reestimate is left out: trained with different settings than calibrator (shifts: fog instead of contrast"
        in output
    )
    assert names == graphs - {"bn-reestimate"}  # denoise learned nothing


def test_a_method_that_fails_its_gate_is_left_out_of_a_comparison(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrobust.pipeline import stages

    def make(opened_run: Run, method: str) -> None:
        if method != "denoise":
            raise ExportCheckError(f"parity: {method} no")
        make_baseline(opened_run, method)

    monkeypatch.setattr(stages, "make_baseline", make)
    run = shutil.copytree(finished_run, tmp_path / "run")
    result = qrobust("compensate", run, "--compare", "all", "-q", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.output.count("left out: parity:") == len(LADDER) - 1 + len(BASELINES)
    record = read_json(run / "record.json")
    assert {row["remedy"] for row in record["remedies"]} == {"compensated", "denoise"}


def test_classifiers_learn_at_half_of_the_rate_that_is_asked_for_and_scales_at_three_times_that(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def train(*arguments: object, **options: object) -> None:
        asked[options["name"]] = arguments[4].learning_rate
        raise InputError("enough was seen")

    monkeypatch.setattr(retraining, "finetune", train)
    run = shutil.copytree(finished_run, tmp_path / "run")
    for remedy in ("finetune", "scales"):
        result = qrobust("compensate", run, "--remedy", remedy, "--learning-rate", "0.01", "-q")
        assert "enough was seen" in result.output
    assert asked == {"finetune": 0.005, "scales": 0.015}


def test_a_model_without_batch_norms_is_refused_before_anything_is_forgotten(finished_run: Path) -> None:
    opened_run = Run.open(finished_run, Reporter(), threads=1)
    vars(opened_run)["model"] = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    for method in ("bn-reestimate", "calibrator+bn-reestimate"):
        with pytest.raises(InputError, match="expected batch norms"):
            make_baseline(opened_run, method)
    assert opened_run.require_folder().is_done("evaluate")


def test_a_stage_counts_what_was_done_before_it_began(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    opened_run = Run.open(run, Reporter(), threads=1)
    with stage(opened_run, "denoise", began_s=1000.0):
        pass
    done = opened_run.require_folder().need_result(StageResult, "denoise", "compensate")
    assert done.duration_s >= 1000.0
