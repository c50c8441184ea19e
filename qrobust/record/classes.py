"""Parts of a record that say what classifiers do to each class: recall, balanced accuracy, confusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from qrobust.record.units import Count, Interval, Positive, Severity, Share

# Index of the class, index of what was predicted, images.
Confusion: TypeAlias = tuple[Count, Count, Positive]


@dataclass(frozen=True, kw_only=True)
class ClassRecall:
    """How often a classifier is right on the images of one class; null where there are none.

    Attributes:
        clean: on clean images.
        clean_interval: Wilson's at 95 %.
        shift: the mean over all conditions, each weighing the same.
        shift_interval: Wilson's for as many images as the class has, which is wide enough whatever the conditions
            have in common.
    """

    clean: Share | None
    clean_interval: Interval | None
    shift: Share | None
    shift_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ClassifierClasses:
    """One classifier over all classes.

    Attributes:
        clean_balanced: the mean of the recalls on clean images; null where no clean ones were measured.
        clean_balanced_interval: at 95 %, from Wilson's of each class (MOVER; Zou and Donner, 2008).
        shift_balanced: the same under shift, the mean over all conditions; null without any.
        shift_balanced_interval: its interval.
        recall: one per class, in the order of `class_names`.
    """

    clean_balanced: Share | None
    clean_balanced_interval: Interval | None
    shift_balanced: Share | None
    shift_balanced_interval: Interval | None
    recall: tuple[ClassRecall, ...]


@dataclass(frozen=True, kw_only=True)
class ConditionClasses:
    """Every classifier under one condition.

    Attributes:
        shift: name of the shift, or `clean`.
        severity: 0 for clean images.
        balanced: per classifier, the mean of its recalls.
        balanced_interval: per classifier, at 95 %.
        right: per classifier, how many images of each class it gets right; over `n`, that is the recall.
        confusions: per classifier, the images it gets wrong as [class, predicted, images], most first, at most 400.
        unlisted: per classifier, images it gets wrong beyond those; 0 where `confusions` is the whole matrix.
    """

    shift: str
    severity: Severity
    balanced: dict[str, Share]
    balanced_interval: dict[str, Interval]
    right: dict[str, tuple[Count, ...]]
    confusions: dict[str, tuple[Confusion, ...]]
    unlisted: dict[str, Count]


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What classifiers do to each class.

    Attributes:
        n: images of each class, in the order of `class_names`.
        uneven: the largest class has more than twice as many images as the smallest that has any, and chance does not
            explain that (Pearson's chi-squared test at 0.01).
        majority_class: the largest class.
        majority: accuracy of always answering it; the balanced accuracy of that is one over the number of classes.
        classifiers: per classifier.
        conditions: one per row, in their order.
    """

    n: tuple[Count, ...]
    uneven: bool
    majority_class: Count
    majority: Share
    classifiers: dict[str, ClassifierClasses]
    conditions: tuple[ConditionClasses, ...]

    @property
    def chance(self) -> float:
        """Balanced accuracy of always answering one class, whichever."""
        return 1 / sum(count > 0 for count in self.n)
