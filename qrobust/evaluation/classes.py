"""What classifiers do to each class: recall, balanced accuracy and confusions, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qrobust.evaluation.kept import CLEAN, Condition, ConditionPredictions, Predictions
from qrobust.evaluation.primary import is_uneven
from qrobust.evaluation.statistics import mean_interval, wilson_interval
from qrobust.record import Classes, ClassifierClasses, ClassRecall, ConditionClasses, Confusion

# Different confusions that a record lists per classifier and condition: all that 20 classes can have.
MOST_CONFUSIONS = 400


def images_per_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many of the images `(n,)` are of each class `(classes,)`."""
    return np.bincount(labels, minlength=classes)


def recalls(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class's images that are right `(classes,)`; NaN for a class without images.

    Args:
        right: per image `(n,)`, whether or how often a classifier is right, in [0, 1].
        labels: `(n,)`.
        classes: how many.
    """
    with np.errstate(invalid="ignore"):
        share: np.ndarray = np.bincount(labels, right, classes) / images_per_class(labels, classes)
    return share


def balanced_accuracy(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the recalls of the classes that have images; arguments as for `recalls`."""
    return float(np.nanmean(recalls(right, labels, int(labels.max()) + 1)))


def confusion_matrix(prediction: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class (rows) and prediction (columns), `(classes, classes)`.

    A classifier may tell more classes apart than the data has names for; the matrix is then larger.
    """
    size = max(classes, int(prediction.max()) + 1)
    pairs = labels.astype(np.int64) * size + prediction
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def confusions(prediction: np.ndarray, labels: np.ndarray, most: int = MOST_CONFUSIONS) -> tuple[Confusion, ...]:
    """What is taken for what: (class, prediction, images) of the images that are wrong, most first.

    Args:
        prediction: `(n,)`.
        labels: `(n,)`.
        most: at most so many.
    """
    wrong = prediction != labels
    pairs, counts = np.unique(np.stack([labels[wrong], prediction[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return tuple((int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order)


def class_results(predictions: ConditionPredictions, labels: np.ndarray, classes: int) -> Classes:
    """Every classifier by class, under every condition and over all.

    Args:
        predictions: per condition and classifier, of the same images.
        labels: `(n,)`.
        classes: how many the data has.
    """
    counts = images_per_class(labels, classes)
    largest = int(counts.argmax())
    names = next(iter(predictions.values()))
    return Classes(
        n=tuple(counts.tolist()),
        uneven=is_uneven(counts),
        majority_class=largest,
        majority=float(counts[largest] / len(labels)),
        classifiers={name: _classifier(predictions, name, labels, counts) for name in names},
        conditions=tuple(_condition(condition, own, labels, counts) for condition, own in predictions.items()),
    )


def _balanced(share: np.ndarray, counts: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of the recalls `(classes,)` of classes with images `(classes,)`, and its interval."""
    there = counts > 0
    own = [wilson_interval(p * n, n) for p, n in zip(share[there], counts[there].tolist(), strict=True)]
    return float(share[there].mean()), mean_interval(share[there], np.array(own))


def _condition(
    condition: Condition, found: Mapping[str, Predictions], labels: np.ndarray, counts: np.ndarray
) -> ConditionClasses:
    classes = len(counts)
    correct = {name: one.prediction == labels for name, one in found.items()}
    balanced = {name: _balanced(recalls(right, labels, classes), counts) for name, right in correct.items()}
    listed = {name: confusions(one.prediction, labels) for name, one in found.items()}
    return ConditionClasses(
        shift=condition[0],
        severity=condition[1],
        balanced={name: value for name, (value, _) in balanced.items()},
        balanced_interval={name: interval for name, (_, interval) in balanced.items()},
        right={
            name: tuple(np.bincount(labels[right], minlength=classes).tolist()) for name, right in correct.items()
        },
        confusions=listed,
        unlisted={name: int((~right).sum()) - sum(n for *_, n in listed[name]) for name, right in correct.items()},
    )


def _classifier(
    predictions: ConditionPredictions, name: str, labels: np.ndarray, counts: np.ndarray
) -> ClassifierClasses:
    shifted = [condition for condition in predictions if condition != CLEAN]
    parts = [[CLEAN] if CLEAN in predictions else [], shifted]
    shares = [
        recalls(np.mean([predictions[c][name].prediction == labels for c in part], axis=0), labels, len(counts))
        if part
        else None
        for part in parts
    ]
    (clean, clean_interval), (shift, shift_interval) = (
        (None, None) if share is None else _balanced(share, counts) for share in shares
    )

    def of_class(index: int, share: np.ndarray | None) -> tuple[float | None, tuple[float, float] | None]:
        n = int(counts[index])
        if share is None or not n:
            return None, None
        return float(share[index]), wilson_interval(float(share[index]) * n, n)

    both = [[of_class(index, share) for share in shares] for index in range(len(counts))]
    return ClassifierClasses(
        clean_balanced=clean,
        clean_balanced_interval=clean_interval,
        shift_balanced=shift,
        shift_balanced_interval=shift_interval,
        recall=tuple(
            ClassRecall(clean=c, clean_interval=c_interval, shift=s, shift_interval=s_interval)
            for (c, c_interval), (s, s_interval) in both
        ),
    )
