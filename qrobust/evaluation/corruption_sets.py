"""Measure on shifted images that lie on disk: conditions of their own, with their own images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qrobust.classifier import Classifier
from qrobust.data.corruption_sets import CorruptionSet, open_corruption_set
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.predictions import (
    Cache,
    Condition,
    ConditionPredictions,
    Task,
    kept_or_predicted,
)
from qrobust.evaluation.statistics import stratified
from qrobust.evaluation.workers import Cluster, Processes
from qrobust.preprocessing import Preprocessing
from qrobust.shifts.registry import stored_folders


@dataclass(frozen=True)
class SelectedConditions:
    """What of a corruption data set is measured: some severities, and in each the same images.

    Attributes:
        name: `stored:DIR`, as it was given.
        stored: the set.
        conditions: (corruption, severity), in order.
        indices: of the images within each condition `(n,)`.
        labels: of these images, in every condition `(n,)`.
        of: how many images a condition holds.
        doubt: a sentence where its labels may be another data set's, or "".
    """

    name: str
    stored: CorruptionSet
    conditions: tuple[Condition, ...]
    indices: torch.Tensor
    labels: np.ndarray
    of: int
    doubt: str

    def split(self, condition: Condition) -> Split:
        """The images of a condition, decoded on demand.

        Raises:
            InputError: the condition's files are not what the layout says.
        """
        return Split(self.stored.images(*condition), self.indices)

    def limited(self, count: int, seed: int) -> SelectedConditions:
        """With at most so many images of each condition, each class with its share."""
        if count >= len(self.indices):
            return self
        chosen = stratified(self.labels, count, seed)
        return replace(self, indices=self.indices[torch.from_numpy(chosen)], labels=self.labels[chosen])

    @property
    def folder_name(self) -> str:
        """Where in `predictions` its conditions are kept."""
        return f"stored-{hashlib.sha256(self.name.encode(errors='backslashreplace')).hexdigest()[:12]}"


def open_sets(
    names: Sequence[str],
    *,
    severities: Sequence[int],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    test_images: int | None,
    seed: int,
) -> list[SelectedConditions]:
    """Open every `stored:DIR` among names of shifts.

    Args:
        names: of `--shifts`; others are passed over.
        severities: those wanted.
        preprocessing: how images are read, see `open_corruption_set`.
        class_names: of the classifier, in index order.
        test_images: at most so many of each condition, each class with its share; None: all.
        seed: of that choice.

    Raises:
        InputError: a folder is no corruption data set, has none of the severities, or has labels of other classes.
    """
    found = []
    for name, root in stored_folders(tuple(names)).items():
        stored = open_corruption_set(root, preprocessing=preprocessing, class_names=class_names)
        conditions = tuple(condition for condition in stored.conditions if condition[1] in severities)
        if not conditions:
            raise InputError(f"severities: expected some of those that {name} holds, got {tuple(severities)}")
        for condition in conditions if not stored.numbered else ():
            stored.images(*condition)  # one that does not hold the same images is refused before anything is measured
        labels = stored.images(*conditions[0]).labels.numpy()
        count = len(labels) if test_images is None else min(test_images, len(labels))
        indices = torch.from_numpy(stratified(labels, count, seed))
        doubt = ""
        if stored.numbered and labels.max() + 1 < len(class_names):
            doubt = f"{name}: labels end at {labels.max()}, the classifier tells {len(class_names)} classes apart"
        found.append(SelectedConditions(name, stored, conditions, indices, labels[indices], len(labels), doubt))
    return found


def stored_predictions(
    found: SelectedConditions,
    classifiers: Mapping[str, Classifier],
    *,
    cache: Cache | None,
    seed: int,
    by: Processes | Cluster | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> ConditionPredictions:
    """Ask every classifier about every condition, or take what was kept; see `kept_or_predicted`.

    Args:
        found: what to measure.
        classifiers: by name.
        cache: of the evaluation; what belongs to the set lies in a folder of its own there.
        seed: of the choice of images.
        by: processes or other hosts that ask, else this one does.
        progress: called with the number of images done.
    """
    if cache:
        own = cache.predictions / found.folder_name
        cache = replace(cache, predictions=own, depends_on=(found.name, *cache.depends_on))
    result: ConditionPredictions = {}
    together = (
        by.count if isinstance(by, Processes) else by.together() if by else 1
    )  # each holds the list of its files, and images that it decoded
    for start in range(0, len(found.conditions), together):
        tasks = [
            Task(condition, found.split(condition), None) for condition in found.conditions[start : start + together]
        ]
        result |= kept_or_predicted(classifiers, tasks, cache=cache, seed=seed, by=by, progress=progress)
    return result
