"""What is computed from predictions. Fractions, not percentages; nothing prints or writes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qrobust.record import Flips, LostImage, MissedImage, WorstClass

# AlexNet's top-1 errors on ImageNet-C, means over the five severities, by which arXiv 1903.12261 divides; as its
# authors publish them at github.com/hendrycks/robustness. The keys are the benchmark's fifteen corruptions.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# On clean images: what torchvision documents for its AlexNet, 56.522 % right.
ALEXNET_CLEAN_ERROR = 0.43478
ALEXNET_CLASSES = 1000


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal predictions `(n,)`."""
    return float((a == b).mean())


def flips(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> Flips:
    """Share of images whose prediction changed: to wrong (harmful), to right (helpful), else neutral."""
    changed = before != after
    harmful = changed & (before == labels)
    helpful = changed & (after == labels)
    neutral = changed & ~harmful & ~helpful
    return Flips(harmful=float(harmful.mean()), helpful=float(helpful.mean()), neutral=float(neutral.mean()))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence from accuracy over equal bins (Guo et al., arXiv 1706.04599)."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(total)


def mce_normalizer(table: str, severities: set[int], classes: int) -> str:
    """What the mean corruption error of an evaluation is divided by: `alexnet` or `none`.

    AlexNet's errors were measured on ImageNet's thousand classes with the constants of `imagenet-c`, and are
    means over all five severities; anything else they would not normalise.
    """
    fits = table == "imagenet-c" and severities == {1, 2, 3, 4, 5} and classes == ALEXNET_CLASSES
    return "alexnet" if fits else "none"


def mean_corruption_error(errors: Mapping[str, float], normalizer: str) -> float:
    """Mean over corruptions of the error, each divided by AlexNet's if `alexnet` (arXiv 1903.12261).

    Args:
        errors: corruption to mean error over its severities, fractions; keys of `ALEXNET_ERRORS`.
        normalizer: `alexnet` or `none`.
    """
    by = ALEXNET_ERRORS if normalizer == "alexnet" else dict.fromkeys(errors, 1.0)
    return float(np.mean([error / by[name] for name, error in errors.items()]))


def relative_corruption_error(errors: Mapping[str, float], clean_error: float, normalizer: str) -> float:
    """Mean over corruptions of how much the error grows from clean images, by AlexNet's growth if `alexnet`.

    The relative mCE of arXiv 1903.12261.

    Args:
        errors: as for `mean_corruption_error`.
        clean_error: on clean images, a fraction.
        normalizer: `alexnet` or `none`.
    """
    growths = [
        (error - clean_error) / (ALEXNET_ERRORS[name] - ALEXNET_CLEAN_ERROR if normalizer == "alexnet" else 1.0)
        for name, error in errors.items()
    ]
    return float(np.mean(growths))


def worst_classes(before: np.ndarray, after: np.ndarray, labels: np.ndarray, top: int = 5) -> tuple[WorstClass, ...]:
    """Classes whose accuracy falls most, worst first, those that do not fall left out.

    Args:
        before: per-image accuracy `(n,)` in [0, 1], for example a mean over conditions.
        after: the same afterwards.
        labels: `(n,)`.
        top: at most so many.
    """
    classes = [(int(c), labels == c) for c in np.unique(labels)]
    drops = [
        WorstClass(class_index=c, n=int(own.sum()), drop_pp=100 * float((before - after)[own].mean()))
        for c, own in classes
    ]
    return tuple(sorted((d for d in drops if round(d.drop_pp, 9) > 0), key=lambda d: -d.drop_pp)[:top])


def missed_images(predicted: np.ndarray, labels: np.ndarray, top: int = 12) -> tuple[MissedImage, ...]:
    """Images that a classifier gets wrong most often.

    Args:
        predicted: class indices `(conditions, n)`.
        labels: class indices `(n,)`.
        top: at most so many; those wrong in most conditions first, then in the order of the images.
    """
    wrong = predicted != labels
    count = wrong.sum(axis=0)
    order = [int(i) for i in np.argsort(-count, kind="stable")[:top] if count[i]]
    return tuple(
        MissedImage(
            image=i,
            label=int(labels[i]),
            predicted=int(np.bincount(predicted[wrong[:, i], i]).argmax()),
            conditions=int(count[i]),
        )
        for i in order
    )


def lost_images(before: np.ndarray, after: np.ndarray, top: int = 20) -> tuple[LostImage, ...]:
    """Images that the second classifier loses most often where the first is right.

    Args:
        before: whether the first is right `(conditions, n)`, bool.
        after: the same of the second.
        top: at most so many; those lost in most conditions first.
    """
    count = (before & ~after).sum(axis=0)
    order = np.argsort(-count, kind="stable")[:top]
    return tuple(LostImage(image=int(i), conditions=int(count[i])) for i in order if count[i])
