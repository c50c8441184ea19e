"""Pools that integer kernels compute."""

from __future__ import annotations

import math

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.errors import InputError
from qrobust.quantization.integer_layers import GlobalAveragePool
from qrobust.quantization.rewrites.fx_utils import argument, replace, shape_of


def is_spatial_mean(node: fx.Node) -> bool:
    dims = argument(node, 1, "dim", None)
    if not isinstance(dims, list | tuple):
        return False
    return len(shape_of(node.args[0])) == 4 and sorted(d % 4 for d in dims) == [2, 3]


def global_pool(graph: fx.GraphModule, node: fx.Node) -> None:
    keepdim = argument(node, 2, "keepdim", False)
    pool = replace(graph, node, GlobalAveragePool())
    if not keepdim:
        users = list(pool.users)
        with graph.graph.inserting_after(pool):
            flat = graph.graph.call_function(torch.flatten, (pool, 1))
        flat.meta = dict(pool.meta)
        for user in users:
            user.replace_input_with(pool, flat)


def _sizes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return shape_of(node.args[0])[-2:], shape_of(node)[-2:]


def _unequal(kind: str, size: tuple[int, ...], want: tuple[int, ...]) -> InputError:
    return InputError(
        f"model: an adaptive {kind} from {size} to {want} has windows of unequal size, which no integer "
        f"kernel computes; choose --image-size so that one side divides the other"
    )


def explicit_maximum(node: fx.Node) -> nn.Module:
    size, want = _sizes(node)
    if size == want:
        return nn.Identity()
    if any(s % w for s, w in zip(size, want, strict=True)):
        raise _unequal("maximum pool", size, want)
    return nn.MaxPool2d((size[0] // want[0], size[1] // want[1]))


def average_without_counted_padding(pool: nn.AvgPool2d) -> nn.Module:
    """The same pool for onnxruntime, whose integer kernel divides wrongly where windows are cut and padding counts.

    It divides a cut window by the size of a whole one (measured on 1.32; its float kernel and torch do not).
    """
    plain = nn.AvgPool2d(
        pool.kernel_size, pool.stride, ceil_mode=True, count_include_pad=False, divisor_override=pool.divisor_override
    )
    if pool.padding in (0, (0, 0)):
        return plain
    high, wide = (pool.padding,) * 2 if isinstance(pool.padding, int) else pool.padding
    return nn.Sequential(nn.ZeroPad2d((wide, wide, high, high)), plain)


def explicit_average(node: fx.Node) -> nn.Module:
    size, want = _sizes(node)
    if want == (1, 1):
        return GlobalAveragePool()
    if size == want:
        return nn.Identity()
    if all(s % w == 0 for s, w in zip(size, want, strict=True)):
        return nn.AvgPool2d((size[0] // want[0], size[1] // want[1]))
    # Repeat every cell and average again: exact where each window touches its cells alike.
    common = [math.gcd(s, w) for s, w in zip(size, want, strict=True)]
    repeat = nn.Upsample(scale_factor=tuple(w // c for w, c in zip(want, common, strict=True)), mode="nearest")
    average = [s // c for s, c in zip(size, common, strict=True)]
    if average == [1, 1]:
        return repeat
    pool = nn.Sequential(repeat, nn.AvgPool2d((average[0], average[1])))
    cells = torch.arange(float(size[0] * size[1])).square().view(1, 1, *size)
    if torch.allclose(pool(cells), F.adaptive_avg_pool2d(cells, (want[0], want[1]))):
        return pool
    raise _unequal("pool", size, want)
