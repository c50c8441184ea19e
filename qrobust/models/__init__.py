"""Models: a spec string and a weights file in, a float classifier of images in [0, 1] out."""

from __future__ import annotations

import inspect
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qrobust.classifier import Normalization, NormalizedModel
from qrobust.errors import InputError
from qrobust.inputs import check_file
from qrobust.integer import refuse_quantized
from qrobust.models.cifar import cifar_mobilenet_v2, cifar_resnet18, cifar_vgg16_bn
from qrobust.models.resnet import resnet8, resnet20, resnet32
from qrobust.usercode import complaint, file_of, load, running

BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
    f.__name__: f for f in (resnet8, resnet20, resnet32, cifar_resnet18, cifar_mobilenet_v2, cifar_vgg16_bn)
}

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
# Of torchvision's builders: as those for pretrained weights, which people fine-tune, build the same network.
ARGUMENTS = {name: {"transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")}
SCHEMES = f"torchvision:NAME, path/to/file.py:FACTORY or one of {', '.join(BUILT_IN)}"


@dataclass(frozen=True)
class ModelSpec:
    """Where a network comes from, before its class count is known.

    Attributes:
        spec: as the user wrote it.
        build: class count to a network with fresh weights.
        normalization: default, as for `parse_normalization`.
        preferred_size: image side it was made for, or None.
        pretrained: maker of torchvision's own weights, or None.
        version: of a user's file, which changes with it; else "".
        note: what weights do not say and `build` assumes, or nothing.
    """

    spec: str
    build: Callable[[int], nn.Module]
    normalization: str
    preferred_size: int | None
    pretrained: Callable[[], nn.Module] | None = None
    version: str = ""
    note: str = ""


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
        return _file_model(spec, factory)
    raise InputError(f"model: expected {SCHEMES}, got {spec!r}")


def _torchvision_model(spec: str, name: str) -> ModelSpec:
    from torchvision import models

    if name not in models.list_models(module=models):
        known = ", ".join(models.list_models(module=models)[:4])
        raise InputError(f"model: torchvision has no classifier {name!r} (it has {known}, ...)")
    weights = models.get_model_weights(name).DEFAULT
    size = weights.transforms().crop_size[0]

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
    return ModelSpec(spec, build, "imagenet", size, pretrained, note if name in ARGUMENTS else "")


def _file_model(spec: str, factory: str) -> ModelSpec:
    path, file = file_of(spec), load(spec, "model")
    made = file.names.get(factory)
    if not callable(made):
        raise InputError(f"model: {path} has no callable {factory!r}")

    def build(classes: int) -> nn.Module:
        with running(path, f"model: {path}:{factory} failed"):
            model = _call(made, classes, f"{path}:{factory}")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
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

    return ModelSpec(spec, build, "none", None, version=file.version)


def _call(made: Callable[..., Any], classes: int, told: str) -> Any:
    """Call a factory: with the class count if it takes `num_classes`, has one required argument or any keywords."""
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


def load_model(
    found: ModelSpec,
    *,
    classes: int,
    image_size: int,
    weights: Path | None,
    pretrained: bool,
    normalization: str | None,
    seed: int,
) -> NormalizedModel:
    """Build a float classifier in eval mode.

    Args:
        found: from `find_model`.
        classes: length of the logits, the data's class count.
        image_size: side of the images it will be given.
        weights: state dict as `.pt`/`.pth` (read with `weights_only=True`) or `.safetensors`.
        pretrained: take torchvision's own weights.
        normalization: see `parse_normalization`; default the model's preset.
        seed: decides random weights where there are none to load.

    Raises:
        InputError: weights that are missing, damaged, of other shapes or not finite; a network quantized already;
            a class count that differs from the data's; a network for neither 3 channels nor 1, or a normalization
            for others.
    """
    if weights is not None and pretrained:
        raise InputError("weights: give either --weights or --pretrained, not both")
    if pretrained and found.pretrained is None:
        raise InputError(f"pretrained: only torchvision models have own weights, got {found.spec!r}")
    torch.manual_seed(seed)
    if pretrained and found.pretrained is not None:
        network = found.pretrained()
        _without_auxiliary_heads(network)
    else:
        network = found.build(classes)
        refuse_quantized(network)
        unused = _without_auxiliary_heads(network)
        if weights is not None:
            _load_weights(network, weights, unused)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"weights: {name!r} holds NaN or infinity")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(
                f"model: expected float32 weights, {name!r} is {value.dtype}; call .float() on the network"
            )
    network.eval().requires_grad_(False)
    channels = _channels(network, found.spec, classes, image_size)
    normalize = Normalization(*parse_normalization(normalization or found.normalization, channels))
    return NormalizedModel(network, normalize).eval().requires_grad_(False)


def parse_normalization(text: str, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations per channel.

    Args:
        text: `none`; a key of `NORMALIZATIONS`, which are of three channels; or `m,m,m/s,s,s`, of one `m/s`.
        channels: how many the network reads.

    Raises:
        InputError: none of these, or for another number of channels.
    """
    if text == "none":
        return (0.0,) * channels, (1.0,) * channels
    try:
        mean, std = NORMALIZATIONS.get(text) or (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not (len(mean) == len(std) == channels and all(map(math.isfinite, mean + std)) and min(std) > 0):
        presets = [name for name, (known, _) in NORMALIZATIONS.items() if len(known) == channels]
        form = "/".join(",".join(letter * channels) for letter in "ms")
        raise InputError(
            f"normalization: expected {', '.join([*presets, 'none'])} or {form!r} with positive s for images of "
            f"{channels} channel{'s' * (channels > 1)}, got {text!r}"
        )
    return mean, std


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read weights without executing anything in the file; `module.` prefixes are removed.

    A training checkpoint that holds the state dict under `state_dict` or `model` is accepted.
    """
    check_file(path, "weights")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is deprecated in the file nobody here can change anything
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage raises another type
        reason = _first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch advises to execute what is in the file
            reason = "it is damaged, or holds more than tensors"
        raise InputError(f"weights: {path} is not a readable state dict or safetensors file ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"weights: expected a state dict of tensors in {path}, got {type(state).__name__}")
    plain = OrderedDict((str(k).removeprefix("module."), v) for k, v in state.items())
    versions = getattr(state, "_metadata", {})  # of each module's entries, by its path
    inner = {k: v for k, v in versions.items() if k.partition(".")[0] == "module"}
    plain._metadata = {k.partition(".")[2]: v for k, v in inner.items()} or versions  # type: ignore[attr-defined]  # torch's
    return plain


def _without_auxiliary_heads(network: nn.Module) -> tuple[str, ...]:
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


def _load_weights(network: nn.Module, path: Path, unused: tuple[str, ...] = ()) -> None:
    """Give a network its weights; entries whose names begin with one of `unused` are left out."""
    given, own = read_state_dict(path), network.state_dict()
    for name in [name for name in given if name.startswith(unused)]:
        del given[name]
    for name in own:
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, own[name])
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    for name, value in given.items():
        if kind := _unusual(value):
            raise InputError(f"weights: expected dense tensors of real numbers, {name!r} in {path} is {kind}")
    shapes = [n for n in sorted(own.keys() & given.keys()) if own[n].shape != given[n].shape]
    if shapes:
        name = shapes[0]
        raise InputError(
            f"weights: {name!r} has shape {tuple(given[name].shape)} in {path}, the model expects "
            f"{tuple(own[name].shape)} ({len(shapes)} such entries); check --model and the number of classes"
        )
    if missing or unknown:
        raise InputError(
            f"weights: {path} does not fit the model: {len(missing)} entries missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    # Formats without versions, such as safetensors, hold what this version of the network's code writes.
    given._metadata = own._metadata | given._metadata  # type: ignore[attr-defined]  # torch's
    try:
        network.load_state_dict(given)
    except Exception as error:  # modules may read their entries themselves
        raise InputError(f"weights: the model cannot load {path} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _outputs(found: object, classes: int) -> str:
    """What a network returns instead of logits, and what to do about it."""
    if isinstance(found, torch.Tensor):
        if classes == 2 and found.shape in ((2,), (2, 1)):
            same = "torch.stack((torch.zeros_like(z), z), 1)" if found.ndim == 1 else "F.pad(z, (1, 0))"
            return f"{tuple(found.shape)}, one logit z for two classes; let the network return {same} instead"
        return f"{tuple(found.shape)}"
    parts: dict[str, object] = {}
    if isinstance(found, Mapping):
        parts = {f"[{key!r}]": value for key, value in found.items()}
    elif isinstance(found, tuple | list):
        parts = {f"[{i}]": value for i, value in enumerate(found)}
    elif hasattr(found, "logits"):
        parts = {".logits": found.logits}
    tensors = [f"{name} {tuple(part.shape)}" for name, part in parts.items() if isinstance(part, torch.Tensor)]
    held = f" of {', '.join(tensors)}" if tensors else ""
    return f"{type(found).__name__}{held}; let the factory return a module whose forward returns the logits alone"


def _unusual(value: torch.Tensor) -> str | None:
    """What a tensor is that is no plain array of real numbers."""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.is_quantized or value.is_complex():
        return str(value.dtype).removeprefix("torch.")
    return "without values (meta)" if value.is_meta else None


def _channels(network: nn.Module, spec: str, classes: int, image_size: int) -> int:
    """How many channels a network reads: three if it runs on them, else one."""
    reasons = []
    for channels in (3, 1):
        try:
            with torch.inference_mode():
                logits = network(torch.full((2, channels, image_size, image_size), 0.5))
            if isinstance(logits, torch.Tensor) and len(logits) != 2:
                raise ValueError(f"2 images become {len(logits)} rows of logits")
        except SystemExit as error:
            raise InputError(f"model: {spec} failed ({complaint(error)})") from error
        except Exception as error:  # the user's code may raise anything
            reasons.append(_first_line(error))
            continue
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
            raise InputError(
                f"model: expected logits (2, {classes}) for the data's {classes} classes, got "
                f"{_outputs(logits, classes)}"
            )
        return channels
    raise InputError(
        f"model: expected a network for images of 3 channels or 1, {spec} fails on those of {image_size} px "
        f"(3: {reasons[0]}; 1: {reasons[1]})"
    )
