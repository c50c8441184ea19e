"""Ranges of activations: a streaming summary of every value seen, and rules that choose a range from it.

The summary's size is fixed: minimum, maximum, their moving averages and a histogram whose bins double in
width when a value falls outside. So one pass over the calibration images serves every rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from qrobust.device import on_cpu

BINS = 2048
# Values of one tensor that the histogram looks at, or up to twice as many: more would not move a range.
SAMPLED = 2**20
# As torch.ao's moving-average observer weighs the newest batch.
NEWEST = 0.01
PERCENTILE = 0.9999
SHRINKS = torch.linspace(0.2, 1.0, 81, dtype=torch.float64)


class Observer(nn.Module):
    """Passes a tensor on and remembers what values it held.

    Any shape in, the same tensor out. Attributes: `seen` (count of values), `finite`, `low`, `high`,
    `average_low`, `average_high` (of every value), and `counts` `(2048,)` over [`left`, `left + width`], of every
    value of a small tensor and of evenly spread ones, a million or more, of a large one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.seen, self.finite = 0, True
        self.low = self.high = self.average_low = self.average_high = 0.0
        self.left = self.width = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.enabled:
            self._see(x.detach())
        return x

    def _see(self, x: torch.Tensor) -> None:
        x = x.float()
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)  # as it lies in memory, so that nothing is copied
        low, high = (float(v) for v in torch.aminmax(x))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            self.finite = False
            return
        if not self.seen:
            self.low, self.high, self.average_low, self.average_high = low, high, low, high
            self.left = low
            self.width = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-30)
        self.seen += x.numel()
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.average_low += NEWEST * (low - self.average_low)
        self.average_high += NEWEST * (high - self.average_high)
        while high > self.left + self.width:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.width *= 2
        while low < self.left:
            self.counts = torch.cat([torch.zeros(BINS // 2, dtype=torch.float64), self.counts.view(-1, 2).sum(1)])
            self.left -= self.width
            self.width *= 2
        step = max(1, x.numel() // SAMPLED)
        while math.gcd(step, x.shape[-1] if x.ndim else 1) != 1:
            step += 1  # else some columns of the image would never be looked at
        self.counts += on_cpu(torch.histc(x.flatten()[::step], BINS, self.left, self.left + self.width)).double()

    def centres(self) -> torch.Tensor:
        """The middle of each bin `(2048,)`, none outside the values seen."""
        middles = self.left + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        return middles.clamp(self.low, self.high)


def quantization_parameters(low: float, high: float, qmin: int, qmax: int) -> tuple[float, int]:
    """Scale and zero point of the grid that spans [low, high] and holds zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin)
    zero_point = max(qmin, min(qmax, round(qmin - low / scale))) if scale else qmin
    return scale, zero_point


def _min_max(seen: Observer, qmin: int, qmax: int) -> tuple[float, float]:
    return seen.low, seen.high


def _moving_average(seen: Observer, qmin: int, qmax: int) -> tuple[float, float]:
    return seen.average_low, seen.average_high


def _percentile(seen: Observer, qmin: int, qmax: int) -> tuple[float, float]:
    below = seen.counts.cumsum(0) / seen.counts.sum()
    tail = (1 - PERCENTILE) / 2
    edges = seen.left + seen.width * torch.arange(1, BINS + 1, dtype=torch.float64) / BINS
    low = float(edges[int((below <= tail).sum())]) - seen.width / BINS
    high = float(edges[min(BINS - 1, int((below < 1 - tail).sum()))])
    return max(low, seen.low), min(high, seen.high)


def _squared_error(seen: Observer, low: torch.Tensor, high: torch.Tensor, levels: int) -> torch.Tensor:
    """Mean squared rounding and clipping error of each candidate range `(C,)`."""
    x = seen.centres()
    scale = ((high - low) / levels).clamp(min=1e-300)[:, None]
    first = (low[:, None] / scale).round()
    level = (x / scale).round().maximum(first).minimum(first + levels)
    return ((level * scale - x).square() * seen.counts).sum(1)


def _mse(seen: Observer, qmin: int, qmax: int) -> tuple[float, float]:
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    shrinks = SHRINKS if qmax - qmin > 100 else torch.linspace(0.05, 1.0, 96, dtype=torch.float64)
    best_low, best_high = torch.tensor(low).double(), torch.tensor(high).double()
    for _ in range(2 if low < 0 < high else 1):
        if high > 0:
            candidates = high * shrinks
            errors = _squared_error(seen, best_low.expand_as(candidates), candidates, qmax - qmin)
            best_high = candidates[errors.argmin()]
        if low < 0:
            candidates = low * shrinks
            errors = _squared_error(seen, candidates, best_high.expand_as(candidates), qmax - qmin)
            best_low = candidates[errors.argmin()]
    return float(best_low), float(best_high)


def _histogram(seen: Observer, qmin: int, qmax: int) -> tuple[float, float]:
    """Least KL divergence between what was seen, clipped, and what the grid can tell apart (Migacz, 2017)."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    x, levels = seen.centres(), qmax - qmin
    best, chosen = float("inf"), (low, high)
    for shrink in SHRINKS.tolist():
        a, b = low * shrink, high * shrink
        inside = ((x >= a) & (x <= b)).nonzero()[:, 0]
        if not len(inside):
            continue
        counts = seen.counts[inside]
        clipped = counts.clone()
        clipped[0] += seen.counts[: inside[0]].sum()
        clipped[-1] += seen.counts[inside[-1] + 1 :].sum()
        level = ((x[inside] - a) * (levels / (b - a) if b > a else 0.0)).round().long()
        mass = torch.zeros(levels + 1, dtype=torch.float64).index_add_(0, level, counts)
        filled = torch.zeros(levels + 1, dtype=torch.float64).index_add_(0, level, (counts > 0).double())
        told_apart = torch.where(counts > 0, (mass / filled.clamp(min=1))[level], 0.0)
        p, q = clipped / clipped.sum(), told_apart / told_apart.sum().clamp(min=1e-300)
        held = p > 0
        divergence = float((p[held] * (p[held] / q[held].clamp(min=1e-12)).log()).sum())
        if divergence < best:
            best, chosen = divergence, (a, b)
    return chosen


RANGES: dict[str, Callable[[Observer, int, int], tuple[float, float]]] = {
    "min-max": _min_max,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "histogram": _histogram,
    "mse": _mse,
}
