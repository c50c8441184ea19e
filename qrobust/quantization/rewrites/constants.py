"""What depends on parameters alone is computed once: standardized weights, cosine heads, biases of windows, masks."""

from __future__ import annotations

import torch
from torch import fx, nn

from qrobust.quantization.rewrites.fx_utils import called

# Behind the name of the parameter that a stored constant was computed from.
FOLDED = "_folded"
# They keep zeros zero.
KEEPING_ZERO = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Identity, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Dropout)


def constants(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value no image changes: parameters, buffers and what is computed from them alone."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def fold_constants(graph: fx.GraphModule) -> None:
    """Let what images change read stored tensors and numbers, where it read what is computed from such."""
    fixed, interpreter = constants(graph), fx.Interpreter(graph)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node in fixed:
                interpreter.env[node] = interpreter.run_node(node)
    for node in [n for n in graph.graph.nodes if n in fixed and n.op != "get_attr"]:
        value, readers = interpreter.env[node], [user for user in node.users if user not in fixed]
        if readers and isinstance(value, torch.Tensor):
            with graph.graph.inserting_before(node):
                stored = graph.graph.get_attr(_store(graph, _origin(node), value.detach().contiguous()))
            for reader in readers:
                reader.replace_input_with(node, stored)
        elif isinstance(value, bool | int | float | torch.dtype):
            for reader in readers:
                _give(reader, node, value)
        elif isinstance(value, torch.device) and readers:
            place = _where_images_are(graph)  # an integer layer has no weight to ask
            for reader in readers:
                reader.replace_input_with(node, place)
    graph.graph.eliminate_dead_code()


def _where_images_are(graph: fx.GraphModule) -> fx.Node:
    """A node that is the device of the images."""
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(images):
        return graph.graph.call_function(getattr, (images, "device"))


def _give(reader: fx.Node, node: fx.Node, value: float | torch.dtype) -> None:
    """Let a node have a number or a type for an argument."""
    reader.args, reader.kwargs = fx.node.map_arg((reader.args, reader.kwargs), lambda n: value if n is node else n)


def _origin(node: fx.Node) -> str:
    """The parameter that a constant was computed from first, or the node's own name where there is none."""
    found: fx.Node | None = node
    while found is not None and found.op != "get_attr":
        found = next(iter(found.all_input_nodes), None)
    return str(found.target) if found is not None else node.name


def _store(graph: fx.GraphModule, origin: str, value: torch.Tensor) -> str:
    """Keep a tensor beside the parameter that it came from; returns its name."""
    place, _, name = origin.rpartition(".")
    if any(node.op == "call_module" and node.target == place for node in graph.graph.nodes):
        place, name = "", origin.replace(".", "_")  # an integer layer will stand in that layer's place
    module = graph.get_submodule(place)
    kept, again = f"{name}{FOLDED}", 1
    while hasattr(module, kept):
        again += 1
        kept = f"{name}{FOLDED}{again}"
    module.register_buffer(kept, value)
    return f"{place}.{kept}" if place else kept


def switched_off(graph: fx.GraphModule, passing: tuple[type[nn.Module], ...] = ()) -> set[fx.Node]:
    """Nodes that are zero whatever the image, since weights of zero switch a part of the network off.

    Args:
        graph: traced.
        passing: module classes, beside those known to keep zeros, that do.
    """
    off: set[fx.Node] = set()
    for node in graph.graph.nodes:
        module, inputs = called(graph, node), node.all_input_nodes
        if isinstance(module, nn.Conv2d | nn.Linear):
            zero = not module.weight.any() or inputs[0] in off
            if zero and (module.bias is None or not module.bias.any()):
                off.add(node)
        elif isinstance(module, (*KEEPING_ZERO, *passing)):
            off.update([node] if inputs[0] in off else [])
    return off
