from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx, nn

from qrobust.classifier import Compensated, NormalizedModel, input_gradient, state_hash
from qrobust.deployment import session as runtime
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.session import sums, sums_saturate
from qrobust.errors import InputError
from qrobust.quantization import saturation
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d, IntegerLinear
from qrobust.quantization.ptq import quantize
from qrobust.quantization.saturation import (
    cannot_saturate,
    layers,
    saturation_risk,
    without_vnni,
)
from qrobust.quantization.target import TARGETS, X86_VNNI, Target
from qrobust.quantization.tracing import trace

SEVEN_BITS = Target("x86-avx2", (0, 255), (-63, 63), "pairs of products fit into 16 bits")
# Powers of two, so that every float is an integer times one of them and results must be equal, not close.
INPUT_SCALE, WEIGHT_SCALE = 2.0**-6, 2.0**-7


def integer_layer(
    weight: torch.Tensor, stride: int = 1, padding: tuple[int, ...] = (0, 0), dilation: int = 1, groups: int = 1
) -> IntegerConv2d | IntegerLinear:
    """A layer of these int8 weights, with a bias of its output channel's number."""
    scale, bias = torch.full((len(weight),), WEIGHT_SCALE), torch.arange(len(weight)) * INPUT_SCALE * WEIGHT_SCALE
    parts = (weight.to(torch.int8), scale, bias, torch.tensor(INPUT_SCALE))
    sides = padding if len(padding) == 4 else (padding[1], padding[1], padding[0], padding[0])
    if weight.ndim == 2:
        return IntegerLinear(*parts)
    return IntegerConv2d(*parts, stride=(stride,) * 2, padding=sides, dilation=(dilation,) * 2, groups=groups)


def twin_of(layer: nn.Module, zero_point: int = 0, qmin: int = 0, qmax: int = 255) -> fx.GraphModule:
    quantizer = ActivationQuantizer(INPUT_SCALE, zero_point, qmin, qmax)
    leaves = (ActivationQuantizer, IntegerConv2d, IntegerLinear)
    return trace(nn.Sequential(quantizer, layer).eval(), leaves)


def reference(x: np.ndarray, layer: IntegerConv2d | IntegerLinear, zero_point: int) -> np.ndarray:
    """Integer outputs of the kernel, one product after the other: uint8 `(N, C, H, W)` or `(N, in)`."""
    weight = layer.weight_int.numpy().astype(int)
    if isinstance(layer, IntegerLinear):
        x, weight = x[:, :, None, None], weight[:, :, None, None]
        (stride, padding, dilation, groups) = (1, 1), (0, 0, 0, 0), (1, 1), 1
    else:
        stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups  # type: ignore[assignment]  # pairs
    left, right, top, bottom = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero_point).astype(int)
    n, _, height, width = x.shape
    out, channels, kernel_rows, kernel_columns = weight.shape
    depthwise = channels == 1 and groups == out
    widened = groups == 1 and weight.shape[1:] == (3, 3, 3)
    high = (height - dilation[0] * (kernel_rows - 1) - 1) // stride[0] + 1
    wide = (width - dilation[1] * (kernel_columns - 1) - 1) // stride[1] + 1
    result = np.empty((n, out, high, wide), int)
    for i, o, row, column in np.ndindex(n, out, high, wide):
        start = o // (out // groups) * channels
        products, correction = [], 0
        for kernel_row, kernel_column, channel in np.ndindex(kernel_rows, kernel_columns, channels):
            a = x[
                i,
                start + channel,
                row * stride[0] + kernel_row * dilation[0],
                column * stride[1] + kernel_column * dilation[1],
            ]
            w = weight[o, channel, kernel_row, kernel_column]
            products += [a * w, 0] if widened and channel == 2 else [a * w]
            correction += zero_point * w
        if not depthwise:
            products += [0] * (len(products) % 2)
            products = [max(-32768, min(32767, a + b)) for a, b in zip(*[iter(products)] * 2, strict=True)]
        result[i, o, row, column] = sum(products) - correction + int(layer.bias_int[o])
    return result[:, :, 0, 0] if isinstance(layer, IntegerLinear) else result


CONVOLUTIONS: list[dict[str, Any]] = [
    {"shape": (6, 4, 3, 3), "padding": (1, 1)},
    {"shape": (5, 3, 3, 3), "stride": 2, "padding": (1, 1)},  # exported with a fourth channel of zeros
    {"shape": (5, 3, 2, 2), "padding": (1, 1)},  # pairs across kernel positions
    {"shape": (4, 8, 1, 1), "stride": 2},
    {"shape": (6, 3, 3, 3), "groups": 2, "padding": (1, 1)},
    {"shape": (6, 1, 3, 3), "groups": 3},  # one channel in a group and two out: not a depthwise kernel
    {"shape": (6, 1, 3, 3), "groups": 6, "padding": (1, 1)},
    {"shape": (3, 5, 2, 3), "dilation": 2, "padding": (0, 2)},
    {"shape": (5, 3, 3, 3), "stride": 2, "padding": (0, 1, 0, 1)},  # left, right, top, bottom
]


@pytest.mark.parametrize("zero_point", [0, 77, 255])
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=lambda c: f"{c['shape']}-{len(c)}")
def test_convolutions_equal_the_loop(convolution: dict[str, Any], zero_point: int) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    shape = convolution["shape"]
    weight = torch.randint(-128, 128, shape, generator=generator)
    weight[0] = weight[0].abs().clamp(max=127)
    layer = integer_layer(weight, **{k: v for k, v in convolution.items() if k != "shape"})
    channels = shape[1] * convolution.get("groups", 1)
    # Mostly large activations: most sums of two large weights overflow.
    x = torch.randint(100, 256, (2, channels, 7, 6), generator=generator, dtype=torch.uint8)
    wanted = reference(x.numpy(), layer, zero_point)
    fake_quantized = twin_of(layer, zero_point)
    simulated = without_vnni(fake_quantized)
    got = simulated((x.float() - zero_point) * INPUT_SCALE) / (INPUT_SCALE * WEIGHT_SCALE)
    assert np.array_equal(got.numpy(), wanted)
    (measured,) = layers(simulated)
    depthwise = convolution.get("groups") == shape[0]
    assert (measured.saturated_sums == 0) == depthwise
    assert (measured.largest_error == 0) == depthwise


@pytest.mark.parametrize("inputs", [1, 2, 7, 18, 64])
def test_linear_layers_equal_the_loop(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    layer = integer_layer(torch.randint(-128, 128, (9, inputs), generator=generator))
    x = torch.randint(0, 256, (5, inputs), generator=generator, dtype=torch.uint8)
    simulated = without_vnni(twin_of(layer, 30))
    got = simulated((x.float() - 30) * INPUT_SCALE) / (INPUT_SCALE * WEIGHT_SCALE)
    assert np.array_equal(got.numpy(), reference(x.numpy(), layer, 30))


@pytest.mark.parametrize("axes", [(5,), (3, 4, 2)])
def test_linear_layers_on_tokens_equal_the_loop(axes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = integer_layer(torch.randint(-128, 128, (9, 18), generator=generator))
    x = torch.randint(0, 256, (2, *axes, 18), generator=generator, dtype=torch.uint8)
    simulated = without_vnni(twin_of(layer, 30))
    got = simulated((x.float() - 30) * INPUT_SCALE) / (INPUT_SCALE * WEIGHT_SCALE)
    wanted = reference(x.flatten(0, -2).numpy(), layer, 30)
    assert np.array_equal(got.flatten(0, -2).numpy(), wanted)
    (measured,) = layers(simulated)
    assert measured.largest_error > 0


def test_measures_in_closed_form() -> None:
    # Two outputs of two pairs each; one pair of the first overflows on every second image.
    layer = integer_layer(torch.tensor([[127, 127, 1, 1], [1, 1, 1, 1]]))
    x = torch.tensor([[255, 255, 0, 0], [0, 0, 0, 0]] * 3)
    simulated = without_vnni(twin_of(layer))
    exact, unit = layer(x * INPUT_SCALE), INPUT_SCALE * WEIGHT_SCALE
    got = simulated(x * INPUT_SCALE)
    assert exact[0, 0] == 255 * (127 + 127) * unit
    assert got[0, 0] == 32767 * unit
    (measured,) = layers(simulated)
    assert not measured.proven
    assert measured.risky_pairs == 1 / 4
    assert measured.saturated_sums == 1 / 8
    assert measured.changed_outputs == 1 / 4
    # The unit is the deviation of all twelve outputs; float64 sums of exact numbers.
    deviation = exact.double().std(correction=0).item()
    assert measured.largest_error == pytest.approx((64770 - 32767) * unit / deviation, rel=1e-9)
    assert measured.mean_error == pytest.approx(measured.largest_error / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("pair", "largest", "proven"),
    [
        ((63, 63), 255, True),
        ((64, 64), 255, True),  # 32,640
        ((65, 64), 255, False),  # 32,895
        ((127, 1), 255, True),
        ((127, -128), 255, True),
        ((-64, -64), 255, True),
        ((-65, -64), 255, False),
        ((127, 127), 129, True),  # 32,766
        ((127, 127), 130, False),
        ((-128, -128), 128, True),  # exactly the lowest 16-bit integer
        ((-128, -128), 129, False),
    ],
)
def test_proof_is_tight(pair: tuple[int, int], largest: int, proven: bool) -> None:
    layer = integer_layer(torch.tensor([pair]))
    assert cannot_saturate(layer, largest) == proven
    exact = largest * sum(pair) if pair[0] * pair[1] > 0 else 0
    assert (-32768 <= exact <= 32767) == proven


def test_proof_looks_at_pairs_not_at_bits() -> None:
    # Large weights of the same sign, but never two beside each other in the order of the kernel.
    weight = torch.full((1, 4, 3, 3), 127)
    weight[:, 1::2] = -127
    assert cannot_saturate(integer_layer(weight))
    assert not cannot_saturate(integer_layer(weight.transpose(2, 1).reshape(1, 3, 4, 3)))
    assert cannot_saturate(integer_layer(torch.full((6, 1, 3, 3), 127), groups=6))


def test_seven_bit_weights_are_proven_and_bit_identical(small_model: NormalizedModel, images: torch.Tensor) -> None:
    fake_quantized = quantize(small_model, SEVEN_BITS, [images])
    before = state_hash(fake_quantized)
    labels = fake_quantized(images).argmax(1)
    risk = saturation_risk(fake_quantized, [(images, labels)])
    assert risk.proven
    assert (risk.accuracy, risk.accuracy_without_vnni, risk.agreement, risk.n) == (1, 1, 1, 24)
    assert torch.equal(without_vnni(fake_quantized)(images), fake_quantized(images))
    assert state_hash(fake_quantized) == before


def test_eight_bit_weights_err_and_say_where(small_model: NormalizedModel, images: torch.Tensor) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    labels = fake_quantized(images).argmax(1)
    risk = saturation_risk(fake_quantized, [(images[:16], labels[:16]), (images[16:], labels[16:])])
    assert not risk.proven
    layers_of_twin = [
        n.removeprefix("network.") for n, m in fake_quantized.named_modules() if hasattr(m, "weight_int")
    ]
    assert [layer.name for layer in risk.layers] == layers_of_twin
    touched = [layer for layer in risk.layers if layer.saturated_sums]
    assert touched
    for layer in touched:
        assert not layer.proven
        assert layer.saturated_sums < layer.risky_pairs
        assert 0 < layer.mean_error < layer.largest_error
    assert risk.accuracy == 1
    assert risk.accuracy_without_vnni == risk.agreement
    low, high = risk.accuracy_without_vnni_interval
    assert low <= risk.agreement <= high


def test_chunks_change_nothing(
    small_model: NormalizedModel, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    whole, parts = without_vnni(fake_quantized), without_vnni(fake_quantized)
    wanted = whole(images)
    monkeypatch.setattr(saturation, "CHUNK", 5000)
    # The cut-off parts are integers below 2**24: float32 adds them exactly in any order.
    assert torch.equal(parts(images), wanted)
    assert layers(parts) == layers(whole)
    assert not torch.equal(wanted, fake_quantized(images))


def test_a_pair_is_simulated_whole(small_model: NormalizedModel, images: torch.Tensor) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    pair = Compensated(nn.Identity(), fake_quantized)
    simulated = without_vnni(pair)
    alone = without_vnni(fake_quantized)
    assert torch.equal(simulated(images), alone(images))
    names = [n.replace(".network.", ".") for n, m in pair.named_modules() if hasattr(m, "weight_int")]
    assert [m.name for m in layers(simulated)] == names
    assert {"conv1", "fc"} <= {m.name for m in layers(alone)}  # as --layer-bits takes them


def test_gradient_is_straight_through(small_model: NormalizedModel, images: torch.Tensor) -> None:
    fake_quantized = quantize(small_model, SEVEN_BITS, [images])
    wanted, _ = input_gradient(fake_quantized, images, lambda z: z[:, 0])
    got, _ = input_gradient(without_vnni(fake_quantized), images, lambda z: z[:, 0])
    assert torch.equal(got, wanted)
    risky, _ = input_gradient(without_vnni(quantize(small_model, X86_VNNI, [images])), images, lambda z: z[:, 0])
    assert risky.abs().flatten(1).sum(1).min() > 0


def overflowing() -> tuple[fx.GraphModule, torch.Tensor]:
    """A fake-quantized model of one convolution whose sums overflow 16 bits on the images beside it."""
    weight = torch.randint(-127, 128, (16, 16, 3, 3), generator=torch.Generator().manual_seed(0))
    weight[::2] = 127
    layer = integer_layer(weight, padding=(1, 1))
    given, taken = ActivationQuantizer(INPUT_SCALE, 0, 0, 255), ActivationQuantizer(4.0, 128, 0, 255)
    fake_quantized = trace(
        nn.Sequential(given, layer, taken, nn.Flatten()).eval(), (ActivationQuantizer, IntegerConv2d)
    )
    return fake_quantized, torch.full((2, 16, 5, 5), 255 * INPUT_SCALE)


def test_this_cpu_saturates_where_it_has_no_vnni() -> None:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        pytest.skip("not Linux")
    if platform.machine() != "x86_64":
        assert not sums_saturate()
    else:
        assert sums_saturate() == flags.isdisjoint({"avx512_vnni", "avx_vnni"})


def test_sums_are_exact_on_request_and_as_simulated_without(tmp_path: Path) -> None:
    """On this CPU, whatever it is: by onnxruntime's kernels themselves, not by emulation."""
    fake_quantized, images = overflowing()
    export(fake_quantized, tmp_path / "g.onnx", 5, channels=16)
    here, exact = (OnnxClassifier(tmp_path / "g.onnx", 1, exact_sums=e)(images) for e in (False, True))
    expected = without_vnni(fake_quantized)(images)
    assert not torch.equal(fake_quantized(images), expected)
    assert torch.equal(exact, fake_quantized(images))
    assert torch.equal(here, expected if sums_saturate() else exact)


@pytest.mark.parametrize(
    ("saturates", "wanted", "signed", "asked"),
    [(True, True, None, True), (False, True, None, False), (True, False, None, False), (True, True, True, False)],
)
def test_exact_sums_are_asked_for_only_where_they_would_saturate(
    saturates: bool, wanted: bool, signed: bool | None, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the option changes no result and takes time."""
    asked_for: list[str] = []

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked_for.append(key)
            super().add_session_config_entry(key, value)

    fake_quantized, _ = overflowing()
    export(fake_quantized, tmp_path / "g.onnx", 5, channels=16)
    monkeypatch.setattr(runtime, "sums_saturate", lambda: saturates)
    monkeypatch.setattr(runtime.onnxruntime, "SessionOptions", Options)
    runtime.open_session(tmp_path / "g.onnx", 1, signed_activations=signed, exact_sums=wanted)
    assert ("session.x64quantprecision" in asked_for) == asked


def test_how_products_are_added_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "sums_saturate", lambda: True)
    options = {t.name: {"signed_activations": t.signed or None, "exact_sums": t.exact_sums} for t in TARGETS.values()}
    assert {name: sums(**o) for name, o in options.items()} == {
        "x86-vnni": "exact-by-request",
        "x86-avx2": "saturating",
        "arm64": "exact",
    }
    monkeypatch.setattr(runtime, "sums_saturate", lambda: False)
    assert {sums(**o) for o in options.values()} == {"exact"}


def test_what_is_not_a_twin_is_refused(small_model: NormalizedModel, images: torch.Tensor) -> None:
    with pytest.raises(
        InputError, match=r"^classifier: expected a fake-quantized model, got NormalizedModel without"
    ):
        without_vnni(small_model)
    layer = integer_layer(torch.ones(2, 3, 1, 1))
    with pytest.raises(InputError, match=r"^classifier: expected unsigned .* layer '1'; got \[-128, 127\]$"):
        without_vnni(twin_of(layer, 0, -128, 127))
    bare = trace(nn.Sequential(nn.ReLU(), layer), (IntegerConv2d,))
    with pytest.raises(InputError, match=r"^classifier: expected an activation quantizer before layer '1', got _0$"):
        without_vnni(bare)
    with pytest.raises(InputError, match=r"^batches: expected at least one image, got none$"):
        saturation_risk(twin_of(layer), [])
    with pytest.raises(InputError, match=r"^batches: expected float images in \[0, 1\], got torch.uint8$"):
        saturation_risk(twin_of(layer), [(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1))])
