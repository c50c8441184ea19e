"""From an observed graph to integers: small graphs whose integers are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import fx, nn

from qrobust.errors import InputError, RangeError
from qrobust.quantization.convert import WIDE, convert, integer_layer, skeleton, weight_scale
from qrobust.quantization.integer_layers import (
    ActivationQuantizer,
    IntegerConv2d,
    IntegerLinear,
    PaddedConv2d,
)
from qrobust.quantization.observers import Observer
from qrobust.quantization.recipe import Bits, Recipe
from qrobust.quantization.target import ARM64, X86_AVX2, X86_VNNI

MIN_MAX = Recipe(ranges="min-max")


class Whole(fx.Tracer):
    """Takes every module as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def observed(*modules: nn.Module, seen: Sequence[tuple[float, float]]) -> fx.GraphModule:
    """Modules in a row, whose observers saw values from and to, in turn."""
    ends = iter(seen)
    for module in modules:
        if isinstance(module, Observer):
            module(torch.tensor(next(ends)))
            module.enabled = False
    whole = nn.Sequential(*modules)
    return fx.GraphModule(whole, Whole().trace(whole))


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def grid(quantizer: nn.Module) -> tuple[float, int, int, int]:
    assert isinstance(quantizer, ActivationQuantizer)
    return float(quantizer.scale), int(quantizer.zero_point), quantizer.qmin, quantizer.qmax


def test_a_layer_between_observers_becomes_integers() -> None:
    graph = observed(
        Observer(), linear([[1.0, -0.5], [0.0, 0.25]], [0.5, -1.0]), Observer(), seen=[(0, 2.55), (-5.1, 20.4)]
    )
    made = convert(graph, X86_VNNI, MIN_MAX, {"1": (8, 8)})
    first, layer, last = (made.get_submodule(name) for name in "012")
    assert grid(first) == (pytest.approx(0.01), 0, 0, 255)
    assert grid(last) == (pytest.approx(0.1), 51, 0, 255)
    assert isinstance(layer, IntegerLinear)
    assert layer.weight_int.tolist() == [[127, -64], [0, 127]]  # 63.5 goes to the even one
    assert layer.weight_scale.tolist() == pytest.approx([1 / 127, 0.25 / 127])
    assert layer.bias_int.tolist() == [round(0.5 * 12_700), round(-1.0 * 50_800)]
    assert layer.qmax == 127
    assert not made.training
    assert not any(p.requires_grad for p in made.parameters())
    # What it was made from is as it was.
    assert isinstance(graph.get_submodule("0"), Observer)
    assert isinstance(graph.get_submodule("1"), nn.Linear)


@pytest.mark.parametrize(
    ("target", "weights", "activations", "zero"),
    [(X86_VNNI, 7, (0, 15), 0), (ARM64, 7, (-8, 7), -8)],
)
def test_a_tensor_has_the_most_bits_that_a_layer_reading_it_asks_for(
    target: object, weights: int, activations: tuple[int, int], zero: int
) -> None:
    graph = observed(Observer(), linear([[1.0]]), Observer(), linear([[1.0]]), Observer(), seen=[(0, 1)] * 3)
    made = convert(graph, target, MIN_MAX, {"1": (4, 4), "3": (8, 8)})  # type: ignore[arg-type]
    scale, zero_point, *ends = grid(made.get_submodule("0"))
    assert (scale, zero_point, tuple(ends)) == (pytest.approx(1 / 15), zero, activations)
    assert made.get_submodule("1").qmax == weights
    assert made.get_submodule("3").qmax == 127
    # Eight bits where a layer asks for them, and where none reads it.
    for name in "24":
        assert grid(made.get_submodule(name))[3] - grid(made.get_submodule(name))[2] == 255


def test_weights_have_fewer_bits_without_vnni() -> None:
    made = convert(observed(Observer(), linear([[1.0]]), seen=[(0, 1)]), X86_AVX2, MIN_MAX, {"1": (8, 8)})
    assert made.get_submodule("1").weight_int.tolist() == [[63]]


def test_a_layer_left_in_float_stands_behind_a_clamp_that_clamps_nothing() -> None:
    graph = observed(Observer(), linear([[2.0]], [1.0]), Observer(), seen=[(0, 255), (0, 510)])
    made = convert(graph, X86_VNNI, MIN_MAX, {"1": None})
    assert isinstance(made.get_submodule("1"), nn.Linear)
    assert not any(parameter.requires_grad for parameter in made.parameters())
    clamp = made.get_submodule("_1_in_float")
    assert isinstance(clamp, nn.Hardtanh)
    assert (clamp.min_val, clamp.max_val) == (-WIDE, WIDE)
    order = [str(node.target) for node in made.graph.nodes if node.op == "call_module"]
    assert order == ["0", "_1_in_float", "1", "2"]
    assert made(torch.tensor([[3.0]])).item() == pytest.approx(7.0, abs=1)  # the grid of steps of two


def test_a_layer_that_no_quantizer_feeds_stays_as_it_is() -> None:
    made = convert(observed(linear([[2.0]]), Observer(), seen=[(0, 1)]), X86_VNNI, MIN_MAX, {"0": (8, 8)})
    assert isinstance(made.get_submodule("0"), nn.Linear)
    assert [node.op for node in made.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


@pytest.mark.parametrize(
    ("clamp", "seen", "stays"),
    [
        (nn.ReLU(), (0.0, 9.0), False),
        (nn.ReLU(), (-1.0, 9.0), True),
        (nn.ReLU6(), (0.0, 6.0), False),
        (nn.ReLU6(), (0.0, 6.1), True),  # four steps more
        (nn.ReLU6(), (0.0, 6.018), True),  # more than half a step more
        (nn.ReLU6(), (0.0, 6.011), False),  # less
        (nn.Hardtanh(-1.0, 1.0), (-1.0, 1.0), False),
        (nn.Hardtanh(-1.0, 1.0), (-1.1, 1.0), True),
        (nn.Hardtanh(-1.0, 1.0), (0.0, 0.5), False),
    ],
)
def test_a_clamp_goes_where_the_grid_behind_it_ends_before(
    clamp: nn.Module, seen: tuple[float, float], stays: bool
) -> None:
    made = convert(observed(clamp, Observer(), seen=[seen]), X86_VNNI, MIN_MAX, {})
    called = [str(node.target) for node in made.graph.nodes if node.op == "call_module"]
    assert called == (["0", "1"] if stays else ["1"])


def test_a_clamp_stays_where_others_read_it() -> None:
    made = convert(observed(nn.ReLU(), nn.GELU(), Observer(), seen=[(0, 1)]), X86_VNNI, MIN_MAX, {})
    assert isinstance(made.get_submodule("0"), nn.ReLU)
    last = convert(observed(Observer(), nn.ReLU(), seen=[(0, 1)]), X86_VNNI, MIN_MAX, {})
    called = [str(node.target) for node in last.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1"]  # the output reads it, and no quantizer does


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ((1.0, 1.0), r"is constant \(observed \[1.0, 1.0\]\)"),
        ((0.0, float("nan")), r"is NaN or infinite \(observed \[0.0, 0.0\]\)"),
        ((0.0, 1e-19), r"has no usable range \(observed \[0.0, "),
    ],
)
def test_a_range_that_is_none_is_named(seen: tuple[float, float], told: str) -> None:
    graph = observed(linear([[2.0]]), Observer(), seen=[seen])
    with pytest.raises(RangeError, match=f"^calibration: activation .*'0'.* {told}"):
        convert(graph, X86_VNNI, MIN_MAX, {"0": (8, 8)})


def test_what_was_never_observed_is_named() -> None:
    whole = nn.Sequential(linear([[2.0]]), Observer())
    graph = fx.GraphModule(whole, Whole().trace(whole))
    with pytest.raises(RangeError, match=r"is never observed \(observed \[0.0, 0.0\]\); check the weights and the"):
        convert(graph, X86_VNNI, MIN_MAX, {"0": (8, 8)})


def test_what_weights_of_zero_switch_off_is_zero_on_any_grid() -> None:
    graph = observed(Observer(), linear([[0.0]]), Observer(), seen=[(0, 1), (0.0, 0.0)])
    made = convert(graph, X86_VNNI, MIN_MAX, {"1": (8, 8)})
    assert grid(made.get_submodule("2")) == (1.0, 0, 0, 255)


@pytest.mark.parametrize(("value", "wanted"), [(2.55, (0.01, 0)), (-2.55, (0.01, 255)), (0.0, (1.0, 0))])
def test_a_constant_that_no_image_changes_lies_on_its_grid(value: float, wanted: tuple[float, int]) -> None:
    root = nn.Module()
    root.register_buffer("fixed", torch.tensor([value]))
    root.add_module("seen", Observer())
    graph = fx.Graph()
    graph.placeholder("x")
    graph.output(graph.call_module("seen", (graph.get_attr("fixed"),)))
    whole = fx.GraphModule(root, graph)
    whole(torch.zeros(1))
    made = convert(whole, X86_VNNI, MIN_MAX, {})
    assert grid(made.get_submodule("seen")) == (pytest.approx(wanted[0]), wanted[1], 0, 255)
    assert made(torch.zeros(1)).item() == pytest.approx(value)


def test_a_skeleton_has_the_right_shape_and_no_ranges() -> None:
    bits: Bits = {"1": (8, 8)}
    whole = nn.Sequential(Observer(), linear([[2.0, 1.0]], [1.0]), Observer())
    made = skeleton(fx.GraphModule(whole, Whole().trace(whole)), X86_VNNI, bits)
    assert grid(made.get_submodule("0")) == (pytest.approx(1 / 255), 0, 0, 255)
    assert made.get_submodule("1").weight_int.shape == (1, 2)


def test_scales_of_wide_weights_span_the_largest() -> None:
    weight = torch.tensor([[[[-2.0, 1.0]]], [[[0.5, 0.25]]], [[[0.0, 0.0]]]])
    for limit in (63, 127):
        assert weight_scale(weight, limit).tolist() == pytest.approx([2 / limit, 0.5 / limit, 1e-12 / limit])


@pytest.mark.parametrize("limit", [7, 31])
def test_scales_of_narrow_weights_are_those_of_least_squared_error(limit: int) -> None:
    """Of 71 shares of the largest weight from 0.3 to 1, channel by channel."""
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    found = weight_scale(weight, limit).tolist()
    shares = []
    for row, scale in zip(weight, found, strict=True):
        tried = [float(row.abs().max()) * (0.3 + 0.01 * i) / limit for i in range(71)]
        errors = [float(((row / s).round().clamp(-limit, limit) * s - row).square().sum()) for s in tried]
        best = min(range(71), key=errors.__getitem__)
        assert scale == pytest.approx(tried[best], rel=1e-5)
        shares.append(best)
    assert limit > 7 or min(shares) < 70  # it pays to clip few levels


def test_an_integer_convolution_has_the_geometry_of_its_layer() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False)
    scale, source = torch.full((6,), 0.1), ActivationQuantizer(0.5, 0, 0, 255)
    made = integer_layer(layer, torch.full((6, 2, 3, 3), 0.33), scale, (-2, 2), source)
    assert isinstance(made, IntegerConv2d)
    assert (made.stride, made.padding, made.dilation, made.groups) == ((2, 1), (2, 2, 1, 1), (1, 2), 2)
    assert made.weight_int.unique().tolist() == [2]  # 3.3 steps, clamped
    assert made.weight_int.dtype == torch.int8
    assert made.weight_int.is_contiguous()
    assert (made.qmax, made.bias_int.tolist()) == (2, [0] * 6)
    uneven = integer_layer(PaddedConv2d(layer, (0, 1, 2, 3)), layer.weight, scale, (-7, 7), source)
    assert isinstance(uneven, IntegerConv2d)
    assert uneven.padding == (0, 1, 2, 3)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_padding_without_an_integer_kernel_is_refused(options: dict) -> None:
    layer = nn.Conv2d(1, 1, 3, **options)
    with pytest.raises(
        InputError, match=r"^model: a convolution with padding .* has no integer kernel; give numeric"
    ):
        integer_layer(layer, layer.weight, torch.ones(1), (-127, 127), ActivationQuantizer(1.0, 0, 0, 255))


def test_a_bias_that_does_not_fit_widens_the_scale_of_its_channel() -> None:
    layer = linear([[1.0], [1.0]], [2.0**31, 1.0])
    made = integer_layer(
        layer, layer.weight.detach(), torch.full((2,), 0.01), (-127, 127), ActivationQuantizer(1, 0, 0, 9)
    )
    assert made.weight_scale.tolist() == pytest.approx([2.0, 0.01])
    assert made.weight_int.tolist() == [[0], [100]]  # half a step goes to the even one
