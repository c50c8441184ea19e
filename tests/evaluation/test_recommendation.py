"""What is shipped: chosen on validation images, confirmed on test images, refused where a class or the time pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qrobust.evaluation.recommendation import recommend
from qrobust.record import (
    ClassEffect,
    ClassEffects,
    Effects,
    GraphEffect,
    LatencyRatio,
    PhaseFit,
    Remedy,
    SplitEffect,
    TrainingProvenance,
)

SAFE = ClassEffects(harm=(), undecided=(), n_undecided=0, n_no_harm=20)


def one(where: str = "clean", needed: int | None = 300) -> ClassEffect:
    return ClassEffect(
        class_index=1,
        where=where,
        n=12,
        difference_pp=-20.0,
        interval_pp=(-40.0, 2.0),
        harm_p=0.1,
        no_harm_p=0.9,
        needed=needed,
    )


HARMFUL = ClassEffects(harm=(one(),), undecided=(), n_undecided=0, n_no_harm=19)
OPEN = ClassEffects(harm=(), undecided=(one(),), n_undecided=1, n_no_harm=19)


def split(gain: float, cost: float = 0.2) -> SplitEffect:
    return SplitEffect(
        n=500,
        clean=0.9,
        shift=0.7,
        gain_pp=gain,
        gain_interval_pp=(gain - 1, gain + 1),
        clean_cost_pp=cost,
        clean_cost_interval_pp=(cost - 1, cost + 1),
    )


def graph(name: str, validation: float = 5.0, test: float = 5.0, cost: float = 0.2, **of: Any) -> GraphEffect:
    given: dict[str, Any] = {"classes": SAFE, "shift_interval": (0.6, 0.8)} | of
    reference = "float" if name == "int8" else "int8"
    return GraphEffect(
        graph=name, reference=reference, validation=split(validation, cost), test=split(test, cost), **given
    )


def effects(*graphs: GraphEffect) -> Effects:
    every = (graph("int8", 0, 0), *graphs)
    return Effects(withheld=True, conditions=4, target_images=False, chance=0.1, graphs=every)


def remedy(name: str, steps: int | None = 4000, faster: float = 2.0, **of: Any) -> Remedy:
    return Remedy(
        remedy=name,
        gain_pp=5.0,
        gain_interval_pp=(4.0, 6.0),
        n=500,
        clean_accuracy=0.9,
        shift_accuracy=0.7,
        clean_cost_pp=0.2,
        clean_cost_interval_pp=(0.0, 0.4),
        runtime="onnxruntime",
        trained_on=("fog",),
        provenance=TrainingProvenance(images=100, labels=True, steps=steps),
        training_s=1.0,
        float_latency_ratio=LatencyRatio(batch_1=faster, batch_32=faster),
        **of,
    )


def test_what_gains_on_both_is_shipped() -> None:
    found = recommend(effects(graph("compensated")), [remedy("compensated")], accept_undecided=False)
    assert (found.graph, found.chosen, found.refusals("compensated")) == ("compensated", "compensated", ())
    for accepted in (False, True):
        found = recommend(effects(graph("compensated")), [remedy("compensated")], accept_undecided=accepted)
        assert found.accept_undecided is accepted


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        ({"validation": 0.5}, ("no-gain",)),
        ({"validation": 0.5, "test": 9.0}, ("no-gain",)),
        ({"cost": 0.6}, ("clean-cost",)),
        ({"validation": 0.5, "classes": OPEN}, ("no-gain",)),
        ({"validation": 0.5, "classes": HARMFUL}, ("no-gain", "harm")),
    ],
)
def test_what_validation_images_refuse_leaves_int8(given: dict[str, float], reasons: tuple[str, ...]) -> None:
    found = recommend(effects(graph("compensated", **given)), [remedy("compensated")], accept_undecided=False)
    assert (found.graph, found.chosen, found.refusals("compensated")) == ("int8", None, reasons)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"test": 0.5}, "contradicted"),
        ({"classes": HARMFUL}, "harm"),
        ({"classes": OPEN}, "undecided"),
        ({"shift_interval": (0.09, 0.2)}, "majority"),
    ],
)
def test_what_test_images_contradict_is_replaced_by_nothing(given: dict[str, Any], reason: str) -> None:
    """Though another remedy would have passed: test images do not choose."""
    both = effects(graph("denoise", 2.0), graph("compensated", **given))
    found = recommend(both, [remedy("compensated"), remedy("denoise", None)], accept_undecided=False)
    assert (found.graph, found.chosen, found.refusals("compensated")) == (None, "compensated", (reason,))


def test_undecided_classes_can_be_accepted_and_harmed_ones_cannot() -> None:
    for classes, wanted in ((OPEN, "compensated"), (HARMFUL, None)):
        both = effects(graph("compensated", classes=classes))
        assert recommend(both, [remedy("compensated")], accept_undecided=True).graph == wanted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (remedy("compensated", faster=1.0), "slow"),
        (remedy("compensated", steps=50), "few-steps"),
        (remedy("compensated", rising=True), "rising"),
        (remedy("compensated", diverged=True), "diverged"),
    ],
)
def test_what_is_unfit_is_not_chosen_whatever_it_gains(row: Remedy, reason: str) -> None:
    found = recommend(effects(graph("compensated")), [row], accept_undecided=False)
    assert (found.graph, found.refusals("compensated")) == ("int8", (reason,))


def test_times_of_another_cpu_refuse_nothing() -> None:
    rows = [remedy("compensated", faster=0.5)]
    assert recommend(effects(graph("compensated")), rows, accept_undecided=False, timed=False).graph == "compensated"


def test_the_less_intrusive_of_equals_is_chosen() -> None:
    both = effects(graph("compensated", 5.0), graph("finetune", 5.5), graph("denoise", 3.0))
    rows = [remedy(name) for name in ("compensated", "finetune", "denoise")]
    assert recommend(both, rows, accept_undecided=False).graph == "compensated"


def test_int8_that_harms_is_not_shipped_either() -> None:
    harmful = replace(effects(), graphs=(graph("int8", 0, 0, classes=HARMFUL),))
    assert recommend(harmful, [], accept_undecided=True).graph is None


def test_a_training_is_rising_if_its_last_validation_gained_more_than_a_point() -> None:
    fit = PhaseFit(
        start_clean_accuracy=0.5,
        start_shift_accuracy=0.5,
        clean_accuracy=0.6,
        shift_accuracy=0.6,
        best_step=10,
        diverged=False,
    )
    assert not fit.rising
    assert replace(fit, history=(1.0, 1.1, 1.13)).rising
    assert not replace(fit, history=(1.0, 1.12, 1.13)).rising
    assert not replace(fit, history=(1.0, 1.3, 1.1)).rising
