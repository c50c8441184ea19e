"""Before the first stage: what was found, and that a network which tells nothing is not quantized by mistake."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import qrobust, save_npz
from torch import nn

from qrobust.deployment import profiling
from qrobust.deployment.profiling import timing_s
from qrobust.evaluation.statistics import chance_agreement
from qrobust.pipeline.evaluate import Asked, images_asked
from qrobust.pipeline.run import Run
from qrobust.pipeline.start import FOOTPRINTS_S, Pace
from qrobust.progress import Reporter
from qrobust.record.start import FloatOnValidation, Start
from qrobust.report.start import start_lines, time_lines
from qrobust.storage import read_json

NET = """
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of three brightnesses, and weights that tell which; in `wrong.pt` they are in another order."""
    (tmp_path / "net.py").write_text(NET)
    save_npz(tmp_path / "d.npz", 240)
    middle = (torch.arange(3) * 60 + 20) / 255
    for name, order in (("right.pt", [0, 1, 2]), ("wrong.pt", [1, 2, 0])):
        conv = nn.Conv2d(3, 3, 1)
        conv.weight.data = (2 * middle[order] / 3).reshape(3, 1, 1, 1).expand(3, 3, 1, 1).contiguous()
        conv.bias.data = -middle[order].square()
        torch.save({f"0.{key}": value for key, value in conv.state_dict().items()}, tmp_path / name)
    return tmp_path


def quantize(folder: Path, weights: str, *options: object) -> tuple[int, str]:
    model, data = f"{folder / 'net.py'}:net", f"npz:{folder / 'd.npz'}"
    how = ("--normalization", "none", "--calibration-images", 16, "--threads", 1)
    result = qrobust(
        "quantize",
        "--model",
        model,
        "--weights",
        folder / weights,
        "--data",
        data,
        *how,
        "--out",
        folder / "run",
        *options,
    )
    return result.exit_code, result.output


def test_chance_agreement_in_closed_form() -> None:
    labels = np.array([0] * 7 + [1] * 3)
    assert chance_agreement(np.zeros(10, int), labels) == pytest.approx(0.7)  # the share of the largest class
    assert chance_agreement(np.arange(10) % 2, labels) == pytest.approx(0.5)
    assert chance_agreement(np.arange(100) // 10, np.arange(100) % 10) == pytest.approx(0.1)


def test_what_was_found_is_printed_and_kept(folder: Path) -> None:
    code, output = quantize(folder, "right.pt")
    assert code == 0, output
    lines = output.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("preprocessing: "))
    assert said < lines.index("quantize ...")
    assert lines[said + 2] == "sizes of 16 of the images: 16 x 16 px"
    start = read_json(folder / "run" / "stages" / "quantize.json")["start"]
    with np.load(folder / "d.npz") as stored:
        every = np.bincount(stored["labels"])
    assert (np.sum(list(start["images_per_class"].values()), axis=0) == every).all()
    found = start["float_validation"]
    assert found["accuracy"] == 1
    assert lines[said + 3].startswith(f"float accuracy on {found['n']} validation images: 100.0 % [")


def test_weights_in_another_order_of_classes_are_refused(folder: Path) -> None:
    code, output = quantize(folder, "wrong.pt")
    last = output.splitlines()[-1]
    assert (code, (folder / "run").exists()) == (2, False)
    assert "validation images: 0.0 % [0.0, " in last
    for cause in ("--normalization", "--channel-order", "--class-names", "--resize", "--anyway goes on"):
        assert cause in last, cause
    code, output = quantize(folder, "wrong.pt", "--anyway", "-q")
    assert (code, output.startswith("warning: float accuracy on ")) == (0, True), output


def test_quantization_aware_training_keeps_its_state_by_the_measure_that_decides(folder: Path) -> None:
    """Only the darkest class is right."""
    state = torch.load(folder / "right.pt")
    torch.save({name: value[[0, 2, 1]] for name, value in state.items()}, folder / "swapped.pt")
    trained = ("--qat-epochs", 0.01, "--anyway", "-q")
    found = {}
    for primary in ("accuracy", "recall:0"):
        code, output = quantize(folder, "swapped.pt", "--primary", primary, "--overwrite", *trained)
        assert code == 0, output
        found[primary] = read_json(folder / "run" / "stages" / "quantize.json")["quantization"]["qat"][
            "start_accuracy"
        ]
    assert 0 < found["accuracy"] < 1 == found["recall:0"]


@pytest.mark.parametrize(
    ("hits", "n", "chance", "nothing"), [(70, 100, 0.7, True), (83, 100, 0.7, False), (12, 100, 0.1, True)]
)
def test_an_interval_that_reaches_chance_tells_nothing(hits: int, n: int, chance: float, nothing: bool) -> None:
    from qrobust.evaluation.statistics import wilson_interval

    found = FloatOnValidation(n=n, accuracy=hits / n, interval=wilson_interval(hits, n), chance=chance)
    assert found.tells_nothing == nothing


def test_lines_name_the_classes_that_have_fewest_and_most_images() -> None:
    found = FloatOnValidation(n=200, accuracy=0.835, interval=(0.78, 0.88), chance=0.56)
    start = Start(
        images_per_class={"training": (1120, 795, 0), "test": (12, 12, 0)},
        looked_at=32,
        widths=(256, 400),
        heights=(256, 256),
        float_validation=found,
    )
    assert start_lines(start, ("coat", "skirt", "hat")) == [
        "data: 3 classes (images of 2); training 1,915, 795 (skirt) to 1,120 (coat) a class; test 24, 12 a class",
        "sizes of 32 of the images: 256 to 400 x 256 px",
        "float accuracy on 200 validation images: 83.5 % [78.0, 88.0]; by chance 56.0 %",
    ]


def test_a_short_run_is_told_by_its_parts_and_a_long_one_how_to_shorten_it() -> None:
    assert time_lines({"observe": 4, "evaluate": 80, "train the calibrator": 516}) == [
        "time: about 10 min (train the calibrator 9 min, evaluate 80 s, observe 4 s), from a few steps and images of "
        "each"
    ]
    told, shorter = time_lines({"observe": 40, "evaluate": 3600, "train the calibrator": 7200})
    assert told.startswith("time: about 3.0 h (train the calibrator 2.0 h, evaluate 60 min, observe 40 s)")
    assert shorter == (
        "shorter: fewer --steps or a smaller --batch-size, fewer --test-images, --shifts or --severities; also "
        "--threads"
    )


def test_every_part_of_a_run_was_estimated(finished_run: Path) -> None:
    expected = read_json(finished_run / "record.json")["start"]["expected_s"]
    assert set(expected) == {
        "observe",
        "train the calibrator",
        "choose the calibrator",
        "export",
        "evaluate",
        "time the graphs",
        "attack",
    }
    assert min(expected.values()) > 0


PACE = Pace(float_s=0.004, int8_s=0.001, calibrator_s=0.002, gradient_s=0.0, export_s=10.0, nodes=33)


def test_a_calibrator_is_exported_in_the_time_of_a_small_network() -> None:
    # Two graphs of 33 nodes, one of 66; 100 images through all three, in torch and onnxruntime, at 8 ms an image.
    assert PACE.exporting_s(2, 1, 100) == pytest.approx(10 * (2 + 2) + 2 * 100 * 0.008)


def test_timing_takes_its_turns_whatever_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "ROUND_S", 0.02)
    monkeypatch.setattr(profiling, "ROUNDS", 50)
    assert timing_s([1]) == pytest.approx(5 * 0.001 + 50 * 0.02)  # a turn of many calls
    assert timing_s([100]) == pytest.approx(55 * 0.1)  # a turn of one
    every = [4, 1, 3, 32 * 4, 32 * 1, 32 * 3]
    assert PACE.timing_s(latency_budget=False) == pytest.approx(timing_s(every) + FOOTPRINTS_S)
    assert PACE.timing_s(latency_budget=True) == pytest.approx(timing_s([*every, 1, 3]) + FOOTPRINTS_S)


def test_an_evaluation_renders_and_asks_every_image() -> None:
    asked = [Asked(10, (("fog", 3), ("fog", 5))), Asked(5)]
    assert PACE.evaluating_s(asked, lambda conditions: 1.0 * len(conditions)) == pytest.approx(10 * 2 + 35 * 0.008)


def test_what_is_estimated_to_be_asked_was_asked(finished_run: Path) -> None:
    asked = images_asked(Run.open(finished_run, Reporter()), ())
    answered = 0
    for path in (finished_run / "predictions").rglob("*.npz"):
        with np.load(path) as kept:
            answered += len(kept["int8.prediction"])
    assert sum(one.answers for one in asked) == answered


def test_target_images_are_estimated_as_they_are_asked() -> None:
    def run(train_on: tuple[str, ...], *, labelled: bool) -> Any:
        target = SimpleNamespace(test=range(30), validation=range(20), labelled=labelled)
        config = SimpleNamespace(shifts=SimpleNamespace(train_on=train_on))
        data = SimpleNamespace(test=range(80), validation=range(50))
        return SimpleNamespace(config=config, data=data, target_images=target, conditions=[("fog", 5)], stored=[])

    first = [Asked(80, (("fog", 5),)), Asked(500), Asked(500), Asked(30)]
    assert images_asked(run((), labelled=False), ()) == first
    assert images_asked(run((), labelled=True), ()) == [*first, Asked(50), Asked(20)]
    (*others, chosen) = images_asked(run(("generic",), labelled=False), ())
    assert (others, chosen.images, len(chosen.conditions)) == (first, 50, 14)
