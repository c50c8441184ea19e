"""The networks that can be named: built in, torchvision's, timm's, an ONNX file, a user's file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qrobust.errors import InputError, nearest, unknown
from qrobust.models import timm_networks
from qrobust.models.cifar import cifar_mobilenet_v2, cifar_resnet18, cifar_vgg16_bn
from qrobust.models.onnx_import.file import read_onnx
from qrobust.models.onnx_import.network import as_network
from qrobust.models.onnx_import.preset import preset_of_file
from qrobust.models.outputs import unwrapped
from qrobust.models.resnet import resnet8, resnet20, resnet32
from qrobust.paths import user_path
from qrobust.preprocessing import FILTERS, NORMALIZATIONS, PreprocessingConfig
from qrobust.user_code import (
    file_of,
    load,
    running,
)

BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
    f.__name__: f for f in (resnet8, resnet20, resnet32, cifar_resnet18, cifar_mobilenet_v2, cifar_vgg16_bn)
}
# Of torchvision's builders: as those for pretrained weights, which people fine-tune, build the same network.
ARGUMENTS = {name: {"transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")}


@dataclass(frozen=True)
class ModelSpec:
    """Where a network comes from, before its class count is known.

    Attributes:
        spec: as the user wrote it.
        build: class count to a network with fresh weights.
        preset: how its author prepares images, as far as that is known.
        pretrained: maker of torchvision's or timm's network with its own weights, or None.
        version: of a user's file, which changes with it; else "".
        has_weights: whether `build` makes a trained network.
        image_size: side in px of the only images that it takes, or None.
        note: what weights do not say and `build` assumes, or nothing.
        quantized: whether `build` makes a network of a file's integers.
    """

    spec: str
    build: Callable[[int], nn.Module]
    preset: PreprocessingConfig
    pretrained: Callable[[], nn.Module] | None = None
    version: str = ""
    has_weights: bool = False
    image_size: int | None = None
    note: str = ""
    quantized: bool = False


def find_model(spec: str, *, quantized: bool = False) -> ModelSpec:
    """Resolve a model spec without building it.

    Args:
        spec: as the user wrote it.
        quantized: whether an ONNX file is expected that is quantized already, or one that is not.

    Raises:
        InputError: unknown name, file or factory, or a file of the other kind.
    """
    if spec in BUILT_IN:
        return ModelSpec(spec, BUILT_IN[spec], PreprocessingConfig(image_size=32, normalization="cifar10"))
    scheme, _, name = spec.partition(":")
    if scheme == "torchvision" and name:
        return _torchvision_model(spec, name)
    if scheme == "timm" and name:
        return _timm_model(spec, name)
    if spec.endswith(".onnx"):
        return _onnx_model(spec, quantized=quantized)
    path, _, factory = spec.rpartition(":")
    if path.endswith(".py") and factory:
        return _file_model(spec, factory)
    raise _unknown_model(spec)


def _unknown_model(spec: str) -> InputError:
    """The error for a spec that is of no form; it knows torchvision's names, too."""
    from torchvision import models

    specs = {name: f"torchvision:{name}" for name in models.list_models(module=models)} | {n: n for n in BUILT_IN}
    near = [specs[name] for name in nearest(spec.rpartition(":")[2], specs)]
    return unknown(
        "model", spec, BUILT_IN, "torchvision:NAME", "timm:NAME", "FILE.onnx", "FILE.py:FACTORY", near=near
    )


def _torchvision_model(spec: str, name: str) -> ModelSpec:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise unknown("model", name, models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT

    def build(classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=classes, **ARGUMENTS.get(name, {}))

    def pretrained() -> nn.Module:
        try:
            return models.get_model(name, weights=weights)
        except OSError as error:
            raise InputError(f"pretrained: torchvision cannot fetch weights of {name} ({error})") from error

    note = (
        f"{spec} is built with transform_input=True, as torchvision does for pretrained weights; for weights that "
        "were trained without, give a factory (--model FILE.py:FACTORY)"
    )
    preset = _torchvision_preset(weights.transforms())
    return ModelSpec(spec, build, preset, pretrained, note=note if name in ARGUMENTS else "")


def _torchvision_preset(transforms: Any) -> PreprocessingConfig:
    """What torchvision's weights say of the images that they were measured on."""
    (crop,), (resized,) = transforms.crop_size, transforms.resize_size
    return PreprocessingConfig(
        resize="crop",
        image_size=crop,
        crop_ratio=crop / resized,
        interpolation=transforms.interpolation.value,
        normalization=_written(transforms.mean, transforms.std),
    )


def _timm_model(spec: str, name: str) -> ModelSpec:
    timm_networks.check_name(name)

    def build(classes: int) -> nn.Module:
        return timm_networks.create(name, classes)

    def pretrained() -> nn.Module:
        return timm_networks.create(name, None)

    preset = _timm_preset(timm_networks.configuration(name)) or PreprocessingConfig()
    return ModelSpec(spec, build, preset, pretrained)


def _timm_preset(about: Mapping[str, Any]) -> PreprocessingConfig | None:
    """What a timm network's `pretrained_cfg` says of the images that it was measured on; None where it is no such."""
    try:
        size, ratio, mode = about["input_size"][-1], float(about["crop_pct"]), about.get("crop_mode", "center")
        known = mode == "center" or (mode == "squash" and ratio == 1)
        return PreprocessingConfig(
            resize=("crop" if mode == "center" else "stretch") if known else None,
            image_size=size,
            crop_ratio=ratio if mode == "center" else None,
            interpolation=about["interpolation"] if about["interpolation"] in FILTERS else None,
            normalization=_written(about["mean"], about["std"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _written(mean: Sequence[float], std: Sequence[float]) -> str:
    """A normalisation as `parse_normalization` reads it, by its name where it has one."""
    given = tuple(mean), tuple(std)
    named = next((name for name, known in NORMALIZATIONS.items() if known == given), None)
    return named or "/".join(",".join(map(repr, values)) for values in given)


def preset_of(found: ModelSpec, network: nn.Module) -> PreprocessingConfig:
    """How a network's author prepares images: what its name says, or for timm's networks what it carries itself."""
    about = getattr(network, "pretrained_cfg", None)
    if found.version == "" or not isinstance(about, Mapping):
        return found.preset
    return _timm_preset(about) or found.preset  # another package may have such an attribute


def _onnx_model(spec: str, *, quantized: bool) -> ModelSpec:
    path = user_path(spec)
    file = read_onnx(path)
    if file.integer and not quantized:
        raise InputError(
            f"model: {path} is quantized already ({', '.join(file.integer)}); expected the float network that it was "
            f"made of; `qrobust compensate {path}` does without"
        )
    if quantized and not file.integer:
        raise InputError(
            f"model: expected a file that is quantized, {path} is float; `qrobust run --model {path}` quantizes and "
            "compensates it"
        )
    return ModelSpec(
        spec,
        lambda _: as_network(read_onnx(path)),
        preset_of_file(file),
        version=file.sha256,
        has_weights=True,
        image_size=file.image_size,
        quantized=quantized,
    )


def _file_model(spec: str, factory: str) -> ModelSpec:
    path, file = file_of(spec), load(spec, "model")
    made = file.names.get(factory)
    if not callable(made):
        raise InputError(f"model: {path} has no callable {factory!r}")

    def build(classes: int) -> nn.Module:
        with running(path, f"model: {path}:{factory} failed"):
            model = _call(made, classes, f"{path}:{factory}")
        model = unwrapped(model)
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

    return ModelSpec(spec, build, PreprocessingConfig(), version=file.version)


def _call(made: Callable[..., Any], classes: int, told: str) -> Any:
    """Call a factory: with the class count if it takes `num_classes`, has one required argument or any keywords."""
    if getattr(made, "__init__", None) is nn.Module.__init__:  # whose keywords take nothing
        return made()
    try:
        parameters = list(inspect.signature(made).parameters.values())
    except (TypeError, ValueError):  # of what is not written in Python
        return made()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    takes = [p for p in parameters if p.name == "num_classes"] or required
    if len(takes) > 1:
        names = ", ".join(p.name for p in takes)
        raise InputError(f"model: {told}: expected at most one required argument, the class count, got {names}")
    if takes and takes[0].kind == inspect.Parameter.POSITIONAL_ONLY:
        return made(classes)
    if takes:
        return made(**{takes[0].name: classes})
    return made(num_classes=classes) if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters) else made()


def without_auxiliary_heads(network: nn.Module) -> tuple[str, ...]:
    """Take out heads that torchvision's networks have for training alone, and tell how names of theirs begin."""
    from torchvision.models import GoogLeNet, Inception3

    prefixes = []
    for path, module in list(network.named_modules()):
        if isinstance(module, GoogLeNet | Inception3):
            module.aux_logits = False
            for head in ("aux1", "aux2") if isinstance(module, GoogLeNet) else ("AuxLogits",):
                setattr(module, head, None)
                prefixes.append(f"{path}.{head}.".removeprefix("."))
    return tuple(prefixes)
