"""Part of a record that says what a run found before its first stage."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record.units import Count, Interval, Positive, Seconds, Share


@dataclass(frozen=True, kw_only=True)
class FloatOnValidation:
    """The float network, as it came, on validation images.

    Attributes:
        n: validation images.
        accuracy: of the network in PyTorch, on images prepared as `preprocessing` says.
        interval: Wilson's.
        chance: what the same predictions would be right in if they knew nothing: the sum over classes of how often
            it is predicted times how often it is there (Cohen 1960). Of a network that always answers the largest
            class it is that class's share.
    """

    n: Positive
    accuracy: Share
    interval: Interval
    chance: Share

    @property
    def tells_nothing(self) -> bool:
        """Whether chance explains the accuracy."""
        return self.interval[0] <= self.chance


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run found before its first stage.

    Attributes:
        images_per_class: per split, how many images each class has, in index order.
        looked_at: images whose sizes were looked at, a seeded sample.
        widths: smallest and largest of them, in px, before anything is resized.
        heights: likewise.
        float_validation: the network as it came.
        expected_s: per part of the work, what it was expected to take, from a few steps and images; null where it
            was not estimated.
    """

    images_per_class: dict[str, tuple[Count, ...]]
    looked_at: Positive
    widths: tuple[Positive, Positive]
    heights: tuple[Positive, Positive]
    float_validation: FloatOnValidation
    expected_s: dict[str, Seconds] | None = None
