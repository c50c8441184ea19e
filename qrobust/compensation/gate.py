"""How readily and how sharply a trained calibrator's gate opens: chosen on validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Part, Rows, Validation
from qrobust.quantization.integer_layers import IntegerLinear

# A gate that is half open does half of a correction, and half of an inversion is grey: a gain decides.
GAINS = (1.0, 8.0)
# From open to shut, before the gain; each step between two of them is divided into so many. A calibrator that learned
# from few images takes many others for shifted: there only the last ones shut.
OFFSETS = (1.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0, -18.0, -27.0, -40.0)
PARTS = 8
# Openings of the gate at which the classifier is asked; between two of them what it says is interpolated.
OPENINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Gates whose clean accuracy is measured at most, the most promising first.
MOST_MEASURED = 5


class Gate(NamedTuple):
    """What a gate's logit became, `gain * (logit + offset)`, and whether that `kept` enough clean accuracy."""

    gain: float
    offset: float
    kept: bool = True


@dataclass(frozen=True)
class Opened:
    """What the classifier makes of images at each opening of the gate.

    Attributes:
        logits: of the gate as it was trained, `(N,)`.
        scores: 1 where the prediction is right, `(len(OPENINGS), N)`.
    """

    logits: torch.Tensor
    scores: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> Opened:
        """Of these images alone, bool `(N,)`."""
        return Opened(self.logits[rows], self.scores[:, rows])

    def by(self, gate: Gate) -> torch.Tensor:
        """How far a gate opens `(N,)`, from 0 to 1."""
        return torch.sigmoid(gate.gain * (self.logits + gate.offset))

    def of(self, gate: Gate) -> torch.Tensor:
        """What is expected of a gate `(N,)`, from 0 to 1."""
        place = self.by(gate) * (len(OPENINGS) - 1)
        below = place.long().clamp(max=len(OPENINGS) - 2)
        images = torch.arange(len(place))
        return torch.lerp(self.scores[below, images], self.scores[below + 1, images], (place - below).double())


@torch.no_grad()
def set_gate(
    calibrator: nn.Module,
    classifier: Classifier,
    validation: Validation,
    *,
    least_clean: float,
    opened: Sequence[Opened] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Gate:
    """Move the gate and sharpen it, in place, so that clean images lose no more than allowed.

    What the branches propose does not depend on the gate. So each image is calibrated at a few openings, and what a
    gate would come to is read off; only the clean accuracy of the best is measured, and of the next, if need be.

    Args:
        calibrator: frozen to its integers; scales and bias of its `gate` change, so nothing is added to what runs.
        classifier: what it stands in front of.
        validation: images to choose by.
        least_clean: clean validation accuracy to keep, as a fraction.
        opened: of each set of validation images, where that is known; see `opened_parts`.
        progress: called for each set of validation images, see `gate_steps`.

    Returns:
        What is expected to have the highest accuracy under shift among those that keep enough clean accuracy, the
        most open of equals; without any, the most shut.
    """
    clean, *shifted = opened or opened_parts(calibrator, classifier, validation, progress=progress)
    promised = {gate: validation.shift_value([part.of(gate) for part in shifted]) for gate in _gates()}
    expected = {gate: validation.clean_value(clean.of(gate)) for gate in promised}
    layer = _gate_of(calibrator)
    trained = {name: value.clone() for name, value in layer.state_dict().items()}

    def put(gate: Gate) -> None:
        layer.load_state_dict(trained)
        layer.shift_bias(torch.full_like(layer.bias(), gate.offset))
        layer.amplify(gate.gain)

    shut = Gate(GAINS[0], OFFSETS[-1])
    opening = {gate: float(clean.by(gate).mean()) for gate in promised}
    most_open = 1.0
    for _ in range(MOST_MEASURED):
        keeping = [gate for gate in promised if expected[gate] >= least_clean and opening[gate] <= most_open]
        if not keeping:
            break
        best = max(keeping, key=lambda gate: promised[gate])
        put(best)
        measured = validation.clean(classifier, calibrator)
        progress()
        if measured >= least_clean:
            return best
        # What was read off promised too much; it does less so of gates that open less.
        most_open = opening[best] / 2
    put(shut)
    return shut._replace(kept=validation.clean(classifier, calibrator) >= least_clean)


@torch.no_grad()
def cross_fitted_scores(
    calibrator: nn.Module,
    classifier: Classifier,
    validation: Validation,
    *,
    opened: Sequence[Opened],
    before: torch.Tensor,
    budget: float,
    folds: Sequence[tuple[Rows, Rows]],
    progress: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Scores on each clean image behind a gate that other images chose, `(n,)`; the gate ends as it was.

    Args:
        calibrator: as for `set_gate`.
        classifier: what it stands in front of.
        validation: images to choose and to judge by.
        opened: of each set of validation images, with the gate as it was trained.
        before: scores on clean images without the calibrator, from which the budget counts `(n,)`.
        budget: points that clean images may lose.
        folds: rows that choose and rows that judge, which are together all; see `folds_of`.
        progress: called for each fold and each gate that is measured.
    """
    layer = _gate_of(calibrator)
    trained = {name: value.clone() for name, value in layer.state_dict().items()}
    scores = torch.zeros(len(before), dtype=torch.float64)
    for others, own in folds:
        choosing = validation.of_rows(others)
        known = [part.of_rows(rows) for part, rows in zip(opened, others, strict=True)]
        least = choosing.least_clean(choosing.clean_value(before[others[0]]), budget)
        set_gate(calibrator, classifier, choosing, least_clean=least, opened=known, progress=progress)
        scores[own[0]] = validation.of_rows(own).clean_scores(classifier, calibrator)
        layer.load_state_dict(trained)
        progress()
    return scores


def gate_steps(validation: Validation, folds: int = 0) -> int:
    """How often choosing a gate, and in so many folds once more, tells of its progress at most."""
    return len(validation.parts) + MOST_MEASURED + folds * (MOST_MEASURED + 1)


def _gate_of(calibrator: nn.Module) -> IntegerLinear:
    layer = calibrator.get_submodule("gate")
    assert isinstance(layer, IntegerLinear)
    return layer


def _gates() -> Iterator[Gate]:
    """All that are considered, from open to shut for each gain."""
    for gain in GAINS:
        for start, end in pairwise(OFFSETS):
            yield from (Gate(gain, start + (end - start) * part / PARTS) for part in range(PARTS))
        yield Gate(gain, OFFSETS[-1])


def opened_parts(
    calibrator: nn.Module,
    classifier: Classifier,
    validation: Validation,
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[Opened]:
    """What the classifier makes of every set of validation images at each opening of the gate."""
    return [_opened(calibrator, classifier, validation, part, progress) for part in validation.parts]


@torch.no_grad()
def _opened(
    calibrator: nn.Module,
    classifier: Classifier,
    validation: Validation,
    part: Part,
    progress: Callable[[], None],
) -> Opened:
    correction, proposals = calibrator.get_submodule("correction"), list[tuple[torch.Tensor | None, ...]]()
    handle = correction.register_forward_pre_hook(lambda _, inputs: proposals.append(inputs))
    openings = torch.logit(torch.tensor(OPENINGS)).tolist()  # of 0 and 1, infinite
    logits, scores = list[torch.Tensor](), list[torch.Tensor]()
    try:
        for images, labels in validation.batches(part):
            proposals.clear()
            calibrator(images)
            *proposed, gate = proposals[0]
            assert gate is not None
            logits.append(gate[:, 0])
            calibrated = [correction(*proposed, torch.full_like(gate, logit)) for logit in openings]
            scores.append(torch.stack([validation.scores(classifier, some, labels) for some in calibrated]))
    finally:
        handle.remove()
    progress()
    return Opened(torch.cat(logits), torch.cat(scores, 1))
