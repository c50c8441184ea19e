"""The first screen: accuracy under shift, clean accuracy and time, now and afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record import GraphEffect, Latency, Record
from qrobust.record.recommendation import UNDECIDED
from qrobust.report.figures import percent, points
from qrobust.report.recommendation import measure_name
from qrobust.report.verdict import NAMES

# A word and a sign for every outcome, so that it is told without colour, too.
OUTCOMES = {
    "better": ("▲", "better"),
    "worse": ("▼", "worse"),
    "same": ("≈", "no clear change"),
    "unknown": ("?", "not measured"),
}
# A time that changes by less than this is no outcome where no interval is known.
SAME_TIME = 0.05


@dataclass(frozen=True)
class Tile:
    """One figure, now and afterwards.

    Attributes:
        title: what it is.
        before: now.
        after: afterwards.
        change: their difference with its interval.
        outcome: `better`, `worse`, `same` (the interval holds no change) or `unknown`.
    """

    title: str
    before: str
    after: str
    change: str
    outcome: str

    @property
    def sign(self) -> str:
        """Of the outcome."""
        return OUTCOMES[self.outcome][0]

    @property
    def word(self) -> str:
        """For the outcome."""
        return OUTCOMES[self.outcome][1]


@dataclass(frozen=True)
class Comparison:
    """What the tiles compare.

    Attributes:
        before: name of the graph that there is now.
        after: name of the graph that takes its place.
        status: what is said of that graph.
    """

    before: str
    after: str
    status: str

    @property
    def sentence(self) -> str:
        """Which graphs, and whether the second is recommended."""
        return f"{NAMES[self.before]} → {NAMES[self.after]}{f' ({self.status})' if self.status else ''}"


def compared(record: Record) -> Comparison:
    """INT8 and what is recommended in its place; else what was measured in its place; else float and INT8."""
    found = record.recommendation
    runnable = [row.remedy for row in record.remedies if row.runtime == "onnxruntime"]
    if found and found.graph:
        return Comparison("float" if found.graph == "int8" else "int8", found.graph, "recommended")
    if found and found.chosen in runnable:
        undecided = found.refusals(found.chosen) == (UNDECIDED,)
        return Comparison("int8", found.chosen, "undecided" if undecided else "not recommended")
    if runnable:
        return Comparison("int8", runnable[0], "not recommended" if found else "")
    return Comparison("float", "int8", "")


def tiles(record: Record) -> list[Tile]:
    """Accuracy under shift, clean accuracy, time for one image; in the measure that decides.

    Args:
        record: of a run.
    """
    found = compared(record)
    effect = next((e for e in record.effects.graphs if e.graph == found.after), None) if record.effects else None
    if effect and effect.reference == found.before:
        return [*_by_effect(record, effect), _time(record, found)]
    return [*_by_summary(record, found), _time(record, found)]


def _by_effect(record: Record, effect: GraphEffect) -> list[Tile]:
    assert record.effects is not None
    name, test = measure_name(record), effect.test
    where = "on target images" if record.effects.target_images else "under shift"
    low, high = test.clean_cost_interval_pp
    return [
        share_tile(f"{name} {where}", test.shift, test.gain_pp, test.gain_interval_pp),
        share_tile(f"{name} on clean images", test.clean, 0.0 - test.clean_cost_pp, (0.0 - high, 0.0 - low)),
    ]


def _by_summary(record: Record, found: Comparison) -> list[Tile]:
    """From what records of earlier versions hold, too."""
    s = record.summary
    row = next((row for row in record.remedies if row.remedy == found.after), None)
    if row:
        gain, gain_interval = row.gain_pp, row.gain_interval_pp
        cost, cost_interval = row.clean_cost_pp, row.clean_cost_interval_pp
    else:
        drop, interval = s.shift_quantization_drop_pp, s.shift_quantization_drop_interval_pp
        if drop is None or interval is None:
            gain, gain_interval = None, None
        else:
            gain, gain_interval = 0.0 - drop, (0.0 - interval[1], 0.0 - interval[0])
        cost, cost_interval = s.quantization_drop_pp, s.quantization_drop_interval_pp
    clean_interval = (0.0 - cost_interval[1], 0.0 - cost_interval[0])
    return [
        share_tile("Accuracy under shift", s.shift_accuracy[found.after], gain, gain_interval),
        share_tile("Accuracy on clean images", s.clean_accuracy[found.after], 0.0 - cost, clean_interval),
    ]


def share_tile(title: str, after: float | None, change: float | None, interval: tuple[float, float] | None) -> Tile:
    """Of a share, now and afterwards.

    Args:
        title: what it is.
        after: afterwards, as a fraction; None where nothing was measured.
        change: what it gains, in points.
        interval: of that.
    """
    if after is None or change is None or interval is None:
        return Tile(title, "", "", "", "unknown")
    outcome = "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "same"
    return Tile(title, percent(after - change / 100), percent(after), points(change, interval), outcome)


def _time(record: Record, found: Comparison) -> Tile:
    latency = record.summary.latency_ms
    return time_tile(latency.get(found.before), latency.get(found.after), time_interval(record, found))


def time_tile(now: Latency | None, then: Latency | None, interval: tuple[float, float] | None) -> Tile:
    """Of the time for one image, now and afterwards.

    Args:
        now: of what there is; None where it was not timed.
        then: of what takes its place; likewise.
        interval: of their ratio; None where it is not known.
    """
    title = "Time for one image"
    if now is None or then is None:
        return Tile(title, "", "", "", "unknown")
    ratio = then.batch_1 / now.batch_1
    low, high = interval or (ratio / (1 + SAME_TIME), ratio * (1 + SAME_TIME))
    outcome = "worse" if low > 1 else "better" if high < 1 else "same"
    told = f" [{low:.2f}, {high:.2f}]" if interval else ""
    return Tile(title, f"{now.batch_1:.2f} ms", f"{then.batch_1:.2f} ms", f"{ratio:.2f} times{told}", outcome)


def time_interval(record: Record, found: Comparison) -> tuple[float, float] | None:
    """Of how many times the first graph's time the second one takes; None in records of earlier versions."""
    known = record.summary.latency_interval or {}
    if found.before == "int8":
        return known.get(found.after)
    low, high = known.get("float", (0.0, 0.0))
    return (1 / high, 1 / low) if low > 0 else None
