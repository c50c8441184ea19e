"""Rewrites of a traced network before and after `torch.ao.quantization`: plain torch.fx.

Before: batch norm folded, dropout removed, adaptive pools written as the pools they are at this size,
functional activations written as modules. After: quantizers that stand where the runtime wants none are
taken away.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from qrobust.classifier import Normalization
from qrobust.errors import InputError
from qrobust.integer import GlobalAveragePool

RELUS: dict[object, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
}  # fmt: skip
MEANS = (torch.mean, "mean")
ADDITIONS = (operator.add, operator.iadd, torch.add, "add")
LAYERS = (nn.Conv2d, nn.Linear)
DROPOUTS = (F.dropout, F.dropout2d, F.alpha_dropout)
RESHAPES = (torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze", "contiguous")


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, leaves: tuple[type[nn.Module], ...] = (Normalization,)) -> fx.GraphModule:
    """Trace a network into a graph; `leaves` stay opaque.

    Raises:
        InputError: the forward pass cannot be traced; the message names the line.
    """
    tracer = _Tracer(leaves)
    try:
        return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:  # whatever user code does with a proxy
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        where = next((f for f in reversed(frames) if f.filename != __file__), None)
        place = f" at {where.filename}:{where.lineno}: {where.line!r}" if where else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model: torch.fx cannot trace {type(model).__name__}{place} ({reason})") from error


def normal_form(graph: fx.GraphModule, example: torch.Tensor) -> fx.GraphModule:
    """Fold batch norm, remove dropout, make pools and activations explicit modules.

    Args:
        graph: a traced network in eval mode; it is not changed.
        example: one input, to learn shapes from.
    """
    folded = fuse(graph.eval(), no_trace=True)
    assert isinstance(folded, fx.GraphModule)
    modules = dict(folded.named_modules())
    ShapeProp(folded).propagate(example)
    for node in list(folded.graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Dropout | nn.Dropout2d | nn.AlphaDropout | nn.Identity) or (
            node.op == "call_function" and node.target in DROPOUTS
        ):
            node.replace_all_uses_with(node.args[0])
            folded.graph.erase_node(node)
        elif module is None and node.target in RELUS:
            _replace(folded, node, RELUS[node.target]())
        elif isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
            _replace(folded, node, _explicit_pool(node))
        elif module is None and node.target in MEANS and _is_spatial_mean(node):
            pool = _replace(folded, node, GlobalAveragePool())
            if not _argument(node, 2, "keepdim", False):
                users = list(pool.users)
                with folded.graph.inserting_after(pool):
                    flat = folded.graph.call_function(torch.flatten, (pool, 1))
                for user in users:
                    user.replace_input_with(pool, flat)
        elif module is None and isinstance(node.target, str) and node.target == "add_":
            node.target = "add"
    _separate_repeated_modules(folded)
    folded.graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    folded.graph.lint()
    folded.recompile()
    return folded


def _separate_repeated_modules(graph: fx.GraphModule) -> None:
    """A ReLU called twice becomes two: what follows each call is observed separately."""
    seen: set[str] = set()
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        if node.target in seen and isinstance(modules[node.target], nn.ReLU | nn.ReLU6 | nn.MaxPool2d):
            module = modules[node.target]
            _replace(graph, node, type(module)() if not isinstance(module, nn.MaxPool2d) else module)
        seen.add(str(node.target))


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _is_spatial_mean(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", None)
    source = node.args[0]
    if not isinstance(dims, list | tuple) or not isinstance(source, fx.Node):
        return False
    shape = getattr(source.meta.get("tensor_meta"), "shape", ())
    return len(shape) == 4 and sorted(d % 4 for d in dims) == [2, 3]


def _explicit_pool(node: fx.Node) -> nn.Module:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    size = tuple(source.meta["tensor_meta"].shape[2:])
    want = tuple(node.meta["tensor_meta"].shape[2:])
    if want == (1, 1):
        return GlobalAveragePool()
    if size == want:
        return nn.Identity()
    if all(s % w == 0 for s, w in zip(size, want, strict=True)):
        return nn.AvgPool2d((size[0] // want[0], size[1] // want[1]))
    # Repeat every cell and average again: exact where each window touches its cells alike.
    common = [math.gcd(s, w) for s, w in zip(size, want, strict=True)]
    repeat = nn.Upsample(scale_factor=tuple(w // c for w, c in zip(want, common, strict=True)), mode="nearest")
    average = [s // c for s, c in zip(size, common, strict=True)]
    if average == [1, 1]:
        return repeat
    pool = nn.Sequential(repeat, nn.AvgPool2d((average[0], average[1])))
    cells = torch.arange(float(size[0] * size[1])).square().view(1, 1, *size)
    if torch.allclose(pool(cells), F.adaptive_avg_pool2d(cells, want)):
        return pool
    raise InputError(
        f"model: an adaptive pool from {size} to {want} has windows of unequal size, which no integer "
        f"kernel computes; choose --image-size so that one side divides the other"
    )


def _replace(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> fx.Node:
    """Put a call of `module` where `node` was, on its first argument."""
    name = f"{node.name}_explicit"
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call


def calls(graph: fx.GraphModule, kinds: type | tuple[type, ...]) -> Iterable[tuple[fx.Node, nn.Module]]:
    """Each call of a module of these kinds, with the module (which may be called under many names)."""
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], kinds):
            yield node, modules[str(node.target)]


def set_module(graph: fx.GraphModule, target: str, module: nn.Module) -> None:
    """Put a module under a dotted name."""
    parent, _, name = target.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def layer_names(graph: fx.GraphModule) -> list[str]:
    """Names of all convolutions and linear layers, in order of execution, as the network's author knows them."""
    return list(dict.fromkeys(public_name(str(node.target)) for node, _ in calls(graph, LAYERS)))


def public_name(target: str) -> str:
    """A module's name without the wrapper that holds the normalisation."""
    return target.removeprefix("network.")


def remove_call(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let the users of a one-argument call read its argument instead."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # a module call's argument is a node
    graph.graph.erase_node(node)


def drop_quantizers(graph: fx.GraphModule, quantizer: type[nn.Module], leaves: tuple[type[nn.Module], ...]) -> None:
    """Take away quantizers that cost accuracy and buy nothing.

    Between an operator and its activation (the activation would stay in float), on the logits (distinct
    ones would tie), and on a linear layer's output that only float `leaves` read (integer kernels give
    float there at no cost).
    """
    modules = dict(graph.named_modules(remove_duplicate=False))

    def is_call(node: object, kinds: type | tuple[type, ...]) -> bool:
        return (
            isinstance(node, fx.Node) and node.op == "call_module"
            and isinstance(modules[str(node.target)], kinds)
        )  # fmt: skip

    for node, _ in calls(graph, quantizer):
        users = list(node.users)
        before_activation = len(users) == 1 and is_call(users[0], (nn.ReLU, nn.ReLU6))
        into_float = is_call(node.args[0], nn.Linear) and all(is_call(u, leaves) for u in users)
        if before_activation or (into_float and users):
            remove_call(graph, node)
    tail = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    while isinstance(tail, fx.Node):
        source = tail.args[0] if tail.args else None
        if is_call(tail, quantizer):
            remove_call(graph, tail)
        elif not (tail.target in RESHAPES or is_call(tail, nn.Flatten)):
            break
        tail = source
    graph.graph.lint()
    graph.recompile()


def folded(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The float network as it is before quantization: batch norm folded, pools explicit."""
    return normal_form(trace(model, (Normalization,)), example).eval().requires_grad_(False)
