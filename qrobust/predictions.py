"""What classifiers said of the same rendered pixels: asked once, kept per cell, read back without inference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from qrobust.classifier import Classifier
from qrobust.data import Split
from qrobust.errors import InputError
from qrobust.results import save_npz
from qrobust.shifts.rendering import render, to_unit

BATCH = 100
Cell = tuple[str, int]
CLEAN: Cell = ("clean", 0)


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


FIELDS = tuple(f.name for f in fields(Predictions))
CellPredictions = dict[Cell, dict[str, Predictions]]


def predict(
    classifiers: Mapping[str, Classifier],
    split: Split,
    cell: Cell,
    *,
    table: str,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Predictions]:
    """Render a cell once and ask every classifier, batch by batch.

    Args:
        classifiers: by name.
        split: images to measure on.
        cell: (shift, severity), or `("clean", 0)`.
        table: severity table.
        seed: of the rendering.
        progress: called with the number of images done.

    Raises:
        InputError: a classifier's output is not `(N, K)` finite numbers.
    """
    found: dict[str, list[Predictions]] = {name: [] for name in classifiers}
    for images, _ in split.batches(BATCH):
        pixels = images if cell == CLEAN else render(images, *cell, table=table, seed=seed)
        inputs = to_unit(pixels)
        for name, classifier in classifiers.items():
            with torch.no_grad():
                output = classifier(inputs)
            if output.ndim != 2 or len(output) != len(images) or not torch.isfinite(output).all():
                raise InputError(f"classifier {name}: expected finite logits (N, K), got {tuple(output.shape)}")
            found[name].append(_summarise(output))
        progress(len(images))
    return {
        name: Predictions(*(np.concatenate([getattr(p, field) for p in parts]) for field in FIELDS))
        for name, parts in found.items()
    }


def _summarise(logits: torch.Tensor) -> Predictions:
    top = logits.topk(2, dim=1)
    return Predictions(
        prediction=top.indices[:, 0].numpy().astype(np.int32),
        margin=(top.values[:, 0] - top.values[:, 1]).numpy(),
        confidence=logits.softmax(1).amax(1).numpy(),
    )


def prediction_key(graph: bytes, about: tuple[object, ...]) -> str:
    """Changes with the graph and with everything else that predictions depend on."""
    return hashlib.sha256(graph + repr(about).encode()).hexdigest()


def kept_or_predicted(
    folder: Path,
    cell: Cell,
    classifiers: Mapping[str, Classifier],
    split: Split,
    *,
    keys: Mapping[str, str],
    table: str,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Predictions]:
    """The predictions of a cell: those kept in the folder where their key still fits, the others asked for and kept.

    A file is written whole or not at all, so an evaluation that is killed loses at most the cell it was at.

    Args:
        folder: where the files lie; their arrays are described in docs/record.md.
        cell: as for `predict`.
        classifiers: by name.
        split: images to measure on.
        keys: per classifier, see `prediction_key`.
        table: severity table.
        seed: of the rendering.
        progress: called with the number of images done.

    Raises:
        InputError: as `predict`.
    """
    path = folder / f"{quote(cell[0], safe='')}-{cell[1]}.npz"
    kept: dict[str, Predictions] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            for name in classifiers:
                if f"{name}.key" in stored and str(stored[f"{name}.key"]) == keys[name]:
                    kept[name] = Predictions(*(stored[f"{name}.{f}"] for f in FIELDS))
    missing = {name: classifier for name, classifier in classifiers.items() if name not in kept}
    if not missing:
        progress(len(split))
        return {name: kept[name] for name in classifiers}
    kept |= predict(missing, split, cell, table=table, seed=seed, progress=progress)
    arrays: dict[str, np.ndarray] = {
        "shift": np.array(cell[0]), "severity": np.array(cell[1]), "label": split.labels.numpy(),
        "index": split.indices.numpy(),
    }  # fmt: skip
    for name in classifiers:
        arrays[f"{name}.key"] = np.array(keys[name])
        arrays |= {f"{name}.{field}": getattr(kept[name], field) for field in FIELDS}
    save_npz(path, arrays)
    return {name: kept[name] for name in classifiers}


def read_predictions(folder: Path, cells: list[Cell] | None = None) -> tuple[np.ndarray, CellPredictions]:
    """Everything a finished evaluation predicted, to recompute any figure without inference.

    Args:
        folder: `predictions` of a run or an evaluation.
        cells: only these, in this order. Default: every file, sorted by name; an evaluation with other
            `--shifts` may have left some that the record does not have.

    Returns:
        Labels `(n,)`, and predictions per cell and classifier.

    Raises:
        InputError: there are none, a file is damaged, or files are of different images.
    """
    paths = (
        sorted(folder.glob("*.npz"))
        if cells is None
        else [folder / f"{quote(shift, safe='')}-{severity}.npz" for shift, severity in cells]
    )
    labels, indices, found = None, None, CellPredictions()
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
                cell = str(arrays["shift"]), int(arrays["severity"])
                names = [key.removesuffix(".key") for key in arrays if key.endswith(".key")]
                found[cell] = {n: Predictions(*(arrays[f"{n}.{f}"] for f in FIELDS)) for n in names}
        except Exception as error:  # numpy raises a different type for each kind of damage
            raise InputError(f"predictions: cannot read {path} ({error})") from error
        if indices is not None and not np.array_equal(indices, arrays["index"]):
            raise InputError(f"predictions: {path} is of other images than {paths[0].name}")
        labels, indices = arrays["label"], arrays["index"]
    if labels is None:
        raise InputError(f"predictions: no files in {folder}; run `qrobust evaluate` first")
    return labels, found
