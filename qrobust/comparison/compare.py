"""Compare finished runs and evaluations with the first of them, paired over the same test images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qrobust.comparison.bounds import check_confidence
from qrobust.comparison.measured import (
    Figure,
    Measured,
    NotMeasuredError,
    accuracy,
    check_same_images,
    difference,
)
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN, Condition
from qrobust.evaluation.metrics import agreement, flips, worst_classes
from qrobust.evaluation.statistics import CONFIDENCE, holm, mcnemar_exact
from qrobust.record import (
    Change,
    ComparedCondition,
    ComparedRun,
    ConfigDifference,
    Record,
    RunChange,
    RunComparison,
    to_json,
)

# Of configurations, what changes nothing that was measured: how they are written, and where ranges are kept.
NO_DIFFERENCE = ("schema", "calibration_cache")
# A graph of a folder.
Side = tuple[Measured, str]


def compare(runs: Sequence[Measured], *, graph: str | None = None, confidence: float = CONFIDENCE) -> RunComparison:
    """Compare a classifier of each folder with that of the first.

    Args:
        runs: at least two, measured on the same test images.
        graph: its name in every folder. Default: of each folder the one that ships.
        confidence: of all intervals.

    Raises:
        InputError: there are fewer, one has no such graph, or test images differ.
    """
    if len(runs) < 2:
        raise InputError(f"run folders: expected at least two, got {len(runs)}")
    check_confidence(confidence)
    first = runs[0]
    for other in runs[1:]:
        check_same_images(first, other, "run folders")
    sides = [(run, run.graph(graph)) for run in runs]
    shared, notes = _shared(runs)
    return RunComparison(
        confidence=confidence,
        n=first.n,
        runs=tuple(_alone(side, shared, confidence) for side in sides),
        changes=tuple(_change(sides[0], side, shared, confidence) for side in sides[1:]),
        rows=_rows(sides, [CLEAN, *shared], confidence),
        differences=tuple(_differences([run.record for run in runs])),
        class_names=first.record.class_names,
        notes=tuple(notes),
    )


def _shared(runs: Sequence[Measured]) -> tuple[list[Condition], list[str]]:
    """Conditions that all folders have, and what keeps others out."""
    notes = []
    tables = sorted({run.record.severity_table for run in runs})
    if len(tables) > 1:
        return [], [f"Severity tables differ ({', '.join(tables)}), so that clean images alone are compared."]
    shared = [c for c in runs[0].shifted if all(c in run.kept.predictions for run in runs)]
    every = {c for run in runs for c in run.shifted}
    if len(shared) < len(every):
        notes.append(f"{len(shared)} of {len(every)} conditions are in all folders; only these are compared.")
    if len({run.seed for run in runs}) > 1:
        notes.append("Seeds differ, so that random shifts drew other noise for the same images.")
    if len({_processor(run) for run in runs}) > 1:
        notes.append("Times were measured on different processors or with different threads.")
    return shared, notes


def _processor(measured: Measured) -> tuple[str, int]:
    return measured.record.hardware.processor, measured.record.hardware.threads


def _alone(side: Side, shared: list[Condition], confidence: float) -> ComparedRun:
    run, graph = side
    clean = accuracy(run, graph, [CLEAN], confidence)
    under_shift = accuracy(run, graph, shared, confidence) if shared else None
    assert clean.interval is not None
    record, latency = run.record, run.latencies.get(graph)
    size = record.summary.size_bytes.get(graph) if isinstance(record, Record) else record.models[graph].size_bytes
    try:
        integer = run.audit(graph).integer_mac_share
    except NotMeasuredError:
        integer = None
    return ComparedRun(
        name=run.name,
        graph=graph,
        clean_accuracy=clean.value,
        clean_interval=clean.interval,
        shift_accuracy=under_shift.value if under_shift else None,
        shift_interval=under_shift.interval if under_shift else None,
        latency_ms=latency,
        size_bytes=size,
        integer_mac_share=integer,
    )


def _as_change(figure: Figure) -> Change:
    assert figure.interval is not None
    return Change(change_pp=figure.value, change_interval_pp=figure.interval)


def _differ(first: Side, other: Side, conditions: list[Condition], confidence: float) -> Change:
    before, after = (run.right(graph, conditions) for run, graph in (first, other))
    return _as_change(difference(before, after, first[0].seed, confidence))


def _p_value(first: Side, other: Side, condition: Condition) -> float:
    one, two = (run.right(graph, [condition]).astype(bool) for run, graph in (first, other))
    return mcnemar_exact(one, two)


def _change(first: Side, other: Side, shared: list[Condition], confidence: float) -> RunChange:
    (run, graph), (other_run, other_graph) = first, other
    labels, every = run.kept.labels, [CLEAN, *shared]
    before, after = (
        one.kept.predictions[CLEAN][name].prediction for one, name in ((run, graph), (other_run, other_graph))
    )
    return RunChange(
        clean=_differ(first, other, [CLEAN], confidence),
        clean_p=_p_value(first, other, CLEAN),
        shift=_differ(first, other, shared, confidence) if shared else None,
        agreement=agreement(before, after),
        flips=flips(before, after, labels),
        worst_classes=worst_classes(run.right(graph, every), other_run.right(other_graph, every), labels),
    )


def _rows(sides: list[Side], conditions: list[Condition], confidence: float) -> tuple[ComparedCondition, ...]:
    first, *others = sides
    p_values = [[_p_value(first, other, condition) for other in others] for condition in conditions]
    adjusted = iter(holm([p for row in p_values for p in row]))
    return tuple(
        ComparedCondition(
            shift=condition[0],
            severity=condition[1],
            accuracy=tuple(float(run.right(graph, [condition]).mean()) for run, graph in sides),
            changes=tuple(_differ(first, other, [condition], confidence) for other in others),
            p_adjusted=tuple(next(adjusted) for _ in others),
        )
        for condition in conditions
    )


def _differences(records: Sequence[Any]) -> list[ConfigDifference]:
    """What is not the same in all; of a run and an evaluation, which are told different things, what both have."""
    told = [
        record.config
        | {f"versions.{name}": version for name, version in record.versions.items()}
        | {f"hardware.{name}": value for name, value in to_json(record.hardware).items()}
        for record in records
    ]
    keys = list(dict.fromkeys(key for entries in told for key in entries))
    if len({type(record) for record in records}) > 1:
        keys = [key for key in keys if all(key in entries for entries in told)]
    found = []
    for key in keys:
        values = tuple(json.dumps(entries[key]) if key in entries else None for entries in told)
        if len(set(values)) > 1 and key not in NO_DIFFERENCE:
            found.append(ConfigDifference(key=key, values=values))
    return found
