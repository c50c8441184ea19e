"""The only module that imports `torch.ao.quantization`, which decides where a network's activations are observed.

`insert_observers` hands torch.ao a traced network and our description of what onnxruntime runs on
integers, and gets back the graph with an observer at every tensor that needs a grid; then torch.ao is
left behind: each of its observers is replaced by ours.
"""

from __future__ import annotations

import warnings

import torch
from torch import fx, nn

from qrobust.classifier import Normalization
from qrobust.quantization.integer_layers import GlobalAveragePool, PaddedConv2d, SelfAttention
from qrobust.quantization.observers import Observer
from qrobust.quantization.rewrites.fx_utils import set_module
from qrobust.quantization.sized_tracing import sizes_may_be_nodes
from qrobust.quantization.tracing import (
    ADDITIONS,
    CLAMPS,
    PRODUCTS,
    RESHAPES,
    calls,
    drop_quantizers,
)

with warnings.catch_warnings():
    # torch.ao.quantization announces its deprecation on import; this module is our answer to that.
    warnings.simplefilter("ignore")
    from torch.ao.quantization import ObserverBase, PlaceholderObserver, QConfig, QConfigMapping
    from torch.ao.quantization.backend_config import (
        BackendConfig,
        BackendPatternConfig,
        DTypeConfig,
        ObservationType,
    )
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import prepare_fx
OWN_GRID = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
SHARED_GRID = ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT


def _backend_config() -> BackendConfig:
    """Which operators onnxruntime runs on integers, and where each wants its quantizers.

    An average pool gets a grid of its own: on its input's grid it produces exact ties, which torch and
    onnxruntime round in different directions.
    """
    types = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float32)
    pool_types = DTypeConfig(torch.quint8, torch.quint8)
    configs = []
    for layer in (nn.Conv2d, PaddedConv2d, nn.Linear):
        configs.append(
            BackendPatternConfig(layer).set_observation_type(OWN_GRID).add_dtype_config(types).set_root_module(layer)
        )
    own = [
        *CLAMPS,
        nn.LeakyReLU,
        nn.Sigmoid,
        GlobalAveragePool,
        nn.AvgPool2d,
        torch.cat,
        torch.concat,
        *ADDITIONS,
        *PRODUCTS,
    ]
    shared = [nn.MaxPool2d, nn.Flatten, nn.Upsample, *RESHAPES]
    for pattern, kind in [*((p, OWN_GRID) for p in own), *((p, SHARED_GRID) for p in shared)]:
        configs.append(BackendPatternConfig(pattern).set_observation_type(kind).add_dtype_config(pool_types))
    return BackendConfig("qrobust").set_backend_pattern_configs(configs)


def insert_observers(
    graph: fx.GraphModule,
    example: torch.Tensor,
    *,
    leaves: tuple[type[nn.Module], ...] = (),
    in_float: tuple[str, ...] = (),
) -> fx.GraphModule:
    """Put an `Observer` wherever the integer graph will have a quantizer.

    Args:
        graph: in normal form; it may be changed.
        example: one input `(1, C, S, S)`.
        leaves: module classes that stay in float as they are.
        in_float: names of layers that stay in float.
    """
    leaves = (Normalization, *leaves)
    observer = PlaceholderObserver.with_args(dtype=torch.quint8)
    choice = QConfigMapping().set_global(QConfig(observer, PlaceholderObserver.with_args(dtype=torch.qint8)))
    for name in in_float:
        choice.set_module_name(name, None)
    custom = PrepareCustomConfig().set_non_traceable_module_classes(
        [*leaves, GlobalAveragePool, PaddedConv2d, SelfAttention]
    )
    with warnings.catch_warnings(), sizes_may_be_nodes():
        warnings.simplefilter("ignore")  # one deprecation warning per torch.ao call
        prepared = prepare_fx(
            graph.eval(), choice, (example,), prepare_custom_config=custom, backend_config=_backend_config()
        )
    prepared.meta["origins"] = graph.meta.get("origins", {})
    ours: dict[int, Observer] = {}
    for node, module in calls(prepared, ObserverBase):
        set_module(prepared, str(node.target), ours.setdefault(id(module), Observer()))
    drop_quantizers(prepared, Observer, leaves)
    prepared.delete_all_unused_submodules()
    return prepared.eval().requires_grad_(False)
