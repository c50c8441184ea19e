"""The measure that decides: accuracy, balanced accuracy or the recall of a class, all weighted means over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrobust.errors import InputError, unknown
from qrobust.evaluation import config
from qrobust.evaluation.config import EvaluationConfig
from qrobust.evaluation.statistics import even_counts, paired_bootstrap, stratified_interval

# Classes are uneven where the largest has more than so many times the images of the smallest.
UNEVEN = 2
# A test set of few images drawn from even classes is not: the p-value below which that is no chance any more.
CHANCE = 0.01


@dataclass(frozen=True)
class Primary:
    """What remedies and recipes are chosen by.

    Attributes:
        name: `accuracy`, `balanced` or `recall:CLASS`.
        class_index: of that class; None for the others.
    """

    name: str = config.ACCURACY
    class_index: int | None = None

    @property
    def is_accuracy(self) -> bool:
        """Whether every image weighs the same."""
        return self.name == config.ACCURACY

    @property
    def told(self) -> str:
        """The measure in words."""
        return "balanced accuracy" if self.name == config.BALANCED else self.name

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """What each image counts `(n,)`; sums to 1.

        Args:
            labels: `(n,)`.

        Raises:
            InputError: no image is of the class whose recall is the measure.
        """
        if self.class_index is not None:
            own = self._own(labels)
            return own / own.sum()
        if self.is_accuracy:
            return np.full(len(labels), 1 / len(labels))
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        balanced: np.ndarray = 1 / (len(counts) * counts[index])
        return balanced

    def images(self, labels: np.ndarray) -> float:
        """How many images of equal weight tell as much: what a standard error is made of.

        All of them for accuracy, those of its class for a recall; for balanced accuracy K^2 / sum(1 / n_k) of K
        classes, which is all of them where classes are even (Kish, "Survey Sampling", 1965).

        Args:
            labels: `(n,)`.

        Raises:
            InputError: as for `weights`.
        """
        return float(1 / np.square(self.weights(labels)).sum())

    def value(self, right: np.ndarray, labels: np.ndarray) -> float:
        """The measure, a fraction.

        Args:
            right: per image `(n,)`, whether or how often a classifier is right, in [0, 1].
            labels: `(n,)`.

        Raises:
            InputError: as for `weights`.
        """
        if self.is_accuracy:
            return float(right.mean())
        if self.class_index is not None:
            return float(right[self._own(labels)].mean())
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return float((np.bincount(index, right) / counts).mean())

    def _own(self, labels: np.ndarray) -> np.ndarray:
        own: np.ndarray = labels == self.class_index
        if not own.any():
            raise InputError(f"primary: expected images of the class of {self.name}, got none among {len(labels)}")
        return own

    def difference(
        self, after: np.ndarray, before: np.ndarray, labels: np.ndarray, seed: int
    ) -> tuple[float, tuple[float, float]]:
        """The measure of one classifier minus that of another, in percentage points, and its interval at 95 %.

        A paired bootstrap over images for accuracy; else from the standard errors within classes.

        Args:
            after: as `right` of `value`, of the one.
            before: of the other, on the same images.
            labels: `(n,)`.
            seed: of the bootstrap.
        """
        per_image = 100.0 * (after.astype(np.float64) - before.astype(np.float64))
        weights = self.weights(labels)
        if self.is_accuracy:
            return float(per_image.mean()), paired_bootstrap(per_image, seed)
        return float(weights @ per_image), stratified_interval(per_image, weights, labels)


ACCURACY = Primary()


def is_uneven(counts: np.ndarray) -> bool:
    """Whether the largest class has more than twice as many images as the smallest that has any, and not by chance.

    Args:
        counts: images of each class `(classes,)`.
    """
    there = counts[counts > 0]
    return bool(there.size and there.max() > UNEVEN * there.min() and even_counts(there) < CHANCE)


def find_primary(text: str, class_names: Sequence[str], labels: np.ndarray) -> Primary:
    """The measure of a name; `auto` is balanced accuracy where classes are uneven, else accuracy.

    Args:
        text: `auto`, `accuracy`, `balanced` or `recall:CLASS`.
        class_names: in index order.
        labels: of the images that are chosen by `(n,)`.

    Raises:
        InputError: there is no such measure or class, or no image of that class.
    """
    EvaluationConfig(primary=text)
    if text == config.AUTO:
        counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
        return Primary(config.BALANCED) if is_uneven(counts) else ACCURACY
    if not text.startswith(config.RECALL):
        return Primary(text)
    wanted = text.removeprefix(config.RECALL)
    if wanted not in class_names:
        raise unknown(f"primary: {config.RECALL}CLASS", wanted, class_names)
    index = list(class_names).index(wanted)
    if not (labels == index).any():
        raise InputError(f"primary: expected a class that has images to choose by, got {wanted}, which has none")
    return Primary(text, index)
