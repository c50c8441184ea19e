"""The remedy `scales` of a file that is quantized already: its integers stay, scales and biases that it stores learn.

What learns are numbers that the file holds, by name: scales of activations and weights, and the biases of layers on
integers. Zero points, integer weights and every operator stay. So does what onnxruntime leaves out: a `Clip` whose
bounds no quantized value exceeds costs nothing, and would cost the layer's integer kernel if one could.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.errors import InputError
from qrobust.models.onnx_import.file import OnnxFile, Operator
from qrobust.models.onnx_import.integers import LARGEST_BIAS, Dequantize, FakeQuantize, Quantize
from qrobust.models.onnx_import.values import Layer, Place
from qrobust.quantization.integer_layers import convolve, zero_padding
from qrobust.quantization.qat import LearnedStep
from qrobust.quantization.rewrites.fx_utils import set_module
from qrobust.quantization.tracing import calls

# What a product of numbers in float32 may be off by, as a share.
CLOSE = 1e-5
ROUNDING = (Quantize, Dequantize, FakeQuantize)


class _Rescaled(nn.Module):
    """What rounds activations, with a scale that learns: any shape in, same shape out."""

    def __init__(self, source: Quantize | Dequantize | FakeQuantize, growth: nn.Parameter, most: float) -> None:
        super().__init__()
        self.most = most
        self.reads, self.gives = not isinstance(source, Dequantize), not isinstance(source, Quantize)
        grid = source.quantize if isinstance(source, FakeQuantize) else source
        self.zero_point, self.start, self.growth = grid.zero_point, grid.scale, growth
        self.low, self.high = (0, 0) if isinstance(grid, Dequantize) else (grid.low, grid.high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (self.start * _at_most(self.growth, self.most).reshape(()).exp()).to(x.dtype)
        if not self.reads:
            return (x - self.zero_point) * scale
        rounded: torch.Tensor = LearnedStep.apply(x, scale, self.low - self.zero_point, self.high - self.zero_point)
        return rounded if self.gives else rounded / scale + self.zero_point


class _RescaledLayer(nn.Module):
    """A layer of a file whose weights grow with their scales, and whose bias learns."""

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        shape: Sequence[int],
        growth: nn.Parameter | None,
        bias: nn.Parameter | None,
    ) -> None:
        super().__init__()
        self.layer, self.shape = [layer], shape  # in a list: not a submodule, its weights are no state of this one
        self.fixed_weight: torch.Tensor
        self.fixed_bias: torch.Tensor
        # No state, but they go along to another device.
        self.register_buffer("fixed_weight", layer.weight.detach(), persistent=False)
        none = torch.zeros(len(layer.weight))
        self.register_buffer("fixed_bias", none if layer.bias is None else layer.bias.detach(), persistent=False)
        self.growth, self.bias = growth, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fixed_weight
        if self.growth is not None:
            # Scaling weights, not what comes out: their gradient costs less than passes over the activations.
            weight = weight * self.growth.reshape(self.shape).exp()
        bias, layer = self.fixed_bias if self.bias is None else self.bias, self.layer[0]
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return convolve(x, weight, bias, layer.stride, zero_padding(layer), layer.dilation, layer.groups)


class FileScales:
    """A fake-quantized model of a file in which scales and biases learn, and what the file holds then.

    Scales of activations that are the same number stay the same: a pool's two sides, or what several operators read.

    Args:
        fake_quantized: of the file; it is not changed.
        layers: what its layers were read of, by the names that they have there.
        file: with its tensors.

    Raises:
        InputError: the file stores no scale that may learn, or a bias for several layers.
    """

    def __init__(self, fake_quantized: fx.GraphModule, layers: Mapping[str, Layer], file: OnnxFile) -> None:
        self.model, self.layers, self.file = copy.deepcopy(fake_quantized), layers, file
        self._places, self._most = _read_at(file), defaultdict(lambda: math.inf, most_growths(file))
        self.growths = self._learning(fake_quantized)
        if not self.growths:
            raise InputError(
                f"remedy: {file.path} stores no scale that may learn, as scales needs; expected calibrator"
            )
        self.biases = self._own_biases()
        for node, module in list(calls(self.model, ROUNDING)):
            assert isinstance(module, ROUNDING)
            names = [place.name for place in module.places if place.name in self.growths]
            if names:
                scale = names[0]
                set_module(self.model, str(node.target), _Rescaled(module, self.growths[scale], self._most[scale]))
        for name, layer in layers.items():
            set_module(self.model, name, self._rescaled(name, layer))
        self.model.delete_all_unused_submodules()
        self.constants()  # what cannot be written is refused before anything is learned

    def _learning(self, fake_quantized: fx.GraphModule) -> dict[str, nn.Parameter]:
        """The logarithm of what each scale has grown by, by name; those of activations of one number have one."""
        rounding = {p for _, module in calls(fake_quantized, ROUNDING) for p in _places_of(module)}
        held = rounding | {layer.weight.place for layer in self.layers.values()}
        free = {name for name, places in self._places.items() if places <= held}
        same: dict[float, set[str]] = defaultdict(set)
        for name in sorted({place.name for place in rounding} & self.file.constants.keys()):
            same[float(self._stored(name))].add(name)
        found = dict[str, nn.Parameter]()
        for names in same.values():
            if names <= free:
                found |= dict.fromkeys(names, nn.Parameter(torch.zeros(1)))
                self._most |= dict.fromkeys(names, min(self._most[name] for name in names))
        for layer in self.layers.values():
            name = layer.weight.place.name
            if name in free and name not in found:
                found[name] = nn.Parameter(torch.zeros(self.file.constants[name].numel()))
        return found

    def _stored(self, name: str) -> torch.Tensor:
        return self.file.constants[name].float().flatten()

    def _own_biases(self) -> dict[str, nn.Parameter]:
        """Every bias of a layer on integers, as numbers, by name.

        Raises:
            InputError: integers or their scale are read by several operators, of which each would want others.
        """
        found, known = dict[str, nn.Parameter](), set[str]()
        read = {layer.bias for layer in self.layers.values()}
        for name, layer in self.layers.items():
            known |= {place.name for place in (layer.bias, layer.bias_scale) if place}
            if layer.bias is None or layer.bias.name not in self.file.constants:
                continue
            if self._is_integer(layer.bias.name):
                self._check_alone(layer, layer.bias)
            elif not self._places[layer.bias.name] <= read:  # something else reads it, too: it stays
                continue
            module = self.model.get_submodule(name)
            assert isinstance(module.bias, torch.Tensor)
            if layer.bias.name not in found:
                found[layer.bias.name] = nn.Parameter(module.bias.detach().clone())
        for name, places in self._places.items():
            if name not in known and self._is_integer(name) and any(self._dequantized(place) for place in places):
                raise self._refused(name, "is of no convolution or matrix product")
        return found

    def _check_alone(self, layer: Layer, bias: Place) -> None:
        """Refuse an int32 bias that cannot follow the scales of its own layer alone."""
        alone = [bias, *([layer.bias_scale] if layer.bias_scale else [])]
        if any(self._places[place.name] != {place} for place in alone):
            raise self._refused(bias.name, "is read by several operators, or its scale is")
        scales = [place.name for place in (layer.activation, layer.weight.place, layer.bias_scale) if place]
        if not self.file.constants.keys() >= {*scales}:
            raise self._refused(bias.name, "has a scale that is no stored tensor")

    def _is_integer(self, name: str) -> bool:
        return self.file.constants[name].dtype == torch.int32

    def _dequantized(self, place: Place) -> bool:
        kinds = (operator.kind for operator in self.file.operators if operator.outputs[0] == place.operator)
        return place.index == 0 and next(kinds) == "DequantizeLinear"

    def _refused(self, bias: str, why: str) -> InputError:
        return InputError(f"remedy: expected calibrator for {self.file.path}, whose bias {bias!r} {why}, got scales")

    def _rescaled(self, name: str, layer: Layer) -> _RescaledLayer:
        module, scale = self.model.get_submodule(name), layer.weight.place.name
        assert isinstance(module, nn.Conv2d | nn.Linear)
        bias = self.biases.get(layer.bias.name) if layer.bias else None
        return _RescaledLayer(module, layer.weight.numbers.shape, self.growths.get(scale), bias)

    @torch.no_grad()
    def constants(self) -> dict[str, torch.Tensor]:
        """What the file is to hold now, by name, of the shapes and types that it has as it was read."""
        found = {
            name: self._like(name, self._stored(name) * _at_most(growth.detach().cpu(), self._most[name]).exp())
            for name, growth in self.growths.items()
        }
        for layer in self.layers.values():
            bias = self.biases.get(layer.bias.name) if layer.bias else None
            if bias is None or layer.bias is None:
                continue
            if not self._is_integer(layer.bias.name):
                found[layer.bias.name] = self._like(layer.bias.name, bias.detach().cpu())
                continue
            grid = self._grid(layer, found)
            levels = (bias.detach().cpu() / grid).round().clamp(-LARGEST_BIAS, LARGEST_BIAS)
            found[layer.bias.name] = self._like(layer.bias.name, levels)
            if layer.bias_scale:
                found[layer.bias_scale.name] = self._like(layer.bias_scale.name, grid)
        return found

    def _grid(self, layer: Layer, found: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scale of a layer's int32 bias: of its input times that of its weights, as its kernel has it."""
        if layer.activation is None:
            assert layer.bias_scale is not None
            return self._stored(layer.bias_scale.name)
        names = (layer.activation.name, layer.weight.place.name)
        activation, weight = (found.get(name, self.file.constants[name]).float().flatten() for name in names)
        return activation * weight

    def _like(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers in the shape and type of a stored tensor.

        Raises:
            InputError: these are more than it has, as of a bias with one scale for many channels.
        """
        stored = self.file.constants[name]
        if stored.numel() == 1 and numbers.numel() > 1 and bool((numbers == numbers[0]).all()):
            numbers = numbers[:1]
        if numbers.numel() not in (1, stored.numel()):
            raise self._refused(name, f"has {stored.numel()} numbers for {numbers.numel()} channels")
        return numbers.expand(stored.numel()).reshape(stored.shape).to(stored.dtype)


def _at_most(growth: torch.Tensor, most: float) -> torch.Tensor:
    """A logarithm that is no larger; its gradient passes on, so that it comes down again."""
    return growth - F.relu(growth.detach() - most) if math.isfinite(most) else growth


def most_growths(file: OnnxFile) -> dict[str, float]:
    """By name, the logarithm of what a scale may grow by until a value that it quantizes exceeds a `Clip` before it.

    Scales of whose values some exceed it now are not among them: there the `Clip` is at work as it is.
    """
    made = {name: operator for operator in file.operators for name in operator.outputs}
    found = dict[str, float]()
    for operator in file.operators:
        before = made.get(operator.inputs[0]) if operator.kind == "QuantizeLinear" else None
        scale = operator.inputs[1] if before else ""
        if (
            before is None
            or before.kind != "Clip"
            or scale not in file.constants
            or file.constants[scale].numel() > 1
        ):
            continue
        room = _room(before, operator, file)
        if room is not None:
            found[scale] = min(found.get(scale, math.inf), room)
    return found


def _room(clip: Operator, quantize: Operator, file: OnnxFile) -> float | None:
    """See `most_growths`, of one scale; None where the `Clip` is at work, or its bounds are not stored."""
    bounds = [_bound(clip, index, file) for index in (1, 2)]
    stored = file.constants.get(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    limits = torch.iinfo(torch.uint8 if stored is None else stored.dtype)
    zero_point, scale = 0 if stored is None else int(stored), float(file.constants[quantize.inputs[1]])
    rooms = [math.inf]
    for bound, level in zip(bounds, (limits.min, limits.max), strict=True):
        if bound is None:
            return None
        value = (level - zero_point) * scale
        if value and math.isfinite(bound):
            if bound / value < 1 - CLOSE:
                return None
            rooms.append(math.log(bound / value))
    return max(0.0, min(rooms) - CLOSE)


def _bound(clip: Operator, index: int, file: OnnxFile) -> float | None:
    """The lower bound of a `Clip`, 1, or the upper one, 2; infinite without one, None where it is computed."""
    if len(clip.inputs) > index and clip.inputs[index]:
        stored = file.constants.get(clip.inputs[index])
        return None if stored is None else float(stored)
    given = clip.attributes.get(("min", "max")[index - 1])  # of opsets below 11
    return float(given) if isinstance(given, int | float) else math.inf


def _places_of(module: nn.Module) -> tuple[Place, ...]:
    assert isinstance(module, ROUNDING)
    return module.places


def _read_at(file: OnnxFile) -> dict[str, set[Place]]:
    """Where each stored tensor is read."""
    found: dict[str, set[Place]] = defaultdict(set)
    for place in _reads(file.operators):
        if place.name in file.constants:
            found[place.name].add(place)
    return found


def _reads(operators: Sequence[Operator]) -> Iterator[Place]:
    for operator in operators:
        for index, name in enumerate(operator.inputs):
            yield Place(name, operator.outputs[0], index)
