"""The graph before and after `torch.ao.quantization`: plain torch.fx.

Before: the network in its normal form, what `rewrites` can say with integer kernels said so. After: quantizers
that stand where the runtime wants none are taken away, and what is only moved keeps its grid.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from qrobust.classifier import Normalization
from qrobust.errors import InputError
from qrobust.quantization import sized_tracing
from qrobust.quantization.integer_layers import ActivationQuantizer, SelfAttention
from qrobust.quantization.observers import Observer
from qrobust.quantization.rewrites import rewrite
from qrobust.quantization.rewrites.constants import constants, fold_constants
from qrobust.quantization.rewrites.fx_utils import DIVISIONS, divides, public_name, remove_call
from qrobust.quantization.rewrites.structure import (
    explicit_padding,
    explicit_parts,
    out_of_place,
    own_weights,
    separate_repeated_modules,
)
from qrobust.quantization.sized_tracing import SizedTracer

ADDITIONS = (operator.add, torch.add, "add")
PRODUCTS = (operator.mul, torch.mul, "mul")
ARITHMETIC = (*ADDITIONS, *PRODUCTS, operator.sub, torch.sub, "sub", operator.truediv, torch.div, "div")
RESHAPES = (
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    torch.permute,
    torch.transpose,
    torch.swapaxes,
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "contiguous",
)
PARTS = (operator.getitem, torch.chunk, torch.split, "chunk", "split")
LAYERS = (nn.Conv2d, nn.Linear)
CLAMPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
# They read what a matrix product gives in float anyway: rounding it first would buy nothing.
FLOAT_LAYERS = (nn.GELU, nn.LayerNorm, nn.Softmax, nn.LogSoftmax, nn.Tanh, SelfAttention)
# A line in one of these is none of the user's.
OWN_FILES = (__file__, sized_tracing.__file__)


def trace(
    model: nn.Module, leaves: tuple[type[nn.Module], ...] = (Normalization,), example: torch.Tensor | None = None
) -> fx.GraphModule:
    """Trace a network into a graph whose layers have weights of their own.

    Args:
        model: to trace.
        leaves: module classes that stay opaque.
        example: one input `(1, C, S, S)`: sizes that do not depend on the batch are numbers then.

    Raises:
        InputError: the forward pass cannot be traced; the message names the line.
    """
    tracer, model = SizedTracer(leaves, example), _apart(model)
    try:
        graph = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:  # whatever user code does with a proxy
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        where = next((f for f in reversed(frames) if f.filename not in OWN_FILES), None)
        place = f" at {where.filename}:{where.lineno}: {where.line!r}" if where else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model: torch.fx cannot trace {type(model).__name__}{place} ({reason})") from error
    own_weights(graph)
    return graph


def _apart(model: nn.Module) -> nn.Module:
    """The same tensors in modules of their own, so that what a forward pass keeps stays out of the model.

    A window's bias that is kept for the next call would else be one of a graph that is long finished.
    """
    tensors = {
        id(value): value
        for module in model.modules()
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        if isinstance(value, torch.Tensor)
    }
    try:
        return copy.deepcopy(model, tensors)
    except Exception:  # of whatever user code keeps in a module: it is traced as it is
        return model


class _Shapes(ShapeProp):
    """Notes the shape of every tensor, and every result that is none (sizes, numbers)."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if not isinstance(result, torch.Tensor):
            n.meta["value"] = result
        return result


def traced(model: nn.Module, leaves: tuple[type[nn.Module], ...], example: torch.Tensor) -> fx.GraphModule:
    """The normal form of a network, which says what the network says.

    Args:
        model: in eval mode; it is not changed.
        leaves: module classes that stay as they are.
        example: one input `(1, C, S, S)`.

    Raises:
        InputError: see `trace` and `normal_form`; or tracing lost something, such as an in-place change that
            shows through a second name (`y = x; x += 1`).
    """
    graph = trace(model, leaves, example)
    plain = normal_form(graph, example)
    with torch.no_grad():
        wanted = model(example.clone())
        scale = float(wanted.nan_to_num().abs().max())
        # The same operators in the same order give the same numbers. Folding rounds differently: a deep network
        # of random weights makes up to half a percent of that, a change of meaning far more.
        for form, tolerance in ((graph, 1e-5), (plain, 0.05)):
            got = form(example.clone())
            if not torch.allclose(wanted, got, rtol=0, atol=tolerance * scale, equal_nan=True):
                raise InputError(
                    f"model: {type(model).__name__} as a graph says something else than before (difference up to "
                    f"{float((wanted - got).abs().max()):.3g}); look for an in-place change of a tensor that has "
                    f"two names, and for what happens only once or at random"
                )
    return plain


def normal_form(graph: fx.GraphModule, example: torch.Tensor) -> fx.GraphModule:
    """Say what the network computes with the operators that have integer kernels, as far as possible.

    Args:
        graph: a traced network in eval mode; it is not changed.
        example: one input, to learn shapes from.

    Raises:
        InputError: a layer has no integer form and none is left in float for it; the message names it.
    """
    plain = copy.deepcopy(graph).eval()
    out_of_place(plain)
    separate_repeated_modules(plain)
    explicit_padding(plain)
    fold_constants(plain)
    with torch.no_grad():
        _Shapes(plain).propagate(example.clone())
    explicit_parts(plain)
    for node in list(plain.graph.nodes):
        rewrite(plain, node)
    for node, _ in calls(plain, nn.Identity):
        remove_call(plain, node)
    plain.graph.eliminate_dead_code()
    plain.delete_all_unused_submodules()
    plain.graph.lint()
    plain.recompile()
    return plain


def calls(graph: fx.GraphModule, kinds: type | tuple[type, ...]) -> Iterable[tuple[fx.Node, nn.Module]]:
    """Each call of a module of these kinds, with the module (which may be called under many names)."""
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], kinds):
            yield node, modules[str(node.target)]


def layer_names(graph: fx.GraphModule) -> list[str]:
    """Names of all convolutions and linear layers, in order of execution, as the network's author knows them."""
    return list(dict.fromkeys(public_name(str(node.target)) for node, _ in calls(graph, LAYERS)))


def channels_last(model: nn.Module) -> None:
    """Lay out what has four axes with channels last: convolutions on a CPU, above all depthwise ones, want it so."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.contiguous(memory_format=torch.channels_last)


def described(graph: fx.GraphModule, node: fx.Node) -> str:
    """A node for a message: its name, and the network's own module that it calls, or else that runs before it."""
    origins = graph.meta.get("origins", {})
    found: fx.Node | None = node
    while found is not None:
        if found.op == "call_module" and not isinstance(
            graph.get_submodule(str(found.target)), Observer | ActivationQuantizer
        ):
            path = public_name(origins.get(str(found.target), str(found.target)))
            if path:
                return f"{str(node)!r} {'in' if found is node else 'after'} {path!r}"
        found = next(iter(found.all_input_nodes), None)
    return repr(str(node))


def drop_quantizers(graph: fx.GraphModule, quantizer: type[nn.Module], leaves: tuple[type[nn.Module], ...]) -> None:
    """Take away quantizers that cost accuracy and buy nothing.

    Between an operator and its activation (the activation would stay in float), on the logits and before arithmetic
    of logits with a constant, such as a temperature (distinct ones would tie), and on a linear layer's output that
    only float layers read (integer kernels give float there at no cost). What is only moved keeps the grid it is on.
    """
    modules = dict(graph.named_modules(remove_duplicate=False))

    def is_call(node: object, kinds: type | tuple[type, ...]) -> bool:
        return isinstance(node, fx.Node) and node.op == "call_module" and isinstance(modules[str(node.target)], kinds)

    def moves(node: object, targets: tuple[object, ...]) -> bool:
        return is_call(node, nn.Flatten) or (
            isinstance(node, fx.Node) and node.op != "call_module" and node.target in targets
        )

    for node, _ in calls(graph, quantizer):
        users = list(node.users)
        before_activation = len(users) == 1 and is_call(users[0], CLAMPS)
        into_float = is_call(node.args[0], nn.Linear) and all(is_call(u, (*leaves, *FLOAT_LAYERS)) for u in users)
        if before_activation or (into_float and users):
            remove_call(graph, node)
    fixed = constants(graph)
    tail = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    while isinstance(tail, fx.Node):
        source = tail.args[0] if tail.args else None
        if is_call(tail, quantizer):
            remove_call(graph, tail)
        elif tail.op != "call_module" and tail.target in ARITHMETIC:
            varying = [n for n in tail.all_input_nodes if n not in fixed]
            if len(varying) != 1 or len(varying[0].users) != 1:
                break
            source = varying[0]
            for constant in [n for n in tail.all_input_nodes if is_call(n, quantizer) and n in fixed]:
                tail.replace_input_with(constant, constant.all_input_nodes[0])
                if not constant.users:
                    graph.graph.erase_node(constant)
        elif not moves(tail, (*RESHAPES, *PARTS)):
            break
        tail = source
    for node in [n for n in graph.graph.nodes if divides(n)]:
        _divide_by_float(graph, node, lambda n: is_call(n, quantizer), lambda n: moves(n, (*RESHAPES, *PARTS)))
    for node, _ in calls(graph, quantizer):
        origin = node.args[0]
        while moves(origin, (*RESHAPES, *PARTS)):
            origin = origin.args[0]  # type: ignore[union-attr]  # it moves, so it is a node
        if is_call(origin, quantizer):
            node.target = origin.target  # type: ignore[union-attr]  # a call, so a node
    graph.graph.lint()
    graph.recompile()


def _divide_by_float(
    graph: fx.GraphModule, divisor: fx.Node, is_quantizer: Callable[[object], bool], moves: Callable[[object], bool]
) -> None:
    """Let a divisor be what it was before it was rounded, through what only moves it or adds a constant to it."""
    for user in [u for u in divisor.users if u.target in DIVISIONS]:
        node, reader = divisor, user
        while True:
            if is_quantizer(node):
                reader.replace_input_with(node, node.all_input_nodes[0])
                node = node.all_input_nodes[0]
            elif moves(node) or (node.target in ADDITIONS and len(node.all_input_nodes) == 1):
                node, reader = node.all_input_nodes[0], node
            else:
                break
    graph.graph.eliminate_dead_code()


def folded(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The float network as it is before quantization: batch norm folded, pools explicit."""
    return traced(model, (Normalization,), example).eval().requires_grad_(False)
