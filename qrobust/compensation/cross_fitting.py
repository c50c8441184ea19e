"""Where validation images are few: what is chosen on all but a fold of them is judged on that fold."""

from __future__ import annotations

from qrobust.compensation.validation import Rows, Validation

# Of fewer clean images, those that chose would flatter what they chose: where two of a hundred are answered
# otherwise, the difference has a standard error of half a point, which is more than the default budget.
FEW, FOLDS = 1000, 5


def folds_of(validation: Validation) -> list[tuple[Rows, Rows]]:
    """Rows to choose on and rows to judge on, for each fold; none where there are enough images, or too few to part.

    Stone, "Cross-Validatory Choice and Assessment of Statistical Predictions", Journal of the Royal Statistical
    Society B 36, 1974.

    Args:
        validation: images to part; every class that decides has an image in each fold.
    """
    labels, wanted = validation.parts[0][1], validation.primary.class_index
    counted = len(labels) if wanted is None else int((labels == wanted).sum())
    return validation.folds(FOLDS) if counted >= FOLDS and len(labels) < FEW else []
