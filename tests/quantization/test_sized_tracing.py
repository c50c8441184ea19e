"""Networks whose Python computes with shapes: traced at one image size, with the batch left open."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.transforms import Normalize, v2
from torchvision.transforms import functional as transforms

import qrobust
from qrobust.errors import InputError
from qrobust.quantization.tracing import folded

# An odd size, for which padding differs between the sides.
SIZE, WINDOW = 17, 3
IMAGES = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Same(nn.Conv2d):
    """TensorFlow's padding: as many zeros as the size needs, one more behind than before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.size()[-2:]
        down, right = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip((height, width), self.stride, self.kernel_size, strict=True)
        )
        if down > 0 or right > 0:
            x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Windows(nn.Module):
    """Attention's way of taking an image apart: pad, cut, mix within windows, put together, cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WINDOW**2, WINDOW**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        down, right = (WINDOW - height % WINDOW) % WINDOW, (WINDOW - width % WINDOW) % WINDOW
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        rows, columns = x.shape[2] // WINDOW, x.shape[3] // WINDOW
        x = x.view(batch, channels, rows, WINDOW, columns, WINDOW).permute(0, 2, 4, 1, 3, 5)
        x = self.mix(x.reshape(batch * rows * columns, channels, WINDOW**2))
        assert x.shape[0] == batch * rows * columns
        assert x.ndim == x.dim() == len(x.shape) == 3
        x = x.view(x.shape[0] // (rows * columns), rows, columns, channels, WINDOW, WINDOW)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * WINDOW, columns * WINDOW)
        return x[..., :height, :width]


class Tokens(nn.Module):
    """A class token, positions made while running, and a map that is found again from the number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.mix = nn.Parameter(torch.linspace(-1, 1, 8).view(1, 1, 8)), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        count = tokens.shape[1]
        place = torch.arange(count, device=x.device, dtype=x.dtype)[:, None] / count
        tokens = torch.cat([self.token.expand(tokens.size(0), -1, -1), tokens + place], 1)
        tokens = self.mix(tokens).masked_fill(torch.zeros(x.shape[0], 1, 8, dtype=torch.bool), 1.0)
        side = int(math.sqrt(tokens.shape[1] - 1))
        return tokens[:, 1:].transpose(1, 2).reshape(-1, 8, side, side) + torch.finfo(tokens.dtype).eps


class Strips(nn.Module):
    """A loop as long as the image is high, and one over parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strips = [x[:, :, row] for row in range(x.shape[-2])]
        found = strips[0]
        for strip in strips[1:]:
            found = torch.maximum(found, strip)
        halves = [half * 2 for half in x.split(4, dim=1)]
        return torch.cat(halves, 1) + found[:, :, None]


class Positions(nn.Module):
    """Adds a projection of positions that are made with the type of the projection's weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(2, 8, 1)
        self.register_buffer("corner", torch.rand(1, 8, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[-1], device=self.project.weight.device).to(self.project.weight.dtype) / SIZE
        visible = torch.zeros(x.shape[0], 1, 1, dtype=torch.bool).to(device=self.project.weight.device)
        x = x.masked_fill(visible[..., None], 1.0)
        columns = steps.expand(x.shape[0], x.shape[2], -1)
        x = x + self.corner.expand(x.shape[0], -1, *x.shape[2:])
        return x + self.project(torch.stack([columns, columns.transpose(1, 2)], 1))


class Assigned(nn.Module):
    """Changes parts of a tensor; reads one of them before, all of them afterwards."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, first = x * 2, x[:, :4]
        other = x.flatten(1) if self.view else first.flatten(1)
        x[:, 4:] = x[:, 4:] + first
        x[:, :, 1:] *= 0.5
        return x + other.mean(1)[:, None, None, None]


class Normalized(nn.Module):
    def __init__(self, normalize: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalize(x)


class FunctionalNorm(nn.BatchNorm2d):
    """A batch norm and what follows it in one module, as libraries of networks have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = (self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.relu(F.batch_norm(x, *norm))


class Kept(nn.Module):
    """Keeps what it looked up of its parameter for the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kept = nn.Parameter(torch.linspace(-1, 1, 8)), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type not in self.kept:
            self.kept[x.device.type] = self.table[torch.arange(8)].view(1, -1, 1, 1)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x * self.kept[x.device.type]


class Attention(nn.Module):
    """Linear attention: what is divided by is small next to what it is computed with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        queries = keys = F.relu(x).reshape(batch, 1, channels, height * width)
        values = F.pad(x.reshape(batch, 1, channels, height * width), (0, 0, 0, 1), value=1e-3)
        found = values @ keys.transpose(-1, -2) @ queries
        return (found[:, :, :-1] / (found[:, :, -1:] + 1e-6)).reshape(x.shape)


def network(*middle: nn.Module, front: nn.Module | None = None, stem: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    first = stem or nn.Conv2d(3, 8, 3, padding=1)
    layers = [first, nn.ReLU(), *middle, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*((front,) if front else ()), *layers, nn.Linear(8, 5))


def normed() -> nn.Module:
    norm = FunctionalNorm(8)
    norm.load_state_dict({"weight": torch.linspace(0.5, 2, 8), "running_mean": torch.full((8,), 0.1)}, strict=False)
    return norm


# Which networks have all their convolutions and matrix products on integers: all without products of two activations.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "TensorFlow's padding": lambda: network(Same(8, 8, 3, stride=2), Same(8, 8, 5), stem=Same(3, 8, 4, stride=2)),
    "windows": lambda: network(Windows()),
    "tokens": lambda: network(Tokens()),
    "positions": lambda: network(Positions()),
    "strips": lambda: network(Strips()),
    "Normalize": lambda: network(front=Normalize(MEAN, STD)),
    "Normalize, version 2": lambda: network(front=v2.Normalize(list(MEAN), list(STD))),
    "normalize": lambda: network(front=Normalized(lambda x: transforms.normalize(x, MEAN, STD))),
    "functional batch norm": lambda: network(nn.Conv2d(8, 8, 1), normed()),
    "kept between calls": lambda: network(Kept()),
    "parts assigned": lambda: network(Assigned()),
    "linear attention": lambda: network(Attention()),
}


def load(net: nn.Module) -> nn.Module:
    return qrobust.load_classifier(net.eval(), num_classes=5, image_size=SIZE, normalization="none")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_says_what_the_network_says_on_any_number_of_images(name: str) -> None:
    model = load(NETWORKS[name]())
    graph = folded(model, IMAGES[:1] / 255)
    for count in (1, 2, 16):
        images = IMAGES[:count] / 255
        # Float32 rounding of five layers.
        assert torch.allclose(graph(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_quantized_and_exported_with_all_layers_on_integers(name: str, tmp_path: Path) -> None:
    model = load(NETWORKS[name]())
    quantized = qrobust.quantize(model, (IMAGES, LABELS))
    qrobust.export_onnx(quantized, tmp_path / "int8.onnx", image_size=SIZE)
    audited = qrobust.audit(tmp_path / "int8.onnx")
    products = 2 if name == "linear attention" else 0
    assert audited.integer_ops == audited.quantizable_ops - products > 0
    wanted, got = model(IMAGES / 255), qrobust.OnnxClassifier(tmp_path / "int8.onnx")(IMAGES / 255)
    # Eight bits, calibrated on these very images: three per cent of the logits' size.
    assert (got - wanted).norm() < 0.03 * wanted.norm()


def test_sizes_are_numbers_in_the_graph() -> None:
    graph = folded(load(network(Same(8, 8, 3, stride=2))), IMAGES[:1] / 255)
    assert {node.op for node in graph.graph.nodes} == {"placeholder", "call_module", "output"}


def test_a_functional_batch_norm_is_folded() -> None:
    graph = folded(load(network(nn.Conv2d(8, 8, 1), normed())), IMAGES[:1] / 255)
    assert not [node for node in graph.graph.nodes if node.target is F.batch_norm]
    assert not [module for module in graph.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_part_that_is_assigned_under_a_second_name_is_refused() -> None:
    with pytest.raises(InputError, match="as a graph says something else than before"):
        folded(load(network(Assigned(view=True))), IMAGES[:1] / 255)


def test_what_a_network_keeps_is_not_a_graphs() -> None:
    net = network(Kept())
    for _ in range(2):  # the second one would find what the first one kept
        folded(load(net), IMAGES[:1] / 255)
    (kept,) = (module.kept for module in net.modules() if isinstance(module, Kept))
    assert not any(isinstance(value, fx.Proxy) for value in kept.values())


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda x: x if x.shape[0] > 1 else -x, "x.shape[0] > 1"),
        (lambda x: x if x.max() > 1 else -x, "x.max() > 1"),
        (lambda x: x + int(x.shape[0] / 2), "int(x.shape[0] / 2)"),
        (lambda x: torch.stack([image * 2 for image in x]), "for image in x"),
    ],
)
def test_what_depends_on_the_batch_or_the_pixels_is_refused_with_the_line(
    function: Callable[[torch.Tensor], torch.Tensor], line: str
) -> None:
    with pytest.raises(InputError) as caught:
        folded(load(network(front=Normalized(function))), IMAGES[:1] / 255)
    assert "model: torch.fx cannot trace NormalizedModel at " in str(caught.value)
    assert line in str(caught.value)
