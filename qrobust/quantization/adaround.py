"""Learned weight rounding: up or down, whichever keeps the layer's output.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568. Nearest
rounding minimises the error of each weight; what counts is the error of the output on real inputs. Layer
after layer, every weight learns on calibration images whether to be rounded up or down, with all earlier
layers already rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch.nn import functional as F

from qrobust.device import fast_arithmetic
from qrobust.quantization.integer_layers import IntegerConv2d
from qrobust.quantization.layerwise import LayerExecution, execute_layerwise

# The paper's rectified sigmoid, regulariser and annealing (section 3.3 and appendix).
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
REGULARISER, BETA_START, BETA_END, WARM_UP = 0.01, 20.0, 2.0, 0.2
RATE, BATCH = 1e-2, 32


def learn_rounding(
    prepared: fx.GraphModule,
    fake_quantized: fx.GraphModule,
    images: torch.Tensor,
    *,
    steps: int,
    seed: int,
    below: int = 63,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Choose the rounding of the fake-quantized model's weights, in place.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from.
        fake_quantized: frozen.
        images: one batch `(N, C, S, S)` in [0, 1] of calibration images.
        steps: of Adam, per layer.
        seed: decides the batches.
        below: only layers whose largest integer is smaller are learned; 8-bit weights gain nothing.
        progress: called with each layer's name once it is done.
    """
    generator = torch.Generator().manual_seed(seed)
    for visit in execute_layerwise(prepared, fake_quantized, images):
        if visit.layer.qmax < below:
            _learn(visit, steps, generator)
        progress(visit.name)


@torch.enable_grad()
def _learn(visit: LayerExecution, steps: int, generator: torch.Generator) -> None:
    layer = visit.layer
    scale = layer.weight_scale.view(-1, *[1] * (layer.weight_int.ndim - 1))
    exact = (visit.float_layer.weight.detach() / scale).clamp(-layer.qmax, layer.qmax)
    floor = exact.floor()
    share = ((exact - floor - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)).clamp(1e-3, 1 - 1e-3)
    logits = torch.logit(share).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    low, high = visit.bounds or (-float("inf"), float("inf"))
    wanted = visit.float_output().detach().clamp(low, high)
    spread = wanted.var().clamp(min=1e-12)

    def up() -> torch.Tensor:
        return (torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    for step in range(steps):
        chosen = torch.randint(len(wanted), (min(BATCH, len(wanted)),), generator=generator)
        optimizer.zero_grad()
        weight = (floor + up()).clamp(-layer.qmax, layer.qmax) * scale
        with fast_arithmetic(weight.device, enabled=not _depthwise(layer)):
            output = layer.apply_weight(visit.input[chosen], weight)
        error = (output.float().clamp(low, high) - wanted[chosen]).square().mean() / spread
        warm = WARM_UP * steps
        if step > warm:
            beta = BETA_END + (BETA_START - BETA_END) * (1 - (step - warm) / (steps - warm))
            error = error + REGULARISER * (1 - (2 * up() - 1).abs().pow(beta)).mean()
        error.backward()
        optimizer.step()
    with torch.no_grad():
        learned = (floor + (up() >= 0.5)).clamp(-layer.qmax, layer.qmax).to(torch.int8)
        before, nearest = layer.weight_int.clone(), _error(visit, wanted, low, high)
        layer.weight_int.copy_(learned)
        if _error(visit, wanted, low, high) > nearest:
            layer.weight_int.copy_(before)


def _error(visit: LayerExecution, wanted: torch.Tensor, low: float, high: float) -> float:
    return float(F.mse_loss(visit.output().clamp(low, high), wanted))


def _depthwise(layer: torch.nn.Module) -> bool:
    return isinstance(layer, IntegerConv2d) and layer.groups > 1
