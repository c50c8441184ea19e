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
    graph = compared(record).after
    reasons = record.recommendation.refusals(graph) if record.recommendation else ()
    steps = [step for reason in reasons for step in _against(record, reason, graph)]
    if len(record.remedies) == 1:
        steps.append(Step("Try the other remedies, and see which to ship.", _ladder()))
    return list(dict.fromkeys(steps))


def _ladder() -> tuple[str, ...]:
    return "qrobust compensate RUN --compare", "qrobust report RUN"


def _against(record: Record, reason: str, graph: str) -> list[Step]:
    """What to try against one reason why a graph is not recommended."""
    remedy = "" if graph == "compensated" else f" --remedy {graph}"
    again = AGAIN if graph == "compensated" else AGAIN[1:]
    steps, rate = record.config.get("steps"), record.config.get("learning_rate")
    if reason == UNDECIDED:
        why = (
            "Accept it although too few images tell whether a class is harmed, or run it again with more test images."
        )
        return [Step(why, ("qrobust report RUN --accept-undecided",))]
    options = {
        FEW_STEPS: ("Train longer.", f"--steps {4 * steps}" if steps else ""),
        RISING: ("Train longer: it was still learning.", f"--steps {2 * steps}" if steps else ""),
        DIVERGED: ("Train with a smaller learning rate.", f"--learning-rate {rate / 4:g}" if rate else ""),
        SLOW: ("Take a calibrator that costs less time.", "--latency-budget 1.25"),
        CLEAN_COST: ("Let it cost less clean accuracy.", "--clean-budget 0.1"),
        HARM: ("Let it change less, so that it harms no class.", "--clean-budget 0.1"),
    }
    why, option = options.get(reason, ("", ""))
    return [Step(why, (f"qrobust compensate RUN{remedy} {option}", *again))] if option else []


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
