"""`--model timm:NAME`: what is said where timm is missing is tested always, its networks where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qrobust.errors import InputError
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.preprocessing import PreprocessingConfig, resolve


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A timm of three names, whose weights cannot be fetched."""
    about = {"input_size": (3, 96, 96), "crop_pct": 0.75, "interpolation": "bicubic", "mean": (0.5,) * 3}
    timm = ModuleType("timm")

    def create(name: str, *, pretrained: bool, num_classes: int = 1000) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route\nto host")
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, num_classes))

    timm.list_models = lambda include_tags: ["resnet18", "resnet50", "levit_128"]  # type: ignore[attr-defined]
    timm.list_pretrained = lambda names: ["resnet18.a1_in1k", "resnet18.tv_in1k"]  # type: ignore[attr-defined]
    timm.create_model = create  # type: ignore[attr-defined]
    timm.get_pretrained_cfg = lambda name: type(  # type: ignore[attr-defined]
        "Configuration", (), {"to_dict": lambda self: about | {"std": (0.25,) * 3}}
    )()
    monkeypatch.setitem(sys.modules, "timm", timm)
    return timm


def test_a_missing_timm_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # which makes its import fail
    with pytest.raises(InputError) as caught:
        find_model("timm:resnet18")
    assert str(caught.value) == "model: timm:NAME needs the package timm, which is not installed; pip install timm"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet81", "resnet18.*got 'resnet81'; did you mean 'resnet18'"),
        ("resnet18.a2_in1k", "expected one of resnet18.a1_in1k, resnet18.tv_in1k, resnet18, got 'resnet18.a2_in1k'"),
        ("hf-hub:timm/resnet18", "got 'hf-hub:timm/resnet18'"),
        ("local-dir:/tmp/x", "got 'local-dir:/tmp/x'"),
    ],
)
def test_names_that_timm_does_not_know(name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_model(f"timm:{name}")


@pytest.mark.usefixtures("stand_in")
def test_preprocessing_is_that_of_the_configuration() -> None:
    found = resolve(PreprocessingConfig(), find_model("timm:resnet18").preset, 96, native_size=None, channels=3)
    assert (found.resize, found.shorter_side, found.interpolation, found.antialias) == ("crop", 128, "bicubic", True)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.usefixtures("stand_in")
def test_weights_that_cannot_be_fetched_are_one_line(tmp_path: Path) -> None:
    options = {"classes": 10, "image_size": 96, "weights": None, "normalization": None, "seed": 0}
    with pytest.raises(InputError, match=r"^pretrained: timm cannot fetch weights of resnet18 \(no route\)$"):
        load_model(find_model("timm:resnet18"), pretrained=True, **options)  # type: ignore[arg-type]


def test_a_network_takes_its_own_weights_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs timm, an optional dependency: pip install timm")
    torch.manual_seed(1)
    trained = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=7).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    options = {"classes": 7, "image_size": 64, "pretrained": False, "normalization": "none", "seed": 0}
    loaded = load_model(find_model("timm:test_resnet"), weights=tmp_path / "w.pt", **options)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(images), trained(images))


def test_timms_own_preprocessing_is_the_default() -> None:
    timm = pytest.importorskip("timm", reason="needs timm, an optional dependency: pip install timm")
    said = timm.data.resolve_data_config(model=timm.create_model("test_resnet"))
    preset = find_model("timm:test_resnet").preset
    found = resolve(PreprocessingConfig(), preset, preset.image_size or 0, native_size=None, channels=3)
    assert (3, found.size, found.size) == said["input_size"]
    assert (found.crop_ratio, found.interpolation) == (said["crop_pct"], said["interpolation"])
    assert (found.mean, found.std) == (said["mean"], said["std"])
