"""Predictions as they are kept: what a finished evaluation leaves, read back without inference and without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

import numpy as np

from qrobust.errors import InputError
from qrobust.storage import read_npz

LONGEST_NAME = 200
Condition = tuple[str, int]
CLEAN: Condition = ("clean", 0)


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

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """What was said of all images, batch by batch."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


FIELDS = tuple(f.name for f in fields(Predictions))
ConditionPredictions = dict[Condition, dict[str, Predictions]]


def condition_file(folder: Path, condition: Condition) -> Path:
    """Where the predictions of a cell are kept; the path of a user's function may be longer than a file's name."""
    name = quote(condition[0], safe="", errors="surrogatepass")
    if len(name) > LONGEST_NAME:
        name = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{name[-LONGEST_NAME:]}"
    return folder / f"{name}-{condition[1]}.npz"


@dataclass(frozen=True)
class Kept:
    """What a finished evaluation left of its images.

    Attributes:
        labels: class index per image `(n,)`.
        indices: position of each image in its data set `(n,)`.
        predictions: per condition and classifier.
    """

    labels: np.ndarray
    indices: np.ndarray
    predictions: ConditionPredictions


def read_kept(folder: Path, conditions: Sequence[Condition] | None = None) -> Kept:
    """Everything a finished evaluation predicted, to recompute any figure without inference.

    Args:
        folder: `predictions` of a run or an evaluation.
        conditions: only these, in this order. Default: every file, sorted by name; an evaluation with other
            `--shifts` may have left some that the record does not have.

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
    if labels is None or indices is None:
        raise InputError(f"predictions: no files in {folder}; run `qrobust evaluate` first")
    return Kept(labels, indices, found)


def read_predictions(
    folder: Path, conditions: Sequence[Condition] | None = None
) -> tuple[np.ndarray, ConditionPredictions]:
    """Labels `(n,)`, and predictions per condition and classifier; see `read_kept`."""
    kept = read_kept(folder, conditions)
    return kept.labels, kept.predictions
