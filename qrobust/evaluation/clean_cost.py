"""What a remedy costs on clean images, measured on validation images, and how much it may be in truth."""

from __future__ import annotations

import math

import numpy as np

from qrobust.evaluation.config import ACCURACY
from qrobust.evaluation.primary import Primary
from qrobust.evaluation.statistics import Z_ONE_SIDED
from qrobust.record import CleanCost

# Points that a bound may lie above its estimate until more images are asked for.
TOLERANCE_PP = 1.0
# What Agresti and Min add to each kind of pair, the images that both classifiers get right or wrong being two kinds.
PSEUDO = 0.5


def clean_cost(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    primary: Primary,
    *,
    budget_pp: float,
    allowed_pp: float,
) -> CleanCost:
    """The cost in the primary measure, and its one-sided bound at 95 %.

    The bound is Wald's of a difference of paired proportions after half an image has been added to each kind of pair
    (Agresti and Min, Statistics in Medicine 24, 2005): of two classifiers that differ on no image Wald's own is 0. Of
    balanced accuracy it is made of those of the classes, which share what is added.

    Args:
        before: whether the classifier alone is right `(n,)`, bool.
        after: whether it is right behind or with the remedy.
        labels: class indices `(n,)`.
        primary: what is called accuracy.
        budget_pp: points that it was to cost at most.
        allowed_pp: points that it was allowed to cost on these images.
    """
    weights = primary.weights(labels)
    groups = np.zeros_like(labels) if primary.name == ACCURACY else labels
    counted = [np.flatnonzero((groups == group) & (weights > 0)) for group in np.unique(groups)]
    counted = [chosen for chosen in counted if len(chosen)]
    middle = variance = 0.0
    for chosen in counted:
        share, added = float(weights[chosen].sum()), PSEUDO / len(counted)
        lost = float((before[chosen] & ~after[chosen]).sum()) + added
        won = float((after[chosen] & ~before[chosen]).sum()) + added
        n = len(chosen) + 4 * added
        middle += share * (lost - won) / n
        variance += share**2 * (lost + won - (lost - won) ** 2 / n) / n**2
    cost = 100 * float(weights @ (before.astype(float) - after.astype(float)))
    bound = 100 * (middle + Z_ONE_SIDED * math.sqrt(variance))
    # An estimate that judges what other images chose may be above the budget: then the bound may be nearer to it.
    nearer = TOLERANCE_PP - max(0.0, cost - budget_pp)
    tells = bound > budget_pp + TOLERANCE_PP and nearer > 0
    return CleanCost(
        n=len(labels),
        budget_pp=budget_pp,
        allowed_pp=allowed_pp,
        cost_pp=cost,
        bound_pp=min(100.0, bound),
        images_to_tell=math.ceil(len(labels) * variance * (100 * Z_ONE_SIDED / nearer) ** 2) if tells else None,
    )
