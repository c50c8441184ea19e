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


def test_a_step_that_would_miss_columns_is_made_longer() -> None:
    observer = seen(torch.arange(64.0).expand(2**21 // 64, 64))  # every second value would be of every second column
    assert observer.counts.sum() == pytest.approx(2**21 / 3, abs=1)
    assert int((observer.counts > 0).sum()) == 64


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


def test_the_first_batch_sets_the_histogram_and_later_ones_double_it() -> None:
    observer = Observer()
    observer(torch.linspace(0, 1, BINS, dtype=torch.float64))
    assert (observer.left, observer.width, observer.seen) == (0.0, 1.0, BINS)
    observer(torch.tensor([3.0]))
    assert (observer.left, observer.width) == (0.0, 4.0)
    # What filled all bins fills the first quarter, and the value in their end is in the last quarter.
    assert observer.counts[: BINS // 4].sum() == pytest.approx(BINS, abs=1)  # 1.0 itself may fall beyond the quarter
    assert observer.counts[BINS // 2 :].sum() == observer.counts[3 * BINS // 4] == 1
    observer(torch.tensor([-1.0]))
    assert (observer.left, observer.width) == (-4.0, 8.0)
    assert observer.counts.sum() == observer.seen == BINS + 2
    assert observer.counts[int(BINS * 3 / 8)] == 1
    assert (observer.low, observer.high) == (-1.0, 3.0)


def test_a_batch_within_the_histogram_leaves_it_as_wide() -> None:
    observer = seen(torch.tensor([[-2.0, 6.0], [-2.0, 6.0]]), batches=2)
    assert (observer.left, observer.width) == (-2.0, 8.0)


@pytest.mark.parametrize(("value", "width"), [(0.0, 1e-30), (4.0, 4e-6), (-4.0, 4e-6)])
def test_a_constant_has_a_histogram_of_some_width(value: float, width: float) -> None:
    observer = seen(torch.full((5,), value))
    assert (observer.low, observer.high, observer.left) == (value, value, value)
    assert observer.width == pytest.approx(width)
    assert observer.centres().eq(value).all()


def test_centres_are_the_middles_of_bins_within_what_was_seen() -> None:
    observer = seen(torch.tensor([0.0, BINS]))
    assert torch.equal(observer.centres(), torch.arange(BINS) + 0.5)
    observer(torch.tensor([BINS + 0.25]))
    middles = observer.centres()
    assert (middles[0], middles[BINS // 2 - 1], middles[BINS // 2]) == (1.0, BINS - 1.0, BINS + 0.25)
    assert middles[BINS // 2 :].eq(BINS + 0.25).all()


def test_an_observer_that_is_disabled_remembers_nothing() -> None:
    observer = seen(torch.tensor([1.0, 2.0]))
    observer.enabled = False
    observer(torch.tensor([-9.0, math.nan]))
    assert (observer.low, observer.high, observer.seen, observer.finite) == (1.0, 2.0, 2, True)


def test_values_that_are_not_finite_are_not_counted() -> None:
    observer = seen(torch.tensor([1.0, 2.0]))
    observer(torch.tensor([5.0, math.inf]))
    assert (observer.low, observer.high, observer.seen, observer.finite) == (1.0, 2.0, 2, False)


def test_shape_and_layout_make_no_difference() -> None:
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = seen(values)
    for other in (values.contiguous(memory_format=torch.channels_last), values.double(), values.flatten()):
        found = seen(other)
        assert (found.low, found.high, found.seen) == (plain.low, plain.high, 120)
        assert torch.equal(found.counts, plain.counts)
    alone = seen(torch.tensor(3.0).reshape(1))
    alone(torch.tensor(4.0))  # no dimension at all
    assert (alone.low, alone.high, alone.seen) == (3.0, 4.0, 2)


def test_a_grid_by_hand() -> None:
    assert quantization_parameters(-1.0, 3.0, 0, 255) == (4 / 255, 64)
    assert quantization_parameters(-1.0, 3.0, -128, 127) == (4 / 255, -64)
    assert quantization_parameters(1.0, 3.0, 0, 15) == (0.2, 0)
    assert quantization_parameters(-3.0, -1.0, 0, 15) == (0.2, 15)
    assert quantization_parameters(0.0, 0.0, -8, 7) == (0.0, -8)


def counted(counts: dict[int, float], left: float = -1.0, width: float = 2.0) -> Observer:
    """An observer that saw so many values in these bins."""
    observer = Observer()
    observer.left, observer.width = left, width
    for index, count in counts.items():
        observer.counts[index] = count
    observer.low, observer.high = left, left + width
    observer.seen = int(sum(counts.values()))
    return observer


def test_percentile_ends_at_the_bins_that_hold_the_tails() -> None:
    """Of a million values 50 may be left out on either side."""
    step = 2 / BINS
    observer = counted({0: 49, 10: 2, 1000: 999_898, 2000: 2, BINS - 1: 49})
    assert RANGES["percentile"](observer, 0, 255) == (pytest.approx(-1 + 10 * step), pytest.approx(-1 + 2001 * step))
    observer = counted({0: 51, 1000: 999_898, BINS - 1: 51})
    assert RANGES["percentile"](observer, 0, 255) == (pytest.approx(-1.0), pytest.approx(1.0))
    observer = counted({1000: 10})
    observer.low, observer.high = -1 + 1000.25 * step, -1 + 1000.75 * step
    assert RANGES["percentile"](observer, 0, 255) == (observer.low, observer.high)


def bell(centre: float, spread: float, outlier: float, left: float = -1.0) -> Observer:
    """Counts of a bell and of a lonely outlier at the upper end."""
    x = left + 2 * (torch.arange(BINS) + 0.5) / BINS
    counts = (1e4 * torch.exp(-(((x - centre) / spread) ** 2))).round()
    counts[-1] += outlier
    return counted({i: float(c) for i, c in enumerate(counts) if c}, left)


def comb() -> Observer:
    """A bell whose upper half has holes."""
    place = torch.arange(BINS)
    x = -1 + 2 * (place + 0.5) / BINS
    counts = (1e4 * torch.exp(-((x / 0.4) ** 2))).round() * ~((place * 4 % 11 < 6) & (x > 0.1))
    return counted({i: float(c) for i, c in enumerate(counts) if c})


SHAPES = [comb(), bell(0.0, 0.1, 30), bell(0.2, 0.3, 0), bell(0.5, 0.2, 5, left=0.0), bell(-1.0, 0.3, 10, left=-2.0)]


@pytest.mark.parametrize("observer", SHAPES)
@pytest.mark.parametrize("levels", [15, 255])
def test_mse_range_is_the_least_error_of_either_end_in_turn(observer: Observer, levels: int) -> None:
    """Ends are shrunk one after the other, twice where there are two: written out value by value."""
    middles, weights = observer.centres(), observer.counts

    def error(low: float, high: float) -> float:
        scale = max((high - low) / levels, 1e-300)
        first = round(low / scale)
        level = (middles / scale).round().clamp(first, first + levels)
        return float((weights * (level * scale - middles).square()).sum())

    shares = torch.linspace(0.2, 1, 81).tolist() if levels > 100 else torch.linspace(0.05, 1, 96).tolist()
    low, high = min(observer.left, 0.0), max(observer.left + observer.width, 0.0)
    ends = low, high
    for _ in range(2 if low < 0 < high else 1):
        if high > 0:
            ends = ends[0], min((high * share for share in shares), key=lambda end: error(ends[0], end))
        if low < 0:
            ends = min((low * share for share in shares), key=lambda end: error(end, ends[1])), ends[1]
    # Shares come in single precision here, and in double there.
    assert RANGES["mse"](observer, 0, levels) == pytest.approx(ends, rel=1e-6)


@pytest.mark.parametrize("observer", SHAPES)
def test_kl_range_is_the_least_divergence_of_all_shares(observer: Observer) -> None:
    """What was seen, clipped, against what 16 levels tell apart: written out bin by bin."""
    levels, middles, counts = 15, observer.centres().tolist(), observer.counts.tolist()

    def divergence(a: float, b: float) -> float:
        inside = [i for i, x in enumerate(middles) if a <= x <= b]
        if not inside:
            return math.inf
        clipped = {i: counts[i] for i in inside}
        clipped[inside[0]] += sum(counts[: inside[0]])
        clipped[inside[-1]] += sum(counts[inside[-1] + 1 :])
        level = {i: round((middles[i] - a) * levels / (b - a)) for i in inside}
        mass, filled = [0.0] * (levels + 1), [0] * (levels + 1)
        for i in inside:
            mass[level[i]] += counts[i]
            filled[level[i]] += counts[i] > 0
        told = {i: mass[level[i]] / filled[level[i]] if counts[i] else 0.0 for i in inside}
        total, apart = sum(clipped.values()), sum(told.values())
        return sum(p / total * math.log(p / total / max(told[i] / apart, 1e-12)) for i, p in clipped.items() if p > 0)

    low, high = min(observer.left, 0.0), max(observer.left + observer.width, 0.0)
    shares = [0.2 + 0.01 * i for i in range(81)]
    a, b = RANGES["histogram"](observer, 0, levels)
    best = min(divergence(low * share, high * share) for share in shares)
    assert divergence(a, b) == pytest.approx(best, rel=1e-9)
    share = (b - a) / (high - low)
    assert (a, b) == pytest.approx((low * share, high * share))
