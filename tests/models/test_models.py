from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from qrobust.classifier import count_macs
from qrobust.errors import InputError
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.models.resnet import resnet8
from qrobust.preprocessing import parse_normalization


def load(spec: str = "resnet8", weights: Path | None = None, classes: int = 10, **options: object) -> torch.nn.Module:
    normalization = "none" if ".py:" in spec else None  # own code has no preset
    choices = {"image_size": 32, "pretrained": False, "normalization": normalization, "seed": 0} | options
    return load_model(find_model(spec), classes=classes, weights=weights, **choices)  # type: ignore[arg-type]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return resnet8(10).state_dict()


@pytest.mark.parametrize("form", ["pt", "safetensors", "module prefix", "checkpoint"])
def test_weights_in_every_form(form: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "module prefix":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "checkpoint" else state, path)
    loaded = load(weights=path).network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_normalisation_is_inside(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    images = torch.rand(2, 3, 32, 32)
    plain = load(weights=tmp_path / "w.pt", normalization="none")
    inside = load(weights=tmp_path / "w.pt", normalization="0.1,0.2,0.3/0.5,0.6,0.7")
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = plain((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert torch.allclose(inside(images), expected, atol=1e-5)


def test_random_weights_are_seeded() -> None:
    first, again, other = (load("torchvision:squeezenet1_1", seed=s, image_size=64) for s in (0, 0, 1))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


def test_factory_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "def net(num_classes):\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(1)\n"
        "    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(3, num_classes))\n"
        "def fixed():\n    return net(4)\n"
        "def broken():\n    raise KeyError('ouch')\n"
        "def wrong():\n    return 3\n"
        "def crash():\n    return torch.nn.Linear(7, 10)\n"
    )
    assert load(f"{path}:net", classes=5)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    refusals = {"fixed": r"logits \(2, 10\)", "broken": "ouch", "wrong": "Module", "none": "no callable"}
    for name, match in (refusals | {"crash": "fails on"}).items():
        with pytest.raises(InputError, match=match):
            load(f"{path}:{name}")


ONE_CHANNEL = """
from torch import nn
def net(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
def one():
    return net(1)
def two():
    return net(2)
class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(32 * 32, 10)
    def forward(self, x):
        return self.head(x.view(-1, 32 * 32))
"""


def test_channels_are_those_that_a_network_runs_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(ONE_CHANNEL)
    assert load().channels == 3
    assert load(f"{path}:Flat").channels == 1
    plain, inside = load(f"{path}:one"), load(f"{path}:one", normalization="0.4/0.5")
    images = torch.rand(2, 1, 32, 32)
    assert (plain.channels, inside.channels) == (1, 1)
    assert torch.allclose(inside(images), plain((images - 0.4) / 0.5), atol=1e-6)
    with pytest.raises(
        InputError, match=r"model: expected a network for images of 3 channels or 1, .*two fails"
    ) as e:
        load(f"{path}:two")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"logits \(2, 5\)"):
        load(f"{path}:one", classes=5)
    for given in ("cifar10", "0.5,0.5,0.5/1,1,1", "0.5/0"):
        with pytest.raises(InputError, match=f"expected none or 'm/s' .* of 1 channel, got '{given}'"):
            load(f"{path}:one", normalization=given)
    with pytest.raises(InputError, match=r"cifar10, none or 'm,m,m/s,s,s' .* of 3 channels, got '0.5/1'"):
        load(normalization="0.5/1")


QUANTIZED = """
import torch
from torch import nn
from torch.ao import quantization
def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
def dynamic():
    return quantization.quantize_dynamic(net(), {nn.Linear})
def converted():
    model = nn.Sequential(quantization.QuantStub(), net(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.default_qconfig
    quantization.prepare(model, inplace=True)(torch.rand(1, 3, 8, 8))
    return quantization.convert(model)
"""


@pytest.mark.parametrize(("factory", "module"), [("dynamic", "'3': Linear"), ("converted", "'0': Quantize")])
@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization announces its deprecation
def test_networks_quantized_already(factory: str, module: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(QUANTIZED)
    torch.save({"none": torch.zeros(1)}, tmp_path / "w.pt")
    for weights in (None, tmp_path / "w.pt"):
        with pytest.raises(InputError) as caught:
            load(f"{path}:{factory}", weights=weights)
        assert str(caught.value) == f"model: expected a float network, got one quantized already ({module})"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("resnet21", "torchvision:NAME"),
        ("torchvision:resnet21", "got 'resnet21'; did you mean 'resnet18'"),
        ("nothere.py:net", "no file"),
        ("torchvision:fasterrcnn_resnet50_fpn", "expected one of .*got 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_unknown_models(spec: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_model(spec)


def test_file_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(InputError, match="cannot be imported"):
        find_model(f"{tmp_path / 'bad.py'}:net")


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


State = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda _: None, "no file"),
        (lambda _: b"not a checkpoint", "not a readable"),
        (lambda state: saved(state)[:2000], "not a readable"),
        (lambda _: pickle.dumps(Path), "not a readable"),
        (lambda _: saved([1, 2, 3]), "state dict of tensors"),
        (lambda state: saved(state | {"fc.weight": torch.zeros(11, 64)}), r"\(11, 64\)"),
        (
            lambda state: saved({k: v for k, v in state.items() if k != "fc.bias"} | {"head.bias": torch.zeros(10)}),
            "fc.bias",
        ),
        (lambda state: saved(state | {"fc.bias": torch.full((10,), torch.nan)}), "'fc.bias' holds NaN"),
    ],
    ids=["missing", "corrupt", "truncated", "code", "list", "shape", "entries", "nan"],
)
def test_bad_weights(content: Callable[[State], bytes | None], match: str, state: State, tmp_path: Path) -> None:
    path, found = tmp_path / "w.pt", content(state)
    if found is not None:
        path.write_bytes(found)
    with pytest.raises(InputError, match=match) as caught:
        load(weights=path)
    assert "\n" not in str(caught.value)


def test_contradicting_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        load("torchvision:resnet18", weights=tmp_path, pretrained=True)
    with pytest.raises(InputError, match="only models of torchvision"):
        load(pretrained=True)


@pytest.mark.parametrize("text", ["cifar", "1,2/3,4", "0,0,0/1,1,0", "a,b,c/1,1,1", "0,0,0"])
def test_bad_normalisation(text: str) -> None:
    with pytest.raises(InputError, match="normalization"):
        parse_normalization(text)


@pytest.mark.parametrize(
    ("name", "million_macs"), [("cifar_resnet18", 555.4), ("cifar_mobilenet_v2", 88.0), ("cifar_vgg16_bn", 313.2)]
)
def test_reference_networks_keep_the_image_in_their_stem(name: str, million_macs: float) -> None:
    model = load(name)
    # The figures that these forms have in the literature: a stride or a pool too many would quarter them.
    assert count_macs(model, 32) / 1e6 == pytest.approx(million_macs, abs=0.1)


@pytest.mark.parametrize("aux", [True, False])
def test_googlenet_is_what_torchvision_builds_for_pretrained_weights(aux: bool, tmp_path: Path) -> None:
    """It transforms its input, and its auxiliary heads, which may be missing from the weights, play no part."""
    torch.manual_seed(1)
    net = torchvision.models.GoogLeNet(10, aux_logits=aux, transform_input=True, init_weights=False).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    (tmp_path / "net.py").write_text(
        "from torchvision.models import GoogLeNet\n"
        "def make():\n    return GoogLeNet(10, transform_input=True, init_weights=False)\n"
    )
    images = torch.rand(2, 3, 32, 32)
    for spec in ("torchvision:googlenet", f"{tmp_path / 'net.py'}:make"):
        loaded = load(spec, weights=tmp_path / "w.pt", normalization="none")
        with torch.no_grad():
            assert torch.equal(loaded(images), net(images))
        assert not any(name.startswith("aux") for name in loaded.network.state_dict())
    assert "transform_input=True" in find_model("torchvision:googlenet").note
    assert find_model("torchvision:resnet18").note == ""


@pytest.mark.parametrize("form", ["pt", "parallel", "safetensors"])
def test_modules_that_look_at_the_version_of_their_entries(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = torchvision.models.mnasnet0_5(num_classes=10).eval()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save((torch.nn.DataParallel(net) if form == "parallel" else net).state_dict(), path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        loaded = load("torchvision:mnasnet0_5", weights=path, normalization="none")
        assert torch.equal(loaded(images), net(images))
    state = net.state_dict()
    state._metadata[""]["version"] = 3  # as a later torchvision may write
    torch.save(state, tmp_path / "later.pt")
    with pytest.raises(InputError, match=r"the model cannot load .*later\.pt \(version should be set to 1 or 2"):
        load("torchvision:mnasnet0_5", weights=tmp_path / "later.pt")
