"""What to ship: what validation images choose, if test images confirm it and no class pays for it."""

from __future__ import annotations

from collections.abc import Sequence

from qrobust.record import Candidate, Confidence, Effects, GraphEffect, Recommendation, Remedy
from qrobust.record.recommendation import (
    CLEAN_COST,
    CONFIDENCE,
    CONTRADICTED,
    DIVERGED,
    FEW_STEPS,
    HARM,
    MAJORITY,
    NO_GAIN,
    RISING,
    SLOW,
    UNDECIDED,
)
from qrobust.remedies import CALIBRATOR, least_intrusive

# A remedy is worth shipping if it costs at most so much on clean images, in points of the primary measure.
MOST_CLEAN_COST = 0.5
# A graph that is less than so many times faster than float has no speed of INT8 left.
LEAST_SPEEDUP = 1.05
# Optimizer steps below which the last phase of a training, a fifth of it, ends before its rate has risen to the peak.
LEAST_STEPS = 250
# Precision under shift, or AUROC on foreign images, that a remedy may lose against INT8, as a fraction.
MOST_LOST_CONFIDENCE = 0.01
# Reasons for which a remedy is not chosen, whatever test images say.
UNCHOSEN = frozenset({NO_GAIN, CLEAN_COST, SLOW, FEW_STEPS, RISING, DIVERGED})


def recommend(
    effects: Effects,
    remedies: Sequence[Remedy],
    *,
    accept_undecided: bool,
    confidence: Confidence | None = None,
    timed: bool = True,
) -> Recommendation:
    """Choose on validation images, confirm on test images.

    Among remedies that gain under shift, cost little on clean images, are faster than float and were trained to the
    end, the least intrusive of those within a point of the best is chosen, on validation images. Test images do not
    choose another: they confirm it, or nothing is recommended. Without any, it is the INT8 graph as it is.

    Args:
        effects: of every graph.
        remedies: what each costs and how it was trained.
        accept_undecided: whether classes of which images are too few to tell may be risked.
        confidence: what each graph's confidence is worth; None where that was not measured.
        timed: whether times are those of the device; else none is too slow.
    """
    known = {row.remedy: row for row in remedies}
    refusals = {
        found.graph: [
            *(_unfit(known[found.graph], timed=timed) if found.graph in known else ()),
            *(_not_chosen(found) if found.graph != "int8" else ()),
            *_not_confirmed(found, effects.chance, accept_undecided=accept_undecided),
            *([CONFIDENCE] if confidence and lowered(confidence, found.graph) else []),
        ]
        for found in effects.graphs
    }
    # What was not chosen, test images neither contradict nor leave undecided.
    refusals = {
        name: [reason for reason in found if reason not in (CONTRADICTED, UNDECIDED)]
        if {*found} & UNCHOSEN
        else found
        for name, found in refusals.items()
    }
    # Of what validation images allow.
    gains = {
        CALIBRATOR if found.graph == "compensated" else found.graph: found.validation.gain_pp
        for found in effects.graphs
        if found.graph != "int8" and not {*refusals[found.graph]} & UNCHOSEN
    }
    best = least_intrusive(gains)
    chosen = "compensated" if best == CALIBRATOR else best
    shipped = chosen or "int8"
    return Recommendation(
        graph=None if refusals.get(shipped) else shipped,
        chosen=chosen,
        accept_undecided=accept_undecided,
        candidates=tuple(Candidate(graph=name, refused=tuple(found)) for name, found in refusals.items()),
    )


def lowered(confidence: Confidence, graph: str) -> tuple[str, ...]:
    """What of a graph's confidence is worth a point less than INT8's: `precision`, sets of foreign images.

    Args:
        confidence: of a record.
        graph: by name.
    """
    own, before = confidence.classifiers[graph], confidence.classifiers["int8"]
    lost = {kind: before.foreign[kind].auroc - one.auroc for kind, one in own.foreign.items()}
    if before.shift_precision is not None:
        lost["precision"] = before.shift_precision - (own.shift_precision or 0.0)
    return tuple(kind for kind, value in lost.items() if value > MOST_LOST_CONFIDENCE)


def _unfit(remedy: Remedy, *, timed: bool) -> list[str]:
    """What is wrong with a remedy whatever its accuracy."""
    ratio, steps = remedy.float_latency_ratio, remedy.provenance.steps if remedy.provenance else None
    wrong = {
        SLOW: timed and ratio is not None and ratio.batch_1 < LEAST_SPEEDUP,
        FEW_STEPS: steps is not None and steps < LEAST_STEPS,
        RISING: remedy.rising,
        DIVERGED: remedy.diverged,
    }
    return [reason for reason, found in wrong.items() if found]


def _not_chosen(found: GraphEffect) -> list[str]:
    """What validation images have against a remedy."""
    wrong = {
        NO_GAIN: found.validation.gain_interval_pp[0] <= 0,
        CLEAN_COST: found.validation.clean_cost_pp > MOST_CLEAN_COST,
    }
    return [reason for reason, holds in wrong.items() if holds]


def _not_confirmed(found: GraphEffect, chance: float, *, accept_undecided: bool) -> list[str]:
    """What test images have against a graph."""
    remedy, test = found.graph != "int8", found.test
    wrong = {
        HARM: bool(found.classes.harm),
        CONTRADICTED: remedy and (test.gain_interval_pp[0] <= 0 or test.clean_cost_pp > MOST_CLEAN_COST),
        MAJORITY: found.shift_interval[0] <= chance,
        UNDECIDED: found.classes.n_undecided > 0 and not accept_undecided,
    }
    return [reason for reason, holds in wrong.items() if holds]
