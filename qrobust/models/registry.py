"""The networks that can be named: built in, torchvision's, a user's file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qrobust.errors import InputError, nearest, unknown
from qrobust.models.cifar import cifar_mobilenet_v2, cifar_resnet18, cifar_vgg16_bn
from qrobust.models.resnet import resnet8, resnet20, resnet32

BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
    f.__name__: f for f in (resnet8, resnet20, resnet32, cifar_resnet18, cifar_mobilenet_v2, cifar_vgg16_bn)
}


@dataclass(frozen=True)
class ModelSpec:
    """Where a network comes from, before its class count is known.

    Attributes:
        spec: as the user wrote it.
        build: class count to a network with fresh weights.
        normalization: default, as for `parse_normalization`.
        preferred_size: image side it was made for, or None.
        pretrained: maker of torchvision's own weights, or None.
    """

    spec: str
    build: Callable[[int], nn.Module]
    normalization: str
    preferred_size: int | None
    pretrained: Callable[[], nn.Module] | None = None


def find_model(spec: str) -> ModelSpec:
    """Resolve a model spec without building it.

    Raises:
        InputError: unknown name, file or factory.
    """
    if spec in BUILT_IN:
        return ModelSpec(spec, BUILT_IN[spec], "cifar10", 32)
    scheme, _, name = spec.partition(":")
    if scheme == "torchvision" and name:
        return _torchvision_model(spec, name)
    path, _, factory = spec.rpartition(":")
    if path.endswith(".py") and factory:
        return ModelSpec(spec, _file_factory(Path(path).expanduser(), factory), "none", None)
    raise _unknown_model(spec)


def _unknown_model(spec: str) -> InputError:
    """The error for a spec that is of no form; it knows torchvision's names, too."""
    from torchvision import models

    specs = {name: f"torchvision:{name}" for name in models.list_models(module=models)} | {n: n for n in BUILT_IN}
    near = [specs[name] for name in nearest(spec.rpartition(":")[2], specs)]
    return unknown("model", spec, BUILT_IN, "torchvision:NAME", "path/to/file.py:FACTORY", near=near)


def _torchvision_model(spec: str, name: str) -> ModelSpec:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise unknown("model", name, models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT
    size = weights.transforms().crop_size[0]

    def build(classes: int) -> nn.Module:
        extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, num_classes=classes, **extra)

    def pretrained() -> nn.Module:
        try:
            return models.get_model(name, weights=weights)
        except OSError as error:
            raise InputError(f"pretrained: torchvision cannot fetch weights of {name} ({error})") from error

    return ModelSpec(spec, build, "imagenet", size, pretrained)


def _file_factory(path: Path, factory: str) -> Callable[[int], nn.Module]:
    if not path.is_file():
        raise InputError(f"model: no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"qrobust_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"model: {path} cannot be imported ({type(error).__name__}: {error})") from error
    made = getattr(module, factory, None)
    if not callable(made):
        raise InputError(f"model: {path} has no callable {factory!r}")

    def build(classes: int) -> nn.Module:
        takes_classes = "num_classes" in inspect.signature(made).parameters
        try:
            model = made(num_classes=classes) if takes_classes else made()
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"model: {path}:{factory} failed ({type(error).__name__}: {error})") from error
        if not isinstance(model, nn.Module):
            raise InputError(f"model: {path}:{factory} must return a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                f"model: {path}:{factory} must return a network that can be traced, got a TorchScript module"
            )
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(value):
                raise InputError(
                    f"model: {path}:{factory} must return a network with shapes, {name!r} has none before the first "
                    "image; let the factory run it once"
                )
        return model

    return build
