"""Integer layers one by one, by hand: what they compute, and what is done to their integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import InputError
from qrobust.quantization.integer_layers import (
    LARGEST_BIAS,
    ActivationQuantizer,
    GlobalAveragePool,
    IntegerConv2d,
    IntegerLinear,
    PaddedConv2d,
    SelfAttention,
    convolve,
    pass_inside,
    representable,
    zero_padding,
)


def linear(bias: tuple[float, float] = (1.0, -1.0)) -> IntegerLinear:
    """Weights [[2, -4], [6, 8]] at scales 0.5 and 0.25, on an input of scale 0.1."""
    integers = torch.tensor([[2, -4], [6, 8]], dtype=torch.int8)
    return IntegerLinear(integers, torch.tensor([0.5, 0.25]), torch.tensor(bias), torch.tensor(0.1))


def test_a_layer_stands_for_its_integers_times_their_scales() -> None:
    layer = linear()
    assert layer.qmax == 127
    assert layer.weight().tolist() == [[1.0, -2.0], [1.5, 2.0]]
    # Scales of the bias are 0.05 and 0.025.
    assert layer.bias_scale.tolist() == pytest.approx([0.05, 0.025])
    assert layer.bias_int.tolist() == [20, -40]
    assert layer.bias_int.dtype == torch.int32
    assert layer.bias().tolist() == pytest.approx([1.0, -1.0])
    assert layer(torch.tensor([[1.0, 10.0]])).tolist() == [pytest.approx([-18.0, 20.5])]
    twice = layer.apply_weight(torch.tensor([[1.0, 10.0]]), 2 * layer.weight())
    assert twice.tolist() == [pytest.approx([-37.0, 42.0])]


def test_a_bias_is_shifted_by_whole_steps() -> None:
    layer = linear()
    layer.shift_bias(torch.tensor([0.12, -0.26]))  # 2.4 and -10.4 steps
    assert layer.bias_int.tolist() == [22, -50]
    layer.shift_bias(torch.tensor([1e12, -1e12]))
    assert layer.bias_int.tolist() == [LARGEST_BIAS, -LARGEST_BIAS]
    assert layer.bias_int.dtype == torch.int32


def test_a_bias_that_does_not_fit_is_clamped_and_scales_are_raised_until_it_does() -> None:
    assert linear((1e12, -1e12)).bias_int.tolist() == [LARGEST_BIAS, -LARGEST_BIAS]
    scale = torch.tensor([0.5, 0.5])
    raised = representable(scale, torch.tensor([2.0**31, -1.0]), torch.tensor(0.5))
    assert raised.tolist() == [4.0, 0.5]  # so that the bias is 2^30 steps


def test_an_amplified_layer_gives_as_much_more_with_the_same_integers() -> None:
    layer, x = linear(), torch.tensor([[0.3, -0.7]])
    before = layer(x)
    layer.amplify(3.0)
    assert torch.allclose(layer(x), 3 * before)
    assert (layer.weight_int.tolist(), layer.bias_int.tolist()) == ([[2, -4], [6, 8]], [20, -40])


def test_new_scales_keep_the_integers() -> None:
    layer = linear()
    layer.rescale(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), torch.tensor(0.25))
    assert layer.weight().tolist() == [[2.0, -4.0], [12.0, 16.0]]
    assert layer.bias_scale.tolist() == [0.25, 0.5]
    assert layer.bias_int.tolist() == [2, 1]


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_quantizer_rounds_to_its_grid_and_saturates_at_its_ends(differentiable: bool) -> None:
    quantizer = ActivationQuantizer(0.5, 1, 0, 4)
    assert (quantizer.scale.dtype, quantizer.zero_point.dtype) == (torch.float32, torch.int32)
    assert quantizer.bounds() == (-0.5, 1.5)
    x = torch.tensor([-9.0, -0.6, -0.2, 0.3, 0.8, 1.4, 9.0]).requires_grad_(differentiable)
    assert quantizer(x).tolist() == [-0.5, -0.5, 0.0, 0.5, 1.0, 1.5, 1.5]


def test_a_gradient_passes_to_half_a_step_beyond_the_grid() -> None:
    x = torch.tensor([-0.76, -0.74, 0.0, 1.74, 1.76], requires_grad=True)  # the grid ends at -0.5 and 1.5
    (ActivationQuantizer(0.5, 1, 0, 4)(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    passed = pass_inside(torch.full((4,), 7.0), torch.tensor([0.0, 0.5, 1.0, 2.0]), 0.0, 1.0)
    assert passed.tolist() == [0.0, 7.0, 0.0, 0.0]


@pytest.mark.parametrize(("stride", "dilation", "groups"), [((1, 1), (1, 1), 1), ((2, 1), (1, 2), 2)])
@pytest.mark.parametrize("padding", [(1, 1, 2, 2), (1, 1, 0, 1), (0, 1, 2, 2)])
def test_an_integer_convolution_is_torchs_on_padded_images(
    stride: tuple[int, int], dilation: tuple[int, int], groups: int, padding: tuple[int, int, int, int]
) -> None:
    draw = torch.Generator().manual_seed(0)
    integers = torch.randint(-7, 8, (4, 4 // groups, 3, 3), generator=draw).to(torch.int8)
    layer = IntegerConv2d(
        integers,
        torch.full((4,), 0.5),
        torch.arange(4.0),
        torch.tensor(0.25),
        7,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    x = torch.randint(-8, 8, (2, 4, 9, 8), generator=draw) * 0.25
    # Every number is a small multiple of 1/8: exact in float32, in whatever order it is added up.
    wanted = F.conv2d(F.pad(x, padding), 0.5 * integers.float(), torch.arange(4.0), stride, 0, dilation, groups)
    assert torch.equal(layer(x), wanted)
    assert layer.qmax == 7


def test_a_strided_depthwise_convolution_that_is_slow_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is slow it is computed at every pixel; where it is not, or is no depthwise one, as it stands."""
    asked: list[tuple[int, ...]] = []
    direct = F.conv2d

    def counted(x: torch.Tensor, *others: object) -> torch.Tensor:
        asked.append(tuple(others[2]))  # type: ignore[call-overload]  # its stride
        return direct(x, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("qrobust.quantization.integer_layers.F.conv2d", counted)
    monkeypatch.setattr("qrobust.quantization.integer_layers.strided_depthwise_is_slow", lambda x: True)
    x, padding = torch.rand(1, 2, 6, 6), (1, 1, 1, 1)
    depthwise, plain, bias = torch.rand(2, 1, 3, 3), torch.rand(2, 2, 3, 3), torch.zeros(2)
    convolve(x, depthwise, bias, (2, 1), padding, (1, 1), 2)
    convolve(x, depthwise, bias, (1, 1), padding, (1, 1), 2)
    convolve(x, plain, bias, (2, 2), padding, (1, 1), 1)
    convolve(x[:, :1], depthwise[:1], bias[:1], (2, 2), padding, (1, 1), 1)  # one channel: groups say nothing
    assert asked == [(1, 1), (1, 1), (2, 2), (2, 2)]


def test_padding_may_differ_from_side_to_side() -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(4, 6, 3, stride=2, dilation=2, groups=2)
    padded = PaddedConv2d(source, (1, 0, 2, 3))
    x = torch.rand(2, 4, 11, 12)
    assert torch.equal(padded(x), source(F.pad(x, (1, 0, 2, 3))))
    assert zero_padding(padded) == (1, 0, 2, 3)
    assert PaddedConv2d(nn.Conv2d(1, 1, 1, bias=False), (0, 0, 0, 0)).bias is None
    assert zero_padding(nn.Conv2d(1, 1, 3, padding=(1, 2))) == (2, 2, 1, 1)
    with pytest.raises(InputError, match=r"^model: a convolution has padding 'same', expected numbers$"):
        zero_padding(nn.Conv2d(1, 1, 3, padding="same"))


def test_attention_is_the_weighted_mean_of_values_head_by_head() -> None:
    """Softmax of the scaled products of queries and keys, written out."""
    heads, length, width = 2, 3, 4
    x = torch.randn(2, length, 3 * heads * width, generator=torch.Generator().manual_seed(0))
    found = SelfAttention(heads)(x)
    assert found.shape == (2, length, heads * width)
    for image in range(2):
        for head in range(heads):
            part = [x[image, :, i * heads * width + head * width :][:, :width] for i in range(3)]
            weights = (part[0] @ part[1].T / width**0.5).softmax(1)
            own = found[image, :, head * width : (head + 1) * width]
            assert torch.allclose(own, weights @ part[2], atol=1e-6)


def test_a_global_pool_keeps_two_sides_of_one() -> None:
    pooled = GlobalAveragePool()(torch.arange(8.0).view(1, 2, 2, 2))
    assert pooled.tolist() == [[[[1.5]], [[5.5]]]]


def test_layers_say_that_they_hold_integers() -> None:
    assert all(kind.holds_integers for kind in (ActivationQuantizer, IntegerConv2d, IntegerLinear))
