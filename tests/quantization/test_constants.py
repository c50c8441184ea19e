"""What depends on parameters alone is computed once, and what weights of zero switch off is quantized as zero."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qrobust
from qrobust.progress import Reporter
from qrobust.quantization.config import QuantizationConfig
from qrobust.quantization.quantize import quantize_classifier
from qrobust.quantization.rewrites.constants import constants
from qrobust.quantization.tracing import folded

IMAGES = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5


class Standardized(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-10), self.bias, self.stride, self.padding)


class Cosine(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1)) * 16


class Scaled(nn.Module):
    """Arithmetic with what is computed from a parameter."""

    def __init__(self, value: torch.Tensor, arithmetic: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.value, self.arithmetic = nn.Parameter(value), arithmetic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.arithmetic(x, self.value)


def network(*middle: nn.Module, first: nn.Module | None = None, head: tuple[nn.Module, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    stem = (first or nn.Conv2d(3, 8, 3), nn.ReLU(), *middle, nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *(head or (nn.Linear(8, 5),)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "weight standardization": lambda: network(Standardized(8, 8, 3, padding=1)),
    "standardized stem": lambda: network(first=Standardized(3, 8, 3)),
    "cosine head": lambda: network(head=(Cosine(8, 5),)),
    "viewed LayerScale": lambda: network(
        nn.Conv2d(8, 8, 1), Scaled(torch.logspace(-4, 0, 8), lambda x, g: x * g.view(1, -1, 1, 1))
    ),
    "learned temperature": lambda: network(
        head=(nn.Linear(8, 5), Scaled(torch.tensor(1.7), lambda z, t: z / F.softplus(t)))
    ),
    "temperature as a number": lambda: network(
        head=(nn.Linear(8, 5), Scaled(torch.tensor(1.7), lambda z, t: z * t.item()))
    ),
    "logit scale": lambda: network(head=(nn.Linear(8, 5), Scaled(torch.tensor(2.6), lambda z, s: z * s.exp()))),
    "mask": lambda: network(Scaled(torch.linspace(-1, 1, 8), lambda x, m: x * (m > 0).float()[:, None, None])),
    "prior": lambda: network(head=(nn.Linear(8, 5), Scaled(torch.full((5,), 0.2), lambda z, p: z - p.log()))),
}


def load(net: nn.Module) -> nn.Module:
    return qrobust.load_classifier(net, num_classes=5, image_size=16, normalization="none")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_integer(name: str, tmp_path: Path) -> None:
    model = load(NETWORKS[name]())
    quantized = qrobust.quantize(model, (IMAGES, LABELS))
    qrobust.export_onnx(quantized, tmp_path / "int8.onnx", image_size=16)
    audited = qrobust.audit(tmp_path / "int8.onnx")
    assert audited.integer_ops == audited.quantizable_ops > 0
    wanted = model(IMAGES / 255)
    got = qrobust.OnnxClassifier(tmp_path / "int8.onnx")(IMAGES / 255)
    # Eight bits, calibrated on these very images: two per cent of the logits' size.
    assert (got - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_to_compute_and_nothing_changes(name: str) -> None:
    model = load(NETWORKS[name]())
    graph = folded(model, IMAGES[:1] / 255)
    assert {node.op for node in constants(graph)} <= {"get_attr"}
    # Float32 rounding of four layers.
    assert torch.allclose(graph(IMAGES / 255), model(IMAGES / 255), rtol=1e-4, atol=1e-5)


def test_a_folded_layer_has_the_name_of_its_weights() -> None:
    graph = folded(load(NETWORKS["weight standardization"]()), IMAGES[:1] / 255)
    assert "network.2_layer" in dict(graph.named_modules())


class Residual(nn.Module):
    """A block whose last batch norm begins at zero, as training recipes have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Rezero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(8, 8, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gate * torch.relu(self.conv(x))


@pytest.mark.parametrize(("block", "name"), [(Residual, r"2\.conv"), (Rezero, r"[\w.]+")])
def test_a_block_that_is_switched_off_is_quantized_with_a_warning(block: type[nn.Module], name: str) -> None:
    told: list[str] = []

    class Told(Reporter):
        def warn(self, text: str) -> None:
            told.append(text)

    model, split = load(network(block())), qrobust.api.as_split((IMAGES, LABELS))
    found = quantize_classifier(model, split, split, QuantizationConfig(), reporter=Told())
    pixels = IMAGES / 255
    # As above.
    assert (found.module(pixels) - model(pixels)).norm() < 0.02 * model(pixels).norm()
    assert len(told) == 1
    assert re.match(rf"warning: weights and bias of '{name}' are zero, so what they compute is switched off", told[0])
