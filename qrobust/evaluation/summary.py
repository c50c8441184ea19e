"""Turn predictions into rows with intervals and tests, and into the headline."""

from __future__ import annotations

import numpy as np

from qrobust.evaluation.metrics import (
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
from qrobust.evaluation.predictions import (
    CLEAN,
    Condition,
    ConditionPredictions,
    Predictions,
)
from qrobust.evaluation.statistics import (
    holm,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)
from qrobust.shifts.registry import find_shift

# Said in every record.
STATISTICS = (
    "Intervals are at 95 % and each stands for itself: Wilson's of an accuracy, a paired bootstrap over images of a "
    "difference. p-values are of McNemar's exact test; those called adjusted are corrected for multiple comparisons "
    "by Holm's method over all rows of the record, drops and gains each being one family."
)


def _measured(
    condition: Condition, predictions: ConditionPredictions, labels: np.ndarray, of: int
) -> dict[str, object]:
    """What a row says of each classifier by itself."""
    n, own = len(labels), predictions[condition]
    correct = {name: p.prediction == labels for name, p in own.items()}
    confidence = {name: float(p.confidence.mean()) for name, p in own.items()}
    row: dict[str, object] = {
        "shift": condition[0],
        "severity": condition[1],
        "family": _family(condition) if CLEAN in predictions else "stored",
        "n": n,
        "of": of,
        "accuracy": {k: float(c.mean()) for k, c in correct.items()},
        "interval": {k: list(wilson_interval(int(c.sum()), n)) for k, c in correct.items()},
        "ece": {k: expected_calibration_error(p.confidence, correct[k]) for k, p in own.items()},
        "confidence": confidence,
    }
    if CLEAN in predictions:
        clean = {k: float(p.confidence.mean()) for k, p in predictions[CLEAN].items()}
        row["confidence_shift"] = {k: value - clean[k] for k, value in confidence.items()}
    return row


def _family(condition: Condition) -> str:
    return "clean" if condition == CLEAN else find_shift(condition[0]).family


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


def run_rows(predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, of: int) -> list[dict[str, object]]:
    """The rows of a run's record: accuracies, drop from `float` to `int8`, gain of `compensated`.

    Args:
        predictions: per cell, of `float`, `int8` and perhaps `compensated`; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
    """
    rows = []
    for condition, own in predictions.items():
        found = _measured(condition, predictions, labels, of) | compare(own["float"], own["int8"], labels, seed=seed)
        if "compensated" in own:
            right = own["compensated"].prediction == labels, own["int8"].prediction == labels
            found |= difference("gain", *right, seed) | {"gain_p": mcnemar_exact(*right)}
        rows.append(found)
    for name in ("drop_p", "gain_p"):
        if name in rows[0]:
            _adjust(rows, name)
    return rows


def comparison_rows(
    predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, of: int
) -> list[dict[str, object]]:
    """Rows for any classifiers: each by itself, and under `versus` against the first.

    Args:
        predictions: per cell, per classifier, the reference first; `CLEAN` among them, unless images are stored
            ones, of which none are clean.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
    """
    rows, family = [], []
    for condition, own in predictions.items():
        reference, *others = own
        versus = {name: compare(own[reference], own[name], labels, seed=seed) for name in others}
        family += list(versus.values())
        rows.append(_measured(condition, predictions, labels, of) | {"versus": versus})
    _adjust(family, "drop_p")
    return rows


def difference(name: str, a: np.ndarray | None, b: np.ndarray | None, seed: int) -> dict[str, object]:
    """Mean of `a - b` in percentage points, with its paired bootstrap interval; None where nothing was measured."""
    if a is None or b is None:
        return {f"{name}_pp": None, f"{name}_interval_pp": None}
    per_image = 100.0 * (a.astype(np.float64) - b.astype(np.float64))
    return {f"{name}_pp": float(per_image.mean()), f"{name}_interval_pp": list(paired_bootstrap(per_image, seed))}


def _correct(
    predictions: ConditionPredictions, name: str, conditions: list[Condition], labels: np.ndarray
) -> np.ndarray:
    """Whether a classifier is right `(cells, n)`."""
    return np.stack([predictions[c][name].prediction == labels for c in conditions])


def _mean_correct(
    predictions: ConditionPredictions, name: str, conditions: list[Condition], labels: np.ndarray
) -> np.ndarray | None:
    """How often a classifier is right, per image `(n,)`; None where there is no cell."""
    return _correct(predictions, name, conditions, labels).mean(0) if conditions else None


def overview(
    predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, table: str, classes: int, of: int
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
    names, shifted = list(predictions[CLEAN]), [condition for condition in predictions if condition != CLEAN]
    clean = {name: _correct(predictions, name, [CLEAN], labels)[0] for name in names}
    shift = {name: _correct(predictions, name, shifted, labels).mean(0) for name in names} if shifted else {}
    return {
        "n_test": len(labels),
        "of": of,
        "n_cells": len(shifted),
        "clean_accuracy": {k: float(v.mean()) for k, v in clean.items()},
        "clean_interval": {k: list(wilson_interval(int(v.sum()), len(labels))) for k, v in clean.items()},
        "shift_accuracy": {k: float(shift[k].mean()) if shift else None for k in names},
        "shift_interval": {k: list(paired_bootstrap(shift[k], seed)) if shift else None for k in names},
        "mce": _mce(predictions, labels, table, classes),
        "worst_classes_by_shift": {k: worst_classes(clean[k], shift[k], labels) if shift else [] for k in names},
    }


def _mce(predictions: ConditionPredictions, labels: np.ndarray, table: str, classes: int) -> dict[str, object] | None:
    """Mean corruption errors, relative ones too where `CLEAN` is known; None where no corruption was measured."""
    shifted = [condition for condition in predictions if condition != CLEAN]
    corruptions = [c for c in ALEXNET_ERRORS if any(c == s for s, _ in shifted)]
    if not corruptions:
        return None
    severities = [{s for name, s in shifted if name == c} for c in corruptions]
    normalizers = {mce_normalizer(table, s, classes) for s in severities}
    normalizer = "alexnet" if normalizers == {"alexnet"} else "none"
    errors = {
        name: {
            c: 1 - float(_correct(predictions, name, [x for x in shifted if x[0] == c], labels).mean())
            for c in corruptions
        }
        for name in predictions[shifted[0]]
    }
    found: dict[str, object] = {
        "normalizer": normalizer,
        "corruptions": len(corruptions),
        "value": {k: mean_corruption_error(e, normalizer) for k, e in errors.items()},
    }
    if CLEAN in predictions:
        clean = {k: 1 - float(_correct(predictions, k, [CLEAN], labels).mean()) for k in errors}
        found["relative"] = {k: relative_corruption_error(e, clean[k], normalizer) for k, e in errors.items()}
    return found


def stored_figures(
    predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, table: str, classes: int, of: int
) -> dict[str, object]:
    """The summary and the rows of a stored set, whose images are other ones than those of the run.

    Args:
        predictions: per cell, per classifier, the reference first.
        labels: `(n,)`, the same in every cell.
        seed: of the bootstrap.
        table: severity table that the set was made with.
        classes: how many the classifiers tell apart.
        of: how many images each cell holds.
    """
    conditions = list(predictions)
    right = {name: _correct(predictions, name, conditions, labels).mean(0) for name in predictions[conditions[0]]}
    reference, *others = right
    summary = {
        "n_test": len(labels),
        "of": of,
        "n_cells": len(conditions),
        "accuracy": {k: float(r.mean()) for k, r in right.items()},
        "interval": {k: list(paired_bootstrap(r, seed)) for k, r in right.items()},
        "mce": _mce(predictions, labels, table, classes),
        "versus": {name: difference("drop", right[reference], right[name], seed) for name in others},
    }
    return {"summary": summary, "rows": comparison_rows(predictions, labels, seed=seed, of=of)}


def drops(predictions: ConditionPredictions, a: str, b: str, labels: np.ndarray, *, seed: int) -> dict[str, object]:
    """What going from classifier `a` to `b` costs: clean, under shift, and the difference of the two.

    Args:
        predictions: per cell, per classifier; `CLEAN` among them.
        a: name of the first.
        b: name of the second.
        labels: `(n,)`.
        seed: of the bootstrap.
    """
    conditions, shifted = list(predictions), [condition for condition in predictions if condition != CLEAN]
    right_a, right_b = (_correct(predictions, name, conditions, labels) for name in (a, b))
    clean_a, clean_b = (_correct(predictions, name, [CLEAN], labels)[0] for name in (a, b))
    shift_a, shift_b = (_mean_correct(predictions, name, shifted, labels) for name in (a, b))
    both = None if shift_a is None or shift_b is None else shift_a - shift_b
    lost = lost_images(right_a, right_b)
    return (
        difference("quantization_drop", clean_a, clean_b, seed)
        | {"quantization_drop_p": mcnemar_exact(clean_a, clean_b)}
        | difference("shift_quantization_drop", shift_a, shift_b, seed)
        | difference("difference_in_differences", both, clean_a.astype(float) - clean_b.astype(float), seed)
        | {
            "agreement": agreement(predictions[CLEAN][a].prediction, predictions[CLEAN][b].prediction),
            "worst_classes": worst_classes(right_a.mean(0), right_b.mean(0), labels),
            "lost_images": lost,
        }
    )


def summarise(
    predictions: ConditionPredictions,
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

    def gain(key: str, conditions: list[Condition], a: str = "compensated", b: str = "int8") -> dict[str, object]:
        right_a, right_b = (_mean_correct(predictions, name, conditions, labels) for name in (a, b))
        return difference(key, right_a, right_b, seed)

    shifted = [condition for condition in predictions if condition != CLEAN]
    result |= gain("compensation_gain", shifted) | gain("clean_cost", [CLEAN], "int8", "compensated")
    for key, chosen in (
        ("seen", [c for c in shifted if c[0] in seen]),
        ("unseen", [c for c in shifted if c[0] not in seen]),
    ):
        if chosen:
            result |= gain(f"{key}_gain", chosen) | {f"n_{key}_cells": len(chosen)}
    return result


def method_rows(predictions: ConditionPredictions, labels: np.ndarray, *, seed: int) -> list[dict[str, object]]:
    """What every classifier but `float` and `int8` gains over `int8`, and costs on clean images.

    Args:
        predictions: per cell, of `int8` and of each method; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.

    Returns:
        A row per method, highest gain first: `method`, `n`, accuracies, `gain_pp` under shift and `clean_cost_pp`
        with their intervals. No rows where nothing but clean images was measured.
    """
    shifted = [condition for condition in predictions if condition != CLEAN]
    if not shifted:
        return []
    rows = []
    for name in (n for n in predictions[CLEAN] if n not in ("float", "int8")):
        (clean, clean_before), (shift, shift_before) = (
            [_correct(predictions, n, conditions, labels).mean(0) for n in (name, "int8")]
            for conditions in ([CLEAN], shifted)
        )
        rows.append(
            {"method": name, "n": len(labels), "clean_accuracy": float(clean.mean())}
            | {"shift_accuracy": float(shift.mean())}
            | difference("gain", shift, shift_before, seed)
            | difference("clean_cost", clean_before, clean, seed)
        )
    return sorted(rows, key=lambda row: -float(row["gain_pp"]))  # type: ignore[arg-type]  # gain_pp is a float


def target_images_row(found: dict[str, Predictions], labels: np.ndarray, *, seed: int) -> dict[str, object]:
    """What classifiers make of real images of a new scene.

    Args:
        found: predictions by classifier, `int8` among them.
        labels: `(n,)`; -1 where there are none.
        seed: of the bootstrap.

    Returns:
        `n` and mean `confidence`; with labels, `accuracy`, `interval` and each one's gain over int8; without,
        the `agreement` with int8.
    """
    row: dict[str, object] = {
        "n": len(labels),
        "confidence": {k: float(p.confidence.mean()) for k, p in found.items()},
    }
    if (labels < 0).any():
        return row | {"agreement": {k: agreement(p.prediction, found["int8"].prediction) for k, p in found.items()}}
    right = {k: p.prediction == labels for k, p in found.items()}
    others = [k for k in found if k not in ("float", "int8")]
    return row | {
        "accuracy": {k: float(r.mean()) for k, r in right.items()},
        "interval": {k: list(wilson_interval(int(r.sum()), len(labels))) for k, r in right.items()},
        "gain": {k: difference("gain", right[k], right["int8"], seed) for k in others},
    }
