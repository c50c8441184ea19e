"""What to do next with a finished run: reasons, and command lines to copy."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from qrobust.record import Record
from qrobust.record.recommendation import (
    CLEAN_COST,
    DIVERGED,
    FEW_STEPS,
    HARM,
    RISING,
    SLOW,
    UNDECIDED,
)
from qrobust.report.tiles import compared
from qrobust.report.verdict import NAMES

# What is measured and put together again after another training.
AGAIN = ("qrobust export RUN", "qrobust evaluate RUN", "qrobust report RUN")


@dataclass(frozen=True)
class Step:
    """Something to do.

    Attributes:
        why: a sentence.
        commands: lines for a shell, in order.
    """

    why: str
    commands: tuple[str, ...]


def next_steps(record: Record, folder_name: str = "RUN") -> list[Step]:
    """The most useful first.

    Args:
        record: of a run.
        folder_name: of the run, as commands name it.
    """
    steps = _shipping(record) if record.recommendation and record.recommendation.graph else _improving(record)
    steps += _looking(record)
    folder = shlex.quote(folder_name)
    return [Step(step.why, tuple(command.replace("RUN", folder, 1) for command in step.commands)) for step in steps]


def _shipping(record: Record) -> list[Step]:
    graph = compared(record).after
    bounds = ["--max-drop 1"] if graph == "int8" else ["--max-clean-cost 1"]
    row = next((row for row in record.remedies if row.remedy == graph), None)
    if row and row.gain_interval_pp[0] >= 1:
        bounds.append(f"--min-gain {math.floor(row.gain_interval_pp[0])}")
    return [
        Step(f"Put {NAMES[graph]} on the device.", (f"qrobust deploy RUN --graph {graph} --out deployed",)),
        Step(
            "Keep it so: hold later runs to these bounds in CI.",
            (f"qrobust check RUN --graph {graph} {' '.join(bounds)}",),
        ),
    ]


def _improving(record: Record) -> list[Step]:
    """What may turn a run without a recommendation into one with it."""
    if not record.remedies:
        return [Step("Win robustness back: make every remedy, measure all and see which to ship.", _ladder())]
    steps, graph, found = [], compared(record).after, record.recommendation
    reasons = found.refusals(graph) if found else ()
    if another := _training(record, reasons, graph):
        steps.append(another)
    if found and UNDECIDED in found.refusals(found.chosen or "int8"):
        why = "Accept that too few images tell whether a class is harmed; or run it again with more test images."
        steps.append(Step(why, ("qrobust report RUN --accept-undecided",)))
    if len(record.remedies) == 1:
        steps.append(Step("Try the other remedies, and see which to ship.", _ladder()))
    return steps


def _ladder() -> tuple[str, ...]:
    return "qrobust compensate RUN --compare", "qrobust report RUN"


def _training(record: Record, reasons: tuple[str, ...], graph: str) -> Step | None:
    """Another training that may do away with the reasons why a graph is not recommended; None where none may."""
    steps, rate = record.config.get("steps", 4000), record.config.get("learning_rate", 2e-3)
    longer, slower = f"--steps {(4 if FEW_STEPS in reasons else 2) * steps}", f"--learning-rate {rate / 4:g}"
    remedies = {
        FEW_STEPS: ("longer", longer),
        RISING: ("longer", longer),
        DIVERGED: ("with a smaller learning rate", slower),
        SLOW: ("so that it takes less time", "--latency-budget 1.25"),
        CLEAN_COST: ("so that it changes clean images less", "--clean-budget 0.1"),
        HARM: ("so that it changes clean images less", "--clean-budget 0.1"),
    }
    found = dict(remedies[reason] for reason in reasons if reason in remedies)
    if not found:
        return None
    remedy = [] if graph == "compensated" else [f"--remedy {graph}"]
    again = AGAIN if graph == "compensated" else AGAIN[1:]
    why = f"Train {NAMES[graph]} again: {', and '.join(found)}."
    return Step(why, (" ".join(["qrobust compensate RUN", *remedy, *found.values()]), *again))


def _looking(record: Record) -> list[Step]:
    """What was not looked at yet."""
    steps, quantization = [], record.quantization
    if record.summary.quantization_drop_interval_pp[0] > 0 and not quantization.layer_effects:
        why = "Quantization costs clean accuracy: see which layers, to leave them in float."
        steps.append(Step(why, ("qrobust sensitivity RUN", "qrobust report RUN")))
    if record.attacks.level == "none":
        why = "Attacks were not measured."
        steps.append(Step(why, ("qrobust evaluate RUN --attacks quick", "qrobust report RUN")))
    steps.append(
        Step(
            "Compare it with another run, on the same images.", ("qrobust compare RUN OTHER --html comparison.html",)
        )
    )
    return steps
