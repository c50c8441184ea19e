"""The last polish of a frozen calibrator: gradient-free, on onnxruntime itself."""

from __future__ import annotations

import copy

import torch
from torch import fx

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Validation
from qrobust.pipeline.export import session_of
from qrobust.pipeline.run import Run
from qrobust.quantization.integer_layers import IntegerLinear

HEADS = ("gate", "photometric", "geometric")
# Of the first step, and what success and failure make of it: one success in five keeps it as it is.
STEP, LONGER, SHORTER = 0.05, 1.5, 0.9


def polish(
    run: Run,
    calibrator: fx.GraphModule,
    deployed: Classifier,
    validation: Validation,
    tries: int,
    *,
    least_clean: float,
) -> tuple[fx.GraphModule, dict[str, float]]:
    """Move the biases of the heads that act on whole images, and keep what onnxruntime measures as better.

    A (1+1) evolution strategy with the one-fifth rule (Rechenberg): random steps on the sum of clean and shifted
    validation accuracy, each judged on onnxruntime.

    Args:
        run: of the run.
        calibrator: frozen; it is not changed.
        deployed: the session of the classifier behind it.
        validation: images to choose by.
        tries: how many steps.
        least_clean: clean validation accuracy that no step may go below, as a fraction.

    Returns:
        The best calibrator, and its score before and after, each from 0 to 2.
    """
    generator = torch.Generator().manual_seed(run.config.seed)

    def score(candidate: fx.GraphModule) -> tuple[float, float]:
        clean, shifted = validation.measure(deployed, session_of(run, candidate))
        return clean, clean + shifted

    best, step = calibrator, STEP
    _, highest = score(best)
    before = highest
    with run.reporter.bar("polish on onnxruntime", tries) as bar:
        for _ in range(tries):
            candidate = copy.deepcopy(best)
            for name in HEADS:
                layer = getattr(candidate, name, None)
                if isinstance(layer, IntegerLinear):
                    layer.shift_bias(step * torch.randn(len(layer.bias_int), generator=generator))
            clean, found = score(candidate)
            better = found > highest and clean >= least_clean
            step *= LONGER if better else SHORTER
            if better:
                best, highest = candidate, found
            bar.update(1, f"{highest:.4f}")
    return best, {"before": before, "after": highest, "tries": tries}
