from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.classifier import NormalizedModel, count_macs, input_gradient, state_hash
from qrobust.errors import InputError
from qrobust.quantization.integer_layers import (
    ActivationQuantizer,
    GlobalAveragePool,
    IntegerConv2d,
    IntegerLinear,
    convolve,
)
from qrobust.quantization.ptq import quantize, restore
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.quantization.tracing import folded


def test_rounding_error_is_half_a_step_and_saturation_has_no_gradient() -> None:
    quantizer = ActivationQuantizer(0.02, 10, 0, 255)
    low, high = quantizer.bounds()
    assert (low, high) == (pytest.approx(-0.2), pytest.approx(4.9))
    x = torch.linspace(-1, 6, 1001, requires_grad=True)
    y = quantizer(x)
    inside = (x >= low) & (x <= high)
    # One float32 rounding of a value near 5 beside half a step.
    assert (x - y)[inside].abs().max() <= 0.01 + 1e-6
    assert y.min().item() == pytest.approx(low)
    assert y.max().item() == pytest.approx(high)
    y.sum().backward()
    assert x.grad is not None
    clearly_inside = (x > low + 0.01) & (x < high - 0.01)
    clearly_outside = (x < low - 0.01) | (x > high + 0.01)
    assert (x.grad[clearly_inside] == 1).all()
    assert (x.grad[clearly_outside] == 0).all()


def test_folding_changes_nothing(small_model: NormalizedModel, images: torch.Tensor) -> None:
    graph = folded(small_model, images[:1])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    # Float32 rounding through nine layers.
    assert torch.allclose(graph(images), small_model(images), atol=1e-4)


def test_twin_is_integer_close_and_differentiable(small_model: NormalizedModel, images: torch.Tensor) -> None:
    before = state_hash(small_model)
    fake_quantized = quantize(small_model, X86_VNNI, images.split(8))
    assert state_hash(small_model) == before
    kinds = [type(m) for m in fake_quantized.modules()]
    assert not any(k in (nn.Conv2d, nn.Linear) for k in kinds)
    assert kinds.count(IntegerConv2d) == 9
    assert kinds.count(IntegerLinear) == 1
    for layer in fake_quantized.modules():
        if isinstance(layer, IntegerConv2d):
            assert layer.weight_int.dtype == torch.int8
            assert layer.weight_int.abs().amax((1, 2, 3)).eq(127).all()
            assert layer.bias_int.dtype == torch.int32
    wanted, got = small_model(images), fake_quantized(images)
    assert (wanted - got).abs().mean() < 0.05 * wanted.std()
    gradient, _ = input_gradient(fake_quantized, images, lambda z: z[:, 0])
    assert gradient.abs().flatten(1).sum(1).min() > 0


@pytest.mark.parametrize("observer", ["histogram", "moving-average"])
def test_twin_is_restored_from_its_state(observer: str, small_model: NormalizedModel, images: torch.Tensor) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, [images], recipe=Recipe(ranges=observer))
    again = restore(small_model, X86_VNNI, 32, fake_quantized.state_dict())
    assert torch.equal(fake_quantized(images), again(images))
    assert state_hash(fake_quantized) == state_hash(again)


def test_macs_closed_form() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        GlobalAveragePool(),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    assert count_macs(layers, 16) == 8 * 3 * 9 * 64 + 8 * 9 * 64 + 40


class Forms(nn.Module):
    """The functional and method forms of activations, pools and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.third = nn.Conv2d(16, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.relu6 = nn.ReLU6()
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        y = self.relu6(self.second(x))
        y = self.relu6(self.third(torch.cat([x, y], 1)))
        y = F.max_pool2d(y, 2)
        y = y + F.relu6(y)
        y = F.dropout(self.drop(y), training=self.training)
        return self.out(y.mean([2, 3]))


def test_functional_forms_come_out_integer(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Forms().eval()
    fake_quantized = quantize(model, X86_VNNI, [images])
    kinds = [type(m) for m in fake_quantized.modules()]
    assert (kinds.count(IntegerConv2d), kinds.count(IntegerLinear)) == (3, 1)
    assert GlobalAveragePool in kinds
    assert nn.ReLU not in kinds
    wanted = model(images)
    assert (wanted - fake_quantized(images)).abs().mean() < 0.1 * wanted.std() + 0.01


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x.flatten(1)
        return -x.flatten(1)


def test_untraceable_model_names_the_line(images: torch.Tensor) -> None:
    with pytest.raises(
        InputError, match=r"cannot trace Branches at .*test_quantization.py:\d+: 'if x.sum\(\) > 0:'"
    ) as caught:
        quantize(Branches(), X86_VNNI, [images])
    assert "\n" not in str(caught.value)


def test_pool_with_unequal_windows_is_refused() -> None:
    # 30 cells to 7: windows of five and six.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(7), nn.Flatten())
    with pytest.raises(InputError, match="windows of unequal size"):
        quantize(model.eval(), X86_VNNI, [torch.rand(2, 3, 32, 32)])


@pytest.mark.parametrize(("size", "want"), [(1, 7), (2, 7), (4, 2), (7, 7), (14, 7), (5, 1)])
def test_adaptive_pools_are_written_exactly(size: int, want: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(want), nn.Flatten()).eval()
    pixels = torch.rand(2, 3, size, size)
    graph = folded(model, pixels)
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in graph.modules())
    assert torch.allclose(graph(pixels), model(pixels), atol=1e-6)


def test_padding_that_no_kernel_has() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match="reflect"):
        quantize(model.eval(), X86_VNNI, [torch.rand(2, 3, 8, 8)])


class Explodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x) / (x.sum() * 0).unsqueeze(0)).mean((2, 3))


@pytest.mark.parametrize("observer", ["histogram", "moving-average"])
def test_activation_without_a_range_is_named(observer: str) -> None:
    with pytest.raises(InputError, match=r"activation 'truediv' after 'conv' h.* (NaN|finite)"):
        quantize(Explodes().eval(), X86_VNNI, [torch.rand(2, 3, 8, 8)], recipe=Recipe(ranges=observer))


def test_no_calibration_images(small_model: NormalizedModel) -> None:
    with pytest.raises(InputError, match="calibration_images"):
        quantize(small_model, X86_VNNI, [])


def test_dead_channel_keeps_its_bias(images: torch.Tensor) -> None:
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.weight[0] = 0
        conv.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[3].weight.copy_(torch.eye(4))
        model[3].bias.zero_()
    fake_quantized = quantize(model, X86_VNNI, [images])
    # A 255th of the range that the other channels and this bias span.
    assert torch.allclose(fake_quantized(images)[:, 0], torch.full((24,), 2.0), atol=0.03)


@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 0, 1)])
def test_strided_depthwise_convolutions_train_as_torch_would(
    stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    """In training they are computed densely: outputs and gradients are `F.conv2d`'s."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 9, generator=draw), torch.randn(8, 1, 3, 3, generator=draw)
    bias = torch.randn(8, generator=draw)
    outs: list[list[torch.Tensor]] = []
    for ours_first in (True, False):
        pair = [t.clone().requires_grad_() for t in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16):
            if ours_first:
                out = convolve(*pair, bias, stride, padding, (1, 1), 8)
            else:
                out = F.conv2d(F.pad(pair[0], padding), pair[1], bias, stride, groups=8)
        out.float().square().sum().backward()
        outs.append([out.detach(), *(t.grad for t in pair if t.grad is not None)])
    assert len(outs[0]) == len(outs[1]) == 3
    for ours, expected in zip(*outs, strict=True):
        assert ours.shape == expected.shape
        assert torch.allclose(ours.float(), expected.float(), rtol=0.02, atol=0.02 * float(expected.abs().max()))
