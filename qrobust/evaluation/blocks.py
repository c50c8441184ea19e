"""An evaluation as a list of units: a block of images under some conditions, for any process that sees the files.

What all units share, such as which graphs are asked, lies in one file; the pixels of a block in another. A unit names
both, and where the conditions begin and end that it is to ask about. Whatever is kept already is not asked again: a
unit may be begun by one process and ended by another.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qrobust.classifier import Classifier
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.kept import Condition, Predictions
from qrobust.evaluation.predictions import (
    BATCH,
    BLOCKS,
    Cache,
    Task,
    answer,
    block_folder,
    keep_said,
    kept,
    prediction_keys,
)
from qrobust.evaluation.workers import packed, unpacked
from qrobust.storage import atomic_write, read_npz, save_npz
from qrobust.user_code import expect, ran


@dataclass(frozen=True)
class Asked:
    """What of a block is asked about.

    Attributes:
        condition: that its images are rendered under.
        keys: of what the classifiers say, by name.
    """

    condition: Condition
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Block:
    """Some images of one split.

    Attributes:
        folder: where what is said of them is kept.
        pixels: file with the images.
        table: severity table; None where they are shown as they are.
        classes: how many there are.
        labels: class index per image `(n,)`.
        indices: position of each image in its data set `(n,)`.
        asked: under which conditions, in order.
    """

    folder: Path
    pixels: Path
    table: str | None
    classes: int
    labels: np.ndarray
    indices: np.ndarray
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Work:
    """Everything that units share.

    Attributes:
        classifiers: by name.
        seed: of the rendering.
        code: SHA-256 of the user's files that may run.
        blocks: of images.
    """

    classifiers: Mapping[str, Classifier]
    seed: int
    code: Mapping[Path, str]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Planned:
    """Work, and what only who plans it needs.

    Attributes:
        work: what is to be done.
        splits: the images of each block.
        known: images that are answered already, once for each condition.
    """

    work: Work
    splits: tuple[Split, ...]
    known: int


def plan(asked: Sequence[tuple[Mapping[str, Classifier], Task]], cache: Cache, seed: int) -> Planned:
    """The blocks of all tasks that are not answered yet; tasks that show the same images share theirs.

    Args:
        asked: classifiers by name, and what they are shown.
        cache: of the evaluation.
        seed: of the rendering.
    """
    folder = cache.predictions.absolute()
    found: dict[tuple[int, int], tuple[Task, list[Asked]]] = {}
    known = 0
    for classifiers, task in asked:
        for start, block in task.blocks().items():
            keys = prediction_keys(classifiers, block, seed, cache)
            if kept(block_folder(folder, start), task.condition, keys).keys() == keys.keys():
                known += len(block.split)
            else:
                found.setdefault((id(task.split), start), (block, []))[1].append(Asked(task.condition, keys))
    blocks = tuple(
        Block(
            block_folder(folder, start),
            folder / BLOCKS / f"pixels-{number}.npz",
            task.table,
            len(task.split.source.class_names),
            task.split.labels.numpy(),
            task.split.indices.numpy(),
            tuple(conditions),
        )
        for number, ((_, start), (task, conditions)) in enumerate(found.items())
    )
    every = {name: classifier for classifiers, _ in asked for name, classifier in classifiers.items()}
    return Planned(Work(every, seed, ran(), blocks), tuple(task.split for task, _ in found.values()), known)


def send(work: Work, file: Path) -> str:
    """Write work where every host sees it.

    Returns:
        SHA-256 of the file, which a unit names: no other is opened.

    Raises:
        InputError: a classifier cannot be sent.
    """
    content = packed(work)
    with atomic_write(file) as part:
        part.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def send_pixels(block: Block, split: Split) -> None:
    """Write the images of a block where every host sees them."""
    block.pixels.parent.mkdir(parents=True, exist_ok=True)
    save_npz(block.pixels, {"images": split.read(slice(None)).numpy()}, compressed=False)


def answer_unit(file: str, sha256: str, number: str, first: str, last: str) -> None:
    """Ask about a block under the conditions from the first to before the last, and keep what is said of each.

    Args:
        file: of the work.
        sha256: of that file.
        number: of the block.
        first: position of a condition.
        last: position of a condition.

    Raises:
        InputError: a file is another than it was, or a classifier does not answer as it must.
    """
    torch.set_num_threads(1)
    work = _opened(Path(file), sha256)
    block = work.blocks[int(number)]
    pixels = _pixels(block.pixels, sha256)
    expect(work.code)
    for asked in block.asked[int(first) : int(last)]:
        found = kept(block.folder, asked.condition, asked.keys)
        missing = {name: work.classifiers[name] for name in asked.keys if name not in found}
        if missing:
            parts = [
                answer(missing, asked.condition, block.table, work.seed, block.classes, images).found
                for images in pixels.split(BATCH)
            ]
            found |= {name: Predictions.joined([part[name] for part in parts]) for name in missing}
            keep_said(block.folder, asked.condition, block.labels, block.indices, asked.keys, found)


@functools.lru_cache(maxsize=1)
def _opened(file: Path, sha256: str) -> Work:
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"runner: expected {file} as it was sent, got another file")
    work = unpacked(content)
    assert isinstance(work, Work)
    return work


@functools.lru_cache(maxsize=2)
def _pixels(file: Path, _sha256: str) -> torch.Tensor:
    """Images of a block, which several units in a row may be of."""
    return torch.from_numpy(read_npz(file, "images", ("images",))["images"])
