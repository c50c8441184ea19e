"""The remedy `first-stage`: quantization-aware training of the first layers, nothing else changes.

Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts" (arXiv 2210.11466): for image
corruptions, tuning the first block of a network does as much as tuning all of it.
"""

from __future__ import annotations

import copy

import torch
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from qrobust.quantization.integer_layers import ActivationQuantizer
from qrobust.quantization.layerwise import INTEGER_LAYERS
from qrobust.quantization.qat import prepare_qat
from qrobust.quantization.tracing import calls

# Of a network whose resolution never falls, so many layers are its first stage.
SHARE = 0.25


def first_stage(fake_quantized: fx.GraphModule, example: torch.Tensor) -> list[str]:
    """Names of the layers of the first stage, in order of execution: the stem, and what follows at one resolution.

    The stem are the layers that reduce the image before the first that does not. The stage ends before the next that
    reduces it. Where this is more than half of the network, it is the first quarter of the layers.

    Args:
        fake_quantized: frozen.
        example: one input `(1, C, S, S)`.
    """
    shaped = copy.deepcopy(fake_quantized)
    ShapeProp(shaped).propagate(example)

    def side(node: fx.Node) -> int:
        shape = node.meta["tensor_meta"].shape
        return int(shape[-1]) if len(shape) == 4 else 0

    layers, settled, found = list(calls(shaped, INTEGER_LAYERS)), None, list[str]()
    for node, _ in layers:
        if settled is None and side(node) == side(node.all_input_nodes[0]):
            settled = side(node)
        if settled is not None and side(node) < settled:
            break
        found.append(str(node.target))
    if 2 * len(found) > len(layers):
        found = [str(node.target) for node, _ in layers[: max(1, round(SHARE * len(layers)))]]
    return list(dict.fromkeys(found))


def prepare_first_stage(
    prepared: fx.GraphModule, fake_quantized: fx.GraphModule, example: torch.Tensor
) -> fx.GraphModule:
    """A copy of which the first stage trains: its weights, their step sizes, and the ranges that only it reads.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from.
        fake_quantized: frozen; it is not changed.
        example: one input `(1, C, S, S)`.
    """
    stage = set(first_stage(fake_quantized, example))
    readers: dict[int, set[str]] = {}
    names: dict[int, set[str]] = {}
    for node, quantizer in calls(fake_quantized, ActivationQuantizer):
        names.setdefault(id(quantizer), set()).add(str(node.target))
        users = {str(user.target) for user in node.users if user.op == "call_module"}
        readers.setdefault(id(quantizer), set()).update(users or {""})
    # The int32 bias of a layer that stays is in units of its input's scale: that stays, too.
    ranges = {name for key, found in readers.items() if found <= stage for name in names[key]}
    return prepare_qat(prepared, fake_quantized, learn_ranges=True, only=stage | ranges)
