"""From a model spec and a weights file to a float classifier of images in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qrobust.classifier import Normalization, NormalizedModel, refuse_quantized
from qrobust.errors import InputError
from qrobust.models.checkpoints import read_weights
from qrobust.models.outputs import Output, TakesLogits, described, find_output, refuse_probability
from qrobust.models.registry import ModelSpec, preset_of, without_auxiliary_heads
from qrobust.preprocessing import Preprocessing, PreprocessingConfig, choose_size, resolve
from qrobust.user_code import complaint


def load_model(
    found: ModelSpec,
    *,
    classes: int,
    image_size: int,
    weights: Path | None,
    pretrained: bool,
    normalization: str | None,
    seed: int,
    channel_order: str = "rgb",
) -> NormalizedModel:
    """Build a float classifier in eval mode.

    Args:
        found: from `find_model`.
        classes: length of the logits, the data's class count.
        image_size: side of the images it will be given.
        weights: a checkpoint that torch saved or `.safetensors`, see `read_weights`.
        pretrained: take torchvision's or timm's own weights.
        normalization: see `parse_normalization`; default the model's preset.
        seed: decides random weights where there are none to load.
        channel_order: `bgr` for a network that reads images as OpenCV does.

    Raises:
        InputError: see `build_network` and `as_classifier`.
    """
    refuse_weights(found, weights)
    size_of(found, PreprocessingConfig(image_size=image_size), found.preset, None)
    network = build_network(found, classes=classes, weights=weights, pretrained=pretrained, seed=seed)
    chosen = PreprocessingConfig(image_size=image_size, normalization=normalization, channel_order=channel_order)
    interface = interface_of(network, found.spec, classes, image_size)
    preset = preset_of(found, network)
    prepared = resolve(chosen, preset, image_size, native_size=None, channels=interface.channels)
    return as_classifier(network, found.spec, prepared, interface.output)


def refuse_weights(found: ModelSpec, weights: object) -> None:
    """A file that holds a network with its weights takes no others.

    Raises:
        InputError: weights are given all the same.
    """
    if found.has_weights and weights is not None:
        raise InputError(f"weights: expected none, {found.spec} holds its own, got {weights}")


def size_of(found: ModelSpec, chosen: PreprocessingConfig, preset: PreprocessingConfig, native: int | None) -> int:
    """Side in px of the images that a network reads; see `choose_size`.

    Raises:
        InputError: it is another than the only one that the network takes, or not known.
    """
    fixed = found.image_size
    if fixed is None:
        return choose_size(chosen, preset, native, found.spec)
    if chosen.image_size not in (None, fixed):
        raise InputError(f"image_size: expected {fixed}, which {found.spec} takes alone, got {chosen.image_size}")
    return fixed


def as_classifier(network: nn.Module, spec: str, preprocessing: Preprocessing, output: Output) -> NormalizedModel:
    """A network with its normalisation inside, that returns logits alone.

    Raises:
        InputError: the normalisation is not known.
    """
    if preprocessing.mean is None or preprocessing.std is None:
        raise InputError(
            f"normalization: expected what {spec} was trained with, got nothing; give --normalization imagenet, "
            "means/deviations such as 0.5,0.5,0.5/0.25,0.25,0.25, or none where it reads pixels in [0, 1]"
        )
    normalize = Normalization(preprocessing.mean, preprocessing.std, preprocessing.channel_order)
    logits = TakesLogits(output) if output != Output() else None
    return NormalizedModel(network, normalize, logits).eval().requires_grad_(False)


def build_network(found: ModelSpec, *, classes: int, weights: Path | None, pretrained: bool, seed: int) -> nn.Module:
    """A network with its weights, in eval mode; it has no normalisation yet.

    Args:
        found, classes, weights, pretrained, seed: see `load_model`.

    Raises:
        InputError: weights that are missing, damaged, of other shapes or not finite; or a network quantized already.
    """
    if weights is not None and pretrained:
        raise InputError("weights: give either --weights or --pretrained, not both")
    if pretrained and found.pretrained is None:
        raise InputError(f"pretrained: only models of torchvision and timm have own weights, got {found.spec!r}")
    torch.manual_seed(seed)
    if pretrained and found.pretrained is not None:
        network = found.pretrained()
        without_auxiliary_heads(network)
    else:
        network = found.build(classes)
        refuse_quantized(network)
        unused = without_auxiliary_heads(network)
        if weights is not None:
            _load_weights(network, weights, unused)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"weights: {name!r} holds NaN or infinity")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(
                f"model: expected float32 weights, {name!r} is {value.dtype}; call .float() on the network"
            )
    return network.eval().requires_grad_(False)


def _load_weights(network: nn.Module, path: Path, unused: tuple[str, ...] = ()) -> None:
    """Give a network its weights; entries whose names begin with one of `unused` are left out."""
    own = network.state_dict()
    given = read_weights(path, own, unused).tensors
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


def _unusual(value: torch.Tensor) -> str | None:
    """What a tensor is that is no plain array of real numbers."""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.is_quantized or value.is_complex():
        return str(value.dtype).removeprefix("torch.")
    return "without values (meta)" if value.is_meta else None


@dataclass(frozen=True)
class Interface:
    """What a network reads and returns.

    Attributes:
        channels: that it reads, three if it runs on them, else one.
        output: where its logits are.
    """

    channels: int
    output: Output


def interface_of(network: nn.Module, spec: str, classes: int, image_size: int) -> Interface:
    """Run a network once to see what it reads and returns.

    Raises:
        InputError: it runs on neither three channels nor one, gives no logits of so many classes, or a probability.
    """
    reasons = []
    for channels in (3, 1):
        images = torch.full((2, channels, image_size, image_size), 0.5)
        try:
            with torch.inference_mode():
                found = network(images)
            output = find_output(found, len(images), classes)
            rows = len(found) if isinstance(found, torch.Tensor) and found.ndim else 2
            if output is None and rows != len(images):
                raise ValueError(f"2 images become {rows} rows of logits")
        except SystemExit as error:
            raise InputError(f"model: {spec} failed ({complaint(error)})") from error
        except Exception as error:  # the user's code may raise anything
            reasons.append(_first_line(error))
            continue
        if output is None:
            raise InputError(
                f"model: expected logits (2, {classes}) for the data's {classes} classes, got {described(found)}"
            )
        if output.single:
            refuse_probability(network, output, images, spec)
        return Interface(channels, output)
    raise InputError(
        f"model: expected a network for images of 3 channels or 1, {spec} fails on those of {image_size} px "
        f"(3: {reasons[0]}; 1: {reasons[1]})"
    )
