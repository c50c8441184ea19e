"""What classifiers said of the same rendered pixels: asked once, kept per condition, read back without inference."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from qrobust.evaluation.workers import Cluster, Processes
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import find_shift
from qrobust.shifts.rendering import render
from qrobust.storage import read_npz, save_npz
from qrobust.user_code import expect, ran

# What `within_budget` chose, in the folder of predictions.
SUBSET = "subset.json"
# Images of 224 px in single precision stay below the 32 MiB from which the C library asks for new memory each time.
BATCH = 50
# Images that other hosts answer at a time, whole batches; and the folder of what they said, beside predictions.
BLOCK_IMAGES, BLOCKS = 10 * BATCH, "blocks"
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

    def blocks(self) -> dict[int, Task]:
        """The same in blocks of images, by where each begins; a classifier sees the same batches."""
        starts = range(0, len(self.split), BLOCK_IMAGES)
        ends = {start: start + BLOCK_IMAGES for start in starts}
        return {
            start: replace(self, split=replace(self.split, indices=self.split.indices[start:end]))
            for start, end in ends.items()
        }


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
            ask = partial(answer, dict(classifiers), task.condition, task.table, seed, classes)
            ask = partial(_in_worker, code, ask) if by else ask
            for images, _ in task.split.batches(batch_size or BATCH):
                yield ask, images

    answers = by.ask(work()) if by else (ask(images) for ask, images in work())
    for classifiers, task in asked:
        parts: list[Answer] = []
        while sum(part.n for part in parts) < len(task.split):
            parts.append(next(answers))
            progress(parts[-1].n)
        yield {name: Predictions.joined([part.found[name] for part in parts]) for name in classifiers}


def _in_worker(code: Mapping[Path, str], ask: Callable[[torch.Tensor], Answer], pixels: torch.Tensor) -> Answer:
    """`answer` in another process, in which a user's files must be those that ran here."""
    expect(code)
    return ask(pixels)


@torch.no_grad()
def answer(
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


def prediction_key(digest: str, task: Task, seed: int, depends_on: tuple[object, ...]) -> str:
    """Changes with the classifier, the making of the pixels, and all else that predictions depend on."""
    made_by = find_shift(task.condition[0]).version if task.condition != CLEAN and task.table is not None else ""
    side = task.split.source.image_size
    about = (digest, task.condition, task.split.identity(), task.table, seed, side, made_by, *depends_on)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def prediction_keys(names: Iterable[str], task: Task, seed: int, cache: Cache) -> dict[str, str]:
    """`prediction_key` of each classifier."""
    return {name: prediction_key(cache.digests[name], task, seed, cache.depends_on) for name in names}


def kept_or_predicted(
    classifiers: Mapping[str, Classifier],
    tasks: Sequence[Task],
    *,
    cache: Cache | None,
    seed: int,
    by: Processes | Cluster | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> ConditionPredictions:
    """The predictions of all tasks: those kept where their key still fits, the others asked for and kept.

    A file is written whole or not at all as soon as its condition is done, so an evaluation that is killed loses at
    most the one it was at and, with processes, what they had begun of the next. Other hosts keep what they said of a
    block of images under a condition; what is there of such blocks is taken, whoever asked.

    Args:
        classifiers: by name.
        tasks: of different conditions.
        cache: where the files lie, whose arrays are described in docs/record.md; None keeps nothing.
        seed: of the rendering.
        by: processes, as for `predict_each`, or other hosts, which need a cache.
        progress: called with the number of images done.

    Raises:
        InputError: as `predict_each`, or a kept file is damaged.
    """
    keys = [prediction_keys(classifiers, task, seed, cache) if cache else {} for task in tasks]
    known = [kept(cache.predictions, t.condition, k) if cache else {} for t, k in zip(tasks, keys, strict=True)]
    missing = [{n: c for n, c in classifiers.items() if n not in found} for found in known]
    if isinstance(by, Cluster):
        assert cache is not None, "other hosts keep what they said"
        by.answer([(some, t) for some, t in zip(missing, tasks, strict=True) if some], cache, seed, progress)
        by = None
    parts = [_parts(task, some, seed, cache) if some else [] for task, some in zip(tasks, missing, strict=True)]
    asked = [
        ({name: classifiers[name] for name in some if name not in part.found}, part.task)
        for some, of_task in zip(missing, parts, strict=True)
        for part in of_task
    ]
    answers = predict_each([one for one in asked if one[0]], seed=seed, by=by, progress=progress)
    result: ConditionPredictions = {}
    for task, key, found, some, of_task in zip(tasks, keys, known, missing, parts, strict=True):
        if some:
            found |= _joined(
                some,
                [part.found | next(answers) if some.keys() - part.found.keys() else part.found for part in of_task],
            )
        else:
            progress(len(task.split))
        result[task.condition] = {name: found[name] for name in classifiers}
        if some and cache:
            keep(cache.predictions, task, key, result[task.condition])
            _drop_blocks(cache.predictions, task)
    return result


class _Part(NamedTuple):
    """Some images of a task, and what is known of them."""

    task: Task
    found: dict[str, Predictions]


def _parts(task: Task, names: Iterable[str], seed: int, cache: Cache | None) -> list[_Part]:
    """A task in blocks with what other hosts kept of it; the whole task where that is nothing."""
    if cache is None or not (cache.predictions / BLOCKS).is_dir():
        return [_Part(task, {})]
    parts = [
        _Part(
            block,
            kept(block_folder(cache.predictions, start), task.condition, prediction_keys(names, block, seed, cache)),
        )
        for start, block in task.blocks().items()
    ]
    return parts if any(part.found for part in parts) else [_Part(task, {})]


def _joined(names: Iterable[str], parts: Sequence[Mapping[str, Predictions]]) -> dict[str, Predictions]:
    """What classifiers said of all images, part by part."""
    return {name: Predictions.joined([part[name] for part in parts]) for name in names}


def block_folder(predictions: Path, start: int) -> Path:
    """Where what was said of the block of images that begins there is kept, with a file per condition."""
    return predictions / BLOCKS / str(start)


def _drop_blocks(predictions: Path, task: Task) -> None:
    """Blocks of a condition that is kept as a whole."""
    for start in task.blocks() if (predictions / BLOCKS).is_dir() else ():
        folder = block_folder(predictions, start)
        condition_file(folder, task.condition).unlink(missing_ok=True)
        with suppress(OSError):  # others lie there
            folder.rmdir()
            folder.parent.rmdir()


def kept(folder: Path, condition: Condition, keys: Mapping[str, str]) -> dict[str, Predictions]:
    """What is kept of a condition and still fits, by classifier."""
    path, found = condition_file(folder, condition), {}
    if path.exists():
        stored = read_npz(path, "predictions")
        for name, key in keys.items():
            if f"{name}.key" in stored and str(stored[f"{name}.key"]) == key:
                found[name] = Predictions(*(stored[f"{name}.{f}"] for f in FIELDS))
    return found


def keep(folder: Path, task: Task, keys: Mapping[str, str], found: Mapping[str, Predictions]) -> None:
    """Keep what was said under a condition, by classifier."""
    keep_said(folder, task.condition, task.split.labels.numpy(), task.split.indices.numpy(), keys, found)


def keep_said(
    folder: Path,
    condition: Condition,
    labels: np.ndarray,
    indices: np.ndarray,
    keys: Mapping[str, str],
    found: Mapping[str, Predictions],
) -> None:
    """As `keep`, of images with these labels `(n,)` and positions in their data set `(n,)`."""
    arrays: dict[str, np.ndarray] = {
        "shift": np.array(condition[0]),
        "severity": np.array(condition[1]),
        "label": labels,
        "index": indices,
    }
    for name, key in keys.items():
        arrays[f"{name}.key"] = np.array(key)
        arrays |= {f"{name}.{field}": getattr(found[name], field) for field in FIELDS}
    folder.mkdir(parents=True, exist_ok=True)
    save_npz(condition_file(folder, condition), arrays)


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
