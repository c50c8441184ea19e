"""What to ship, in sentences: what validation images choose, what test images say of it, what was refused and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qrobust.record import (
    ClassEffect,
    Confidence,
    Effects,
    GraphEffect,
    Recommendation,
    Record,
    Remedy,
    TargetImages,
)
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
from qrobust.report.classes import class_name
from qrobust.report.figures import bounds, percent, points

# Classes that a sentence names.
NAMED = 3
WHERE = {"clean": "on clean images", "shift": "under shift"}


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a recommendation is told of: a record of a run has it all.

    Attributes:
        recommendation, effects, remedies, target_images, primary, confidence, class_names: as in such a record.
        accepting: the command that accepts what is undecided.
    """

    recommendation: Recommendation | None
    effects: Effects | None
    remedies: tuple[Remedy, ...]
    target_images: TargetImages | None
    primary: str
    confidence: Confidence | None
    class_names: tuple[str, ...]
    accepting: str


Told = Record | Decided


def recommendation_sentences(record: Told, names: Mapping[str, str]) -> list[str]:
    """The recommendation first, then why other graphs are none.

    Args:
        record: of a run with at least one remedy, or what it has of it.
        names: graphs to what they are called.
    """
    found, effects = record.recommendation, record.effects
    if found is None or effects is None:
        return [_unknown(record)]
    shown = found.chosen or "int8"
    told = [_shipped(record, effects, shown, names) if found.graph else _nothing(record, effects, shown, names)]
    told += [refusal(record, found.graph, names) for found in found.candidates if found.graph != shown]
    return [sentence for sentence in told if sentence]


def refusal(record: Told, graph: str, names: Mapping[str, str]) -> str:
    """Why a graph is not recommended, in a sentence; empty where that was not asked, or nothing speaks against it.

    Args:
        record: of a run.
        graph: its name.
        names: graphs to what they are called.
    """
    if not (record.recommendation and record.effects):
        return ""
    reasons = record.recommendation.refusals(graph)
    told = "; ".join(_why(record, record.effects, graph, reason) for reason in reasons)
    return f"{names[graph]} is not recommended: {told}." if told else ""


def _unknown(record: Told) -> str:
    if record.target_images and not record.target_images.labelled:
        return "Which remedy to ship is not known: the target images have no labels."
    return (
        "Nothing is recommended: this run has no figures of validation images to choose by; `qrobust evaluate` makes "
        "them."
    )


def _shipped(record: Told, effects: Effects, graph: str, names: Mapping[str, str]) -> str:
    if graph == "int8":
        return "Ship the INT8 graph as it is: no remedy is better."
    found = _effect(effects, graph)
    return f"Ship {_praise(record, effects, found, names)}: {_chosen(effects, found)}, confirmed on test images."


def _nothing(record: Told, effects: Effects, graph: str, names: Mapping[str, str]) -> str:
    """Why what validation images chose is not recommended; nothing is, for test images do not choose another."""
    assert record.recommendation is not None
    reasons = record.recommendation.refusals(graph)
    if reasons == (UNDECIDED,):
        found = _effect(effects, graph)
        otherwise = "INT8 as it is" if graph == "int8" else _praise(record, effects, found, names)
        why = _undecided(record, found, names[graph])
        accepting = record.accepting if isinstance(record, Decided) else "`qrobust report RUN --accept-undecided`"
        return f"Undecided: {why}. With {accepting}: ship {otherwise}."
    told = "; ".join(_why(record, effects, graph, reason) for reason in reasons)
    return f"Nothing is recommended. {names[graph]}: {told}."


def _chosen(effects: Effects, found: GraphEffect) -> str:
    """On which images a remedy was chosen, and its gain there."""
    if effects.target_images:
        where = "target images"
    else:
        kind = "withheld from training" if effects.withheld else "of which training saw other draws"
        where = f"images under {effects.conditions} conditions {kind}"
    gain = points(found.validation.gain_pp, found.validation.gain_interval_pp)
    return f"chosen on {found.validation.n} validation {where} ({gain})"


def _praise(record: Told, effects: Effects, found: GraphEffect, names: Mapping[str, str]) -> str:
    row = _remedy(record, found.graph)
    times = f", {row.latency_ratio.batch_1:.2f} times the INT8 graph's time" if row and row.latency_ratio else ""
    where = "on the target images" if effects.target_images else "under shift"
    what = "" if record.primary == "accuracy" else f" of {_measure(record)}"
    return (
        f"{names[found.graph]} ({points(found.test.gain_pp, found.test.gain_interval_pp)}{what} {where}, "
        f"{points(0.0 - found.test.clean_cost_pp)} on clean images{times})"
    )


def _measure(record: Told) -> str:
    return {"accuracy": "accuracy", "balanced": "balanced accuracy"}.get(record.primary, record.primary)


def measure_name(record: Told) -> str:
    """The measure that decides, as a title begins."""
    name = _measure(record).replace(":", " of ")
    return name[0].upper() + name[1:]


def _why(record: Told, effects: Effects, graph: str, reason: str) -> str:
    """One reason why a graph is not recommended."""
    found, row = _effect(effects, graph), _remedy(record, graph)
    if reason == UNDECIDED:
        return f"{_undecided(record, found, 'it')} is undecided"
    steps = row.provenance.steps if row and row.provenance else None
    validation, test = found.validation, found.test
    told = {
        HARM: f"harms {_classes(record, found.classes.harm, len(found.classes.harm))} on test images",
        NO_GAIN: f"gains {points(validation.gain_pp, validation.gain_interval_pp)} on validation images",
        CLEAN_COST: f"costs {points(validation.clean_cost_pp)} on clean validation images, more than half a point",
        CONTRADICTED: (
            f"validation images chose it ({points(validation.gain_pp, validation.gain_interval_pp)}), test images "
            f"contradict: gain {points(test.gain_pp, test.gain_interval_pp)}, cost on clean ones "
            f"{points(test.clean_cost_pp)}"
        ),
        MAJORITY: (
            f"under shift its {percent(test.shift)} {bounds(found.shift_interval)} are no better than always "
            f"answering the largest class ({percent(effects.chance)})"
        ),
        CONFIDENCE: _lowered(record, graph),
        SLOW: "takes as long as float: INT8's speed is used up",
        FEW_STEPS: f"was trained for {steps} steps, too few to have learned; more --steps",
        RISING: f"was still learning when its {steps} steps ended; more --steps",
        DIVERGED: "its training diverged; a smaller --learning-rate",
    }
    return told[reason]


def _lowered(record: Told, graph: str) -> str:
    """What of its confidence is worth less than INT8's."""
    if record.confidence is None:
        return ""
    own, before = (record.confidence.classifiers[name] for name in (graph, "int8"))
    lost = [
        f"AUROC against {kind} {before.foreign[kind].auroc:.3f} -> {one.auroc:.3f}"
        for kind, one in own.foreign.items()
        if one.auroc < before.foreign[kind].auroc
    ]
    if (own.shift_precision or 0.0) < (before.shift_precision or 0.0):
        now = percent(own.shift_precision) or "no image"
        lost.insert(0, f"precision under shift {percent(before.shift_precision)} -> {now}, at 95 % on clean images")
    return f"its confidence is worth less than INT8's ({'; '.join(lost)})"


def _undecided(record: Told, found: GraphEffect, what: str) -> str:
    """What is undecided of a graph: the class that is nearest to harm, and how many others there are."""
    worst, others = found.classes.undecided[0], found.classes.n_undecided - 1
    enough = f"about {worst.needed:,}" if worst.needed else "more than a million"
    more = f" and {others} more" if others else ""
    return f"whether {what} harms {_class(record, worst, f', {enough} needed')}{more}"


def _classes(record: Told, effects: tuple[ClassEffect, ...], count: int) -> str:
    """The first classes, with what becomes of each."""
    told = [_class(record, one) for one in effects[:NAMED]]
    more = f" and {count - len(told)} more" if count > len(told) else ""
    return f"{', '.join(told)}{more}"


def _class(record: Told, one: ClassEffect, needed: str = "") -> str:
    return (
        f"class {class_name(record.class_names, one.class_index)} {WHERE[one.where]} "
        f"({points(one.difference_pp, one.interval_pp)}, n = {one.n}{needed})"
    )


def _effect(effects: Effects, graph: str) -> GraphEffect:
    return next(found for found in effects.graphs if found.graph == graph)


def _remedy(record: Told, graph: str) -> Remedy | None:
    return next((row for row in record.remedies if row.remedy == graph), None)
