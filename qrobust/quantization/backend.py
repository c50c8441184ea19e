"""The door to `torch.ao.quantization`: prepare and observe a network, then leave torch.ao behind.

`prepare` and `prepare_qat` give a torch.ao graph whose `FakeQuantize` modules observe; `freeze` turns it
into the fake-quantized twin: a graph of `qrobust.integer` layers, with nothing of torch.ao in it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

with warnings.catch_warnings():
    # torch.ao.quantization announces its deprecation on import; this door is our answer to that.
    warnings.simplefilter("ignore")
    import torch.ao.nn.qat as nnqat
    from torch.ao.quantization import (
        FakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        PerChannelMinMaxObserver,
        QConfig,
        QConfigMapping,
        disable_fake_quant,
        disable_observer,
        enable_fake_quant,
        enable_observer,
    )
    from torch.ao.quantization.backend_config import (
        BackendConfig,
        BackendPatternConfig,
        DTypeConfig,
        ObservationType,
    )
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

from qrobust.classifier import Normalization
from qrobust.errors import InputError
from qrobust.integer import ActivationQuantizer, GlobalAveragePool, IntegerConv2d, IntegerLinear, SelfAttention
from qrobust.quantization.graph import (
    ADDITIONS,
    CLAMPS,
    PRODUCTS,
    RESHAPES,
    calls,
    drop_quantizers,
    traced,
)
from qrobust.quantization.rewrites import remove_call
from qrobust.quantization.target import Target

OBSERVERS = {"histogram": HistogramObserver, "moving-average": MovingAverageMinMaxObserver}
OWN_GRID = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
SHARED_GRID = ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one deprecation warning per torch.ao call
        yield


def _backend_config() -> BackendConfig:
    """Which operators onnxruntime runs on integers, and where each wants its quantizers.

    An average pool gets a grid of its own: on its input's grid it produces exact ties, which torch and
    onnxruntime round in different directions.
    """
    types = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float32)
    pool_types = DTypeConfig(torch.quint8, torch.quint8)
    configs = []
    for layer, qat in ((nn.Conv2d, nnqat.Conv2d), (nn.Linear, nnqat.Linear)):
        configs.append(
            BackendPatternConfig(layer).set_observation_type(OWN_GRID).add_dtype_config(types)
            .set_root_module(layer).set_qat_module(qat)
        )  # fmt: skip
        configs.append(
            BackendPatternConfig(qat).set_observation_type(OWN_GRID).add_dtype_config(types).set_root_module(layer)
        )
    own = [*CLAMPS, nn.LeakyReLU, nn.Sigmoid, GlobalAveragePool, nn.AvgPool2d, torch.cat, torch.concat,
           *ADDITIONS, *PRODUCTS]  # fmt: skip
    shared = [nn.MaxPool2d, nn.Flatten, nn.Upsample, *RESHAPES]
    for pattern, kind in [*((p, OWN_GRID) for p in own), *((p, SHARED_GRID) for p in shared)]:
        configs.append(BackendPatternConfig(pattern).set_observation_type(kind).add_dtype_config(pool_types))
    return BackendConfig("qrobust").set_backend_pattern_configs(configs)


def prepare(
    model: nn.Module,
    target: Target,
    example: torch.Tensor,
    *,
    observer: str = "histogram",
    leaves: tuple[type[nn.Module], ...] = (),
) -> fx.GraphModule:
    """Trace, fold and insert fake-quantizers that observe but do not quantize yet.

    Args:
        model: a classifier or calibrator in eval mode; it is not changed.
        target: integer ranges.
        example: one input `(1, 3, S, S)`.
        observer: `histogram` or `moving-average`.
        leaves: module classes that stay in float as they are.

    Raises:
        InputError: the model cannot be traced.
    """
    leaves = (Normalization, *leaves)
    graph = traced(model, leaves, example)
    low, high = target.activation_range
    activation = FakeQuantize.with_args(
        observer=OBSERVERS[observer], quant_min=low, quant_max=high, dtype=torch.quint8
    )
    low, high = target.weight_range
    weight = FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, quant_min=low, quant_max=high, dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip
    custom = PrepareCustomConfig().set_non_traceable_module_classes([*leaves, GlobalAveragePool, SelfAttention])
    with _quiet():
        prepared = prepare_qat_fx(
            graph.train(), QConfigMapping().set_global(QConfig(activation, weight)), (example,),
            custom, _backend_config(),
        )  # fmt: skip
    drop_quantizers(prepared, FakeQuantize, leaves)
    set_mode(prepared, observing=True, quantizing=False)
    return prepared.eval()


def set_mode(prepared: fx.GraphModule, *, observing: bool, quantizing: bool) -> None:
    """Switch the observers and the fake-quantizers of a prepared graph."""
    prepared.apply(enable_observer if observing else disable_observer)
    prepared.apply(enable_fake_quant if quantizing else disable_fake_quant)


def folded(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The float network as it is before quantization: batch norm folded, pools explicit."""
    return traced(model, (Normalization,), example).eval().requires_grad_(False)


def freeze(prepared: fx.GraphModule) -> fx.GraphModule:
    """Turn an observed graph into the twin, whose layers hold the integers that will be exported.

    Raises:
        InputError: an activation was never observed or held NaN or infinity; the message names its node.
    """
    frozen = copy.deepcopy(prepared)
    twins: dict[int, ActivationQuantizer] = {}
    for node, module in calls(frozen, FakeQuantize):
        if id(module) not in twins:
            twins[id(module)] = _activation_quantizer(module, str(node.args[0]))
        _set_module(frozen, str(node.target), twins[id(module)])
    modules = dict(frozen.named_modules(remove_duplicate=False))
    for node, layer in calls(frozen, (nnqat.Conv2d, nnqat.Linear)):
        assert isinstance(layer, nnqat.Conv2d | nnqat.Linear)
        source = node.args[0]
        quantizer = modules.get(str(source.target)) if isinstance(source, fx.Node) else None
        if isinstance(quantizer, ActivationQuantizer):
            _set_module(frozen, str(node.target), _integer_layer(layer, quantizer))
        else:
            _set_module(frozen, str(node.target), layer.to_float())
    _drop_redundant_relus(frozen)
    frozen.graph.lint()
    frozen.recompile()
    frozen.delete_all_unused_submodules()
    return frozen.eval().requires_grad_(False)


def _set_module(graph: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def _activation_quantizer(fake: Any, where: str) -> ActivationQuantizer:
    with _quiet():
        scale, zero_point = fake.calculate_qparams()
    value = float(scale)
    observer = fake.activation_post_process
    seen = torch.stack([observer.min_val.reshape(()), observer.max_val.reshape(())])
    if not torch.isfinite(seen).all() or not 0 < value < float("inf"):
        raise InputError(
            f"calibration: activation {where!r} has no finite range (observed {seen.tolist()}); "
            f"check the weights and the calibration images"
        )
    return ActivationQuantizer(value, int(zero_point), fake.quant_min, fake.quant_max)


def _integer_layer(layer: nnqat.Conv2d | nnqat.Linear, source: ActivationQuantizer) -> IntegerConv2d | IntegerLinear:
    fake: Any = layer.weight_fake_quant
    weight = layer.weight.detach()
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
    fake.activation_post_process.reset_min_max_vals()
    fake.activation_post_process(weight)
    with _quiet():
        scale, _ = fake.calculate_qparams()
    # A channel of almost no weight would give its bias a scale too fine for 32 bits.
    scale = torch.maximum(scale, bias.abs() / (source.scale * 2.0**30))
    shape = (-1, *[1] * (weight.ndim - 1))
    integers = (weight / scale.view(shape)).round().clamp(fake.quant_min, fake.quant_max).to(torch.int8)
    if isinstance(layer, nn.Linear):
        return IntegerLinear(integers, scale, bias, source.scale)
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise InputError(
            f"model: a convolution with padding {layer.padding!r} ({layer.padding_mode}) has no integer "
            f"kernel; give numeric zero padding"
        )
    return IntegerConv2d(
        integers, scale, bias, source.scale,
        stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
    )  # fmt: skip


def _drop_redundant_relus(graph: fx.GraphModule) -> None:
    """A clamp whose result is only ever quantized to a range inside its own, to half a step, says nothing new."""
    half = 0.5 + 1e-3  # of a step, and float rounding
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node, clamp in calls(graph, CLAMPS):
        low, high = (clamp.min_val, clamp.max_val) if isinstance(clamp, nn.Hardtanh) else (0.0, float("inf"))
        quantizers = [modules.get(str(u.target)) if u.op == "call_module" else None for u in node.users]
        inside = all(
            isinstance(q, ActivationQuantizer)
            and q.bounds()[0] >= low - half * float(q.scale)
            and q.bounds()[1] <= high + half * float(q.scale)
            for q in quantizers
        )
        if quantizers and inside:
            remove_call(graph, node)
