from __future__ import annotations

import math

import pytest
import torch

from qrobust.quantization.observers import (
    BINS,
    RANGES,
    Observer,
    quantization_parameters,
)


def seen(values: torch.Tensor, batches: int = 1) -> Observer:
    observer = Observer()
    for part in values.chunk(batches):
        assert torch.equal(observer(part), part)
    return observer


def squared_error(values: torch.Tensor, low: float, high: float, qmin: int, qmax: int) -> float:
    scale, zero_point = quantization_parameters(low, high, qmin, qmax)
    level = (values / scale).round() + zero_point
    return float(((level.clamp(qmin, qmax) - zero_point) * scale - values).square().mean())


def test_histogram_counts_everything_whatever_the_order() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 5000)
    for order in (values, values.flip(0)):
        observer = seen(order, batches=50)
        assert observer.counts.sum() == observer.seen == 5000
        assert (observer.low, observer.high) == (values.min(), values.max())
        edges = torch.linspace(observer.left, observer.left + observer.width, BINS + 1, dtype=torch.float64)
        expected = torch.histogram(values.double(), edges)[0]
        # A value on an edge may fall to either side in float32.
        assert (expected - observer.counts).abs().sum() <= 10


def test_large_tensors_are_sampled_over_all_columns() -> None:
    x = torch.arange(64.0).expand(3 * 2**20 // 64, 64)
    observer = seen(x)
    assert 2**20 <= observer.counts.sum() < 2**21 + 64
    share = observer.counts[observer.counts > 0] / observer.counts.sum()
    assert len(share) == 64
    # Evenly spread over the 64 values, to one visit.
    assert (share - 1 / 64).abs().max() < 1e-5


def test_memory_does_not_grow_with_the_images() -> None:
    observer = Observer()
    for step in range(200):
        observer(torch.full((10,), float(step)))
    assert observer.counts.shape == (BINS,)
    assert observer.counts.sum() == 2000


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (-128, 127), (0, 15)])
def test_grid_holds_zero_and_spans_the_range(qmin: int, qmax: int) -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 1.0)):
        scale, zero_point = quantization_parameters(low, high, qmin, qmax)
        assert qmin <= zero_point <= qmax
        # The zero point is rounded, so either end may move by half a step.
        assert scale * (qmin - zero_point) == pytest.approx(min(low, 0), abs=scale / 2 + 1e-9)
        assert scale * (qmax - zero_point) == pytest.approx(max(high, 0), abs=scale / 2 + 1e-9)


def test_min_max_and_moving_average_by_hand() -> None:
    observer = seen(torch.tensor([[-1.0, 2.0], [-3.0, 1.0]]), batches=2)
    assert RANGES["min-max"](observer, 0, 255) == (-3, 2)
    low, high = RANGES["moving-average"](observer, 0, 255)
    assert (low, high) == (pytest.approx(-1 - 0.01 * 2), pytest.approx(2 - 0.01 * 1))


def test_percentile_cuts_off_its_tails() -> None:
    values = torch.cat([torch.linspace(0, 1, 100_000), torch.tensor([50.0])])
    low, high = RANGES["percentile"](seen(values), 0, 255)
    # 0.005 % on either side, to the width of a bin.
    assert low == pytest.approx(0, abs=50 / BINS)
    assert high == pytest.approx(1, abs=50 / BINS + 1e-3)


@pytest.mark.parametrize("levels", [15, 255])
@pytest.mark.parametrize("kind", ["relu", "normal"])
def test_mse_range_is_the_best_of_a_fine_search(kind: str, levels: int) -> None:
    values = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    values = values.relu() if kind == "relu" else values
    low, high = RANGES["mse"](seen(values), 0, levels)
    found = squared_error(values, low, high, 0, levels)
    shares = torch.linspace(0.05, 1, 400).tolist()
    best = min(squared_error(values, float(values.min()) * s, float(values.max()) * s, 0, levels) for s in shares)
    # The search looks at a histogram on a coarser list of shares.
    assert found <= 1.1 * best
    assert found < squared_error(values, float(values.min()), float(values.max()), 0, levels)


def test_kl_range_clips_a_lonely_outlier_and_keeps_a_flat_distribution() -> None:
    flat = torch.linspace(0, 1, 50_000)
    assert RANGES["histogram"](seen(flat), 0, 15)[1] == pytest.approx(1, abs=0.05)
    with_outlier = torch.cat([flat, torch.tensor([4.0])])
    assert RANGES["histogram"](seen(with_outlier), 0, 15)[1] < 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_noticed(value: float) -> None:
    observer = Observer()
    observer(torch.tensor([1.0, value]))
    assert not observer.finite
