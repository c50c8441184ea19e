"""Each operator of torchvision's zoo, alone between two convolutions: same numbers, integer, same numbers again."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth, stochastic_depth

from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.onnx_graph import load
from qrobust.errors import InputError
from qrobust.quantization.integer_layers import IntegerConv2d, IntegerLinear
from qrobust.quantization.ptq import quantize
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.quantization.tracing import folded

# They move numbers, whatever their type; the rest of a session's operators computes.
MOVING = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Transpose",
    "Reshape",
    "Flatten",
    "Split",
    "Unsqueeze",
    "Squeeze",
    "Shape",
    "Gather",
    "Concat",
    "Slice",
    "Expand",
    "MaxPool",
    "NhwcMaxPool",
}


class Says(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def settled(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that are not the identity."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.bias.data.normal_(0, 0.3)
            norm.weight.data.uniform_(0.5, 1.5)
            if norm.track_running_stats:
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def network(*middle: nn.Module | Callable[[torch.Tensor], torch.Tensor], channels: int = 8) -> nn.Module:
    """Convolution to 8 channels, batch norm, what is tested, convolution from `channels`, mean, linear layer."""
    torch.manual_seed(0)
    layers = [m if isinstance(m, nn.Module) else Says(m) for m in middle]
    return settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            *layers,
            nn.Conv2d(channels, 12, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        )
    )


def check(model: nn.Module, pixels: torch.Tensor, folder: Path) -> tuple[nn.Module, dict[str, int], dict[str, int]]:
    """Float unchanged by rewriting, onnxruntime equal to torch; returns the fake-quantized model, float operators."""
    plain = folded(model, pixels[:1])
    # Float32 rounding of a handful of layers whose values are of order one.
    assert torch.allclose(plain(pixels), model(pixels), atol=1e-5, rtol=1e-4)
    fake_quantized = quantize(model, X86_VNNI, [pixels], recipe=Recipe(ranges="moving-average"))
    export(fake_quantized, folder / "int8.onnx", pixels.shape[-1])
    wanted, got = fake_quantized(pixels), OnnxClassifier(folder / "int8.onnx", 1)(pixels)
    # Values on a rounding border may fall on either side: at most one step in each feature of the last layer.
    last = [m for m in fake_quantized.modules() if isinstance(m, IntegerLinear)][-1]
    one_step = (last.bias_scale / last.weight_scale)[0] * last.weight().abs().sum(1).max()
    assert (wanted - got).abs().max() <= 1.01 * one_step
    assert (wanted - got).abs().mean() <= 0.1 * one_step
    # Eight bits, calibrated on these very images.
    assert (wanted - model(pixels)).abs().mean() < 0.15 * model(pixels).std(0).mean() + 0.01
    graph = load(folder / "int8.onnx").graph
    constants = {i.name for i in graph.initializer}
    read = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    own = [n.input[i] for n in read for i in (0, 2)] + [
        i for n in graph.node for i in n.input for r in read if i == r.output[0]
    ]
    assert len(own) == len(set(own)) == 3 * len(read) > 0  # `session.x64quantprecision` refuses what is shared
    counted = audit(folder / "int8.onnx")
    others = Counter({k: n for k, n in counted.other_ops.items() if k not in MOVING and not k.startswith("QLinear")})
    # That of a first convolution's fourth channel.
    others -= Counter(n.op_type for n in graph.node if n.name.endswith("_wide_pad"))
    return fake_quantized, counted.float_compute, dict(others)


def count(fake_quantized: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in fake_quantized.modules())


@pytest.fixture
def pixels(images: torch.Tensor) -> torch.Tensor:
    return images[:12, :, ::2, ::2].contiguous()


class _SamePadding(nn.Conv2d):
    """A subclass that pads and calls the function, as ports from TensorFlow do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, [0, 1, 0, 1]), self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(8, 8, 1, 1) / 8), nn.Parameter(torch.randn(8))
        self.matrix = nn.Parameter(torch.randn(8, 8) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = F.linear(x.mean((2, 3)), self.matrix).sigmoid()
        return F.conv2d(x, weight=self.kernel, bias=self.offset) * gate[:, :, None, None]


def shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.size()
    left, right = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w).chunk(2, dim=1)
    return torch.cat((left, F.relu(right)), dim=1)


def split(x: torch.Tensor) -> torch.Tensor:
    first, second = torch.split(x, 4, dim=1)
    return torch.cat([second, first.permute(0, 1, 3, 2)], 1)


def in_place_sum(x: torch.Tensor) -> torch.Tensor:
    y = F.relu(x)
    y.add_(x)
    return y


def unused_result(x: torch.Tensor) -> torch.Tensor:
    y = x + F.leaky_relu(x)
    y.relu_()
    return y


def with_alias(x: torch.Tensor) -> torch.Tensor:
    y = x + F.leaky_relu(x)
    z = F.relu(y, inplace=True)
    return y + F.max_pool2d(z, 3, 1, 1)


FORMS: dict[str, tuple[object, ...]] = {
    "silu": (nn.SiLU(),),
    "silu function": (lambda x: F.silu(x, inplace=True),),
    "hardswish": (nn.Hardswish(inplace=True),),
    "hardswish function": (F.hardswish,),
    "hardswish by hand": (lambda x: x * F.relu6(x + 3) / 6,),
    "hardsigmoid": (nn.Hardsigmoid(),),
    "hardsigmoid function": (nn.Conv2d(8, 8, 1), F.hardsigmoid),
    "sigmoid method": (lambda x: x.sigmoid(),),
    "gate": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),),
    "gate function": (lambda x: torch.mul(F.hardsigmoid(F.adaptive_avg_pool2d(x, 1)), x),),
    "gate method": (lambda x: x.mul(F.adaptive_avg_pool2d(x, 1).sigmoid()),),
    "gate in place": (lambda x: F.relu(x).mul_(F.adaptive_avg_pool2d(x, 1).sigmoid()),),
    "gate operator": (lambda x: operator.imul(F.relu(x), F.adaptive_avg_pool2d(x, 1).sigmoid()),),
    "sum in place": (in_place_sum,),
    "sum method": (lambda x: x.relu().add(x),),
    "in place, result unused": (unused_result,),
    "in place, argument read again": (with_alias,),
    "batch norm first": (nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()),
    "batch norm after cat": (
        lambda x: torch.cat([x, F.relu(x)], 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
    ),
    "batch norm after sum": (lambda x: x + F.relu(x), nn.BatchNorm2d(8)),
    "factors and offsets": (nn.ReLU(), lambda x: 1 - (2 * x - 0.5) / 3, nn.ReLU()),
    "leaky relu": (nn.LeakyReLU(0.1),),
    "leaky relu function": (lambda x: F.leaky_relu(x, 0.2),),
    "prelu": (nn.PReLU(init=0.3),),
    "clamp": (lambda x: x.clamp(0, 1),),
    "clamp function": (lambda x: torch.clamp(x, min=0),),
    "hardtanh": (nn.Hardtanh(-0.5, 0.5),),
    "hardtanh function": (lambda x: F.hardtanh(x, 0.0, 6.0),),
    "relu6": (lambda x: F.relu6(x, inplace=True),),
    "average pool": (nn.AvgPool2d(3, 2, 1),),
    "average pool without padding in the mean": (nn.AvgPool2d(3, 2, 1, count_include_pad=False),),
    "average pool, last window cut": (nn.AvgPool2d(3, 2, ceil_mode=True),),
    "average pool, padding counts, last window cut": (nn.AvgPool2d(3, 2, 1, ceil_mode=True),),
    "average pool function": (lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1),),
    "average pool of everything": (lambda x: F.avg_pool2d(x, x.shape[2:]) + x,),
    "maximum pool": (nn.MaxPool2d(3, 2, ceil_mode=True),),
    "maximum pool function": (lambda x: F.max_pool2d(x, 3, stride=2, padding=1),),
    "adaptive maximum pool": (nn.AdaptiveMaxPool2d(4),),
    "channel shuffle": (shuffled,),
    "split": (split,),
    "all parts": (lambda x: torch.cat(torch.split(x, 4, dim=2), dim=2),),
    "all parts turned round": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),),
    "stochastic depth": (StochasticDepth(0.5, "row"), lambda x: x + stochastic_depth(F.relu(x), 0.2, "batch", False)),
    "dropout": (nn.Dropout2d(0.5), lambda x: F.dropout2d(x, 0.5, training=False), nn.Identity()),
    "padding same": (nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.Conv2d(8, 8, 2, padding="valid")),
    "groups": (nn.Conv2d(8, 16, 3, groups=4), nn.ReLU6(inplace=True), nn.Conv2d(16, 8, 1, groups=2)),
    "padding layer": (nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3)),
    "zeros around": (nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
    "zeros on two sides": (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6()),
    "zeros by function": (lambda x: F.pad(x, (2, 0, 1, 0)), nn.Conv2d(8, 8, 3, 1, 1, groups=8)),
    "same as TensorFlow": (_SamePadding(8, 8, 3, 2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
    "functional layers": (_Functional(),),
}


@pytest.mark.parametrize("name", FORMS)
def test_form_comes_out_integer(name: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    fake_quantized, compute, others = check(network(*FORMS[name]), pixels, tmp_path)  # type: ignore[arg-type]  # see `network`
    assert compute == {}
    assert set(others) <= ({"Pad"} if "padding" in name else set())
    assert not any(
        isinstance(m, nn.ReLU | nn.Hardtanh | nn.Hardswish | nn.BatchNorm2d) for m in fake_quantized.modules()
    )


@pytest.mark.parametrize(
    ("middle", "convolutions"),
    [
        ((nn.BatchNorm2d(8),), 2),  # two norms after one convolution go into it
        ((nn.ReLU(), nn.BatchNorm2d(8)), 2),  # into the convolution behind, which does not pad
        ((nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4)), 3),
        ((nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)), 4),  # padding shows where the offset ends
        ((nn.ReLU(), lambda x: 2 * x, nn.Conv2d(8, 8, 3, padding=1)), 3),  # no offset, nothing shows
        ((nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()), 3),
        ((nn.Conv2d(8, 8, 1), nn.Hardsigmoid()), 3),
    ],
)
def test_factors_go_into_a_convolution_where_there_is_one(
    middle: tuple[nn.Module, ...], convolutions: int, pixels: torch.Tensor, tmp_path: Path
) -> None:
    fake_quantized, compute, others = check(network(*middle), pixels, tmp_path)
    assert (count(fake_quantized, IntegerConv2d), compute, others) == (convolutions, {}, {})


def test_shared_convolution_is_folded_per_call(pixels: torch.Tensor, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.conv(F.relu(self.one(self.conv(x)))))

    fake_quantized, compute, _ = check(network(Twice()), pixels, tmp_path)
    assert (count(fake_quantized, IntegerConv2d), compute) == (4, {})


def test_layer_that_is_called_twice_has_constants_of_its_own(pixels: torch.Tensor, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(F.relu(self.conv(x)))

    _, compute, _ = check(network(Twice()), pixels, tmp_path)
    assert compute == {}


def test_pixel_arithmetic_stays_in_float(pixels: torch.Tensor, tmp_path: Path) -> None:
    model = nn.Sequential(Says(lambda x: (x - 0.5) / 0.25), *network(nn.ReLU()).children()).eval()
    fake_quantized, compute, others = check(model, pixels, tmp_path)
    assert (count(fake_quantized, IntegerConv2d), compute, set(others)) == (2, {}, {"Sub", "Div"})


def flat_head(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers))


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        ((nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, 5)), (2, 2)),
        ((nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)), (1, 2)),
        ((nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)), (2, 1)),
        ((nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5)), (1, 2)),
    ],
)
def test_heads(layers: tuple[nn.Module, ...], kinds: tuple[int, int], pixels: torch.Tensor, tmp_path: Path) -> None:
    fake_quantized, compute, others = check(flat_head(*layers), pixels, tmp_path)
    assert (count(fake_quantized, IntegerConv2d), count(fake_quantized, IntegerLinear)) == kinds
    assert compute == {}
    assert set(others) <= {"Gelu"}


class Tokens(nn.Module):
    """A patch embedding, self-attention, two linear layers on tokens and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        tokens = x.flatten(2).permute(0, 2, 1)
        y = self.norm(tokens)
        y, _ = self.attention(y, y, y, need_weights=False)
        tokens = tokens + y
        x = tokens.permute(0, 2, 1).reshape(x.shape)
        x = x + self.scale * self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def test_tokens_have_integer_linear_layers(pixels: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fake_quantized, compute, others = check(Tokens().eval().requires_grad_(False), pixels, tmp_path)
    assert (count(fake_quantized, IntegerConv2d), count(fake_quantized, IntegerLinear)) == (1, 5)
    assert sum(compute.values()) == 2  # the two products of attention
    assert set(others) == {"Gelu", "LayerNormalization", "Softmax"}


def second_name(x: torch.Tensor) -> torch.Tensor:
    y = x.flatten(1)
    x.relu_()
    return (x + 1) * y.sum(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("middle", "match"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), r"layer '2' has padding \(1, 1\) \(reflect\)"),
        (nn.Conv2d(8, 8, 2, padding="same"), r"layer '2' has padding 'same' \(zeros\).*ZeroPad2d"),
        (nn.AdaptiveMaxPool2d(7), "maximum pool from"),
        (nn.BatchNorm2d(8, track_running_stats=False), "batch norm '2' has no running statistics"),
        (lambda x: F.dropout(x, 0.5), "dropout at 'dropout' stays on"),
        (second_name, "in-place change of a tensor that has two names"),
    ],
)
def test_what_has_no_integer_form_is_named(middle: object, match: str, pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match=match) as caught:
        quantize(network(middle), X86_VNNI, [pixels])  # type: ignore[arg-type]  # see `network`
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_zoo_keeps_its_rows_whatever_becomes_of_a_network(tmp_path: Path) -> None:
    script, out = Path(__file__).parents[2] / "benchmarks" / "zoo.py", tmp_path / "zoo.json"

    def row(*options: str) -> dict[str, Any]:
        command = [sys.executable, script, "--only", "squeezenet1_1", "--image-size", "64", "--out", out, *options]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(out.read_text())["rows"]["squeezenet1_1"]

    assert row("--timeout", "0.1")["reason"] == "took more than 0.1 s in all"
    assert "reason" in row()  # kept
    assert "reason" in row("--again", "--memory", "0.2")  # too little to import torch
    done = row("--again")
    assert done["integer_ops"] == done["quantizable_ops"] == 26
    assert done["parity"]["agreement"] >= 0.9


def test_zoo_refuses_an_unknown_network(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
    command = [sys.executable, script, "--only", "resnet17", "--out", tmp_path / "zoo.json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "resnet17" in done.stderr
    assert not (tmp_path / "zoo.json").exists()
