"""What a graph does against the one whose place it would take: in the primary measure, and to every class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from qrobust.evaluation.primary import Primary
from qrobust.evaluation.statistics import (
    ONE_SIDED,
    Z,
    holm,
    lower_tail,
    mean_interval,
    wilson_interval,
)
from qrobust.record import ClassEffect, ClassEffects, GraphEffect, SplitEffect

# A class is harmed by a loss of more than this, as a fraction.
MARGIN = 0.05
# Undecided classes that a record lists, and images of a class beyond which nobody counts.
MOST_LISTED, MOST_IMAGES = 20, 10**6


@dataclass(frozen=True)
class Right:
    """Whether, or how often, a classifier is right on each image.

    Attributes:
        clean: on clean images `(n,)`, in [0, 1].
        clean_labels: `(n,)`.
        shift: on images under shift, the mean over conditions, or on target images `(m,)`.
        shift_labels: `(m,)`.
    """

    clean: np.ndarray
    clean_labels: np.ndarray
    shift: np.ndarray
    shift_labels: np.ndarray


class Moments(NamedTuple):
    """Mean, and mean of the squares, of per-image differences in [-1, 1]."""

    n: int
    mean: float
    square: float

    @classmethod
    def of(cls, differences: np.ndarray) -> Moments:
        """Of differences `(n,)`."""
        return cls(len(differences), float(differences.mean()), float((differences**2).mean()))

    def estimate(self) -> tuple[float, float]:
        """The mean and its standard error, with one image more won and one more lost.

        Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
        Data", Journal of Educational and Behavioral Statistics 37, 2012. Without, a class of which no image changed
        would seem certain whatever its size.
        """
        n = self.n + 2
        mean, square = self.n * self.mean / n, (self.n * self.square + 2) / n
        return mean, float(np.sqrt((square - mean**2) / n))

    def p_values(self) -> tuple[float, float]:
        """One-sided, that the mean is not below 0, and that it is not above minus the margin."""
        mean, error = self.estimate()
        return lower_tail(mean / error), lower_tail(-(mean + MARGIN) / error)


def needed(found: Moments, level: float) -> int | None:
    """How many images would tell harm from no harm at a one-sided level, were their differences like these.

    Args:
        found: of the images there are.
        level: such as 0.025, less where many classes are asked about.

    Returns:
        None where it is more than a million.
    """
    index = 0 if found.mean < -MARGIN else 1

    def tells(n: int) -> bool:
        return found._replace(n=n).p_values()[index] < level

    if not tells(MOST_IMAGES):
        return None
    low, high = 0, MOST_IMAGES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle, high)
    return high


def class_effects(after: Right, before: Right) -> ClassEffects:
    """Harm, no harm or undecided, for every class that has images, on clean images and under shift.

    Args:
        after: of the graph.
        before: of the one whose place it would take, on the same images.
    """
    parts = {
        "clean": (after.clean - before.clean, after.clean_labels),
        "shift": (after.shift - before.shift, after.shift_labels),
    }
    every = [
        (where, int(index), Moments.of(differences[labels == index]))
        for where, (differences, labels) in parts.items()
        for index in np.unique(labels)
    ]
    harm_p, no_harm_p = (holm([found.p_values()[side] for *_, found in every]) for side in (0, 1))
    harm: list[ClassEffect] = []
    undecided: list[tuple[Moments, ClassEffect]] = []
    for (where, index, found), p, q in zip(every, harm_p, no_harm_p, strict=True):
        harms = found.mean < -MARGIN and p < ONE_SIDED
        if not harms and q < ONE_SIDED:
            continue
        mean, error = found.estimate()
        effect = ClassEffect(
            class_index=index,
            where=where,
            n=found.n,
            difference_pp=100 * found.mean,
            interval_pp=(100 * (mean - Z * error), 100 * (mean + Z * error)),
            harm_p=p,
            no_harm_p=q,
        )
        if harms:
            harm.append(effect)
        else:
            undecided.append((found, effect))
    undecided.sort(key=lambda item: item[0].n)
    level = ONE_SIDED / max(1, len(undecided))
    return ClassEffects(
        harm=tuple(sorted(harm, key=lambda effect: effect.difference_pp)),
        undecided=tuple(replace(one, needed=needed(found, level)) for found, one in undecided[:MOST_LISTED]),
        n_undecided=len(undecided),
        n_no_harm=len(every) - len(harm) - len(undecided),
    )


def split_effect(after: Right, before: Right, primary: Primary, *, seed: int) -> SplitEffect:
    """A graph against another on one split, in the primary measure; arguments as for `class_effects`."""
    gain, gain_interval = primary.difference(after.shift, before.shift, after.shift_labels, seed)
    cost, cost_interval = primary.difference(before.clean, after.clean, after.clean_labels, seed)
    return SplitEffect(
        n=len(after.clean),
        clean=primary.value(after.clean, after.clean_labels),
        shift=primary.value(after.shift, after.shift_labels),
        gain_pp=gain,
        gain_interval_pp=gain_interval,
        clean_cost_pp=cost,
        clean_cost_interval_pp=cost_interval,
    )


def graph_effects(
    validation: Mapping[str, Right], test: Mapping[str, Right], primary: Primary, *, seed: int
) -> tuple[GraphEffect, ...]:
    """What every graph but `float` does: `int8` against `float` if that is there, the others against `int8`.

    Args:
        validation: per graph, on validation images.
        test: per graph, on test images.
        primary: the measure that decides.
        seed: of the bootstrap.
    """
    found = []
    for name in (name for name in test if name != "float"):
        reference = "float" if name == "int8" else "int8"
        if reference not in test:
            continue
        chosen, confirmed = (
            split_effect(split[name], split[reference], primary, seed=seed) for split in (validation, test)
        )
        found.append(
            GraphEffect(
                graph=name,
                reference=reference,
                validation=chosen,
                test=confirmed,
                classes=class_effects(test[name], test[reference]),
                shift_interval=_interval(test[name].shift, test[name].shift_labels, primary),
            )
        )
    return tuple(found)


def chance(labels: np.ndarray, primary: Primary) -> float:
    """What always answering the largest class comes to: in accuracy if that is the primary measure, else balanced.

    Args:
        labels: `(n,)`.
        primary: the measure that decides.
    """
    _, counts = np.unique(labels, return_counts=True)
    return float(counts.max() / len(labels)) if primary.is_accuracy else 1 / len(counts)


def _interval(right: np.ndarray, labels: np.ndarray, primary: Primary) -> tuple[float, float]:
    """The interval of accuracy or of balanced accuracy."""
    if primary.is_accuracy:
        return wilson_interval(float(right.sum()), len(right))
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    hits = np.bincount(index, right)
    intervals = [wilson_interval(h, n) for h, n in zip(hits.tolist(), counts.tolist(), strict=True)]
    return mean_interval(hits / counts, np.array(intervals))
