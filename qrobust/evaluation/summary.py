"""Turn predictions into rows with intervals and tests, and into the headline."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

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
from qrobust.record import (
    Comparison,
    ConditionAccuracy,
    ConditionComparison,
    ConditionResult,
    Drops,
    MeanCorruptionError,
    Overview,
    RemedyGain,
    RunAccuracy,
    taken,
)
from qrobust.shifts.nearness import is_far
from qrobust.shifts.registry import find_shift

# A difference in percentage points and its interval.
Difference = tuple[float, tuple[float, float]]
NO_DIFFERENCE = (None, None)


def _measured(
    condition: Condition, predictions: ConditionPredictions, labels: np.ndarray, of: int
) -> ConditionAccuracy:
    """What a row says of each classifier by itself."""
    n, own = len(labels), predictions[condition]
    correct = {name: p.prediction == labels for name, p in own.items()}
    confidence = {name: float(p.confidence.mean()) for name, p in own.items()}
    clean = {name: float(p.confidence.mean()) for name, p in predictions.get(CLEAN, {}).items()}
    return ConditionAccuracy(
        shift=condition[0],
        severity=condition[1],
        family=_family(condition) if clean else "stored",
        n=n,
        of=of,
        accuracy={k: float(c.mean()) for k, c in correct.items()},
        interval={k: wilson_interval(int(c.sum()), n) for k, c in correct.items()},
        ece={k: expected_calibration_error(p.confidence, correct[k]) for k, p in own.items()},
        confidence=confidence,
        confidence_shift={k: value - clean[k] for k, value in confidence.items()} if clean else None,
    )


def _family(condition: Condition) -> str:
    return "clean" if condition == CLEAN else find_shift(condition[0]).family


def compare(a: Predictions, b: Predictions, labels: np.ndarray, *, seed: int) -> Comparison:
    """What changes from one classifier to another on the same pixels: drop, exact p-value, agreement, flips."""
    right = a.prediction == labels, b.prediction == labels
    drop, interval = difference(*right, seed)
    p = mcnemar_exact(*right)
    return Comparison(
        drop_pp=drop,
        drop_interval_pp=interval,
        drop_p=p,
        drop_p_adjusted=p,
        agreement=agreement(a.prediction, b.prediction),
        flips=flips(a.prediction, b.prediction, labels),
    )


def run_rows(
    predictions: ConditionPredictions,
    labels: np.ndarray,
    *,
    seed: int,
    of: int,
    seen: Sequence[str] = (),
    seen_by_classifier: Sequence[str] = (),
) -> list[ConditionResult]:
    """The rows of a run's record: accuracies, drop from `float` to `int8`, gain of `compensated`.

    Args:
        predictions: per condition, of `float`, `int8` and perhaps `compensated`; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
        seen: shifts that a calibrator was trained on.
        seen_by_classifier: shifts that the classifier was trained on.
    """
    rows = []
    for condition, own in predictions.items():
        row = taken(
            ConditionResult,
            _measured(condition, predictions, labels, of),
            compare(own["float"], own["int8"], labels, seed=seed),
            seen_by_classifier=condition[0] in seen_by_classifier,
            seen_by_remedy=condition[0] in seen,
        )
        if "compensated" in own:
            right = own["compensated"].prediction == labels, own["int8"].prediction == labels
            gain, interval = difference(*right, seed)
            row = replace(row, gain_pp=gain, gain_interval_pp=interval, gain_p=mcnemar_exact(*right))
        rows.append(row)
    adjusted = holm([row.drop_p for row in rows])
    rows = [replace(row, drop_p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)]
    gains = [row.gain_p for row in rows if row.gain_p is not None]
    return [replace(row, gain_p_adjusted=p) for row, p in zip(rows, holm(gains), strict=True)] if gains else rows


def comparison_rows(
    predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, of: int
) -> list[ConditionComparison]:
    """Rows for any classifiers: each by itself, and under `versus` against the first.

    Args:
        predictions: per condition, per classifier, the reference first; `CLEAN` among them, unless images are those
            of a corruption data set, of which none are clean.
        labels: `(n,)`.
        seed: of the bootstrap.
        of: how many test images there were to choose the n from.
    """
    compared = []
    for own in predictions.values():
        reference, *others = own
        compared.append({name: compare(own[reference], own[name], labels, seed=seed) for name in others})
    adjusted = iter(holm([found.drop_p for versus in compared for found in versus.values()]))
    return [
        taken(
            ConditionComparison,
            _measured(condition, predictions, labels, of),
            versus={name: replace(found, drop_p_adjusted=next(adjusted)) for name, found in versus.items()},
        )
        for condition, versus in zip(predictions, compared, strict=True)
    ]


def difference(a: np.ndarray, b: np.ndarray, seed: int) -> Difference:
    """Mean of `a - b`, per image `(n,)`, in percentage points, with its paired bootstrap interval."""
    per_image = 100.0 * (a.astype(np.float64) - b.astype(np.float64))
    return float(per_image.mean()), paired_bootstrap(per_image, seed)


def are_correct(
    predictions: ConditionPredictions, name: str, conditions: list[Condition], labels: np.ndarray
) -> np.ndarray:
    """Whether a classifier is right `(conditions, n)`."""
    return np.stack([predictions[c][name].prediction == labels for c in conditions])


def _mean_correct(
    predictions: ConditionPredictions, name: str, conditions: list[Condition], labels: np.ndarray
) -> np.ndarray:
    """How often a classifier is right, per image `(n,)`."""
    return are_correct(predictions, name, conditions, labels).mean(0)


def far_conditions(conditions: Sequence[Condition]) -> list[Condition]:
    """Those whose shift lies far from all random operations that are learned from."""
    return [condition for condition in conditions if is_far(condition[0])]


def overview(
    predictions: ConditionPredictions, labels: np.ndarray, *, seed: int, table: str, classes: int, of: int
) -> Overview:
    """The headline of each classifier by itself; means over all conditions but clean, each weighing the same.

    Args:
        predictions: per condition, per classifier; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        table: severity table.
        classes: how many the classifiers tell apart.
        of: how many test images there were to choose the n from.
    """
    names, shifted = list(predictions[CLEAN]), [condition for condition in predictions if condition != CLEAN]
    clean = {name: are_correct(predictions, name, [CLEAN], labels)[0] for name in names}
    far = far_conditions(shifted)
    shift = {name: are_correct(predictions, name, shifted, labels).mean(0) for name in names} if shifted else {}
    return Overview(
        n_test=len(labels),
        of=of,
        n_conditions=len(shifted),
        clean_accuracy={k: float(v.mean()) for k, v in clean.items()},
        clean_interval={k: wilson_interval(int(v.sum()), len(labels)) for k, v in clean.items()},
        shift_accuracy={k: float(shift[k].mean()) if shift else None for k in names},
        shift_interval={k: paired_bootstrap(shift[k], seed) if shift else None for k in names},
        far_accuracy={k: float(_mean_correct(predictions, k, far, labels).mean()) for k in names} if far else {},
        n_far_conditions=len(far),
        mce=corruption_error(predictions, labels, table, classes),
        worst_classes_by_shift={k: worst_classes(clean[k], shift[k], labels) if shift else () for k in names},
    )


def corruption_error(
    predictions: ConditionPredictions, labels: np.ndarray, table: str, classes: int
) -> MeanCorruptionError | None:
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
            c: 1 - float(are_correct(predictions, name, [x for x in shifted if x[0] == c], labels).mean())
            for c in corruptions
        }
        for name in predictions[shifted[0]]
    }
    relative = None
    if CLEAN in predictions:
        clean = {k: 1 - float(are_correct(predictions, k, [CLEAN], labels).mean()) for k in errors}
        relative = {k: relative_corruption_error(e, clean[k], normalizer) for k, e in errors.items()}
    return MeanCorruptionError(
        normalizer=normalizer,
        corruptions=len(corruptions),
        value={k: mean_corruption_error(e, normalizer) for k, e in errors.items()},
        relative=relative,
    )


def drops(predictions: ConditionPredictions, a: str, b: str, labels: np.ndarray, *, seed: int) -> Drops:
    """What going from classifier `a` to `b` costs: clean, under shift, and the difference of the two.

    Args:
        predictions: per condition, per classifier; `CLEAN` among them.
        a: name of the first.
        b: name of the second.
        labels: `(n,)`.
        seed: of the bootstrap.
    """
    conditions, shifted = list(predictions), [condition for condition in predictions if condition != CLEAN]
    right_a, right_b = (are_correct(predictions, name, conditions, labels) for name in (a, b))
    clean_a, clean_b = (are_correct(predictions, name, [CLEAN], labels)[0] for name in (a, b))
    clean, clean_interval = difference(clean_a, clean_b, seed)
    under_shift: Difference | tuple[None, None] = NO_DIFFERENCE
    both: Difference | tuple[None, None] = NO_DIFFERENCE
    if shifted:
        shift_a, shift_b = (_mean_correct(predictions, name, shifted, labels) for name in (a, b))
        under_shift = difference(shift_a, shift_b, seed)
        both = difference(shift_a - shift_b, clean_a.astype(float) - clean_b.astype(float), seed)
    return Drops(
        quantization_drop_pp=clean,
        quantization_drop_interval_pp=clean_interval,
        quantization_drop_p=mcnemar_exact(clean_a, clean_b),
        shift_quantization_drop_pp=under_shift[0],
        shift_quantization_drop_interval_pp=under_shift[1],
        difference_in_differences_pp=both[0],
        difference_in_differences_interval_pp=both[1],
        agreement=agreement(predictions[CLEAN][a].prediction, predictions[CLEAN][b].prediction),
        worst_classes=worst_classes(right_a.mean(0), right_b.mean(0), labels),
        lost_images=lost_images(right_a, right_b),
    )


def gain_over(
    predictions: ConditionPredictions, name: str, conditions: list[Condition], labels: np.ndarray, seed: int
) -> Difference | tuple[None, None]:
    """What a classifier gains over `int8` on the mean of conditions, in points, with its interval; None for none."""
    if not conditions:
        return NO_DIFFERENCE
    after, before = (_mean_correct(predictions, one, conditions, labels) for one in (name, "int8"))
    return difference(after, before, seed)


def summarise(
    predictions: ConditionPredictions,
    labels: np.ndarray,
    seen: tuple[str, ...],
    *,
    seed: int,
    table: str,
    classes: int,
    of: int,
) -> RunAccuracy:
    """The headline of a run: `overview`, `drops` from float to INT8, and what compensation gains.

    Args:
        predictions: per condition, of `float`, `int8` and perhaps `compensated`; `CLEAN` among them.
        labels: `(n,)`.
        seen: shifts that the classifier or a calibrator was trained on.
        seed: of the bootstrap.
        table: severity table.
        classes: how many the classifier tells apart.
        of: how many test images there were to choose the n from.
    """
    shifted = [condition for condition in predictions if condition != CLEAN]
    result = taken(
        RunAccuracy,
        overview(predictions, labels, seed=seed, table=table, classes=classes, of=of),
        drops(predictions, "float", "int8", labels, seed=seed),
    )
    if "compensated" not in predictions[CLEAN]:
        return result

    of_seen = [c for c in shifted if c[0] in seen]
    of_unseen = [c for c in shifted if c[0] not in seen]
    every, known, unknown, far = (
        gain_over(predictions, "compensated", conditions, labels, seed)
        for conditions in (shifted, of_seen, of_unseen, far_conditions(shifted))
    )
    before, after = (_mean_correct(predictions, name, [CLEAN], labels) for name in ("int8", "compensated"))
    cost = difference(before, after, seed)
    return replace(
        result,
        compensation_gain_pp=every[0],
        compensation_gain_interval_pp=every[1],
        clean_cost_pp=cost[0],
        clean_cost_interval_pp=cost[1],
        seen_gain_pp=known[0],
        seen_gain_interval_pp=known[1],
        n_seen_conditions=len(of_seen),
        unseen_gain_pp=unknown[0],
        unseen_gain_interval_pp=unknown[1],
        n_unseen_conditions=len(of_unseen),
        far_gain_pp=far[0],
        far_gain_interval_pp=far[1],
    )


def remedy_gains(
    predictions: ConditionPredictions,
    labels: np.ndarray,
    *,
    seed: int,
    seen: Mapping[str, Collection[str]] | None = None,
) -> list[RemedyGain]:
    """What every classifier but `float` and `int8` gains over `int8`, and costs on clean images.

    Args:
        predictions: per condition, of `int8` and of each remedy; `CLEAN` among them.
        labels: `(n,)`.
        seed: of the bootstrap.
        seen: remedy to the shifts that it or the classifier was trained on; none by default.

    Returns:
        One per remedy, highest gain first. None where nothing but clean images was measured.
    """
    shifted = [condition for condition in predictions if condition != CLEAN]
    if not shifted:
        return []
    found = []
    for name in (n for n in predictions[CLEAN] if n not in ("float", "int8")):
        before, after = (predictions[CLEAN][n].prediction for n in ("int8", name))
        known = (seen or {}).get(name, ())
        of_unseen, of_seen = ([c for c in shifted if (c[0] in known) == is_seen] for is_seen in (False, True))
        unseen_gain, seen_gain, far_gain = (
            gain_over(predictions, name, conditions, labels, seed)
            for conditions in (of_unseen, of_seen, far_conditions(shifted))
        )
        (clean, clean_before), (shift, shift_before) = (
            [are_correct(predictions, n, conditions, labels).mean(0) for n in (name, "int8")]
            for conditions in ([CLEAN], shifted)
        )
        (gain, gain_interval), (cost, cost_interval) = (
            difference(shift, shift_before, seed),
            difference(clean_before, clean, seed),
        )
        found.append(
            RemedyGain(
                remedy=name,
                n=len(labels),
                clean_accuracy=float(clean.mean()),
                shift_accuracy=float(shift.mean()),
                gain_pp=gain,
                gain_interval_pp=gain_interval,
                clean_cost_pp=cost,
                clean_cost_interval_pp=cost_interval,
                unseen_gain_pp=unseen_gain[0],
                unseen_gain_interval_pp=unseen_gain[1],
                seen_gain_pp=seen_gain[0],
                seen_gain_interval_pp=seen_gain[1],
                far_gain_pp=far_gain[0],
                far_gain_interval_pp=far_gain[1],
                clean_agreement=agreement(before, after),
                clean_harmful_flips=flips(before, after, labels).harmful,
            )
        )
    return sorted(found, key=lambda one: -one.gain_pp)
