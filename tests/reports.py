"""Records to make reports of, without a run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from qrobust.record import Classes, Record, read_record
from qrobust.record.classes import ClassifierClasses, ClassRecall, ConditionClasses

ROOT = Path(__file__).parents[1]
SHIFTS, SEVERITIES = 19, 5
REMEDIES = ("compensated", "scales", "finetune", "finetune+calibrator")


@cache
def main_record() -> Record:
    """Of a real run: 29 conditions, three graphs."""
    return read_record(ROOT / "benchmarks" / "results" / "main_job.json")


@cache
def many_conditions() -> Record:
    """The same with 19 shifts at five severities and six graphs, whose figures mean nothing."""
    record = main_record()
    clean, first = record.rows[:2]
    rows = [clean]
    for shift in range(SHIFTS):
        for severity in range(1, SEVERITIES + 1):
            share = 0.9 - 0.08 * severity - 0.01 * shift
            accuracy = {graph: share + 0.02 * i for i, graph in enumerate(("float", "int8", *REMEDIES))}
            lost = {"drop_pp": 3.0, "drop_p_adjusted": 0.01} if severity == 5 else {}
            rows.append(replace(first, shift=f"shift_{shift}", severity=severity, accuracy=accuracy, **lost))
            rows[-1] = replace(rows[-1], interval=dict.fromkeys(accuracy, (share, share + 0.1)))
    s, row = record.summary, record.remedies[0]

    def spread(known: dict) -> dict:
        return known | dict.fromkeys(REMEDIES, known["compensated"])

    # What a summary knows of each graph.
    tables = {name: known for name, known in vars(s).items() if isinstance(known, dict) and "compensated" in known}
    summary = replace(s, **{name: spread(known) for name, known in tables.items()})
    return replace(
        record,
        rows=tuple(rows),
        summary=summary,
        remedies=tuple(replace(row, remedy=graph) for graph in REMEDIES),
        audit=spread(record.audit),
        parity=spread(record.parity),
        classes=_classes(list(accuracy)),
    )


def _classes(graphs: list[str]) -> Classes:
    """Ten classes, each right as often as the others, and never taken for another one."""
    recall = ClassRecall(clean=0.9, clean_interval=(0.87, 0.92), shift=0.6, shift_interval=(0.56, 0.64))
    own = ClassifierClasses(
        clean_balanced=0.9,
        clean_balanced_interval=(0.89, 0.91),
        shift_balanced=0.6,
        shift_balanced_interval=(0.58, 0.62),
        recall=(recall,) * 10,
    )
    conditions = tuple(
        ConditionClasses(
            shift=shift,
            severity=severity,
            balanced=dict.fromkeys(graphs, 0.9),
            balanced_interval=dict.fromkeys(graphs, (0.89, 0.91)),
            right=dict.fromkeys(graphs, (450,) * 10),
            confusions=dict.fromkeys(graphs, ((0, 1, 50),)),
            unlisted=dict.fromkeys(graphs, 0),
        )
        for shift, severity in (("clean", 0), ("shift_0", 5))
    )
    return Classes(
        n=(500,) * 10,
        uneven=False,
        majority_class=0,
        majority=0.1,
        classifiers=dict.fromkeys(graphs, own),
        conditions=conditions,
    )
