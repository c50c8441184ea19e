"""Corruption data sets and target images, from answers that are made up and from images on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qrobust.errors import InputError
from qrobust.evaluation.classes import class_results
from qrobust.evaluation.corruption_sets import SelectedConditions, open_sets, stored_predictions
from qrobust.evaluation.evaluate import evaluate
from qrobust.evaluation.metrics import ALEXNET_ERRORS
from qrobust.evaluation.other_images import corruption_set, target_row
from qrobust.evaluation.predictions import Cache, Predictions
from qrobust.evaluation.statistics import paired_bootstrap, wilson_interval
from qrobust.evaluation.summary import comparison_rows
from qrobust.preprocessing import Preprocessing

LABELS = np.array([0, 1, 2, 0])
SEVERITIES, SIDE, CLASSES = 5, 32, ("dark", "middle", "bright")
GREYS = (20, 120, 220, 30)


def said(*predicted: int, confidence: float = 0.5) -> Predictions:
    n = len(predicted)
    return Predictions(np.array(predicted), np.ones(n), np.full(n, confidence))


# Of the 4 images, float is right on 4 and 3, INT8 on 2 and 2.
ANSWERS = {
    ("fog", 1): {"float": said(0, 1, 2, 0), "int8": said(0, 1, 0, 1)},
    ("fog", 2): {"float": said(0, 1, 2, 1), "int8": said(0, 0, 2, 1)},
}


def test_a_corruption_set_is_summed_up_over_its_conditions() -> None:
    found = corruption_set(
        ANSWERS, LABELS, name="stored:x", folder="stored-1", seed=3, table="imagenet-c", classes=3, of=9
    )
    assert (found.name, found.predictions) == ("stored:x", "stored-1")
    whole = found.summary
    assert (whole.n_test, whole.of, whole.n_conditions) == (4, 9, 2)
    assert whole.accuracy == {"float": 7 / 8, "int8": 0.5}
    right = {"float": np.array([1, 1, 1, 0.5]), "int8": np.array([1, 0.5, 0.5, 0])}
    assert whole.interval == {name: paired_bootstrap(values, 3) for name, values in right.items()}
    assert list(whole.versus) == ["int8"]
    assert whole.versus["int8"].drop_pp == pytest.approx(37.5)
    lost = paired_bootstrap(100 * (right["float"] - right["int8"]), 3)
    assert whole.versus["int8"].drop_interval_pp == pytest.approx(lost)
    assert whole.mce is not None
    assert whole.mce.normalizer == "none"  # of five severities two were measured
    assert whole.mce.value == pytest.approx({"float": 1 / 8, "int8": 0.5})
    assert whole.mce.relative is None
    assert found.rows == tuple(comparison_rows(ANSWERS, LABELS, seed=3, of=9))
    assert found.classes == class_results(ANSWERS, LABELS, 3)


def test_a_whole_corruption_set_of_imagenet_is_held_against_alexnet() -> None:
    answers = {("fog", severity): ANSWERS["fog", 1] for severity in range(1, 6)}
    found = corruption_set(
        answers, LABELS, name="stored:x", folder="f", seed=0, table="imagenet-c", classes=1000, of=4
    )
    assert found.summary.mce is not None
    assert found.summary.mce.normalizer == "alexnet"
    assert found.summary.mce.value["int8"] == pytest.approx(0.5 / ALEXNET_ERRORS["fog"])


def test_labelled_target_images_tell_accuracy_and_gain_over_int8() -> None:
    answers = {"float": said(0, 1, 2, 0), "int8": said(0, 0, 0, 0), "compensated": said(0, 1, 0, 0, confidence=0.75)}
    row = target_row(answers, LABELS, images="folder", seed=1)
    assert (row.images, row.labelled, row.n, row.agreement) == ("folder", True, 4, None)
    assert row.confidence == {"float": 0.5, "int8": 0.5, "compensated": 0.75}
    assert row.accuracy == {"float": 1.0, "int8": 0.5, "compensated": 0.75}
    assert row.interval is not None
    assert row.interval["int8"] == wilson_interval(2, 4)
    assert row.gain is not None
    assert list(row.gain) == ["compensated"]
    assert row.gain["compensated"].gain_pp == pytest.approx(25.0)
    assert row.gain["compensated"].gain_interval_pp == paired_bootstrap(np.array([0.0, 100.0, 0.0, 0.0]), 1)


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1, -1, 0]])
def test_target_images_without_labels_tell_agreement_alone(labels: list[int]) -> None:
    answers = {"float": said(0, 1, 2, 0), "int8": said(0, 0, 0, 0)}
    row = target_row(answers, np.array(labels), images="folder", seed=0)
    assert (row.labelled, row.n, row.accuracy, row.interval, row.gain) == (False, 4, None, None, None)
    assert row.agreement == {"float": 0.5, "int8": 1.0}
    assert row.confidence == {"float": 0.5, "int8": 0.5}


def test_the_first_answers_are_those_of_the_first_images() -> None:
    whole = Predictions(np.arange(4), np.arange(4) / 4, np.arange(4) / 8)
    some = whole.first(3)
    assert [getattr(some, field).tolist() for field in ("prediction", "margin", "confidence")] == [
        [0, 1, 2],
        [0.0, 0.25, 0.5],
        [0.0, 0.125, 0.25],
    ]


@pytest.fixture
def stored(tmp_path: Path) -> str:
    """A set in the layout of CIFAR-10-C: flat greys, of which each severity of `fog` takes 3 and `snow` adds 3."""
    blocks = np.arange(SEVERITIES).repeat(len(GREYS))
    greys = np.tile(GREYS, SEVERITIES)
    for name, sign in (("fog", -1), ("snow", 1)):
        pixels = (greys + 3 * sign * (1 + blocks)).astype(np.uint8)[:, None, None, None]
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(pixels, (len(greys), SIDE, SIDE, 3)))
    np.save(tmp_path / "labels.npy", np.tile(LABELS, SEVERITIES).astype(np.uint8))
    return f"stored:{tmp_path}"


def opened(
    name: str,
    test_images: int | None = None,
    classes: tuple[str, ...] = CLASSES,
    severities: tuple[int, ...] = (2, 4),
) -> SelectedConditions:
    (found,) = open_sets(
        ["contrast", name],
        severities=severities,
        preprocessing=Preprocessing(size=SIDE),
        class_names=classes,
        test_images=test_images,
        seed=0,
    )
    return found


def test_a_stored_set_is_opened_at_the_severities_that_are_wanted(stored: str) -> None:
    found = opened(stored)
    assert (found.name, found.of, found.doubt) == (stored, 4, "")
    assert found.conditions == (("fog", 2), ("fog", 4), ("snow", 2), ("snow", 4))
    assert (found.indices.tolist(), found.labels.tolist()) == ([0, 1, 2, 3], LABELS.tolist())
    for (name, severity), sign in ((("fog", 4), -1), (("snow", 2), 1)):
        pixels = found.split((name, severity)).read(slice(None))
        assert pixels[:, 0, 5, 7].tolist() == [grey + 3 * sign * severity for grey in GREYS]
    assert found.folder_name == opened(stored).folder_name
    assert found.folder_name.startswith("stored-")
    assert found.folder_name != replace(found, name="stored:other").folder_name


@pytest.mark.parametrize(("asked", "count"), [(2, 2), (4, 4), (9, 4)])
def test_as_many_stored_images_are_taken_as_there_are_and_are_wanted(stored: str, asked: int, count: int) -> None:
    for found in (opened(stored, test_images=asked), opened(stored).limited(asked, seed=0)):
        assert (len(found.indices), len(found.labels), found.of) == (count, count, 4)
        assert found.labels.tolist() == LABELS[found.indices.numpy()].tolist()
    whole = opened(stored)
    assert whole.limited(4, seed=0) is whole
    assert whole.limited(9, seed=0) is whole


def test_labels_that_may_be_of_other_classes_are_doubted(stored: str) -> None:
    assert opened(stored, classes=(*CLASSES, "more")).doubt == (
        f"{stored}: labels end at 2, the classifier tells 4 classes apart"
    )


def test_a_severity_that_a_set_does_not_hold_is_refused(stored: str) -> None:
    told = r"severities: expected some of those that stored:.* holds, got \(7, 8\)"
    with pytest.raises(InputError, match=told):
        opened(stored, severities=(7, 8))


class Shades:
    """Classes by thirds of the mean grey; counts how often it is asked."""

    asked = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        shade = (3 * images.mean((1, 2, 3))).long().clamp(max=2)
        return torch.nn.functional.one_hot(shade, 3).float()


def test_each_condition_of_a_set_is_asked_once_and_kept_in_a_folder_of_its_own(stored: str, tmp_path: Path) -> None:
    found, shades, steps = opened(stored), Shades(), []
    cache = Cache(tmp_path / "predictions", tmp_path / "attacks.npz", {"it": "1"}, ("more",))
    for _ in range(2):
        answers = stored_predictions(found, {"it": shades}, cache=cache, seed=0, progress=steps.append)
        assert list(answers) == list(found.conditions)
        assert all(answer["it"].prediction.tolist() == [0, 1, 2, 0] for answer in answers.values())
    assert shades.asked == 4
    assert steps == [4] * 8
    files = sorted(path.name for path in (tmp_path / "predictions" / found.folder_name).iterdir())
    assert files == ["fog-2.npz", "fog-4.npz", "snow-2.npz", "snow-4.npz"]
    changed = replace(cache, depends_on=("other",))
    stored_predictions(found, {"it": shades}, cache=changed, seed=0)
    assert shades.asked == 8
    assert list(stored_predictions(found, {"it": shades}, cache=None, seed=0)) == list(found.conditions)


def test_a_set_is_evaluated_beside_the_classifiers_own_images(stored: str) -> None:
    images = torch.tensor(GREYS, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, SIDE, SIDE)
    found = evaluate({"it": Shades()}, (images, torch.tensor(LABELS)), [], corruption_sets=[opened(stored)])
    (result,) = found.corruption_sets
    assert (result.name, result.of) == (stored, 4)
    assert list(result.predictions) == [("fog", 2), ("fog", 4), ("snow", 2), ("snow", 4)]
    assert result.labels.tolist() == LABELS.tolist()
    assert result.predictions["fog", 4]["it"].prediction.tolist() == [0, 1, 2, 0]
