"""Measure classifiers on the same images: clean, under shifts, on corruption data sets and under attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qrobust.classifier import Classifier
from qrobust.data.own_images import as_split
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.attack_plan import Graph
from qrobust.evaluation.attack_summary import NOTHING, attacked
from qrobust.evaluation.corruption_sets import SelectedConditions, stored_predictions
from qrobust.evaluation.predictions import (
    CLEAN,
    SUBSET,
    Cache,
    Condition,
    ConditionPredictions,
    Task,
    kept_or_predicted,
    within_budget,
)
from qrobust.evaluation.workers import Cluster, Processes, Workers, check_workers, processes
from qrobust.progress import Bar, Reporter
from qrobust.record import Attacks
from qrobust.shifts.registry import defined_conditions, table_for
from qrobust.storage import read_json, write_json

MakeBar = Callable[[str, int], AbstractContextManager[Bar]]
SILENT: MakeBar = Reporter().bar


@dataclass(frozen=True)
class CorruptionSetResult:
    """What classifiers said of a corruption data set, whose images are its own.

    Attributes:
        name: `stored:DIR`, as it was given.
        folder_name: where in the folder of predictions they are kept.
        predictions: per condition and classifier.
        labels: `(n,)`, the same in every condition.
        of: how many images each condition holds.
    """

    name: str
    folder_name: str
    predictions: ConditionPredictions
    labels: np.ndarray
    of: int


@dataclass(frozen=True)
class Evaluation:
    """What classifiers said, from which `evaluation.summary` makes rows and headline.

    Attributes:
        predictions: per condition, the clean images first, and classifier.
        labels: of the images `(n,)`; -1 where there are none.
        indices: of the images in their source `(n,)`.
        of: how many images there were to choose these n from.
        class_names: in index order.
        severity_table: that was rendered with.
        seed: of the rendering.
        corruption_sets: a result for each.
        attacks: the record's `attacks`.
    """

    predictions: ConditionPredictions = field(repr=False)
    labels: np.ndarray = field(repr=False)
    indices: np.ndarray = field(repr=False)
    of: int
    class_names: tuple[str, ...]
    severity_table: str
    seed: int
    corruption_sets: tuple[CorruptionSetResult, ...]
    attacks: Attacks

    def accuracy(self, classifier: str, condition: Condition = CLEAN) -> float:
        """The share of images that a classifier gets right under a condition."""
        return float((self.predictions[condition][classifier].prediction == self.labels).mean())


def evaluate(
    classifiers: Mapping[str, Classifier],
    split: Any,
    conditions: Sequence[Condition],
    *,
    attacks: AttackConfig | None = None,
    differentiable: Mapping[str, Classifier] | None = None,
    corruption_sets: Sequence[SelectedConditions] = (),
    cache: Cache | None = None,
    workers: Workers = 1,
    budget: float | None = None,
    seed: int = 0,
    severity_table: str = "auto",
    progress: MakeBar = SILENT,
) -> Evaluation:
    """Show classifiers the same pixels: clean, under each condition, of corruption data sets, under attack.

    An image is rendered once and shown to all. Pixels depend on it, the condition and the seed alone, and classifiers
    see the same batches whatever the number of workers.

    Args:
        classifiers: by name; each maps images `(N, C, S, S)` in [0, 1] to logits `(N, K)`.
        split: the images: a `Split`, `(images, labels)` in uint8, or a torch data set; see `as_split`.
        conditions: (shift, severity) pairs; clean images are measured in any case.
        attacks: what is tried on the first images; None: nothing.
        differentiable: the classifiers that are attacked, and the torch classifier that each one's gradient is of.
            Default: all, a torch module's gradient being its own; where one is none, searches without gradient.
        corruption_sets: shifted images on disk, see `open_sets`.
        cache: where predictions are kept and looked for. None: nowhere.
        workers: how many processes render and classify, with sessions of one thread each, or those processes;
            classifiers are pickled. Other hosts need a cache, and take no budget.
        budget: seconds for all conditions, by which a subset of the images is chosen; attacks come on top.
        seed: of rendering, subset and attacks.
        severity_table: `imagenet-c`, `cifar-c`, or `auto`, which goes by the size of the images.
        progress: makes a progress bar of a label and a length.

    Raises:
        InputError: names the argument that is not as it must be.
    """
    split = as_split(split)
    table = table_for(split.source.image_size) if severity_table == "auto" else severity_table
    wanted = _checked_conditions(conditions, table)
    _check_classifiers(classifiers, cache)
    check_workers(workers, budget)
    chosen, sets = split, list(corruption_sets)
    with processes(workers) as by:
        if budget is not None and not isinstance(by, Cluster):
            chosen = _within(budget, split, wanted, classifiers, cache, table=table, seed=seed, sets=sets, by=by)
            sets = [found.limited(len(chosen), seed) for found in sets]
        tasks = [Task(condition, chosen, table) for condition in wanted]
        with progress("measure", len(wanted) * len(chosen)) as bar:
            predictions = kept_or_predicted(
                classifiers, tasks, cache=cache, seed=seed, by=by, progress=lambda n: bar.update(n)
            )
        results = tuple(_of_set(found, classifiers, cache, seed, by, progress) for found in sets)
    return Evaluation(
        predictions,
        chosen.labels.numpy(),
        chosen.indices.numpy(),
        len(split),
        split.source.class_names,
        table,
        seed,
        results,
        _attacked(classifiers, differentiable, split, attacks, cache, seed, progress),
    )


def _checked_conditions(conditions: Sequence[Condition], table: str) -> list[Condition]:
    """The conditions, each once, after `CLEAN`.

    Raises:
        InputError: one is no pair, or is not defined.
    """
    defined_conditions((), (), table)  # refuses a table that does not exist
    wanted = [CLEAN]
    for given in conditions:
        if not (isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], str)):
            raise InputError(f'conditions: expected pairs such as ("fog", 3), got {given!r}')
        name, severity = given
        if (name, severity) == CLEAN:
            continue
        try:
            found = defined_conditions((name,), (severity,), table)
        except InputError as error:
            raise InputError(f"conditions: {error}") from error
        if not found:
            raise InputError(f"conditions: expected a severity that is defined for {name}, got {severity!r}")
        wanted += found
    return list(dict.fromkeys(wanted))


def _check_classifiers(classifiers: Mapping[str, Classifier], cache: Cache | None) -> None:
    if not classifiers:
        raise InputError("classifiers: expected at least 1, got none")
    for name, classifier in classifiers.items():
        if not callable(classifier):
            raise InputError(f"classifiers: expected a callable for {name}, got {type(classifier).__name__}")
        if isinstance(classifier, nn.Module) and classifier.training:
            raise InputError(f"classifiers: expected {name} in evaluation mode, got training mode; call its eval()")
        if cache and name not in cache.digests:
            raise InputError(f"cache: expected a digest of each classifier, got none of {name}")


def _within(
    seconds: float,
    split: Split,
    conditions: Sequence[Condition],
    classifiers: Mapping[str, Classifier],
    cache: Cache | None,
    *,
    table: str,
    seed: int,
    sets: Sequence[SelectedConditions],
    by: Processes | None,
) -> Split:
    """As many images as fit in the budget, the same ones as before where that is kept."""
    path = cache.predictions / SUBSET if cache else None
    chosen, kept = within_budget(
        read_json(path) if path and path.exists() else {},
        split,
        conditions,
        classifiers,
        seconds=seconds,
        table=table,
        seed=seed,
        also=sum(len(found.conditions) for found in sets),
        by=by,
    )
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return chosen


def _of_set(
    found: SelectedConditions,
    classifiers: Mapping[str, Classifier],
    cache: Cache | None,
    seed: int,
    by: Processes | Cluster | None,
    progress: MakeBar,
) -> CorruptionSetResult:
    with progress(f"measure {found.name}", len(found.conditions) * len(found.indices)) as bar:
        predictions = stored_predictions(
            found, classifiers, cache=cache, seed=seed, by=by, progress=lambda n: bar.update(n)
        )
    return CorruptionSetResult(found.name, found.folder_name, predictions, found.labels, found.of)


def _attacked(
    classifiers: Mapping[str, Classifier],
    differentiable: Mapping[str, Classifier] | None,
    split: Split,
    choices: AttackConfig | None,
    cache: Cache | None,
    seed: int,
    progress: MakeBar,
) -> Attacks:
    """The figures of attacks on the first images of the whole split, whatever the budget."""
    if choices is None:
        return NOTHING
    if differentiable is None:
        followed: dict[str, Classifier | None] = {
            name: c if isinstance(c, nn.Module) else None for name, c in classifiers.items()
        }
    else:
        followed = dict(differentiable)
    strangers = [name for name in followed if name not in classifiers]
    if strangers:
        raise InputError(f"differentiable: expected names of classifiers, got {', '.join(strangers)}")
    graphs = {
        name: Graph(gradient, classifiers[name], cache.digests[name] if cache else "")
        for name, gradient in followed.items()
    }
    path: Path | None = cache.attacks if cache else None
    about = cache.depends_on if cache else ()
    return attacked(path, graphs, split, choices, seed=seed, about=about, bar=progress)
