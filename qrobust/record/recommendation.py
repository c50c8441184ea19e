"""Parts of a record that say what may be shipped: chosen on validation images, confirmed on test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.record.typed_json import OneOf
from qrobust.record.units import Count, Interval, Points, Positive, PValue, Share

# Why a graph is not recommended; see `Candidate`.
HARM, UNDECIDED, NO_GAIN, CLEAN_COST, CONTRADICTED = "harm", "undecided", "no-gain", "clean-cost", "contradicted"
MAJORITY, SLOW, FEW_STEPS, RISING, DIVERGED = "majority", "slow", "few-steps", "rising", "diverged"
CONFIDENCE = "confidence"


@dataclass(frozen=True, kw_only=True)
class ClassEffect:
    """What a graph does to one class, against another graph on the same test images.

    Attributes:
        class_index: position in `class_names`.
        where: `clean`, or `shift`, the mean over all conditions.
        n: images of the class.
        difference_pp: recall of the graph minus that of the other.
        interval_pp: its 95 % interval, for itself, with one image more won and one more lost (Bonett and Price).
        harm_p: one-sided, that the difference is not below 0; corrected by Holm's method over classes, on clean
            images and under shift.
        no_harm_p: one-sided, that the difference is not above -5 points; likewise.
        needed: about how many images of the class would tell, were the differences like these; null where more than a
            million.
    """

    class_index: Count
    where: Annotated[str, OneOf("clean", "shift")]
    n: Positive
    difference_pp: Points
    interval_pp: tuple[float, float]
    harm_p: PValue
    no_harm_p: PValue
    needed: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class ClassEffects:
    """What a graph does to every class; clean images and shift count apart.

    Attributes:
        harm: difference below -5 points and `harm_p` below 0.025, most harm first.
        undecided: neither harm nor `no_harm_p` below 0.025, fewest images first, at most 20.
        n_undecided: how many are.
        n_no_harm: how many have `no_harm_p` below 0.025.
    """

    harm: tuple[ClassEffect, ...]
    undecided: tuple[ClassEffect, ...]
    n_undecided: Count
    n_no_harm: Count


@dataclass(frozen=True, kw_only=True)
class SplitEffect:
    """A graph against another one on the images of one split, in the primary measure.

    Attributes:
        n: clean images.
        clean: of the graph on clean images.
        shift: of the graph under shift, or on target images.
        gain_pp: under shift, the graph minus the other.
        gain_interval_pp: its 95 % interval.
        clean_cost_pp: on clean images, the other minus the graph.
        clean_cost_interval_pp: its 95 % interval.
    """

    n: Positive
    clean: Share
    shift: Share
    gain_pp: Points
    gain_interval_pp: tuple[float, float]
    clean_cost_pp: Points
    clean_cost_interval_pp: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GraphEffect:
    """What a graph does, against the one that it would take the place of.

    Attributes:
        graph: its name.
        reference: `float` for `int8`, else `int8`.
        validation: on validation images, by which is chosen.
        test: on test images, which confirm or contradict.
        classes: on test images.
        shift_interval: under shift, test images, of what `chance` is of.
    """

    graph: str
    reference: str
    validation: SplitEffect
    test: SplitEffect
    classes: ClassEffects
    shift_interval: Interval


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What every graph but `float` does.

    Attributes:
        withheld: no remedy learned from the shifts that validation images are measured under; else remedies learned
            from other draws of these.
        conditions: how many conditions validation images are measured under, of random operations.
        target_images: shift is target images, for remedies learned from these alone.
        chance: what always answering the largest class comes to: accuracy where that is the primary measure, else
            balanced accuracy.
        graphs: one per graph.
    """

    withheld: bool
    conditions: Count
    target_images: bool
    chance: Share
    graphs: tuple[GraphEffect, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph that may be recommended.

    Attributes:
        graph: its name.
        refused: why it is not: `harm` and `undecided` (a class, on test images), `no-gain` and `clean-cost` (on
            validation images), `contradicted` (by test images), `majority` (under shift no better than always
            answering the largest class), `confidence` (is worth a point less than INT8's), `slow` (takes as long as
            float), `few-steps`, `rising` and `diverged` (its training).
    """

    graph: str
    refused: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to ship.

    Attributes:
        graph: its name; null where nothing is recommended.
        chosen: the remedy that validation images chose; null where none gains there.
        accept_undecided: whether classes that are undecided were accepted.
        candidates: one per graph but `float`.
    """

    graph: str | None
    chosen: str | None
    accept_undecided: bool
    candidates: tuple[Candidate, ...]

    def refusals(self, graph: str) -> tuple[str, ...]:
        """Why a graph is not recommended."""
        return next((found.refused for found in self.candidates if found.graph == graph), ())
