"""What `qrobust check` found: a line for each bound, and whether the whole passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.record.typed_json import JsonFile, OneOf
from qrobust.record.units import Positive, Share

GATE_SCHEMA = "qrobust.check/1"
PASSED, BREACHED, CHECK_FAILED, UNDECIDED = 0, 1, 3, 4


@dataclass(frozen=True, kw_only=True)
class BoundResult:
    """A bound, and the figure that was held to it.

    Attributes:
        bound: the option that set it, such as `--max-drop`; of a class `--min-recall CLASS`.
        figure: what was measured, in words.
        unit: of limit, value and interval: percentage points, a share from 0 to 1, or a ratio.
        at_most: whether the limit is the largest value allowed; else it is the smallest.
        limit: the bound.
        outcome: `undecided` where the limit lies within the interval.
        value: the figure; null where it was not measured, which is a breach.
        interval: of the value; null where it is a count or a time, which is taken as it is.
        n: images that it was measured on; null without an interval.
        decided_by: about how many images would decide, where it is undecided and the value is not the limit itself.
        missing: why there is no value, or null.
    """

    bound: str
    figure: str
    unit: Annotated[str, OneOf("points", "share", "ratio")]
    at_most: bool
    limit: float
    outcome: Annotated[str, OneOf("pass", "breach", "undecided")]
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: Positive | None = None
    decided_by: Positive | None = None
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class GateResult(JsonFile):
    """The bounds of one `qrobust check`.

    Attributes:
        schema: name and version of this form.
        run: folder that was held to the bounds.
        graph: its classifier.
        reference: the classifier that drops are from; null where there is none.
        confidence: of the intervals.
        undecided_passes: whether an undecided bound lets the whole pass.
        failed_checks: a sentence for each export check that the graph failed.
        bounds: in the order of the options.
    """

    schema: Annotated[str, OneOf(GATE_SCHEMA)] = GATE_SCHEMA
    run: str
    graph: str
    reference: str | None
    confidence: Share
    undecided_passes: bool
    failed_checks: tuple[str, ...]
    bounds: tuple[BoundResult, ...]

    def count(self, outcome: str) -> int:
        """How many bounds came out so."""
        return sum(bound.outcome == outcome for bound in self.bounds)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 breach, 3 failed export check, 4 undecided."""
        if self.failed_checks:
            return CHECK_FAILED
        if self.count("breach"):
            return BREACHED
        return UNDECIDED if self.count("undecided") and not self.undecided_passes else PASSED
