"""`evaluate` called from Python: classifiers whose accuracy under shift is known, own images, wrong arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_graphs import SIDE, classifier_graph
from PIL import Image
from torch import nn

from qrobust.data.own_images import as_split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.kept import CLEAN, FIELDS, read_predictions
from qrobust.evaluation.predictions import SUBSET, Cache, Task
from qrobust.evaluation.summary import comparison_rows, overview
from qrobust.shifts.registry import find_shift
from qrobust.storage import read_json

GREYS = torch.arange(1, 52) * 5 - 2  # from 3 to 253
HALF = 127.5 / 255


@pytest.fixture(autouse=True)
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are shown at once, so that classifiers can be told to count calls and to err once."""
    monkeypatch.setattr("qrobust.evaluation.predictions.BATCH", len(GREYS))


class Threshold(nn.Module):
    """Class 1 where the mean is above a half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        above = images.mean((1, 2, 3)) - HALF
        return torch.stack([-above, above], 1)


def always_dark(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)


def flat(greys: torch.Tensor = GREYS, side: int = 8, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one grey each, and whether it is above a half."""
    images = greys.to(torch.uint8)[:, None, None, None].repeat(1, channels, side, side)
    return images, (greys > 255 * HALF).long()


def equal(a: Evaluation, b: Evaluation) -> bool:
    return all(
        np.array_equal(getattr(a.predictions[condition][name], field), getattr(own[name], field))
        for condition, own in b.predictions.items()
        for name in own
        for field in FIELDS
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_threshold_loses_what_brightness_lifts_over_it(channels: int) -> None:
    """A grey g becomes g + c: of the dark images those nearer than c to the threshold are called bright."""
    conditions = [("brightness", severity) for severity in (1, 3, 5)]
    found = evaluate({"it": Threshold().eval(), "dark": always_dark}, flat(channels=channels), conditions)
    assert (found.severity_table, found.of, list(found.predictions)) == ("cifar-c", 51, [CLEAN, *conditions])
    assert found.accuracy("it") == 1.0
    for severity in (1, 3, 5):
        (lift,) = find_shift("brightness").strengths["cifar-c"][severity - 1]
        lost = int(((GREYS < 255 * HALF) & (GREYS + 255 * lift > 255 * HALF)).sum())
        assert lost > 0
        assert found.accuracy("it", ("brightness", severity)) == pytest.approx(1 - lost / 51)
        assert found.accuracy("dark", ("brightness", severity)) == pytest.approx(25 / 51)
    rows = comparison_rows(found.predictions, found.labels, seed=found.seed, of=found.of)
    assert [row.accuracy["it"] for row in rows] == [
        found.accuracy("it", condition) for condition in found.predictions
    ]
    assert overview(found.predictions, found.labels, seed=0, table="cifar-c", classes=2, of=51).n_conditions == 3


class Pictures:
    """A torch data set of PIL images or of tensors."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        self.images, self.labels = flat()
        self.make, self.classes = make, ["dark", "bright"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.make(self.images[index]), int(self.labels[index])


@pytest.mark.parametrize(
    "make",
    [
        lambda pixels: pixels,
        lambda pixels: Image.fromarray(pixels.permute(1, 2, 0).numpy()),
        lambda pixels: Image.fromarray(pixels[0].numpy()),
    ],
)
def test_a_data_set_of_ones_own_is_measured_like_its_tensors(make: Callable[[torch.Tensor], Any]) -> None:
    conditions = [("brightness", 5), ("gaussian_noise", 3)]
    own = evaluate({"it": Threshold().eval()}, Pictures(make), conditions)
    if isinstance(make(flat()[0][0]), torch.Tensor):
        assert own.class_names == ("dark", "bright")
        assert equal(own, evaluate({"it": Threshold().eval()}, flat(), conditions))
    assert own.accuracy("it") == 1.0
    assert own.indices.tolist() == list(range(51))


def test_own_images_keep_their_pixels_and_order() -> None:
    images = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = as_split((images, torch.arange(7) % 2), ["a", "b"])
    assert torch.equal(split.read(slice(None)), images)
    assert as_split(split) is split
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    assert as_split((changed, split.labels)).identity() != as_split((images, split.labels)).identity()


def test_what_is_printed_holds_no_arrays() -> None:
    assert "array(" not in repr(evaluate({"a": always_dark}, flat(), [("fog", 3)]))


def test_nothing_is_written_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    choices = AttackConfig(epsilons=(2 / 255,), images=5, steps=2)
    found = evaluate({"it": Threshold().eval()}, flat(), [("fog", 3)], attacks=choices, budget=600)
    assert list(tmp_path.iterdir()) == []
    assert len(found.labels) == 51


def test_attacks_on_modules_follow_their_gradient() -> None:
    """All within the distance epsilon of the threshold are fooled, the others never."""
    images, labels = flat(torch.tensor([20, 122, 126, 129, 133, 230]))
    choices = AttackConfig(epsilons=(4 / 255,), images=6, steps=10)
    attacks = evaluate({"it": Threshold().eval()}, (images, labels), [], attacks=choices).attacks
    left = {(r.kind, r.epsilon): r.robust_accuracy for r in attacks.rows}
    assert left["white-box", 4 / 255] == pytest.approx(4 / 6)
    assert left["clean", 0.0] == 1.0
    blind = evaluate({"it": lambda x: Threshold()(x)}, (images, labels), [], attacks=choices).attacks
    assert {r.kind for r in blind.rows} == {"clean", "noise", "black-box"}
    assert [w.robust_accuracy for w in blind.worst] == [pytest.approx(4 / 6)]


class Counted(Threshold):
    """Knows how often it is asked."""

    asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().forward(images)


def test_a_cache_keeps_what_was_said_and_by_whom(tmp_path: Path) -> None:
    counted, conditions = Counted().eval(), [("fog", 1), ("fog", 5)]

    def again(digest: str = "1", depends_on: tuple[object, ...] = (), seed: int = 0) -> Evaluation:
        cache = Cache(tmp_path / "predictions", tmp_path / "attacks.npz", {"it": digest}, depends_on)
        return evaluate({"it": counted}, flat(), conditions, cache=cache, seed=seed)

    first = again()
    assert counted.asked == 3
    assert equal(first, again())
    assert counted.asked == 3
    (tmp_path / "predictions" / "fog-5.npz").unlink()  # as if it had been killed there
    assert equal(first, again())
    assert counted.asked == 4
    again("2")
    again("2", ("another runtime",))
    again("2", ("another runtime",), seed=1)
    assert counted.asked == 4 + 3 + 3 + 3
    labels, _ = read_predictions(tmp_path / "predictions")
    assert np.array_equal(labels, first.labels)


def test_what_a_budget_chose_is_kept_with_all_that_it_was_chosen_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "predictions", tmp_path / "attacks.npz", {"it": "1"})
    evaluate({"it": Threshold().eval()}, flat(), [("fog", 3)], cache=cache, budget=600)
    assert read_json(tmp_path / "predictions" / SUBSET) == {
        "seconds": 600,
        "conditions": [["clean", 0], ["fog", 3]],
        "also": 0,
        "fingerprint": as_split(flat()).fingerprint(),
        "table": "cifar-c",
        "n": 51,
    }


def test_blocks_are_the_same_images_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BLOCK_IMAGES", 20)
    whole = Task(("fog", 3), as_split(flat()), "cifar-c")
    blocks = whole.blocks()
    assert {start: len(block.split) for start, block in blocks.items()} == {0: 20, 20: 20, 40: 11}
    assert torch.equal(torch.cat([block.split.indices for block in blocks.values()]), whole.split.indices)
    assert {(block.condition, block.table) for block in blocks.values()} == {(("fog", 3), "cifar-c")}
    assert torch.equal(blocks[40].split.read(slice(None)), flat()[0][40:])


@pytest.mark.heavy
def test_any_number_of_workers_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BATCH", 7)
    session = OnnxClassifier(classifier_graph(tmp_path / "own.onnx", classes=2), 1)
    asked = {"it": Threshold().eval(), "dark": always_dark, "onnx": session}
    conditions = [("gaussian_noise", 3), ("rotation", 5)]
    alone = evaluate(asked, flat(side=SIDE), conditions)
    assert equal(alone, evaluate(asked, flat(side=SIDE), conditions, workers=2))


def nan(images: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(images))[:, None] < 2, torch.nan, torch.rand(len(images), 2))


IMAGES, LABELS = flat()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": (IMAGES, LABELS[:-1])}, "labels: expected 51 integers, one per image, got torch.int64 (50,)"),
        ({"split": (IMAGES, LABELS.float())}, "labels: expected 51 integers, one per image, got torch.float32 (51,)"),
        ({"split": (IMAGES, LABELS - 1)}, "labels: expected class indices from 0, got -1"),
        ({"split": (IMAGES / 255, LABELS)}, "images: expected uint8 pixels (N, C, S, S) from 0 to 255"),
        ({"split": (IMAGES[:, :, 1:], LABELS)}, "images: expected square uint8 pixels (N, C, S, S)"),
        ({"split": (IMAGES[:, :2], LABELS)}, "C 3 or 1, got (51, 2, 8, 8)"),
        ({"split": (IMAGES[:0], LABELS[:0])}, "images: expected at least 1"),
        ({"split": IMAGES}, "split: expected a Split, (images, labels) or a data set of (image, label), got Tensor"),
        ({"split": Pictures(lambda p: p / 255)}, "images: item 0: expected uint8 pixels (C, S, S)"),
        ({"split": Pictures(lambda p: p if p[0, 0, 0] < 20 else p[:, :4, :4])}, "images: expected all of one size"),
        ({"split": [IMAGES, LABELS]}, "split: expected (image, label) from item 0 of the data set, got Tensor"),
        ({"conditions": [("smog", 3)]}, "conditions: shift: expected one of gaussian_noise,"),
        ({"conditions": [("fog", 6)]}, "conditions: severity: expected an integer from 1 to 5, got 6"),
        ({"conditions": [("inversion", 3)]}, "conditions: expected a severity that is defined for inversion, got 3"),
        ({"conditions": ["fog"]}, "conditions: expected pairs such as (\"fog\", 3), got 'fog'"),
        ({"severity_table": "mnist-c"}, "severity_table: expected one of cifar-c, imagenet-c, got 'mnist-c'"),
        ({"classifiers": {}}, "classifiers: expected at least 1, got none"),
        ({"classifiers": {"a": 3}}, "classifiers: expected a callable for a, got int"),
        ({"classifiers": {"a": Threshold()}}, "classifiers: expected a in evaluation mode"),
        ({"classifiers": {"a": nan}}, "classifiers: expected finite logits from a, got NaN or infinity for 2 of 51"),
        ({"classifiers": {"a": lambda x: x.mean((1, 2, 3))}}, "of K >= 2 classes from a, got (51,)"),
        ({"classifiers": {"a": lambda x: torch.zeros(len(x), 1)}}, "of K >= 2 classes from a, got (51, 1)"),
        ({"classifiers": {"a": lambda x: torch.zeros(1, 2)}}, "expected logits (51, K) of K >= 2 classes from a"),
        ({"classifiers": {"a": lambda x: x.numpy()}}, "of K >= 2 classes from a, got ndarray"),
        ({"split": (IMAGES, 3 * LABELS)}, "of K >= 4 classes from a, got (51, 2)"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"cache": Cache(Path("p"), Path("a"), {})}, "cache: expected a digest of each classifier, got none of a"),
        ({"differentiable": {"b": always_dark}, "attacks": AttackConfig()}, "differentiable: expected names of"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"classifiers": {"a": always_dark}, "split": (IMAGES, LABELS), "conditions": [("fog", 3)]}
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        evaluate(**given | change)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_sent_to_a_process_is_said() -> None:
    with pytest.raises(InputError, match="workers: expected 1, for a classifier cannot be sent to other processes"):
        evaluate({"a": lambda images: images}, flat(), [], workers=2)
