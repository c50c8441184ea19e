"""What an x86 CPU without VNNI makes of a fake-quantized model: an offline simulation of its 16-bit pair sums.

There onnxruntime multiplies with `vpmaddubsw`: two neighbouring products of a uint8 activation (zero point
not yet subtracted, padding being the zero point) and an int8 weight are added into 16 bits *with saturation*
before they are widened to 32. Neighbours along the reduction are, for a convolution, first the input channels of
its group and then the kernel positions, row by row; for a linear layer its inputs. An odd last one stands alone.
What is exported with a fourth channel of zeros (`integer_layers.WIDENED`) pairs its third with that.
Depthwise convolutions add in 32 bits. `benchmarks/saturation.py` checks all this against onnxruntime.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.errors import InputError
from qrobust.evaluation.statistics import wilson_interval
from qrobust.quantization.integer_layers import (
    WIDENED,
    ActivationQuantizer,
    IntegerConv2d,
    IntegerLinear,
)
from qrobust.quantization.rewrites.fx_utils import public_name
from qrobust.quantization.tracing import calls
from qrobust.record import LayerSaturation, SaturationRisk

LOWEST, HIGHEST = -(2**15), 2**15 - 1
# Floats of activations and of pair sums looked at in one go (or one image, or one pair): 4 MiB stay near the core.
CHUNK = 2**20


def _pairs(layer: IntegerConv2d | IntegerLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of `weight_int.flatten(1)` whose products are added in 16 bits: firsts and seconds, `(P,)` each."""
    channels, positions = layer.weight_int.shape[1], layer.weight_int[0, 0].numel()
    if isinstance(layer, IntegerConv2d) and channels == 1 and layer.groups == len(layer.weight_int):
        nothing = torch.empty(0, dtype=torch.long)
        return nothing, nothing  # depthwise
    order = torch.arange(channels * positions).view(channels, positions).t()
    if isinstance(layer, IntegerConv2d) and layer.groups == 1 and layer.weight_int.shape[1:] == WIDENED:
        return order[:, 0], order[:, 1]
    order = order.flatten()
    even = len(order) // 2 * 2
    return order[0:even:2], order[1:even:2]


def _overflowing(
    first: torch.Tensor, second: torch.Tensor, largest_first: torch.Tensor, largest_second: torch.Tensor
) -> torch.Tensor:
    """Which pairs of integer weights could leave 16 bits with activations from 0 to these."""
    high = first.clamp(min=0) * largest_first + second.clamp(min=0) * largest_second
    low = first.clamp(max=0) * largest_first + second.clamp(max=0) * largest_second
    return (high > HIGHEST) | (low < LOWEST)


def _risky(layer: IntegerConv2d | IntegerLinear, largest_activation: int) -> torch.Tensor:
    """Which pairs of which output channel could overflow, `(out, P)`."""
    first, second = _pairs(layer)
    weight = layer.weight_int.flatten(1).int()
    largest = torch.tensor(largest_activation)
    return _overflowing(weight[:, first], weight[:, second], largest, largest)


def cannot_saturate(layer: IntegerConv2d | IntegerLinear, largest_activation: int = 255) -> bool:
    """Whether no activation from 0 to `largest_activation` makes any pair sum of this layer overflow.

    The bound is exact over the layer's own weights. It holds for every layer of 7-bit weights, as
    255 * (63 + 63) = 32,130 fits into 16 bits, and for 8-bit layers whose pairs happen to be harmless.
    """
    return not _risky(layer, largest_activation).any()


class _SaturatingLayer(nn.Module):
    """An integer layer with 16-bit pair sums, which counts what they do."""

    def __init__(self, name: str, layer: IntegerConv2d | IntegerLinear, source: ActivationQuantizer) -> None:
        super().__init__()
        self.name, self.layer = name, layer
        self.scale, self.zero_point = float(source.scale), int(source.zero_point)
        risky = _risky(layer, source.qmax)
        self.pairs = risky.shape[1]
        self.output, pair = risky.nonzero(as_tuple=True)
        first, second = (columns[pair] for columns in _pairs(layer))
        weight = layer.weight_int.flatten(1).float()
        self.first_weight, self.second_weight = weight[self.output, first], weight[self.output, second]
        groups = layer.groups if isinstance(layer, IntegerConv2d) else 1
        group_start = self.output // (len(weight) // groups) * weight.shape[1]
        self.first, self.second = first + group_start, second + group_start
        self.sums = self.saturated = self.outputs = self.changed = 0
        self.total = self.total_square = self.total_error = self.largest_error = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact: torch.Tensor = self.layer(x)
        rows, outputs = x, exact
        if isinstance(self.layer, IntegerLinear):  # its vectors may lie along more axes than one, such as tokens
            rows, outputs = x.flatten(0, -2), exact.flatten(0, -2)
        with torch.no_grad():  # going back, saturation is passed straight through
            error = self._error(rows, outputs.shape).view_as(exact) if len(self.output) else None
            self._count(exact, error)
        return exact if error is None else exact - error

    def _error(self, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """How much too large the exact outputs are, shaped like them."""
        size = x[0].numel()
        if isinstance(self.layer, IntegerConv2d):
            size = size * self.layer.weight_int[0, 0].numel() * shape[2] * shape[3] // (x.shape[2] * x.shape[3])
        parts = [self._excess(part) for part in x.split(max(1, CHUNK // max(1, size)))]
        scale = self.layer.bias_scale.view(-1, *[1] * (len(shape) - 2))
        return torch.cat(parts, 1).transpose(0, 1).reshape(shape) * scale

    def _excess(self, x: torch.Tensor) -> torch.Tensor:
        """What 16 bits cut off from the sums, in integers: `(out, N, positions)`."""
        inputs = self._columns((x / self.scale).round_() + self.zero_point)
        n, columns = inputs.shape[1], inputs.flatten(1)
        excess = torch.zeros(len(self.layer.weight_int), columns.shape[1])
        largest = columns.amax(1)
        alive = _overflowing(
            self.first_weight, self.second_weight, largest[self.first], largest[self.second]
        ).nonzero()[:, 0]
        for chosen in alive.split(max(1, CHUNK // columns.shape[1])):
            sums = columns[self.first[chosen]].mul_(self.first_weight[chosen, None])
            sums.addcmul_(columns[self.second[chosen]], self.second_weight[chosen, None])
            # Moved by one half, the range of int16 lies even about zero.
            cut = F.softshrink(sums.add_(0.5), HIGHEST + 0.5)
            self.saturated += int(cut.count_nonzero())
            excess.index_add_(0, self.output[chosen], cut)
        return excess.unflatten(1, (n, -1))

    def _columns(self, integers: torch.Tensor) -> torch.Tensor:
        """The layer's inputs `(groups * K, N, positions)` in the order of `weight_int.flatten(1)`."""
        layer = self.layer
        if isinstance(layer, IntegerLinear):
            return integers.t()[:, :, None]
        padded = F.pad(integers, layer.padding, value=float(self.zero_point))
        kernel = tuple(layer.weight_int.shape[2:])
        return F.unfold(padded, kernel, layer.dilation, 0, layer.stride).transpose(0, 1)

    def _count(self, exact: torch.Tensor, error: torch.Tensor | None) -> None:
        self.outputs += exact.numel()
        self.sums += exact.numel() * self.pairs
        self.total += float(exact.sum(dtype=torch.float64))
        self.total_square += float(exact.double().square().sum())
        if error is not None:
            self.changed += int(error.count_nonzero())
            self.total_error += float(error.abs().sum(dtype=torch.float64))
            self.largest_error = max(self.largest_error, float(error.abs().max()))

    def measured(self) -> LayerSaturation:
        """What was counted so far."""
        mean = self.total / self.outputs
        deviation = max(self.total_square / self.outputs - mean**2, 0.0) ** 0.5 or 1.0
        every_pair = max(1, len(self.layer.weight_int) * self.pairs)
        return LayerSaturation(
            name=self.name,
            proven=not len(self.output),
            risky_pairs=len(self.output) / every_pair,
            saturated_sums=self.saturated / max(1, self.sums),
            changed_outputs=self.changed / self.outputs,
            mean_error=self.total_error / self.outputs / deviation,
            largest_error=self.largest_error / deviation,
        )


def without_vnni(fake_quantized: nn.Module) -> nn.Module:
    """A copy of a fake-quantized model that computes what onnxruntime would on an x86 CPU with AVX2 and no VNNI.

    Where no weights can overflow it is bit-identical to the fake-quantized model. It is slower: its cost grows with
    the share of weight pairs that could overflow, a few per cent in 8 bits. Memory is bounded by chunks.

    Args:
        fake_quantized: a fake-quantized model, or a module of several, such as a compensated classifier; it is not
            changed.

    Raises:
        InputError: there is no integer layer in it, or activations are signed.
    """
    simulated = copy.deepcopy(fake_quantized)
    found = 0
    for path, graph in [(p, m) for p, m in simulated.named_modules() if isinstance(m, fx.GraphModule)]:
        modules = dict(graph.named_modules(remove_duplicate=False))
        for node, layer in list(calls(graph, (IntegerConv2d, IntegerLinear))):
            assert isinstance(layer, IntegerConv2d | IntegerLinear)
            source = node.args[0]
            quantizer = modules.get(str(source.target)) if isinstance(source, fx.Node) else None
            if not isinstance(quantizer, ActivationQuantizer):
                raise InputError(
                    f"classifier: expected an activation quantizer before layer {node.target!r}, got {source}"
                )
            if quantizer.qmin < 0:
                raise InputError(
                    f"classifier: expected unsigned activations, which x86 kernels multiply, before layer "
                    f"{node.target!r}; got [{quantizer.qmin}, {quantizer.qmax}]"
                )
            name, target = f"{node.name}_without_vnni", str(node.target)
            full_name = f"{path}.{public_name(target)}" if path else public_name(target)
            graph.add_submodule(name, _SaturatingLayer(full_name, layer, quantizer))
            node.target = name
            found += 1
        graph.delete_all_unused_submodules()
        graph.recompile()
    if not found:
        raise InputError(
            f"classifier: expected a fake-quantized model, got {type(fake_quantized).__name__} without integer layers"
        )
    return simulated.eval()


def layers(simulated: nn.Module) -> list[LayerSaturation]:
    """What saturation did to each layer of `without_vnni(fake-quantized model)` on all images it has seen so far."""
    found = [m for m in simulated.modules() if isinstance(m, _SaturatingLayer)]
    return [layer.measured() for layer in found]


@torch.inference_mode()
def saturation_risk(
    fake_quantized: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> SaturationRisk:
    """What a CPU without VNNI would make of a fake-quantized model, on these images.

    Args:
        fake_quantized: as for `without_vnni`.
        batches: images `(N, C, S, S)` float32 in [0, 1] and labels `(N,)`; best images that nothing was
            chosen on.

    Raises:
        InputError: as for `without_vnni`, images are integers, or there are none.
    """
    simulated = without_vnni(fake_quantized)
    n = right = right_without = equal = 0
    for images, labels in batches:
        if not images.is_floating_point():
            raise InputError(f"batches: expected float images in [0, 1], got {images.dtype}")
        ours, theirs = fake_quantized(images).argmax(1), simulated(images).argmax(1)
        n += len(labels)
        right += int((ours == labels).sum())
        right_without += int((theirs == labels).sum())
        equal += int((ours == theirs).sum())
    if not n:
        raise InputError("batches: expected at least one image, got none")
    measured = layers(simulated)
    return SaturationRisk(
        proven=all(layer.proven for layer in measured),
        n=n,
        accuracy=right / n,
        accuracy_without_vnni=right_without / n,
        accuracy_without_vnni_interval=wilson_interval(right_without, n),
        agreement=equal / n,
        layers=tuple(measured),
    )
