"""Bias correction: take back the shift in each channel's mean that quantization caused.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
section 4.2, in its empirical form: means are measured on calibration images, layer after layer, each with
all earlier ones already corrected.
"""

from __future__ import annotations

import torch
from torch import fx

from qrobust.quantization.layerwise import execute_layerwise


def correct_biases(prepared: fx.GraphModule, fake_quantized: fx.GraphModule, images: torch.Tensor) -> None:
    """Correct the fake-quantized model's biases in place.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from.
        fake_quantized: frozen; afterwards the mean output of every integer layer over `images` is the float one's,
            channel by channel, to half a step of the bias.
        images: one batch `(N, C, S, S)` in [0, 1] of calibration images.
    """
    for visit in execute_layerwise(prepared, fake_quantized, images):
        error = visit.float_output() - visit.output()
        dims = [0, *range(2, error.ndim)] if visit.layer.weight_int.ndim == 4 else list(range(error.ndim - 1))
        visit.layer.shift_bias(error.mean(dims))
