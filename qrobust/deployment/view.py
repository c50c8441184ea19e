"""An ONNX graph as audits look at it: who makes and who reads each value, and on which grid integers lie."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from qrobust.deployment.graph import Graph, Node, all_graphs, array

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class GraphView:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: Graph) -> None:
        graphs = list(all_graphs(graph))
        self.nodes = [node for part in graphs for node in part.node]
        self.constants = {tensor.name: tensor for part in graphs for tensor in part.initializer}
        self.changeable = {value.name for value in graph.input if value.name in self.constants}
        self.results = {value.name for part in graphs for value in part.output}
        self.producer = {value: node for node in self.nodes for value in node.output if value}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                if value:
                    self.readers[value].append(node)

    def numbers(self, value: str) -> np.ndarray | None:
        """A constant's numbers; None for what is computed."""
        return array(self.constants[value]) if value in self.constants else None

    def optional(self, node: Node, index: int) -> str:
        """Name of an input that may be missing: then empty."""
        return node.input[index] if len(node.input) > index else ""

    def grid(self, node: Node) -> tuple[np.ndarray | None, np.ndarray, str]:
        """Scale (None: computed), zero point and integer type of a QuantizeLinear or DequantizeLinear."""
        scale = self.numbers(node.input[1])
        zero = self.numbers(self.optional(node, 2))
        if zero is not None:
            return scale, zero, str(zero.dtype)
        source = self.numbers(node.input[0]) if node.op_type == DEQUANTIZE else None
        maker = self.producer.get(node.input[0])
        if source is not None:
            kind = str(source.dtype)
        elif node.op_type == DEQUANTIZE and maker is not None and maker.op_type == QUANTIZE:
            kind = self.grid(maker)[2]
        else:
            kind = "uint8"
        return scale, np.zeros(1, np.int64), kind


def label(node: Node) -> str:
    """A node's name, or what else finds it in the file."""
    return node.name or f"({node.op_type} of {node.input[0] if node.input else 'nothing'})"
