"""What classifiers said of the same rendered pixels: asked once, kept per condition, read back without inference."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qrobust.classifier import Classifier
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN, FIELDS, Condition, ConditionPredictions, Predictions, condition_file
from qrobust.evaluation.statistics import stratified
from qrobust.evaluation.workers import Processes
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import find_shift
from qrobust.shifts.rendering import render
from qrobust.storage import read_npz, save_npz
from qrobust.user_code import expect, ran

# What `within_budget` chose, in the folder of predictions.
SUBSET = "subset.json"
# Images of 224 px in single precision stay below the 32 MiB from which the C library asks for new memory each time.
BATCH = 50
# Images that a budget is judged by, the share of it that may be spent on that, and fewer than which are not worth it.
PROBE, PROBE_SHARE, LEAST = 32, 0.1, 10


class Answer(NamedTuple):
    """What classifiers said of `n` images."""

    n: int
    found: dict[str, Predictions]


@dataclass(frozen=True)
class Task:
    """Images to show to classifiers under one condition.

    Attributes:
        condition: (shift, severity), or `("clean", 0)`.
        split: the images.
        table: severity table; None where the split holds the condition's own images, and nothing is rendered.
    """

    condition: Condition
    split: Split
    table: str | None


@dataclass(frozen=True)
class Cache:
    """Where an evaluation keeps what classifiers said, so that it resumes and asks only what it does not know.

    Attributes:
        predictions: folder of predictions, with a file per condition.
        attacks: file of attack outcomes.
        digests: per classifier a text that changes with it, such as the hash of its file.
        depends_on: what else predictions depend on, beside images, shifts, seed and classifiers.
    """

    predictions: Path
    attacks: Path
    digests: Mapping[str, str]
    depends_on: tuple[object, ...] = ()


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
    """Render a condition once and ask every classifier, batch by batch; see `predict_each`."""
    return next(predict_each([(classifiers, Task(condition, split, table))], seed=seed, by=by, progress=progress))


def predict_each(
    asked: Sequence[tuple[Mapping[str, Classifier], Task]],
    *,
    seed: int,
    by: Processes | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Iterator[dict[str, Predictions]]:
    """Show images to classifiers, task by task; processes go on with the next task while others end the last.

    Args:
        asked: classifiers by name, and what they are shown.
        seed: of the rendering.
        by: processes that render and ask, classifiers being pickled; else this one does.
        batch_size: images that a classifier sees at a time. Default: `BATCH`.
        progress: called with the number of images done.

    Yields:
        Predictions by classifier, for each task.

    Raises:
        InputError: a classifier's output is not `(N, K)` finite numbers.
    """

    code = ran()

    def work() -> Iterator[tuple[Callable[[torch.Tensor], Answer], torch.Tensor]]:
        for classifiers, task in asked:
            classes = len(task.split.source.class_names)
            answer = partial(_answer, dict(classifiers), task.condition, task.table, seed, classes)
            answer = partial(_in_worker, code, answer) if by else answer
            for images, _ in task.split.batches(batch_size or BATCH):
                yield answer, images

    answers = by.ask(work()) if by else (answer(images) for answer, images in work())
    for classifiers, task in asked:
        parts: list[Answer] = []
        while sum(part.n for part in parts) < len(task.split):
            parts.append(next(answers))
            progress(parts[-1].n)
        yield {name: Predictions.joined([part.found[name] for part in parts]) for name in classifiers}


def _in_worker(code: Mapping[Path, str], answer: Callable[[torch.Tensor], Answer], pixels: torch.Tensor) -> Answer:
    """`_answer` in another process, in which a user's files must be those that ran here."""
    expect(code)
    return answer(pixels)


@torch.no_grad()
def _answer(
    classifiers: Mapping[str, Classifier],
    condition: Condition,
    table: str | None,
    seed: int,
    classes: int,
    pixels: torch.Tensor,
) -> Answer:
    """What classifiers say of a batch, rendered first unless it holds the condition's own images."""
    shown = pixels if condition == CLEAN or table is None else render(pixels, *condition, table=table, seed=seed)
    inputs = to_unit(shown)
    found = {
        name: _summarise(_checked(name, classifier(inputs), len(shown), classes))
        for name, classifier in classifiers.items()
    }
    return Answer(len(shown), found)


def _checked(name: str, logits: torch.Tensor, n: int, classes: int) -> torch.Tensor:
    """Logits `(n, K)` on the CPU, in single precision or better.

    Raises:
        InputError: they are none.
    """
    least = max(2, classes)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < least:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"classifiers: expected logits ({n}, K) of K >= {least} classes from {name}, got {got}")
    logits = logits.detach().to("cpu", torch.promote_types(logits.dtype, torch.float32))
    wrong = int((~torch.isfinite(logits)).any(1).sum())
    if wrong:
        raise InputError(
            f"classifiers: expected finite logits from {name}, got NaN or infinity for {wrong} of {n} images"
        )
    return logits


def _summarise(logits: torch.Tensor) -> Predictions:
    top = logits.topk(2, dim=1)
    return Predictions(
        prediction=top.indices[:, 0].numpy().astype(np.int32),
        margin=(top.values[:, 0] - top.values[:, 1]).numpy(),
        confidence=logits.softmax(1).amax(1).numpy(),
    )


def _key(digest: str, task: Task, seed: int, depends_on: tuple[object, ...]) -> str:
    """Changes with the classifier, the making of the pixels, and all else that predictions depend on."""
    made_by = find_shift(task.condition[0]).version if task.condition != CLEAN and task.table is not None else ""
    side = task.split.source.image_size
    about = (digest, task.condition, task.split.identity(), task.table, seed, side, made_by, *depends_on)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def kept_or_predicted(
    classifiers: Mapping[str, Classifier],
    tasks: Sequence[Task],
    *,
    cache: Cache | None,
    seed: int,
    by: Processes | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> ConditionPredictions:
    """The predictions of all tasks: those kept where their key still fits, the others asked for and kept.

    A file is written whole or not at all as soon as its condition is done, so an evaluation that is killed loses at
    most the one it was at and, with processes, what they had begun of the next.

    Args:
        classifiers: by name.
        tasks: of different conditions.
        cache: where the files lie, whose arrays are described in docs/record.md; None keeps nothing.
        seed: of the rendering.
        by: as for `predict_each`.
        progress: called with the number of images done.

    Raises:
        InputError: as `predict_each`, or a kept file is damaged.
    """
    keys = [
        {name: _key(cache.digests[name], task, seed, cache.depends_on) if cache else "" for name in classifiers}
        for task in tasks
    ]
    known = [_kept(cache.predictions, t, k) if cache else {} for t, k in zip(tasks, keys, strict=True)]
    missing = [{n: c for n, c in classifiers.items() if n not in found} for found in known]
    asked = [(some, task) for some, task in zip(missing, tasks, strict=True) if some]
    answers = predict_each(asked, seed=seed, by=by, progress=progress)
    result: ConditionPredictions = {}
    for task, key, found, some in zip(tasks, keys, known, missing, strict=True):
        if some:
            found |= next(answers)
        else:
            progress(len(task.split))
        result[task.condition] = {name: found[name] for name in classifiers}
        if some and cache:
            _keep(cache.predictions, task, key, result[task.condition])
    return result


def _kept(folder: Path, task: Task, keys: Mapping[str, str]) -> dict[str, Predictions]:
    """What is kept of a condition and still fits."""
    path, kept = condition_file(folder, task.condition), {}
    if path.exists():
        stored = read_npz(path, "predictions")
        for name, key in keys.items():
            if f"{name}.key" in stored and str(stored[f"{name}.key"]) == key:
                kept[name] = Predictions(*(stored[f"{name}.{f}"] for f in FIELDS))
    return kept


def _keep(folder: Path, task: Task, keys: Mapping[str, str], found: Mapping[str, Predictions]) -> None:
    arrays: dict[str, np.ndarray] = {
        "shift": np.array(task.condition[0]),
        "severity": np.array(task.condition[1]),
        "label": task.split.labels.numpy(),
        "index": task.split.indices.numpy(),
    }
    for name, key in keys.items():
        arrays[f"{name}.key"] = np.array(key)
        arrays |= {f"{name}.{field}": getattr(found[name], field) for field in FIELDS}
    folder.mkdir(parents=True, exist_ok=True)
    save_npz(condition_file(folder, task.condition), arrays)


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

    The first conditions are measured on a few images; what that took is taken for the rest.

    Args:
        kept: what an earlier call returned, so that an evaluation that goes on, or is repeated with another graph,
            uses the same images; empty for the first.
        split: images to choose from.
        conditions: what each image will be measured in.
        classifiers: by name.
        seconds: the budget.
        table: severity table.
        seed: of the choice and of the rendering.
        also: further conditions, of as many images, which are taken to cost as much.
        by: as for `predict`.
        clock: seconds now.

    Returns:
        The images, and what to keep.

    Raises:
        InputError: not even ten images fit (or all, of fewer).
    """
    about = {
        "seconds": seconds,
        "conditions": [list(c) for c in conditions],
        "also": also,
        "fingerprint": split.fingerprint(),
        "table": table,
    }

    def ask(images: Split, condition: Condition) -> None:
        """A share of the images for each process."""
        size = -(-len(images) // (by.count if by else 1))
        next(predict_each([(classifiers, Task(condition, images, table))], seed=seed, by=by, batch_size=size))

    count = kept.get("n")
    if {key: kept.get(key) for key in about} != about or not (isinstance(count, int) and 0 < count <= len(split)):
        started, probe = clock(), split.first(PROBE)
        # Processes start and sessions are slow at first: once, whatever the number of images.
        ask(split.first(BATCH), CLEAN)
        begun, tried, done = clock(), 0.0, 0
        while done < len(conditions) and tried <= PROBE_SHARE * seconds:
            ask(probe, conditions[done])
            tried, done = clock() - begun, done + 1
        per_image = tried / (done * len(probe)) * (len(conditions) + also)
        spent = clock() - started
        count = min(len(split), int((seconds - spent) / per_image))
        if count < min(LEAST, len(split)):
            raise InputError(
                f"budget: {seconds:g} s are too short for {LEAST} images in {len(conditions) + also} conditions, "
                f"expected at least {math.ceil(spent + LEAST * per_image)} s"
            )
    positions = stratified(split.labels.numpy(), count, seed)
    return replace(split, indices=split.indices[torch.from_numpy(positions)]), about | {"n": count}
