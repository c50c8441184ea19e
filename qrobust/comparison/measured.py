"""A finished run or evaluation as one value, and its figures with intervals at any confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qrobust.errors import InputError, unknown
from qrobust.evaluation.kept import CLEAN, Condition, Kept
from qrobust.evaluation.statistics import mean_interval, paired_bootstrap, wilson_interval
from qrobust.record import Audit, EvaluationRecord, Latency, Record

# The classifier of a run that ships, the first of these that there is.
DEPLOYED = ("compensated", "int8")


class NotMeasuredError(Exception):
    """A figure that a record does not hold; its text says why."""


@dataclass(frozen=True)
class Figure:
    """A figure, and how sure it is.

    Attributes:
        value: the figure.
        interval: of it; None where chance has no part in it that is known.
        n: images that it was measured on.
        share: the proportion whose Wilson interval it is, and what 1 of that is in units of the value; None where the
            interval is another.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int | None = None
    share: tuple[float, float] | None = None


@dataclass(frozen=True)
class Measured:
    """What a finished run or evaluation measured.

    Attributes:
        name: of its folder, as it was given.
        record: its record.
        kept: predictions in the conditions of the record.
    """

    name: str
    record: Record | EvaluationRecord
    kept: Kept

    @property
    def graphs(self) -> list[str]:
        """Names of the classifiers, in the order of the record."""
        return list(self.record.summary.clean_accuracy)

    @property
    def reference(self) -> str | None:
        """What drops are from: `float` in a run, the first of several files in an evaluation."""
        if isinstance(self.record, Record):
            return "float"
        return self.graphs[0] if len(self.graphs) > 1 else None

    @property
    def baseline(self) -> str | None:
        """What gains are over: `int8` in a run, the first of several files in an evaluation."""
        return "int8" if isinstance(self.record, Record) else self.reference

    def graph(self, name: str | None, option: str = "graph") -> str:
        """The classifier of that name, by default the one that ships: the last step of a run, the last file.

        Raises:
            InputError: there is none of that name.
        """
        if name is None:
            if isinstance(self.record, Record):
                return next(graph for graph in DEPLOYED if graph in self.graphs)
            return self.graphs[-1]
        if name not in self.graphs:
            raise unknown(option, name, self.graphs)
        return name

    @property
    def latencies(self) -> Mapping[str, Latency]:
        """Per classifier that was timed; none of an evaluation by an earlier version."""
        record = self.record
        return record.summary.latency_ms if isinstance(record, Record) else record.latency_ms or {}

    @property
    def seed(self) -> int:
        """Of the bootstrap."""
        return self.record.seeds.run if isinstance(self.record, Record) else int(self.record.config.get("seed", 0))

    @property
    def n(self) -> int:
        """Images measured."""
        return len(self.kept.labels)

    @property
    def listing(self) -> str | None:
        """Hash of the images that the data holds; None where an earlier version left it out."""
        if isinstance(self.record, Record):
            return self.record.splits["test"].listing
        return self.record.listing

    @cached_property
    def shifted(self) -> list[Condition]:
        """All conditions but the clean one."""
        return [condition for condition in self.kept.predictions if condition != CLEAN]

    def unseen(self, graph: str) -> list[Condition]:
        """Conditions whose shift the remedy in a graph never saw in training.

        Raises:
            NotMeasuredError: what it learned from is not known, or it saw all.
        """
        remedies = self.record.remedies if isinstance(self.record, Record) else ()
        remedy = next((one for one in remedies if one.remedy == graph), None)
        if remedy is None:
            raise NotMeasuredError(f"what {graph} learned from is not in the record")
        found = [condition for condition in self.shifted if condition[0] not in remedy.trained_on]
        if not found:
            raise NotMeasuredError("every shift that was measured was also trained on; --train-on can leave some out")
        return found

    def right(self, graph: str, conditions: Sequence[Condition]) -> np.ndarray:
        """How often a classifier is right, per image `(n,)`, in [0, 1].

        Raises:
            NotMeasuredError: no condition is given.
        """
        if not conditions:
            raise NotMeasuredError("no shift was measured")
        return np.stack([self.kept.predictions[c][graph].prediction == self.kept.labels for c in conditions]).mean(0)

    def audit(self, graph: str) -> Audit:
        """What onnxruntime runs on integers.

        Raises:
            NotMeasuredError: the record holds no audit of it.
        """
        audits = self.record.audit if isinstance(self.record, Record) else {}
        if graph not in audits:
            raise NotMeasuredError(f"the record holds no audit of {graph}; `qrobust audit --min-integer` makes one")
        return audits[graph]


def accuracy(measured: Measured, graph: str, conditions: Sequence[Condition], confidence: float) -> Figure:
    """Mean accuracy over conditions, as a share: Wilson's interval of one, a bootstrap over images of several."""
    right = measured.right(graph, conditions)
    return proportion(right, confidence) if len(conditions) == 1 else mean(right, measured.seed, confidence)


def recall(measured: Measured, graph: str, name: str, confidence: float) -> Figure:
    """Share of the clean images of a class that are recognized.

    Raises:
        InputError: there is no class of that name.
        NotMeasuredError: no image of it was measured.
    """
    names = measured.record.class_names
    if name not in names:
        raise unknown("min_recall", name, names)
    right = measured.right(graph, [CLEAN])[measured.kept.labels == names.index(name)]
    if not len(right):
        raise NotMeasuredError(f"none of the images measured is of {name}")
    return proportion(right, confidence)


def balanced_accuracy(measured: Measured, graph: str, confidence: float) -> Figure:
    """Mean of the recalls on clean images; of each Wilson's interval, of their mean MOVER's.

    Raises:
        NotMeasuredError: no image of some class was measured.
    """
    right, names = measured.right(graph, [CLEAN]), measured.record.class_names
    per_class = [right[measured.kept.labels == index] for index in range(len(names))]
    if missing := [name for name, own in zip(names, per_class, strict=True) if not len(own)]:
        raise NotMeasuredError(f"none of the images measured is of {missing[0]}")
    recalls = [proportion(own, confidence) for own in per_class]
    shares = np.array([one.value for one in recalls])
    interval = mean_interval(shares, np.array([one.interval for one in recalls]))
    return Figure(float(shares.mean()), interval, len(right))


def proportion(holds: np.ndarray, confidence: float) -> Figure:
    """Share of the images `(n,)` for which something holds, 1 or 0, with Wilson's interval."""
    share = float(holds.mean())
    return Figure(share, wilson_interval(int(holds.sum()), len(holds), confidence), len(holds), (share, 1.0))


def difference(before: np.ndarray, after: np.ndarray, seed: int, confidence: float) -> Figure:
    """Mean of `after - before`, each `(n,)` per image, in percentage points, paired over images."""
    return mean(100.0 * (after - before), seed, confidence, least=-100.0, most=100.0)


def mean(values: np.ndarray, seed: int, confidence: float, *, least: float = 0.0, most: float = 1.0) -> Figure:
    """Mean over images, with a bootstrap interval.

    Where all images say the same, resampling them cannot show that another may not. Then the interval reaches as far
    as Wilson's bound of a share of images of which none was seen could move the mean.

    Args:
        values: `(n,)`.
        seed: of the bootstrap.
        confidence: of the interval.
        least, most: range of a value.
    """
    value, n = float(values.mean()), len(values)
    if values.min() < values.max():
        return Figure(value, paired_bootstrap(values, seed, confidence), n)
    reach = most * wilson_interval(0, n, confidence)[1]
    return Figure(value, (max(least, value - reach), min(most, value + reach)), n, (0.0, most))


def check_same_images(a: Measured, b: Measured, option: str) -> None:
    """Refuse to pair what was measured on different test images.

    Raises:
        InputError: the hash of the images, their order, labels or classes differ.
    """
    known = None not in (a.listing, b.listing)
    same_order = np.array_equal(a.kept.indices, b.kept.indices)
    if (known and a.listing != b.listing) or not same_order:
        ours, theirs = (f"{m.n} images of {m.record.data}, hash {_hash(m)}" for m in (a, b))
        raise InputError(
            f"{option}: expected the same test images as {a.name} ({ours}), got others in {b.name} ({theirs}); "
            "give both the same --data, --test-images and --seed"
        )
    if a.record.class_names != b.record.class_names or not np.array_equal(a.kept.labels, b.kept.labels):
        raise InputError(f"{option}: expected the labels of {a.name}, got others for the same images in {b.name}")


def _hash(measured: Measured) -> str:
    order = (
        measured.record.splits["test"].fingerprint
        if isinstance(measured.record, Record)
        else measured.record.fingerprint
    )
    return "-".join(filter(None, (measured.listing, order)))
