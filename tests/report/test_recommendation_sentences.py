"""What a report says of the recommendation: the first sentence is what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qrobust.record import (
    Candidate,
    ClassEffect,
    ClassEffects,
    ClassifierConfidence,
    Confidence,
    Effects,
    Foreign,
    GraphEffect,
    Recommendation,
    Record,
    SplitEffect,
    TargetImages,
    read_record,
)
from qrobust.report.verdict import verdict

RECORD = Path(__file__).parents[1] / "schema_1" / "record.json"
TOLD = ClassEffect(
    class_index=2,
    where="shift",
    n=12,
    difference_pp=-25.0,
    interval_pp=(-44.0, -6.0),
    harm_p=0.01,
    no_harm_p=0.9,
    needed=340,
)


def split(gain: float) -> SplitEffect:
    return SplitEffect(
        n=500,
        clean=0.9,
        shift=0.7,
        gain_pp=gain,
        gain_interval_pp=(gain - 1, gain + 1),
        clean_cost_pp=0.2,
        clean_cost_interval_pp=(-0.8, 1.2),
    )


def record(graph: str | None, *refused: str, chosen: str | None = "compensated", **of: Any) -> Record:
    """Of a run whose calibrator was refused for these reasons."""
    classes = ClassEffects(harm=(TOLD,), undecided=(TOLD,), n_undecided=3, n_no_harm=16)
    graphs = tuple(
        GraphEffect(
            graph=name,
            reference="float" if name == "int8" else "int8",
            validation=split(4.0),
            test=split(5.0),
            classes=classes,
            shift_interval=(0.08, 0.2),
        )
        for name in ("int8", "compensated")
    )
    given: dict[str, Any] = {"withheld": True, "conditions": 4, "target_images": False} | of
    found = Recommendation(
        graph=graph,
        chosen=chosen,
        accept_undecided=False,
        candidates=(Candidate(graph="int8", refused=()), Candidate(graph="compensated", refused=refused)),
    )
    effects = Effects(chance=0.1, graphs=graphs, **given)
    return replace(read_record(RECORD), effects=effects, recommendation=found)


def test_what_is_shipped_is_said_with_both_splits() -> None:
    first = verdict(record("compensated"))[0]
    assert first.startswith("Ship INT8 + calibrator (+5.0 points [+4.0, +6.0] under shift")
    assert "chosen on 500 validation images under 4 conditions withheld from training (+4.0" in first


def test_it_is_said_where_no_family_was_withheld() -> None:
    assert "under 4 conditions of which training saw other draws" in verdict(record("compensated", withheld=False))[0]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("harm", "harms class 2 under shift (-25.0 points [-44.0, -6.0], n = 12) on test images"),
        ("contradicted", "validation images chose it (+4.0 points [+3.0, +5.0]), test images contradict: gain +5.0"),
        ("majority", "no better than always answering the largest class (10.0 %)"),
    ],
)
def test_what_test_images_contradict_is_said_first(reason: str, said: str) -> None:
    first = verdict(record(None, reason))[0]
    assert first.startswith("Nothing is recommended. INT8 + calibrator: ")
    assert said in first


def test_undecided_is_said_first_with_what_would_decide() -> None:
    first = verdict(record(None, "undecided"))[0]
    harm = "class 2 under shift (-25.0 points [-44.0, -6.0], n = 12, about 340 needed) and 2 more"
    assert first.startswith(f"Undecided: whether INT8 + calibrator harms {harm}. ")
    assert "With `qrobust report RUN --accept-undecided`: ship INT8 + calibrator" in first


def test_a_reason_is_said_where_no_class_is_undecided() -> None:
    of = record("int8", "slow", chosen=None)
    assert of.effects is not None
    decided = ClassEffects(harm=(), undecided=(), n_undecided=0, n_no_harm=20)
    effects = replace(of.effects, graphs=tuple(replace(graph, classes=decided) for graph in of.effects.graphs))
    assert verdict(replace(of, effects=effects))[1] == (
        "INT8 + calibrator is not recommended: takes as long as float: INT8's speed is used up."
    )


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("slow", "takes as long as float: INT8's speed is used up"),
        ("few-steps", "steps, too few to have learned; more --steps"),
        ("rising", "was still learning when its"),
        ("no-gain", "gains +4.0 points [+3.0, +5.0] on validation images"),
    ],
)
def test_what_was_not_chosen_is_said_after_the_graph_that_is_shipped(reason: str, said: str) -> None:
    first, second, *_ = verdict(record("int8", reason, chosen=None))
    assert first == "Ship the INT8 graph as it is: no remedy is better."
    assert second.startswith("INT8 + calibrator is not recommended: ")
    assert said in second


def test_only_what_confidence_lost_is_said() -> None:
    def worth(precision: float, area: float) -> ClassifierConfidence:
        foreign = {"noise": Foreign(auroc=area, interval=(area, area))}
        return ClassifierConfidence(threshold=0.5, shift_precision=precision, foreign=foreign)

    measured = {"int8": worth(0.8, 0.9), "compensated": worth(0.85, 0.7)}
    confidence = Confidence(precision=0.95, foreign={"noise": 500}, classifiers=measured)
    _, second, *_ = verdict(replace(record("int8", "confidence", chosen=None), confidence=confidence))
    assert second.endswith("its confidence is worth less than INT8's (AUROC against noise 0.900 -> 0.700).")


def test_a_run_of_an_earlier_version_recommends_nothing() -> None:
    assert verdict(read_record(RECORD))[0].startswith("Nothing is recommended: this run has no figures of validation")


def test_target_images_without_labels_recommend_nothing() -> None:
    target = TargetImages(images="imagefolder:a", labelled=False, n=9, confidence={})
    found = replace(read_record(RECORD), target_images=target)
    assert verdict(found)[0] == "Which remedy to ship is not known: the target images have no labels."
