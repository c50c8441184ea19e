"""What `qrobust fleet` made: a line for each run, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.record.typed_json import JsonFile, OneOf
from qrobust.record.units import (
    Bytes,
    Count,
    Interval,
    Milliseconds,
    Points,
    PointsInterval,
    Positive,
    Seconds,
    Share,
)

FLEET_SCHEMA = "qrobust.fleet/1"
DONE, FAILED, WAITING = STATES = ("done", "failed", "waiting")


@dataclass(frozen=True, kw_only=True)
class FleetFigures:
    """What the record of a run says of the graph that ships.

    Attributes:
        graph: the calibrator's if there is one, else `int8`.
        recommended: the graph that the run recommends; null: none.
        n_test: images measured.
        clean_accuracy: on clean images.
        clean_interval: Wilson's.
        shift_accuracy: mean over all conditions; null without any.
        shift_interval: by bootstrap over images.
        gain_pp: of the calibrator over `int8` under shift; null without one.
        gain_interval_pp: of that.
        unseen_gain_pp: the same under shifts that it did not learn from; null without any.
        unseen_gain_interval_pp: of that.
        clean_cost_pp: what the calibrator costs on clean images.
        clean_cost_interval_pp: of that.
        latency_ms: for one image.
        size_bytes: of the file.
        gate: how the run stands to the plan's bounds: pass, breach, undecided or failed (an export check); null
            without bounds.
    """

    graph: str
    recommended: str | None
    n_test: Positive
    clean_accuracy: Share
    clean_interval: Interval
    shift_accuracy: Share | None
    shift_interval: Interval | None
    gain_pp: Points | None
    gain_interval_pp: PointsInterval | None
    unseen_gain_pp: Points | None
    unseen_gain_interval_pp: PointsInterval | None
    clean_cost_pp: Points | None
    clean_cost_interval_pp: PointsInterval | None
    latency_ms: Milliseconds | None
    size_bytes: Bytes
    gate: Annotated[str, OneOf("pass", "breach", "undecided", "failed")] | None = None


@dataclass(frozen=True, kw_only=True)
class FleetRun:
    """One run of a fleet.

    Attributes:
        name: of its folder in `runs`, and of its log and its configuration.
        values: what it has of each axis of the matrix.
        state: `waiting` where it has not been made, or not to its end.
        exit_code: of the last attempt of this call; null where there was none.
        attempts: of this call.
        duration_s: of these.
        message: the last line that a failed run wrote.
        figures: of a finished run.
    """

    name: str
    values: dict[str, str]
    state: Annotated[str, OneOf(*STATES)]
    exit_code: int | None = None
    attempts: Count = 0
    duration_s: Seconds = 0.0
    message: str | None = None
    figures: FleetFigures | None = None


@dataclass(frozen=True, kw_only=True)
class FleetRecord(JsonFile):
    """A fleet: its runs in the order of the plan.

    Attributes:
        schema: name and version of this form.
        qrobust: version.
        created: when this was written, UTC.
        axes: of the matrix.
        at_once: runs that one host made at the same time; more than one disturb each other's latencies.
        runs: every run of the plan.
    """

    schema: Annotated[str, OneOf(FLEET_SCHEMA)] = FLEET_SCHEMA
    qrobust: str
    created: str
    axes: tuple[str, ...]
    at_once: Positive
    runs: tuple[FleetRun, ...]

    def count(self, state: str) -> int:
        """How many runs are in a state."""
        return sum(run.state == state for run in self.runs)
