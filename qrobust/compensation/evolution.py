"""Evolution-strategy fine-tuning of a frozen calibrator: no gradient, measured on the deployed classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import fx, nn

from qrobust.classifier import Classifier
from qrobust.compensation.validation import Validation
from qrobust.progress import Reporter
from qrobust.quantization.integer_layers import IntegerLinear
from qrobust.record import EvolutionStrategy

HEADS = ("gate", "photometric", "geometric")
# Of the first step, and what success and failure make of it: one success in five keeps it as it is.
STEP, LONGER, SHORTER = 0.05, 1.5, 0.9


def evolve(
    calibrator: fx.GraphModule,
    deployed: Classifier,
    validation: Validation,
    tries: int,
    *,
    least_clean: float,
    deploy: Callable[[nn.Module], Classifier],
    seed: int,
    reporter: Reporter,
) -> tuple[fx.GraphModule, EvolutionStrategy]:
    """Move the biases of the heads that act on whole images, and keep what onnxruntime measures as better.

    A (1+1) evolution strategy with the one-fifth rule (Rechenberg): random steps on the sum of clean and shifted
    validation accuracy, each measured on onnxruntime.

    Args:
        calibrator: frozen; it is not changed.
        deployed: the classifier behind it, as it runs.
        validation: images to choose by.
        tries: how many steps.
        least_clean: clean validation accuracy that no step may go below, as a fraction.
        deploy: a torch module to the classifier as it runs.
        seed: of the steps.
        reporter: where progress is told.

    Returns:
        The best calibrator, and its score before and after.
    """
    generator = torch.Generator().manual_seed(seed)

    def score(candidate: fx.GraphModule) -> tuple[float, float]:
        clean, shifted = validation.measure(deployed, deploy(candidate))
        return clean, clean + shifted

    best, step = calibrator, STEP
    _, highest = score(best)
    before = highest
    with reporter.bar("evolve on onnxruntime", tries) as bar:
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
    return best, EvolutionStrategy(before=before, after=highest, tries=tries)
