"""How readily and how sharply a trained calibrator's gate opens: chosen on validation images."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Validation
from qrobust.quantization.integer_layers import IntegerLinear

# A gate that is half open does half of a correction, and half of an inversion is grey: a gain decides.
GAINS = (1.0, 8.0)
# From open to shut, before the gain; then between the best and the next more open, so many times halved. A calibrator
# that learned from few images takes many others for shifted: there only the last ones shut.
OFFSETS = (1.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0, -18.0, -27.0, -40.0)
HALVINGS = 3
# Gates that are tried at most.
MOST_TRIED = len(GAINS) * (len(OFFSETS) + HALVINGS)


class Gate(NamedTuple):
    """What a gate's logit became, `gain * (logit + offset)`, and whether that `kept` enough clean accuracy."""

    gain: float
    offset: float
    kept: bool = True


@torch.no_grad()
def set_gate(
    calibrator: nn.Module,
    classifier: Classifier,
    validation: Validation,
    *,
    least_clean: float,
    progress: Callable[[], None] = lambda: None,
) -> Gate:
    """Move the gate and sharpen it, in place, so that clean images lose no more than allowed.

    Args:
        calibrator: frozen to its integers; scales and bias of its `gate` change, so nothing is added to what runs.
        classifier: what it stands in front of.
        validation: images to choose by.
        least_clean: clean validation accuracy to keep, as a fraction.
        progress: called after each gate that is tried, `MOST_TRIED` times at most.

    Returns:
        What has the highest accuracy under shift among those that keep enough clean accuracy; without any, the most
        shut.
    """
    gate = calibrator.get_submodule("gate")
    assert isinstance(gate, IntegerLinear)
    trained = {name: value.clone() for name, value in gate.state_dict().items()}

    def put(chosen: Gate) -> None:
        gate.load_state_dict(trained)
        gate.shift_bias(torch.full_like(gate.bias(), chosen.offset))
        gate.amplify(chosen.gain)

    measured: dict[Gate, float] = {}

    @cache
    def keeps(chosen: Gate) -> bool:
        put(chosen)
        kept = validation.clean(classifier, calibrator) >= least_clean
        progress()
        return kept

    def shifted(chosen: Gate) -> float:
        if chosen not in measured:
            put(chosen)
            measured[chosen] = validation.shifted(classifier, calibrator)
        return measured[chosen]

    for gain in GAINS:
        gates = [Gate(gain, offset) for offset in OFFSETS]
        # The more shut, the more clean accuracy: the first that keeps enough is found by halving.
        first = bisect_left(gates, True, key=keeps)
        passed = gates[first : first + 1]
        for following in gates[first + 1 :]:
            if not keeps(following):
                continue
            passed.append(following)
            if shifted(passed[-2]) > shifted(following):
                break  # from here on it only shuts
        if not passed:
            continue
        shut = max(passed, key=shifted)
        wider = gates[max(0, gates.index(shut) - 1)].offset
        for _ in range(HALVINGS):
            between = Gate(gain, (shut.offset + wider) / 2)
            if keeps(between) and shifted(between) > shifted(shut):
                shut = between
            else:
                wider = between.offset
    best = max(measured, key=lambda chosen: measured[chosen]) if measured else Gate(GAINS[0], OFFSETS[-1], kept=False)
    put(best)
    return best
