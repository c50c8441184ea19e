"""Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1).

A ReLU passes a positive factor through, so a channel may leave one layer smaller by a factor that the
next layer's weights take back. Balanced channels share a per-tensor activation grid better. ReLU6 does
not pass factors through (its cap would need one per channel), so pairs around one are left alone.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from qrobust.quantization.tracing import calls

SWEEPS, SMALLEST_CHANGE = 20, 1e-3
FACTORS = (1 / 64, 64.0)


def _pairs(graph: fx.GraphModule) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Layers that only a ReLU stands between, each read by nothing else."""
    modules = dict(graph.named_modules(remove_duplicate=False))
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    found = []
    for node, first in calls(graph, nn.Conv2d):
        after = node
        while len(after.users) == 1:
            after = next(iter(after.users))
            module = modules.get(str(after.target)) if after.op == "call_module" else None
            if isinstance(module, nn.Conv2d):
                alone = uses[str(node.target)] == uses[str(after.target)] == 1
                if alone and (module.groups == 1 or module.groups == module.in_channels == module.out_channels):
                    assert isinstance(first, nn.Conv2d)
                    found.append((first, module))
                break
            if not isinstance(module, nn.ReLU | nn.MaxPool2d):
                break
    return found


def equalize(graph: fx.GraphModule) -> int:
    """Balance the channels of a folded float graph, in place; its output does not change.

    Args:
        graph: in normal form, in eval mode.

    Returns:
        How many pairs of layers were balanced.
    """
    pairs = _pairs(graph)
    for _ in range(SWEEPS):
        change = 0.0
        for first, second in pairs:
            depthwise = second.groups > 1
            out = first.weight.detach().flatten(1).abs().amax(1)
            into = second.weight.detach().transpose(0, 0 if depthwise else 1).flatten(1).abs().amax(1)
            factor = (out * into).sqrt() / into.clamp(min=1e-12)
            factor = torch.where((out > 0) & (into > 0), factor, 1.0).clamp(*FACTORS)
            with torch.no_grad():
                first.weight /= factor.view(-1, 1, 1, 1)
                if first.bias is not None:
                    first.bias /= factor
                second.weight *= factor.view(-1, 1, 1, 1) if depthwise else factor.view(1, -1, 1, 1)
            change = max(change, float((factor - 1).abs().max()))
        if change < SMALLEST_CHANGE:
            break
    return len(pairs)
