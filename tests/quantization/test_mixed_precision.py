"""Layers that get more bits until a drop, and a time, is within its bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from reports import main_record
from torch import nn

from qrobust.api import load_classifier
from qrobust.data.own_images import as_split
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.quantization.config import QuantizationConfig
from qrobust.quantization.integer_layers import IntegerConv2d, IntegerLinear
from qrobust.quantization.mixed_precision import Candidate, Step, _given_back, _raised
from qrobust.quantization.quantize import FakeQuantizedModel, quantize_classifier
from qrobust.record import LayerStep, MixedPrecision, PrecisionBounds
from qrobust.report.mixed_precision import mixed_precision_sentence, unmet_sentences
from qrobust.report.verdict import verdict

# Beside it a weight of 1 is nothing: one of 255 steps is 39.
HUGE = 5000.0
LAYERS = 5


class Spoilt(nn.Module):
    """Whether an image's mean is above one half, through layers that hand it on.

    One of them, `spoilt`, has a huge weight beside, for a channel that is always zero: on integers nothing is left.
    """

    def __init__(self, huge: float) -> None:
        super().__init__()
        self.first, self.before = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.spoilt, self.after = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.last = nn.Linear(2, 2)
        with torch.no_grad():
            for layer in (self.first, self.before, self.spoilt, self.after):
                layer.weight.zero_()
                layer.bias.zero_()
            self.first.weight[0, :, 0, 0] = 1 / 3
            self.before.weight[0, 0] = self.spoilt.weight[0, 0] = self.after.weight[0, 0] = 1.0
            self.spoilt.weight[0, 1] = huge
            self.last.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
            self.last.bias.copy_(torch.tensor([0.5, -0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after(self.spoilt(self.before(self.first(x)).relu()).relu()).relu()
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def grey() -> Split:
    """240 images of one grey each, half of them above one half; the float network gets all right."""
    levels = torch.arange(8, 248).to(torch.uint8)
    images = levels.reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return as_split((images, (levels > 127).long()))


def made(
    images: Split, config: QuantizationConfig, *, huge: float = HUGE, ms: Sequence[float] | None = None
) -> tuple[FakeQuantizedModel, MixedPrecision]:
    """A quantized network and what the bounds did; `ms` is its time by the number of layers in float."""

    def timer(first: nn.Module, others: Iterable[nn.Module]) -> list[float]:
        assert ms
        return [ms[LAYERS - on_integers(one)] for one in (first, *others)]

    model = load_classifier(Spoilt(huge), num_classes=2, image_size=8, normalization="none")
    found = quantize_classifier(model, images, images, config, timer=timer if ms else None)
    assert found.mixed_precision
    return found, found.mixed_precision


def on_integers(module: nn.Module) -> int:
    return sum(isinstance(one, IntegerConv2d | IntegerLinear) for one in module.modules())


def test_the_layer_that_is_bad_stays_in_float_and_no_other(grey: Split) -> None:
    found, mixed = made(grey, QuantizationConfig(observer="min-max", target_drop=1.0))
    # All images fall into one class: half of them are wrong.
    assert mixed.start_drop_pp == pytest.approx(50, abs=1)
    assert [(layer.name, layer.bits) for layer in mixed.layers] == [("spoilt", "float")]
    assert mixed.drop_met
    assert mixed.drop_pp <= 1
    assert on_integers(found.module) == LAYERS - 1
    assert found.recipe.exceptions == (("spoilt", "float"),)
    assert max(found.effects, key=lambda effect: effect.divergence).name == "spoilt"


def test_nothing_changes_where_the_drop_is_within_its_bound(grey: Split) -> None:
    found, mixed = made(grey, QuantizationConfig(target_drop=2.0), huge=0.0)
    assert (mixed.layers, mixed.tried, mixed.drop_met, mixed.latency_met) == ((), 1, True, None)
    assert mixed.drop_pp == mixed.start_drop_pp
    assert found.recipe.exceptions == ()


def test_layers_of_few_bits_get_eight_before_any_stays_in_float(grey: Split) -> None:
    config = QuantizationConfig(bits="w4a4", edges="same", observer="min-max", target_drop=1.0)
    found, mixed = made(grey, config, huge=0.0)
    # 16 levels put one image in 32 on the wrong side of one half.
    assert mixed.start_drop_pp > 1
    assert mixed.drop_met
    assert {layer.bits for layer in mixed.layers} == {"w8a8"}
    assert on_integers(found.module) == LAYERS


def test_time_is_told_for_each_layer_and_a_bound_that_cannot_be_met_is(grey: Split) -> None:
    config = QuantizationConfig(observer="min-max", target_drop=1.0, target_latency=1.1)
    _, mixed = made(grey, config, ms=(1.0, 1.5, 2.0))
    assert (mixed.start_latency_ms, mixed.latency_ms) == (1.0, 1.5)
    assert mixed.layers == (LayerStep("spoilt", "float", 1.5),)
    assert (mixed.drop_met, mixed.latency_met) == (True, False)
    (told,) = unmet_sentences(mixed)
    assert told == "--target-latency 1.1 is not met within --target-drop 1: one image takes 1.50 ms"
    assert "(spoilt: float, +0.500 ms)" in mixed_precision_sentence(mixed, "accuracy")


def test_the_verdict_tells_of_it(grey: Split) -> None:
    _, mixed = made(grey, QuantizationConfig(observer="min-max", target_drop=1.0))
    record = main_record()
    told = verdict(replace(record, quantization=replace(record.quantization, mixed_precision=mixed)))
    assert mixed_precision_sentence(mixed, "accuracy") in told
    assert len(told) == len(verdict(record)) + 1


def test_a_time_within_its_bound_is_met(grey: Split) -> None:
    config = QuantizationConfig(observer="min-max", target_drop=1.0, target_latency=1.5)
    _, mixed = made(grey, config, ms=(1.0, 1.5, 2.0))
    assert (mixed.drop_met, mixed.latency_met) == (True, True)
    assert unmet_sentences(mixed) == []


def test_time_that_nobody_measures_is_not_within_a_bound(grey: Split) -> None:
    _, mixed = made(grey, QuantizationConfig(target_drop=2.0, target_latency=9.0), huge=0.0)
    assert (mixed.latency_ms, mixed.latency_met) == (None, False)


class Tried:
    """Candidates whose drop is the points of the layers that they leave on integers, and how many were asked for."""

    def __init__(self, points: dict[str, float], like: Candidate) -> None:
        self.points, self.like, self.count = points, like, 0

    def __call__(self, steps: tuple[Step, ...]) -> Candidate:
        self.count += 1
        left = sum(points for name, points in self.points.items() if (name, "float") not in steps)
        return Candidate(steps, self.like.recipe, self.like.observed, self.like.module, left, (left, left))


@pytest.fixture(scope="module")
def like(grey: Split) -> Candidate:
    found, _ = made(grey, QuantizationConfig(target_drop=100.0), huge=0.0)
    return Candidate((), found.recipe, found.observed, found.module, 16.0, (16.0, 16.0))


STEPS = [(f"layer{index}", "float") for index in range(16)]


@pytest.mark.parametrize("needed", range(1, 17))
def test_as_few_layers_as_the_bound_needs(like: Candidate, needed: int) -> None:
    attempt = Tried({name: 1.0 for name, _ in STEPS}, like)
    found = _raised(like, STEPS, 16.0 - needed, attempt)
    assert found.steps == tuple(STEPS[:needed])
    assert attempt.count <= 2 * math.log2(16) + 1


def test_all_steps_where_the_bound_cannot_be_met(like: Candidate) -> None:
    attempt = Tried({name: 1.0 for name, _ in STEPS} | {"other": 1.0}, like)
    assert _raised(like, STEPS, 0.5, attempt).steps == tuple(STEPS)


def test_costly_layers_that_are_not_needed_are_given_back(like: Candidate) -> None:
    attempt = Tried({"layer0": 5.0, "layer1": 0.1, "layer2": 0.2, "layer3": 0.1}, like)
    start = attempt(tuple(STEPS[:4]))
    # They cost 3, 2, 1 and 0 ms: the first is needed, the second is enough.
    found = _given_back(start, [1.0, 4.0, 6.0, 7.0, 7.0], PrecisionBounds(1.0, 5.5), attempt)
    assert found.steps == (STEPS[0], *STEPS[2:4])
    # Where that is not enough, no layer is given back that costs nothing or is needed.
    found = _given_back(start, [1.0, 4.0, 6.0, 7.0, 7.0], PrecisionBounds(1.0, 0.5), attempt)
    assert found.steps == (STEPS[0], STEPS[3])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"target_drop": -1.0}, "target_drop: expected at least 0, got -1"),
        ({"target_drop": 1.0, "target_latency": 0.0}, "target_latency: expected above 0, got 0"),
        ({"target_latency": 1.0}, "target_latency: expected a bound on the drop, too, got no target_drop"),
        ({"target_drop": 1.0, "keep_float": ("auto:2",)}, "target_drop: expected it or keep_float auto:N, got both"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(choices: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**choices)
