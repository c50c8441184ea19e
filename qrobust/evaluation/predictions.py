"""What classifiers said of the same rendered pixels: asked once, kept per cell, read back without inference."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import torch

from qrobust.classifier import Classifier
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.statistics import stratified
from qrobust.evaluation.workers import Processes
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import find_shift
from qrobust.shifts.rendering import render
from qrobust.storage import read_npz, save_npz
from qrobust.user_code import expect, ran

# What `within_budget` chose, in the folder of predictions.
SUBSET = "subset.json"
BATCH = 100
LONGEST_NAME = 200
Condition = tuple[str, int]
CLEAN: Condition = ("clean", 0)
# Images that a budget is judged by, the share of it that may be spent on that, and fewer than which are not worth it.
PROBE, PROBE_SHARE, LEAST = 32, 0.1, 10


@dataclass(frozen=True)
class Predictions:
    """What one classifier said of `n` images, in the order of the split.

    Attributes:
        prediction: class index `(n,)`.
        margin: largest logit minus the second `(n,)`.
        confidence: largest softmax probability `(n,)`.
    """

    prediction: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray

    def first(self, count: int) -> Predictions:
        """What was said of the first so many images."""
        return Predictions(self.prediction[:count], self.margin[:count], self.confidence[:count])


FIELDS = tuple(f.name for f in fields(Predictions))
ConditionPredictions = dict[Condition, dict[str, Predictions]]


class Answer(NamedTuple):
    """What classifiers said of `n` images."""

    n: int
    found: dict[str, Predictions]


def predict(
    classifiers: Mapping[str, Classifier],
    split: Split,
    condition: Condition,
    *,
    table: str | None,
    seed: int,
    by: Processes | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Predictions]:
    """Render a cell once and ask every classifier, batch by batch.

    Args:
        classifiers: by name.
        split: images to measure on.
        condition: (shift, severity), or `("clean", 0)`.
        table: severity table; None where the split holds the cell's own images, and nothing is rendered.
        seed: of the rendering.
        by: processes that render and ask, classifiers being pickled; else this one does.
        progress: called with the number of images done.

    Raises:
        InputError: a classifier's output is not `(N, K)` finite numbers.
    """
    answer = partial(_answer, dict(classifiers), condition, table, seed)
    batches = (images for images, _ in split.batches(BATCH))
    found: dict[str, list[Predictions]] = {name: [] for name in classifiers}
    task = partial(_in_worker, ran(), answer)
    for parts in by.ask(batches, task) if by else ([answer(images)] for images in batches):
        for part in parts:
            for name, of_one in part.found.items():
                found[name].append(of_one)
        progress(sum(part.n for part in parts))
    return {
        name: Predictions(*(np.concatenate([getattr(p, field) for p in parts]) for field in FIELDS))
        for name, parts in found.items()
    }


def _in_worker(code: Mapping[Path, str], answer: Callable[[torch.Tensor], Answer], pixels: torch.Tensor) -> Answer:
    """`_answer` in another process, in which a user's files must be those that ran here."""
    expect(code)
    return answer(pixels)


@torch.no_grad()
def _answer(
    classifiers: Mapping[str, Classifier], condition: Condition, table: str | None, seed: int, pixels: torch.Tensor
) -> Answer:
    """What classifiers say of a batch, rendered first unless it holds the cell's own images."""
    shown = pixels if condition == CLEAN or table is None else render(pixels, *condition, table=table, seed=seed)
    inputs, found = to_unit(shown), {}
    for name, classifier in classifiers.items():
        output = classifier(inputs)
        if output.ndim != 2 or len(output) != len(shown) or not torch.isfinite(output).all():
            raise InputError(f"classifier {name}: expected finite logits (N, K), got {tuple(output.shape)}")
        found[name] = _summarise(output)
    return Answer(len(shown), found)


def _summarise(logits: torch.Tensor) -> Predictions:
    top = logits.topk(2, dim=1)
    return Predictions(
        prediction=top.indices[:, 0].numpy().astype(np.int32),
        margin=(top.values[:, 0] - top.values[:, 1]).numpy(),
        confidence=logits.softmax(1).amax(1).numpy(),
    )


def prediction_key(graph: bytes, condition: Condition, about: tuple[object, ...]) -> str:
    """Changes with the graph, the making of the pixels, and all else that predictions depend on."""
    made_by = find_shift(condition[0]).version if condition != CLEAN else ""
    return hashlib.sha256(graph + repr((*about, made_by) if made_by else about).encode()).hexdigest()


def condition_file(folder: Path, condition: Condition) -> Path:
    """Where the predictions of a cell are kept; the path of a user's function may be longer than a file's name."""
    name = quote(condition[0], safe="", errors="surrogatepass")
    if len(name) > LONGEST_NAME:
        name = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{name[-LONGEST_NAME:]}"
    return folder / f"{name}-{condition[1]}.npz"


def kept_or_predicted(
    folder: Path,
    condition: Condition,
    classifiers: Mapping[str, Classifier],
    split: Split,
    *,
    keys: Mapping[str, str],
    table: str | None,
    seed: int,
    by: Processes | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Predictions]:
    """The predictions of a cell: those kept in the folder where their key still fits, the others asked for and kept.

    A file is written whole or not at all, so an evaluation that is killed loses at most the cell it was at.

    Args:
        folder: where the files lie; their arrays are described in docs/record.md.
        condition: as for `predict`.
        classifiers: by name.
        split: images to measure on.
        keys: per classifier, see `prediction_key`.
        table: severity table; None where the split holds the cell's own images, and nothing is rendered.
        seed: of the rendering.
        by: processes that render and ask, classifiers being pickled; else this one does.
        progress: called with the number of images done.

    Raises:
        InputError: as `predict`, or the kept file is damaged.
    """
    path = condition_file(folder, condition)
    kept: dict[str, Predictions] = {}
    if path.exists():
        stored = read_npz(path, "predictions")
        for name in classifiers:
            if f"{name}.key" in stored and str(stored[f"{name}.key"]) == keys[name]:
                kept[name] = Predictions(*(stored[f"{name}.{f}"] for f in FIELDS))
    missing = {name: classifier for name, classifier in classifiers.items() if name not in kept}
    if not missing:
        progress(len(split))
        return {name: kept[name] for name in classifiers}
    kept |= predict(missing, split, condition, table=table, seed=seed, by=by, progress=progress)
    arrays: dict[str, np.ndarray] = {
        "shift": np.array(condition[0]),
        "severity": np.array(condition[1]),
        "label": split.labels.numpy(),
        "index": split.indices.numpy(),
    }
    for name in classifiers:
        arrays[f"{name}.key"] = np.array(keys[name])
        arrays |= {f"{name}.{field}": getattr(kept[name], field) for field in FIELDS}
    save_npz(path, arrays)
    return {name: kept[name] for name in classifiers}


def read_predictions(
    folder: Path, conditions: list[Condition] | None = None
) -> tuple[np.ndarray, ConditionPredictions]:
    """Everything a finished evaluation predicted, to recompute any figure without inference.

    Args:
        folder: `predictions` of a run or an evaluation.
        conditions: only these, in this order. Default: every file, sorted by name; an evaluation with other
            `--shifts` may have left some that the record does not have.

    Returns:
        Labels `(n,)`, and predictions per cell and classifier.

    Raises:
        InputError: there are none, a file is damaged, or files are of different images.
    """
    paths = (
        sorted(folder.glob("*.npz"))
        if conditions is None
        else [condition_file(folder, condition) for condition in conditions]
    )
    labels, indices, found = None, None, ConditionPredictions()
    for path in paths:
        arrays = read_npz(path, "predictions", ("shift", "severity", "label", "index"))
        condition = str(arrays["shift"]), int(arrays["severity"])
        names = [key.removesuffix(".key") for key in arrays if key.endswith(".key")]
        found[condition] = {n: Predictions(*(arrays[f"{n}.{f}"] for f in FIELDS)) for n in names}
        if indices is not None and not np.array_equal(indices, arrays["index"]):
            raise InputError(f"predictions: {path} is of other images than {paths[0].name}")
        labels, indices = arrays["label"], arrays["index"]
    if labels is None:
        raise InputError(f"predictions: no files in {folder}; run `qrobust evaluate` first")
    return labels, found


def within_budget(
    kept: Mapping[str, object],
    split: Split,
    conditions: Sequence[Condition],
    classifiers: Mapping[str, Classifier],
    *,
    seconds: float,
    table: str,
    seed: int,
    also: int = 0,
    by: Processes | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Split, dict[str, object]]:
    """As many images as can be measured in that time, each class with its share; all where time allows.

    The first cells are measured on a few images; what that took is taken for the rest.

    Args:
        kept: what an earlier call returned, so that an evaluation that goes on, or is repeated with another graph,
            uses the same images; empty for the first.
        split: images to choose from.
        conditions: what each image will be measured in.
        classifiers: by name.
        seconds: the budget.
        table: severity table.
        seed: of the choice and of the rendering.
        also: further cells, of as many images, which are taken to cost as much.
        by: as for `predict`.
        clock: seconds now.

    Returns:
        The images, and what to keep.

    Raises:
        InputError: not even ten images fit (or all, of fewer).
    """
    about = {
        "seconds": seconds,
        "cells": [list(c) for c in conditions],
        "also": also,
        "fingerprint": split.fingerprint(),
        "table": table,
    }
    count = kept.get("n")
    if {key: kept.get(key) for key in about} != about or not (isinstance(count, int) and 0 < count <= len(split)):
        started, probe = clock(), split.first(PROBE)
        # Processes start and sessions are slow at first: once, whatever the number of images.
        predict(classifiers, split.first(BATCH), CLEAN, table=table, seed=seed, by=by)
        begun, tried, done = clock(), 0.0, 0
        while done < len(conditions) and tried <= PROBE_SHARE * seconds:
            predict(classifiers, probe, conditions[done], table=table, seed=seed, by=by)
            tried, done = clock() - begun, done + 1
        per_image = tried / (done * len(probe)) * (len(conditions) + also)
        spent = clock() - started
        count = min(len(split), int((seconds - spent) / per_image))
        if count < min(LEAST, len(split)):
            raise InputError(
                f"budget: {seconds:g} s are too short for {LEAST} images in {len(conditions) + also} cells, "
                f"expected at least {math.ceil(spent + LEAST * per_image)} s"
            )
    positions = stratified(split.labels.numpy(), count, seed)
    return replace(split, indices=split.indices[torch.from_numpy(positions)]), about | {"n": count}
