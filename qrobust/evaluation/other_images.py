"""What classifiers make of images other than the data's: corruption data sets, and target images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrobust.evaluation.classes import class_results
from qrobust.evaluation.metrics import agreement
from qrobust.evaluation.predictions import ConditionPredictions, Predictions
from qrobust.evaluation.statistics import paired_bootstrap, wilson_interval
from qrobust.evaluation.summary import are_correct, comparison_rows, corruption_error, difference
from qrobust.record import CorruptionSet, CorruptionSetSummary, Drop, Gain, TargetImages


def corruption_set(
    predictions: ConditionPredictions,
    labels: np.ndarray,
    *,
    name: str,
    folder: str,
    seed: int,
    table: str,
    classes: int,
    of: int,
) -> CorruptionSet:
    """The summary and the rows of a corruption data set, whose images are other ones than those of the run.

    Args:
        predictions: per condition, per classifier, the reference first.
        labels: `(n,)`, the same in every condition.
        name: of the set, as it was given.
        folder: where in `predictions` these are kept.
        seed: of the bootstrap.
        table: severity table that the set was made with.
        classes: how many the classifiers tell apart.
        of: how many images each condition holds.
    """
    conditions = list(predictions)
    right = {name: are_correct(predictions, name, conditions, labels).mean(0) for name in predictions[conditions[0]]}
    reference, *others = right
    lost = {name: difference(right[reference], right[name], seed) for name in others}
    summary = CorruptionSetSummary(
        n_test=len(labels),
        of=of,
        n_conditions=len(conditions),
        accuracy={k: float(r.mean()) for k, r in right.items()},
        interval={k: paired_bootstrap(r, seed) for k, r in right.items()},
        mce=corruption_error(predictions, labels, table, classes),
        versus={k: Drop(drop_pp=drop, drop_interval_pp=interval) for k, (drop, interval) in lost.items()},
    )
    rows = comparison_rows(predictions, labels, seed=seed, of=of)
    return CorruptionSet(
        name=name,
        predictions=folder,
        summary=summary,
        rows=tuple(rows),
        classes=class_results(predictions, labels, classes),
    )


def target_row(found: dict[str, Predictions], labels: np.ndarray, *, images: str, seed: int) -> TargetImages:
    """What classifiers make of real images of the place of use.

    Args:
        found: predictions by classifier, `int8` among them.
        labels: `(n,)`; -1 where there are none.
        images: where they are, as it was given.
        seed: of the bootstrap.
    """
    labelled = not (labels < 0).any()
    row = TargetImages(
        images=images,
        labelled=labelled,
        n=len(labels),
        confidence={k: float(p.confidence.mean()) for k, p in found.items()},
    )
    if not labelled:
        same = {k: agreement(p.prediction, found["int8"].prediction) for k, p in found.items()}
        return replace(row, agreement=same)
    right = {k: p.prediction == labels for k, p in found.items()}
    gains = {k: difference(right[k], right["int8"], seed) for k in found if k not in ("float", "int8")}
    return replace(
        row,
        accuracy={k: float(r.mean()) for k, r in right.items()},
        interval={k: wilson_interval(int(r.sum()), len(labels)) for k, r in right.items()},
        gain={k: Gain(gain_pp=gain, gain_interval_pp=interval) for k, (gain, interval) in gains.items()},
    )
