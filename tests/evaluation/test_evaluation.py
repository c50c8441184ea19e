"""Rows and headline from made-up predictions; what is kept is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation import summary
from qrobust.evaluation.kept import read_kept, read_predictions
from qrobust.evaluation.predictions import (
    BLOCKS,
    CLEAN,
    Cache,
    Condition,
    ConditionPredictions,
    Predictions,
    Task,
    block_folder,
    keep,
    kept_or_predicted,
    predict,
    prediction_keys,
    within_budget,
)
from qrobust.evaluation.statistics import holm
from qrobust.evaluation.summary import (
    comparison_rows,
    drops,
    overview,
    remedy_gains,
    run_rows,
    summarise,
)
from qrobust.preprocessing import Preprocessing
from qrobust.report.robustbench import unaggregated_csv

N = 200
LABELS = np.arange(N) % 4
CONDITIONS = [CLEAN, ("fog", 3), ("fog", 5), ("rotation", 5)]


def said(right: np.ndarray, confidence: float = 0.75) -> Predictions:
    """Right where asked, else off by one class."""
    return Predictions(np.where(right, LABELS, LABELS + 1), np.ones(N), np.full(N, confidence))


@pytest.fixture
def predictions() -> ConditionPredictions:
    rng = np.random.default_rng(0)
    found: ConditionPredictions = {}
    for index, condition in enumerate(CONDITIONS):
        floating = rng.random(N) < 0.95 - 0.2 * index
        int8 = floating & (rng.random(N) < 0.97 - 0.1 * index)
        found[condition] = {
            "float": said(floating, 0.9 - 0.1 * index),
            "int8": said(int8),
            "compensated": said(floating),
        }
    return found


def test_rows_carry_counts_tests_and_confidence(predictions: ConditionPredictions) -> None:
    rows = run_rows(predictions, LABELS, seed=0, of=1000)
    assert [(r.shift, r.severity) for r in rows] == CONDITIONS
    assert {(r.n, r.of) for r in rows} == {(N, 1000)}
    assert [r.drop_p_adjusted for r in rows] == holm([r.drop_p for r in rows])
    # The calibrator here restores what quantization lost, so both tests see the same images.
    assert [r.gain_p for r in rows] == [r.drop_p for r in rows]
    assert [r.confidence_shift["float"] for r in rows] == pytest.approx([0.0, -0.1, -0.2, -0.3])
    assert rows[3].drop_interval_pp[0] <= rows[3].drop_pp <= rows[3].drop_interval_pp[1]
    assert rows[3].flips.harmful == pytest.approx(rows[3].drop_pp / 100)


def test_summary_agrees_with_its_rows(predictions: ConditionPredictions) -> None:
    rows = run_rows(predictions, LABELS, seed=0, of=N)
    s = summarise(predictions, LABELS, ("fog",), seed=0, table="cifar-c", classes=5, of=N)
    assert s.quantization_drop_pp == pytest.approx(rows[0].drop_pp)
    under = np.mean([r.drop_pp for r in rows[1:]])
    assert s.shift_quantization_drop_pp == pytest.approx(under)
    assert s.difference_in_differences_pp == pytest.approx(under - rows[0].drop_pp)
    assert s.compensation_gain_pp == pytest.approx(under)
    assert (s.n_seen_conditions, s.n_unseen_conditions) == (2, 1)
    low, high = s.shift_interval["int8"]
    assert low < s.shift_accuracy["int8"] < high
    error = 1 - np.mean([r.accuracy["int8"] for r in rows[1:3]])
    assert s.mce.normalizer == "none"
    assert s.mce.corruptions == 1
    assert s.mce.value["int8"] == pytest.approx(error)
    assert s.mce.relative["int8"] == pytest.approx(error - (1 - rows[0].accuracy["int8"]))
    assert s.lost_images[0].conditions >= s.lost_images[-1].conditions >= 1
    assert len(s.lost_images) <= 20
    assert {c.n for c in s.worst_classes} == {50}


def test_far_conditions_have_means_of_their_own(
    predictions: ConditionPredictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run_rows(predictions, LABELS, seed=0, of=N)
    monkeypatch.setattr(summary, "is_far", lambda name: name == "rotation")
    s = summarise(predictions, LABELS, (), seed=0, table="cifar-c", classes=5, of=N)
    assert s.n_far_conditions == 1
    assert s.far_accuracy == pytest.approx(rows[3].accuracy)
    assert s.far_gain_pp == pytest.approx(rows[3].gain_pp)
    (gain,) = remedy_gains(predictions, LABELS, seed=0)
    assert gain.far_gain_pp == pytest.approx(s.far_gain_pp)
    monkeypatch.setattr(summary, "is_far", lambda name: False)
    none = summarise(predictions, LABELS, (), seed=0, table="cifar-c", classes=5, of=N)
    assert (none.far_accuracy, none.n_far_conditions, none.far_gain_pp) == ({}, 0, None)


def test_alexnet_normalises_five_severities_of_imagenet_c() -> None:
    conditions = [CLEAN, *(("fog", s) for s in range(1, 6))]
    found = {condition: {"a": said(LABELS < 2)} for condition in conditions}
    s = overview(found, LABELS, seed=0, table="imagenet-c", classes=1000, of=N)
    assert s.mce.normalizer == "alexnet"
    assert s.mce.value["a"] == pytest.approx(0.5 / 0.819324)
    four = {c: found[c] for c in conditions[:5]}
    plain = overview(four, LABELS, seed=0, table="imagenet-c", classes=1000, of=N).mce
    assert plain is not None
    assert plain.value["a"] == pytest.approx(0.5)


def test_generic_rows_compare_with_the_first(predictions: ConditionPredictions) -> None:
    generic = {
        condition: {"a": own["float"], "b": own["int8"], "c": own["float"]} for condition, own in predictions.items()
    }
    rows = comparison_rows(generic, LABELS, seed=0, of=N)
    plain = run_rows(predictions, LABELS, seed=0, of=N)
    for row, wanted in zip(rows, plain, strict=True):
        assert row.versus["b"].drop_interval_pp == wanted.drop_interval_pp
        assert row.versus["c"].drop_p_adjusted == 1.0
        # Two comparisons per row make the family larger.
        assert row.versus["b"].drop_p_adjusted >= wanted.drop_p_adjusted
    assert drops(generic, "a", "c", LABELS, seed=0).lost_images == ()


class Brightest:
    """Logits are the mean of each channel; counts the batches it is asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return 10 * images.mean((2, 3))


@pytest.fixture
def split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    source = array_images(pixels, np.arange(30) % 3, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    return Split(source, torch.randperm(30, generator=torch.Generator().manual_seed(0)))


def kept(
    folder: Path, conditions: list[Condition], split: Split, digest: str = "1", **asked: Brightest
) -> ConditionPredictions:
    """Predictions on the images and under the conditions, in a folder; of the second classifier of another digest."""
    cache = Cache(folder, folder / "attacks.npz", dict.fromkeys(asked, digest))
    return kept_or_predicted(
        asked, [Task(condition, split, "cifar-c") for condition in conditions], cache=cache, seed=0
    )


def test_predictions_are_kept_and_read_back(split: Split, tmp_path: Path) -> None:
    first, second = Brightest(), Brightest()
    conditions: list[Condition] = [CLEAN, ("contrast", 5)]
    kept(tmp_path, conditions, split, first=first)
    wanted = kept(tmp_path, conditions, split, first=first, second=second)
    assert (first.asked, second.asked) == (2, 2)
    labels, found = read_predictions(tmp_path, conditions)
    assert np.array_equal(read_kept(tmp_path).indices, split.indices.numpy())
    assert np.array_equal(labels, split.labels.numpy())
    assert comparison_rows(found, labels, seed=0, of=30) == comparison_rows(wanted, labels, seed=0, of=30)
    again = predict({"first": first}, split, conditions[1], table="cifar-c", seed=0)["first"]
    assert np.array_equal(found[conditions[1]]["first"].margin, again.margin)
    kept(tmp_path, [CLEAN], split, first=first, digest="other")
    assert first.asked == 4


def test_what_other_hosts_kept_of_some_blocks_is_not_asked_again(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BLOCK_IMAGES", 12)
    first, second = Brightest(), Brightest()
    cache = Cache(tmp_path, tmp_path / "attacks.npz", {"a": "1", "b": "1"})
    task = Task(("contrast", 5), split, "cifar-c")
    wanted = kept_or_predicted({"a": Brightest(), "b": Brightest()}, [task], cache=None, seed=0)
    block = task.blocks()[12]
    said = predict({"a": Brightest()}, block.split, block.condition, table="cifar-c", seed=0)
    keep(block_folder(tmp_path, 12), block, prediction_keys(["a"], block, 0, cache), said)
    found = kept_or_predicted({"a": first, "b": second}, [task], cache=cache, seed=0)
    assert (first.asked, second.asked) == (2, 3)
    for name in "ab":
        assert np.array_equal(found[task.condition][name].margin, wanted[task.condition][name].margin)
    assert not (tmp_path / BLOCKS).exists()


def test_blocks_of_other_conditions_change_nothing(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BLOCK_IMAGES", 12)
    (tmp_path / BLOCKS / "12").mkdir(parents=True)
    asked = Brightest()
    cache = Cache(tmp_path, tmp_path / "attacks.npz", {"a": "1"})
    kept_or_predicted({"a": asked}, [Task(CLEAN, split, "cifar-c")], cache=cache, seed=0)
    assert asked.asked == 1


def test_reading_refuses_what_does_not_belong_together(split: Split, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files in"):
        read_predictions(tmp_path)
    for condition, part in ((CLEAN, split), (("fog", 5), split.first(20))):
        kept(tmp_path, [condition], part, a=Brightest())
    with pytest.raises(InputError, match="other images than"):
        read_predictions(tmp_path)
    (tmp_path / "clean-0.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"cannot read .*clean-0\.npz"):
        read_predictions(tmp_path)


def test_csv_has_robustbench_form(predictions: ConditionPredictions) -> None:
    rows = run_rows(predictions, LABELS, seed=0, of=N)
    summary = overview(predictions, LABELS, seed=0, table="cifar-c", classes=5, of=N)
    lines = unaggregated_csv(rows, list(summary.clean_accuracy)).splitlines()
    assert lines[:2] == [",fog,fog,rotation", ",3,5,5"]
    assert lines[3].split(",")[0] == "int8"
    assert [float(v) for v in lines[3].split(",")[1:]] == [r.accuracy["int8"] for r in rows[1:]]


def budgeted(split: Split, folder: Path, seconds: float, step: float = 1.6, also: int = 0) -> Split:
    """With a clock that moves `step` seconds between looks at it: that much for 30 images in one condition."""
    times, path = iter(np.arange(100) * step), folder / "kept.json"
    chosen, kept = within_budget(
        json.loads(path.read_text()) if path.exists() else {},
        split,
        CONDITIONS,
        {"a": Brightest()},
        seconds=seconds,
        table="cifar-c",
        seed=0,
        also=also,
        clock=lambda: next(times),
    )
    path.write_text(json.dumps(kept))
    return chosen


def test_budget_buys_as_many_images_as_the_clock_says(split: Split, tmp_path: Path) -> None:
    # 1.6 s for 30 images in one condition, over a tenth of the budget, are 0.2133 s per image in four. With a look
    # before the first, slow answer and one at the end 4.8 s are spent: of 12, what is left would buy 33.
    assert len(budgeted(split, tmp_path, 12)) == 30
    # 8.2 - 4.8 s buy 15 of them, a third of each class.
    chosen = budgeted(split, tmp_path, 8.2)
    assert np.bincount(chosen.labels).tolist() == [5, 5, 5]
    assert set(chosen.indices.tolist()) <= set(split.indices.tolist())
    # Kept: a slower clock does not change it, another budget does.
    assert torch.equal(budgeted(split, tmp_path, 8.2, step=100).indices, chosen.indices)
    assert len(budgeted(split, tmp_path, 7.7)) == 13
    # Four more conditions, of a corruption data set, halve what 11.3 - 4.8 s buy.
    assert len(budgeted(split, tmp_path, 11.3)) == 30
    assert len(budgeted(split, tmp_path, 11.3, also=4)) == 15


def test_budget_that_is_too_short_is_refused(split: Split, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 s are too short for 10 images in 4 conditions, expected at least 7 s"):
        budgeted(split, tmp_path, 2)


def test_the_gain_of_a_remedy_is_told_apart_by_what_was_seen() -> None:
    labels = np.arange(4) % 2

    def said(*right: int) -> Predictions:
        hit = np.isin(np.arange(4), right)
        return Predictions(np.where(hit, labels, 1 - labels), np.ones(4), np.ones(4))

    predictions = {
        CLEAN: {"int8": said(0, 1, 2), "scales": said(0, 1, 3)},
        ("fog", 5): {"int8": said(), "scales": said(0, 1)},  # half of them gained
        ("contrast", 5): {"int8": said(0), "scales": said(0, 1, 2, 3)},  # three quarters
    }
    (found,) = remedy_gains(predictions, labels, seed=0, seen={"scales": ("contrast",)})
    assert (found.unseen_gain_pp, found.seen_gain_pp, found.gain_pp) == (50, 75, 62.5)
    assert (found.clean_agreement, found.clean_harmful_flips, found.clean_cost_pp) == (0.5, 0.25, 0)
    (unseen,) = remedy_gains(predictions, labels, seed=0)
    assert (unseen.unseen_gain_pp, unseen.seen_gain_pp) == (62.5, None)
