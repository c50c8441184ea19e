"""The part of a record that says what attacks leave of accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.record.typed_json import OneOf
from qrobust.record.units import Count, Epsilon, Interval, Positive, Share


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One attack at one budget, scored on one classifier.

    Attributes:
        classifier: the one that is scored.
        source: the one that was attacked, or null.
        attack: with its steps, restarts or queries.
        kind: `clean` (`norm` is `none`, `epsilon` 0), `noise`, `white-box`, `black-box`, `transfer` (`source` is
            another classifier) or `pose` (right in every pose of the grid).
        norm: `Linf`, `L2`, `none` or `pose`.
        epsilon: the budget; null for poses.
        n: images attacked.
        robust_accuracy: share still classified as their label.
        interval: Wilson's at 95 %.
        differential_risk: share of images that, under the same pixels, the first classifier gets right and this one
            wrong; null for the first, and where pixels are not the same.
        differential_interval: its interval.
    """

    classifier: str
    source: str | None
    attack: str
    kind: Annotated[str, OneOf("clean", "noise", "white-box", "black-box", "transfer", "pose")]
    norm: str
    epsilon: Epsilon | None
    n: Positive
    robust_accuracy: Share
    interval: Interval
    differential_risk: Share | None
    differential_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Images that withstand every attack of a norm at this budget or less, from every source.

    Attributes:
        classifier: the one that is scored.
        norm: `Linf` or `L2`.
        epsilon: the budget.
        attacks: how many outcomes that is.
        n: images attacked.
        robust_accuracy: share still classified as their label.
        interval: Wilson's at 95 %.
    """

    classifier: str
    norm: str
    epsilon: Epsilon
    attacks: Count
    n: Positive
    robust_accuracy: Share
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """A risk figure, not a defence claim.

    Attributes:
        level: `none`, `quick` or `full`.
        n: images attacked: the first of the test split.
        rows: one per trial and classifier.
        worst: one per classifier, norm and budget.
        zero_gradients: per classifier, the share of images at which the loss has no gradient.
        flags: sentences that begin with `UNRELIABLE`, where the figures contradict each other.
    """

    level: Annotated[str, OneOf("none", "quick", "full")]
    n: Count
    rows: tuple[AttackResult, ...]
    worst: tuple[WorstCase, ...]
    zero_gradients: dict[str, Share]
    flags: tuple[str, ...]
