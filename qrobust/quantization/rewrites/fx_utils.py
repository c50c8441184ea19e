"""What every rewrite needs: the modules that nodes call, and their shapes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

DIVISIONS = (operator.truediv, torch.div, torch.true_divide, "div", "true_divide")


def public_name(target: str) -> str:
    """A module's name without the wrapper that holds the normalisation."""
    return target.removeprefix("network.")


def called(graph: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def set_module(graph: fx.GraphModule, target: str, module: nn.Module) -> None:
    """Put a module under a dotted name."""
    parent, _, name = target.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def replace(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> fx.Node:
    """Put a call of `module` where `node` was, on its first argument."""
    call = call_before(graph, node, module, node.args[0], f"{node.name}_explicit")
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call


def remove_call(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let the users of a one-argument call read its argument instead."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # such a call's argument is a node
    graph.graph.erase_node(node)


def call_before(graph: fx.GraphModule, node: fx.Node, module: nn.Module, source: Any, name: str) -> fx.Node:
    """Call `module` on `source`, before `node`, with a result shaped like the node's."""
    graph.add_submodule(name, module.eval())
    note_origin(graph, name, node)
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    return call


def note_origin(graph: fx.GraphModule, name: str, node: fx.Node) -> None:
    """Remember which module of the network a made one stands for; the empty name where it was none."""
    origins = graph.meta.setdefault("origins", {})
    target = str(node.target) if node.op == "call_module" else ""
    origins[name] = origins.get(target, target)


def value_of(node: fx.Node) -> Any:
    return node.meta.get("value", node)


def shape_of(node: object) -> tuple[int, ...]:
    """Of a tensor; nothing for what is none."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if isinstance(meta, fx.passes.shape_prop.TensorMetadata) else ()


def divides(node: fx.Node) -> bool:
    """Something is divided by this node: a grid that has a zero would make infinity of it."""
    return any(user.target in DIVISIONS and user.args[1:2] == (node,) for user in node.users)


def argument(node: fx.Node, position: int, name: str, default: object) -> object:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default
