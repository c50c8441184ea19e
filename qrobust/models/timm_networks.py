"""Adapter to timm, an optional dependency: its networks by name, how their authors prepare images, their weights."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from qrobust.errors import FEW_LISTED, InputError, nearest, unknown

INSTALL = "pip install timm"


def _timm() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed, or does not work with what is.
    """
    try:
        import timm
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "timm"
        why = "not installed" if missing else f"installed and cannot be imported ({error})"
        raise InputError(f"model: timm:NAME needs the package timm, which is {why}; {INSTALL}") from error
    return timm


def check_name(name: str) -> None:
    """Let pass what timm's registry knows: an architecture, or one with a tag of weights (`resnet50.a1_in1k`).

    Names that timm would look up elsewhere, such as `hf-hub:...`, are none of these.

    Raises:
        InputError: timm is missing, or does not know the name; the nearest names are listed.
    """
    timm = _timm()
    architecture, dot, tag = name.partition(".")
    known = timm.list_models(include_tags=False)
    if architecture not in known:
        near = nearest(architecture, known, FEW_LISTED) or nearest(architecture, known, FEW_LISTED, 0.3)
        raise unknown("model", name, near or known[:FEW_LISTED], "another of timm.list_models()", near=near)
    if dot:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            raise unknown("model", name, [architecture, *(f"{architecture}.{other}" for other in tags)])


def configuration(name: str) -> dict[str, object]:
    """How the weights of that name were evaluated: `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean`,
    `std`; empty where timm does not say.
    """
    found = _timm().get_pretrained_cfg(name)
    return dict(found.to_dict()) if found else {}


def create(name: str, classes: int | None) -> nn.Module:
    """A network with fresh weights for so many classes, or for None with timm's own weights and classes.

    Raises:
        InputError: weights that timm cannot fetch.
    """
    timm = _timm()
    if classes is not None:
        return _network(timm.create_model(name, pretrained=False, num_classes=classes))
    try:
        return _network(timm.create_model(name, pretrained=True))
    except (OSError, RuntimeError, ValueError) as error:  # no net; no weights of that name; a checksum that differs
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"pretrained: timm cannot fetch weights of {name} ({reason})") from error


def _network(made: Any) -> nn.Module:
    assert isinstance(made, nn.Module)
    return made
