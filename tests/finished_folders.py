"""Folders of finished evaluations, made of predictions that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qrobust.evaluation.kept import CLEAN, Condition, ConditionPredictions, Predictions, condition_file
from qrobust.evaluation.summary import comparison_rows, drops, overview
from qrobust.record import STATISTICS, Attacks, EvaluationRecord, EvaluationSummary, ModelFile, hardware, taken
from qrobust.storage import save_npz, write_json

CLASSES = ("cat", "dog")


def evaluation_folder(
    path: Path,
    predicted: Mapping[Condition, Mapping[str, Sequence[int]]],
    labels: Sequence[int],
    *,
    first_index: int = 0,
    listing: str | None = "1f2e",
    table: str = "cifar-c",
    class_names: tuple[str, ...] = CLASSES,
) -> Path:
    """What `qrobust evaluate-onnx` leaves, for classifiers that predicted this.

    Args:
        path: the folder, which is made.
        predicted: class index per image, by condition and classifier; `CLEAN` among them.
        labels: class index per image.
        first_index: position of the first image in its data set; the others follow.
        listing: hash of the images that the data holds.
        table: severity table.
        class_names: in index order.
    """
    right = np.array(labels)
    indices = np.arange(first_index, first_index + len(right))
    predictions: ConditionPredictions = {
        condition: {name: _sure(classes) for name, classes in of.items()} for condition, of in predicted.items()
    }
    (path / "predictions").mkdir(parents=True)
    for condition, of in predictions.items():
        shift, severity = map(np.array, condition)
        arrays = {"shift": shift, "severity": severity, "label": right, "index": indices}
        for name, found in of.items():
            arrays |= {f"{name}.{field}": values for field, values in vars(found).items()}
            arrays[f"{name}.key"] = np.array("")
        save_npz(condition_file(path / "predictions", condition), arrays)
    write_json(path / "record.json", _record(predictions, right, listing, table, class_names).to_json())
    return path


def _sure(classes: Sequence[int]) -> Predictions:
    ones = np.ones(len(classes), np.float32)
    return Predictions(np.array(classes, np.int32), ones, ones)


def _record(
    predictions: ConditionPredictions, labels: np.ndarray, listing: str | None, table: str, names: tuple[str, ...]
) -> EvaluationRecord:
    n, (reference, *others) = len(labels), predictions[CLEAN]
    headline = overview(predictions, labels, seed=0, table=table, classes=len(names), of=n)
    versus = {name: drops(predictions, reference, name, labels, seed=0) for name in others}
    file = ModelFile(
        file="", sha256="0", external_data={}, size_bytes=100, layout="NCHW", batch=None, pixels="f", output="logits"
    )
    return EvaluationRecord(
        qrobust="0",
        created="",
        command="",
        config={"seed": 0},
        data="imagefolder:images",
        models=dict.fromkeys((reference, *others), file),
        summary=taken(EvaluationSummary, headline, versus=versus),
        rows=tuple(comparison_rows(predictions, labels, seed=0, of=n)),
        corruption_sets=(),
        attacks=Attacks(level="none", n=0, rows=(), worst=(), zero_gradients={}, flags=()),
        statistics=STATISTICS,
        severity_table=table,
        class_names=names,
        image_size=32,
        channels=3,
        skipped_images=(),
        fingerprint="abcd",
        listing=listing,
        versions={},
        hardware=hardware(1),
    )
