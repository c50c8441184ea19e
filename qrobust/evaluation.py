"""Turn predictions into rows with intervals and tests, and into the headline."""

from __future__ import annotations

import numpy as np

from qrobust.metrics import (
    ALEXNET_ERRORS,
    agreement,
    expected_calibration_error,
    flips,
    lost_images,
    mce_normalizer,
    mean_corruption_error,
    relative_corruption_error,
    worst_classes,
)
from qrobust.predictions import CLEAN, Cell, CellPredictions, Predictions
from qrobust.shifts.severities import find_shift
from qrobust.statistics import holm, mcnemar_exact, paired_bootstrap, wilson_interval

# Said in every record.
STATISTICS = (
    "Intervals are at 95 % and each stands for itself: Wilson's of an accuracy, a paired bootstrap over images of a "
    "difference. p-values are of McNemar's exact test; those called adjusted are corrected for multiple comparisons "
    "by Holm's method over all rows of the record, drops and gains each being one family."
)


def _measured(cell: Cell, predictions: CellPredictions, labels: np.ndarray, of: int) -> dict[str, object]:
    """What a row says of each classifier by itself."""
    n, own = len(labels), predictions[cell]
    correct = {name: p.prediction == labels for name, p in own.items()}
    confidence = {name: float(p.confidence.mean()) for name, p in own.items()}
    return {
        "shift": cell[0],
        "severity": cell[1],
        "family": find_shift(cell[0]).family if cell != CLEAN else "clean",
        "n": n,
        "of": of,
        "accuracy": {k: float(c.mean()) for k, c in correct.items()},
        "interval": {k: list(wilson_interval(int(c.sum()), n)) for k, c in correct.items()},
        "ece": {k: expected_calibration_error(p.confidence, correct[k]) for k, p in own.items()},
        "confidence": confidence,
        "confidence_shift": {
            k: value - float(predictions[CLEAN][k].confidence.mean()) for k, value in confidence.items()
        },
    }


def compare(a: Predictions, b: Predictions, labels: np.ndarray, *, seed: int) -> dict[str, object]:
    """What changes from one classifier to another on the same pixels: drop, exact p-value, agreement, flips."""
    right = a.prediction == labels, b.prediction == labels
    return difference("drop", *right, seed) | {
        "drop_p": mcnemar_exact(*right),
        "agreement": agreement(a.prediction, b.prediction),
        "flips": flips(a.prediction, b.prediction, labels),
    }


def _adjust(found: list[dict[str, object]], name: str) -> None:
    """Add Holm's adjusted p-values beside the plain ones: the comparisons given are one family."""
    for entry, p in zip(found, holm([float(e[name]) for e in found]), strict=True):  # type: ignore[arg-type]  # p is a float
        entry[f"{name}_adjusted"] = p


def run_rows(predictions: CellPredictions, labels: np.ndarray, *, seed: int, of: int) -> list[dict[str, object]]:
    """The rows of a run's record: accuracies, drop from `float` to `int8`, gain of `compensated`.

    Args:
        predictions: per cell, of `float`, `int8` and perhaps `compensated`; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
    """
    rows = []
    for cell, own in predictions.items():
        found = _measured(cell, predictions, labels, of) | compare(own["float"], own["int8"], labels, seed=seed)
        if "compensated" in own:
            right = own["compensated"].prediction == labels, own["int8"].prediction == labels
            found |= difference("gain", *right, seed) | {"gain_p": mcnemar_exact(*right)}
        rows.append(found)
    for name in ("drop_p", "gain_p"):
        if name in rows[0]:
            _adjust(rows, name)
    return rows


def comparison_rows(
    predictions: CellPredictions, labels: np.ndarray, *, seed: int, of: int
) -> list[dict[str, object]]:
    """Rows for any classifiers: each by itself, and under `versus` against the first.

    Args:
        predictions: per cell, per classifier, the reference first; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
    """
    rows, family = [], []
    for cell, own in predictions.items():
        reference, *others = own
        versus = {name: compare(own[reference], own[name], labels, seed=seed) for name in others}
        family += list(versus.values())
        rows.append(_measured(cell, predictions, labels, of) | {"versus": versus})
    _adjust(family, "drop_p")
    return rows


def difference(name: str, a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, object]:
    """Mean of `a - b` in percentage points, with its paired bootstrap interval."""
    per_image = 100.0 * (a.astype(np.float64) - b.astype(np.float64))
    return {f"{name}_pp": float(per_image.mean()), f"{name}_interval_pp": list(paired_bootstrap(per_image, seed))}


def _correct(predictions: CellPredictions, name: str, cells: list[Cell], labels: np.ndarray) -> np.ndarray:
    """Whether a classifier is right `(cells, n)`."""
    return np.stack([predictions[c][name].prediction == labels for c in cells])


def overview(
    predictions: CellPredictions, labels: np.ndarray, *, seed: int, table: str, classes: int, of: int
) -> dict[str, object]:
    """The headline of each classifier by itself; means over all cells but clean, each weighing the same.

    Args:
        predictions: per cell, per classifier; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        table: severity table.
        classes: how many the classifiers tell apart.
        of: how many test images there were to choose the n from.
    """
    names, shifted = list(predictions[CLEAN]), [cell for cell in predictions if cell != CLEAN]
    clean = {name: _correct(predictions, name, [CLEAN], labels)[0] for name in names}
    shift = {name: _correct(predictions, name, shifted, labels).mean(0) for name in names}
    corruptions = [c for c in ALEXNET_ERRORS if any(c == s for s, _ in shifted)]
    severities = [{s for name, s in shifted if name == c} for c in corruptions]
    normalizers = {mce_normalizer(table, s, classes) for s in severities}
    normalizer = "alexnet" if normalizers == {"alexnet"} else "none"
    errors = {
        name: {
            c: 1 - float(_correct(predictions, name, [x for x in shifted if x[0] == c], labels).mean())
            for c in corruptions
        }
        for name in names
    }
    return {
        "n_test": len(labels),
        "of": of,
        "n_cells": len(shifted),
        "clean_accuracy": {k: float(v.mean()) for k, v in clean.items()},
        "clean_interval": {k: list(wilson_interval(int(v.sum()), len(labels))) for k, v in clean.items()},
        "shift_accuracy": {k: float(v.mean()) for k, v in shift.items()},
        "shift_interval": {k: list(paired_bootstrap(v, seed)) for k, v in shift.items()},
        "mce": {
            "normalizer": normalizer,
            "corruptions": len(corruptions),
            "value": {k: mean_corruption_error(e, normalizer) for k, e in errors.items()},
            "relative": {k: relative_corruption_error(e, 1 - float(clean[k].mean())) for k, e in errors.items()},
        } if corruptions else None,
        "worst_classes_by_shift": {k: worst_classes(clean[k], shift[k], labels) for k in names},
    }  # fmt: skip


def drops(predictions: CellPredictions, a: str, b: str, labels: np.ndarray, *, seed: int) -> dict[str, object]:
    """What going from classifier `a` to `b` costs: clean, under shift, and the difference of the two.

    Args:
        predictions: per cell, per classifier; `CLEAN` among them.
        a: name of the first.
        b: name of the second.
        labels: `(n,)`.
        seed: of the bootstrap.
    """
    cells = list(predictions)
    shifted = np.array([cell != CLEAN for cell in cells])
    right_a, right_b = (_correct(predictions, name, cells, labels) for name in (a, b))
    clean_a, clean_b = right_a[~shifted][0], right_b[~shifted][0]
    shift_a, shift_b = right_a[shifted].mean(0), right_b[shifted].mean(0)
    lost = lost_images(right_a, right_b)
    return (
        difference("quantization_drop", clean_a, clean_b, seed)
        | {"quantization_drop_p": mcnemar_exact(clean_a, clean_b)}
        | difference("shift_quantization_drop", shift_a, shift_b, seed)
        | difference(
            "difference_in_differences", shift_a - shift_b, clean_a.astype(float) - clean_b.astype(float), seed
        )
        | {
            "agreement": agreement(predictions[CLEAN][a].prediction, predictions[CLEAN][b].prediction),
            "worst_classes": worst_classes(right_a.mean(0), right_b.mean(0), labels),
            "lost_images": lost,
        }
    )


def summarise(
    predictions: CellPredictions,
    labels: np.ndarray,
    seen: tuple[str, ...],
    *,
    seed: int,
    table: str,
    classes: int,
    of: int,
) -> dict[str, object]:
    """The headline of a run: `overview`, `drops` from float to INT8, and what compensation gains.

    Args:
        predictions: per cell, of `float`, `int8` and perhaps `compensated`; `CLEAN` among them.
        labels: `(n,)`.
        seen: shifts that a calibrator was trained on.
        seed: of the bootstrap.
        table: severity table.
        classes: how many the classifier tells apart.
        of: how many test images there were to choose the n from.
    """
    result = overview(predictions, labels, seed=seed, table=table, classes=classes, of=of)
    result |= drops(predictions, "float", "int8", labels, seed=seed)
    if "compensated" not in predictions[CLEAN]:
        return result

    def gain(key: str, cells: list[Cell], a: str = "compensated", b: str = "int8") -> dict[str, object]:
        right_a, right_b = (_correct(predictions, name, cells, labels).mean(0) for name in (a, b))
        return difference(key, right_a, right_b, seed)

    shifted = [cell for cell in predictions if cell != CLEAN]
    result |= gain("compensation_gain", shifted) | gain("clean_cost", [CLEAN], "int8", "compensated")
    for key, chosen in (
        ("seen", [c for c in shifted if c[0] in seen]),
        ("unseen", [c for c in shifted if c[0] not in seen]),
    ):
        if chosen:
            result |= gain(f"{key}_gain", chosen) | {f"n_{key}_cells": len(chosen)}
    return result
