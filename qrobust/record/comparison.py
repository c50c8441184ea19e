"""What `qrobust compare` found: runs side by side, and each against the first on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.record.measurements import Flips, Latency, WorstClass
from qrobust.record.typed_json import JsonFile, OneOf
from qrobust.record.units import Bytes, Interval, Points, PointsInterval, Positive, PValue, Severity, Share

COMPARISON_SCHEMA = "qrobust.comparison/1"


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A classifier by itself.

    Attributes:
        name: of its folder, as it was given.
        graph: its name there.
        clean_accuracy: on clean images.
        clean_interval: Wilson's.
        shift_accuracy: mean over the conditions that all folders have; null where there are none.
        shift_interval: by bootstrap over images.
        latency_ms: of a run; null of an evaluation.
        size_bytes: of its file.
        integer_mac_share: share of its multiply-accumulates on integers; null where it was not audited.
    """

    name: str
    graph: str
    clean_accuracy: Share
    clean_interval: Interval
    shift_accuracy: Share | None
    shift_interval: Interval | None
    latency_ms: Latency | None
    size_bytes: Bytes | None
    integer_mac_share: Share | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """Accuracy of a classifier minus that of the first, on the same images.

    Attributes:
        change_pp: the difference.
        change_interval_pp: its interval, a paired bootstrap over images.
    """

    change_pp: Points
    change_interval_pp: PointsInterval


@dataclass(frozen=True, kw_only=True)
class RunChange:
    """A classifier against the first.

    Attributes:
        clean: on clean images.
        clean_p: of McNemar's exact test that both are equally accurate on clean images.
        shift: mean over the conditions that all folders have; null where there are none.
        agreement: share of equal predictions on clean images.
        flips: predictions on clean images that differ.
        worst_classes: at most five classes that lose most over all conditions, worst first.
    """

    clean: Change
    clean_p: PValue
    shift: Change | None
    agreement: Share
    flips: Flips
    worst_classes: tuple[WorstClass, ...]


@dataclass(frozen=True, kw_only=True)
class ComparedCondition:
    """All classifiers under one condition that all folders have.

    Attributes:
        shift: name of the shift, or `clean`.
        severity: 0 for clean images.
        accuracy: per folder, in order.
        changes: of every classifier but the first.
        p_adjusted: of McNemar's exact test, corrected by Holm's method over all of these.
    """

    shift: str
    severity: Severity
    accuracy: tuple[Share, ...]
    changes: tuple[Change, ...]
    p_adjusted: tuple[PValue, ...]


@dataclass(frozen=True, kw_only=True)
class ConfigDifference:
    """An entry that is not the same in all folders.

    Attributes:
        key: of the configuration, or of `versions` or `hardware`.
        values: per folder, as JSON; null where it has none.
    """

    key: str
    values: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class RunComparison(JsonFile):
    """The comparison of finished runs and evaluations on the same test images.

    Attributes:
        schema: name and version of this form.
        confidence: of all intervals.
        n: images.
        runs: in the order that they were given in; changes are from the first.
        changes: of every classifier but the first.
        rows: one per condition, the clean one first.
        differences: of the configurations, versions and hardware.
        class_names: in index order.
        notes: what limits the comparison, in sentences.
    """

    schema: Annotated[str, OneOf(COMPARISON_SCHEMA)] = COMPARISON_SCHEMA
    confidence: Share
    n: Positive
    runs: tuple[ComparedRun, ...]
    changes: tuple[RunChange, ...]
    rows: tuple[ComparedCondition, ...]
    differences: tuple[ConfigDifference, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
