"""Hold a finished run to bounds: each figure by its interval, a missing figure being a breach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from qrobust.comparison.measured import (
    Figure,
    Measured,
    NotMeasuredError,
    accuracy,
    balanced_accuracy,
    check_same_images,
    difference,
    proportion,
    recall,
)
from qrobust.errors import InputError, unknown
from qrobust.evaluation.kept import CLEAN, Condition
from qrobust.evaluation.statistics import CONFIDENCE, RESAMPLES, wilson_images
from qrobust.record import BoundResult, GateResult, Record

# A bootstrap of so many resamples has at least five of them beyond each end.
LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 1 - 10 / RESAMPLES
# Beyond so many images nobody measures: the figure is taken to be the limit.
MOST_IMAGES = 10**9
Limits = Mapping[str, float | Mapping[str, float] | None]


@dataclass(frozen=True)
class Gated:
    """The classifier that is held to bounds.

    Attributes:
        run: where it was measured.
        graph: its name there.
        against: where drops are from, another folder or the same one.
        reference: the classifier there; None where there is only one.
        confidence: of the intervals.
    """

    run: Measured
    graph: str
    against: Measured
    reference: str | None
    confidence: float = CONFIDENCE

    def drop(self, conditions: Iterable[Condition] | None) -> Figure:
        """From the reference, in points, over conditions; None: those under shift that both folders have."""
        if self.reference is None:
            raise NotMeasuredError("there is no other classifier to lose accuracy against; name one by --against")
        if conditions is None:
            conditions = self._shared()
        both = list(conditions)
        before, after = self.run.right(self.graph, both), self.against.right(self.reference, both)
        return difference(before, after, self.run.seed, self.confidence)

    def _shared(self) -> list[Condition]:
        tables = {one.record.severity_table for one in (self.run, self.against)}
        if len(tables) > 1:
            raise NotMeasuredError(f"the severity tables differ ({', '.join(sorted(tables))})")
        return [condition for condition in self.run.shifted if condition in self.against.kept.predictions]

    def gain(self, conditions: list[Condition]) -> Figure:
        """Over the baseline of the same folder, in points."""
        baseline = self.run.baseline
        if baseline in (None, self.graph):
            raise NotMeasuredError(f"gains are over {baseline or 'another classifier'}")
        assert baseline is not None
        before, after = self.run.right(baseline, conditions), self.run.right(self.graph, conditions)
        return difference(before, after, self.run.seed, self.confidence)

    def agreement(self) -> Figure:
        """Share of the clean images for which the reference predicts the same."""
        if self.reference is None:
            raise NotMeasuredError("there is no other classifier to agree with; name one by --against")
        one, other = self.run.kept.predictions[CLEAN][self.graph], self.against.kept.predictions[CLEAN]
        equal = (one.prediction == other[self.reference].prediction).astype(float)
        return proportion(equal, self.confidence)

    def latency_ratio(self) -> Figure:
        """Time for one image over that of the reference in the same folder, both measured in turn."""
        times, first = self.run.latencies, self.run.reference
        if first is None or first not in times or self.graph not in times:
            raise NotMeasuredError(f"there are no two times to compare {self.graph} by")
        return Figure(times[self.graph].over(times[first]).batch_1)

    def size_ratio(self) -> Figure:
        """Size of the file over that of the reference in the same folder."""
        record = self.run.record
        if isinstance(record, Record):
            sizes = dict(record.summary.size_bytes)
        else:
            sizes = {name: model.size_bytes for name, model in record.models.items()}
        first = self.run.reference
        if first is None or self.graph not in sizes:
            raise NotMeasuredError("there are no two files whose sizes could be compared")
        return Figure(sizes[self.graph] / sizes[first])

    def integer_share(self) -> Figure:
        """Share of the multiply-accumulates that onnxruntime runs on integers."""
        share = self.run.audit(self.graph).integer_mac_share
        if share is None:
            raise NotMeasuredError("the work of its operators is not known")
        return Figure(share)


@dataclass(frozen=True)
class Bound:
    """What one option bounds.

    Attributes:
        words: the figure, in words; `{graph}` and `{reference}` are put in.
        unit: of limit and figure: `points`, `share` or `ratio`.
        measure: makes the figure, or raises NotMeasuredError.
    """

    words: str
    unit: str
    measure: Callable[[Gated], Figure]


# By the name of the option; `min_recall` is one for each class.
BOUNDS = {
    "max_drop": Bound("clean accuracy lost from {reference} to {graph}", "points", lambda gated: gated.drop([CLEAN])),
    "max_shift_drop": Bound(
        "accuracy under shift lost from {reference} to {graph}", "points", lambda gated: gated.drop(None)
    ),
    "max_clean_cost": Bound(
        "clean accuracy lost from {baseline} to {graph}", "points", lambda gated: _negative(gated.gain([CLEAN]))
    ),
    "min_accuracy": Bound(
        "clean accuracy of {graph}",
        "share",
        lambda gated: accuracy(gated.run, gated.graph, [CLEAN], gated.confidence),
    ),
    "min_balanced_accuracy": Bound(
        "balanced clean accuracy of {graph}",
        "share",
        lambda gated: balanced_accuracy(gated.run, gated.graph, gated.confidence),
    ),
    "min_shift_accuracy": Bound(
        "accuracy of {graph} under shift",
        "share",
        lambda gated: accuracy(gated.run, gated.graph, gated.run.shifted, gated.confidence),
    ),
    "min_gain": Bound(
        "gain of {graph} over {baseline} under shift", "points", lambda gated: gated.gain(gated.run.shifted)
    ),
    "min_unseen_gain": Bound(
        "gain of {graph} over {baseline} under shifts it never saw",
        "points",
        lambda gated: gated.gain(gated.run.unseen(gated.graph)),
    ),
    "min_agreement": Bound(
        "share of clean images for which {graph} predicts what {reference} does", "share", Gated.agreement
    ),
    "min_integer_share": Bound("share of {graph}'s multiply-accumulates on integers", "share", Gated.integer_share),
    "max_latency_ratio": Bound("time of {graph} over that of {first}, one image", "ratio", Gated.latency_ratio),
    "max_size_ratio": Bound("size of {graph} over that of {first}", "ratio", Gated.size_ratio),
}
RECALL = "min_recall"


def check_limits(limits: Limits, confidence: float) -> None:
    """Refuse bounds that no figure could meet or miss.

    Raises:
        InputError: names every mistake.
    """
    given = [limit for limit in limits.values() if limit is not None and limit != {}]
    mistakes = [] if given else ["bounds: expected at least one, got none"]
    try:
        check_confidence(confidence)
    except InputError as error:
        mistakes.append(str(error))
    for name, limit in limits.items():
        if name != RECALL and name not in BOUNDS:
            mistakes.append(str(unknown("bounds", name, [*BOUNDS, RECALL])))
            continue
        unit = "share" if name == RECALL else BOUNDS[name].unit
        for value in limit.values() if isinstance(limit, Mapping) else (limit,):
            if value is not None and (expected := _beyond(value, unit)):
                mistakes.append(f"{name}: expected {expected}, got {value:g}")
    if mistakes:
        raise InputError("; ".join(mistakes))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that intervals by bootstrap cannot have.

    Raises:
        InputError: it is out of bounds.
    """
    if not LEAST_CONFIDENCE <= confidence <= MOST_CONFIDENCE:
        raise InputError(f"confidence: expected {LEAST_CONFIDENCE:g} to {MOST_CONFIDENCE:g}, got {confidence:g}")


def _beyond(value: float, unit: str) -> str:
    """What a limit should be, where it is not."""
    if not math.isfinite(value):
        return "a finite number"
    if unit == "share":
        return "" if 0 <= value <= 1 else "a share from 0 to 1"
    if unit == "ratio":
        return "" if value > 0 else "a ratio above 0"
    return "" if -100 <= value <= 100 else "percentage points from -100 to 100"


def check(
    measured: Measured,
    limits: Limits,
    *,
    graph: str | None = None,
    against: Measured | None = None,
    against_graph: str | None = None,
    confidence: float = CONFIDENCE,
    undecided_passes: bool = False,
    failed_checks: tuple[str, ...] = (),
) -> GateResult:
    """Hold a classifier to bounds.

    A bound passes if the whole interval of its figure satisfies it, is breached if none of the interval does, and is
    undecided else. A figure that was not measured is a breach.

    Args:
        measured: where it was measured.
        limits: bound by option; those of `min_recall` by class. None: not bounded.
        graph: its name there. Default: the one that ships.
        against: where drops are from. Default: `measured` itself, from its reference.
        against_graph: the classifier there. Default: the one called `graph`.
        confidence: of the intervals.
        undecided_passes: whether an undecided bound lets the whole pass.
        failed_checks: a sentence for each export check that failed.

    Raises:
        InputError: bounds make no sense, there is no such classifier or class, or test images differ.
    """
    check_limits(limits, confidence)
    name = measured.graph(graph)
    if against is None:
        gated = Gated(
            measured, name, measured, None if measured.reference == name else measured.reference, confidence
        )
        where = gated.reference
    else:
        check_same_images(measured, against, "against")
        gated = Gated(measured, name, against, against.graph(against_graph or name, "against_graph"), confidence)
        where = f"{gated.reference} of {against.name}"
    words = {"graph": name, "reference": where, "baseline": measured.baseline, "first": measured.reference}
    results = [
        _judge(shown, bound.words.format(**words), bound, limit, gated) for shown, bound, limit in _asked(limits)
    ]
    return GateResult(
        run=measured.name,
        graph=name,
        reference=where,
        confidence=confidence,
        undecided_passes=undecided_passes,
        failed_checks=failed_checks,
        bounds=tuple(results),
    )


def _asked(limits: Limits) -> Iterator[tuple[str, Bound, float]]:
    """What is bounded: the option as it is shown, its bound, the limit."""
    for option, bound in BOUNDS.items():
        limit = limits.get(option)
        if isinstance(limit, int | float):
            yield f"--{option.replace('_', '-')}", bound, limit
    of_classes = limits.get(RECALL)
    for name, limit in of_classes.items() if isinstance(of_classes, Mapping) else ():
        # Braces in a name are no fields.
        shown = name.replace("{", "{{").replace("}", "}}")
        yield (
            f"--min-recall {name}",
            Bound(f"recall of {shown}, clean images, {{graph}}", "share", _recall(name)),
            limit,
        )


def _recall(name: str) -> Callable[[Gated], Figure]:
    return lambda gated: recall(gated.run, gated.graph, name, gated.confidence)


def _judge(shown: str, words: str, bound: Bound, limit: float, gated: Gated) -> BoundResult:
    at_most = shown.startswith("--max")

    def result(outcome: str, figure: Figure | None, **extra: object) -> BoundResult:
        return BoundResult(
            bound=shown,
            figure=words,
            unit=bound.unit,
            at_most=at_most,
            limit=float(limit),
            outcome=outcome,
            value=figure.value if figure else None,
            interval=figure.interval if figure else None,
            n=figure.n if figure else None,
            **extra,  # type: ignore[arg-type]  # its fields
        )

    try:
        figure = bound.measure(gated)
    except NotMeasuredError as error:
        return result("breach", None, missing=str(error))
    outcome = judge(figure, limit, at_most=at_most)
    return result(
        outcome, figure, decided_by=images_needed(figure, limit, gated.confidence) if outcome == "undecided" else None
    )


def judge(figure: Figure, limit: float, *, at_most: bool) -> str:
    """`pass` if the whole interval is on the right side of the limit, `breach` if none is, else `undecided`."""
    low, high = figure.interval or (figure.value, figure.value)
    if high <= limit if at_most else low >= limit:
        return "pass"
    return "breach" if (low > limit if at_most else high < limit) else "undecided"


def images_needed(figure: Figure, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """About how many images would decide, if the figure stays as it is.

    Of a share that is what Wilson's interval needs; a bootstrap's shrinks with the square root of n.

    Returns:
        None where the figure is the limit, which no number of images would decide.
    """
    assert figure.interval is not None
    assert figure.n is not None
    distance = limit - figure.value
    if distance == 0:
        return None
    if figure.share is None:
        needed = figure.n * ((figure.interval[1] - figure.interval[0]) / 2 / distance) ** 2
    else:
        share, scale = figure.share
        away = distance / scale if share else abs(distance) / scale
        needed = wilson_images(share, share + away, confidence)
    return max(figure.n + 1, math.ceil(needed)) if needed < MOST_IMAGES else None


def _negative(figure: Figure) -> Figure:
    """A cost of a gain."""
    assert figure.interval is not None
    low, high = figure.interval
    return replace(figure, value=0.0 - figure.value, interval=(0.0 - high, 0.0 - low))
