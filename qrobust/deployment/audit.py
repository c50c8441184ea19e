"""Is the graph really integer, and does it say what torch says?"""

from __future__ import annotations

import math
import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qrobust.deployment.diagnosis import (
    float_islands,
    misread_sums,
    why_float,
)
from qrobust.deployment.onnx_graph import (
    Graph,
    GraphView,
    Node,
    all_graphs,
    attributes,
    label,
    load,
)
from qrobust.deployment.profiling import Kernel, run_profiled
from qrobust.deployment.session import open_session
from qrobust.errors import ExportCheckError, InputError
from qrobust.record import Audit, BlockedOperator, ExplainedAudit, FloatIsland, taken
from qrobust.storage import scratch

# What multiplies and accumulates, by the words in its name: onnxruntime has dozens of variants.
COMPUTE = re.compile(r"Conv(?!ert)|Gemm|MatMul|Einsum|Attention|LSTM|GRU|RNN|MoE")
INTEGER = re.compile(r"^Q(?!MoE)|Integer|^DynamicQuantize")
CONTROL = frozenset({"If"})
# Blocked layouts pad channels, which would count work that is not the model's.
BLOCKED_LAYOUT = "NchwcTransformer"
TIMED_ROUNDS = 6
# Where onnxruntime fuses int8 activations by itself.
ARM = ("aarch64", "arm64")


@dataclass(frozen=True)
class Compute:
    """A convolution or matrix product that onnxruntime ran.

    Attributes:
        node: of the graph that it optimised.
        macs: multiply-accumulates for one image; None where shapes do not tell.
        integer: whether it ran on integers.
    """

    node: Node
    macs: int | None
    integer: bool


def audit(path: Path, image_size: int | None = None, *, signed_activations: bool | None = None) -> Audit:
    """Count what onnxruntime runs on integers: the kernels it runs on one image.

    Args:
        path: any ONNX file with one image input.
        image_size: the side, in pixels, of axes that the file leaves open.
        signed_activations: fuse int8 activations as on ARM (True) or as on x86 (False); None: as on this CPU.

    Raises:
        InputError: not an ONNX file that onnxruntime runs, not one image input, an image size that is missing,
            or nothing to audit: neither a convolution nor a matrix product.
    """
    with scratch() as folder:
        counted, *_ = _counted(path, image_size, signed_activations, folder)
    return counted


def explained_audit(
    path: Path, image_size: int | None = None, *, signed_activations: bool | None = None
) -> ExplainedAudit:
    """`audit`, and what keeps the rest in float; see `qrobust.deployment.diagnosis`.

    Args and Raises: as for `audit`.
    """
    with scratch() as folder:
        counted, graph, compute = _counted(path, image_size, signed_activations, folder)
        open_session(path, 1, folder / "basic.onnx", signed_activations=signed_activations, level="basic")
        before = GraphView(load(folder / "basic.onnx").graph)
    signed = platform.machine() in ARM if signed_activations is None else signed_activations
    blocked = [(c, *why_float(c.node, before, signed)) for c in compute if not c.integer]
    islands = float_islands(GraphView(graph), before, {c.node.output[0] for c in compute}, signed)
    misread = misread_sums(before, {node.output[0] for _, node, _ in blocked})
    return taken(
        ExplainedAudit,
        counted,
        blocked=tuple(
            BlockedOperator(node=label(node), op_type=node.op_type, macs=c.macs, reasons=tuple(reasons))
            for c, node, reasons in blocked
        ),
        float_islands=tuple(
            FloatIsland(nodes={label(node): node.op_type for node in group}, reasons=tuple(reasons))
            for group, reasons in islands
        ),
        misread_sums={label(node): why for node, why in misread},
    )


def _counted(
    path: Path, image_size: int | None, signed: bool | None, folder: Path
) -> tuple[Audit, Graph, list[Compute]]:
    """The audit, the graph that onnxruntime optimised, and its compute."""
    time_share = _time_share(path, image_size, signed, folder)
    graph, compute, other = _execute(path, image_size, signed, folder)
    if not compute:
        raise InputError(f"onnx: {path} has no convolution and no matrix product: nothing to audit")
    integer, total = (sum(c.macs or 0 for c in compute if c.integer or not only) for only in (True, False))
    counted = Audit(
        integer_ops=sum(c.integer for c in compute),
        quantizable_ops=len(compute),
        integer_compute=_by_type(c.node.op_type for c in compute if c.integer),
        float_compute=_by_type(c.node.op_type for c in compute if not c.integer),
        other_ops=_by_type(other),
        integer_macs=integer,
        total_macs=total,
        integer_mac_share=integer / total if total else None,
        unknown_macs=_by_type(c.node.op_type for c in compute if c.macs is None),
        time_share=time_share,
    )
    return counted, graph, compute


def _by_type(types: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(types).items()))


def _execute(
    path: Path, image_size: int | None, signed: bool | None, folder: Path
) -> tuple[Graph, list[Compute], list[str]]:
    """Let onnxruntime optimise a file and run the result: its graph, its compute, its other operators' types."""
    optimized = folder / "optimized.onnx"
    session = open_session(path, 1, optimized, signed_activations=signed, without=(BLOCKED_LAYOUT,))
    original, numbered = load(optimized), load(optimized)
    # Before IR version 4 every constant is an input too, and stays one where onnxruntime folded it away.
    images = [value for value in numbered.graph.input if value.name in {i.name for i in session.get_inputs()}]
    del numbered.graph.input[:]
    numbered.graph.input.extend(images)
    numbered.ir_version = max(numbered.ir_version, 4)
    for number, node in enumerate(n for part in all_graphs(numbered.graph) for n in part.node):
        node.name = str(number)  # files may leave names out
    optimized.write_bytes(numbered.SerializeToString())
    batch, (kernels,) = run_profiled(optimized, image_size, folder, signed_activations=signed, level="none")
    view = GraphView(original.graph)
    compute, other = [], []
    # Once each, also in a loop; onnxruntime may split a DequantizeLinear by reader ("7/duplicated").
    for number, kernel in {int(kernel.node.partition("/")[0]): kernel for kernel in kernels}.items():
        node = view.nodes[number]
        if not COMPUTE.search(node.op_type):
            other.append(node.op_type)
            continue
        macs = _macs(kernel, node, view)
        # MatMulNBits rounds its input to 8 bits at this level, and computes in float at all others.
        integer = INTEGER.search(node.op_type) or attributes(node).get("accuracy_level") == 4
        compute.append(Compute(node, None if macs is None else macs // batch, bool(integer)))
    return original.graph, compute, other


def _macs(kernel: Kernel, node: Node, view: GraphView) -> int | None:
    """Multiply-accumulates of one kernel, from the shapes it ran with."""
    given = attributes(node)
    if "Conv" in node.op_type:
        index = 3 if node.op_type == "QLinearConv" else 1
        constant = view.constants.get(node.input[index])
        weight = kernel.inputs[index] if constant is None else constant.dims
        positions = kernel.inputs[0] if "Transpose" in node.op_type else kernel.outputs[0]
        return math.prod(positions) * math.prod(weight[1:])
    if "MatMul" in node.op_type or "Gemm" in node.op_type:
        left = kernel.inputs[0]
        return math.prod(kernel.outputs[0]) * left[-2 if given.get("transA") else -1]
    if node.op_type == "Einsum":
        terms = given["equation"].decode().replace(" ", "").split("->")[0].split(",")
        if "." not in "".join(terms):
            letters = zip("".join(terms), (d for shape in kernel.inputs for d in shape), strict=True)
            return math.prod(dict(letters).values())
    return None


def _time_share(path: Path, image_size: int | None, signed: bool | None, folder: Path) -> dict[str, float]:
    """Share of each operator type in the time of the graph as it is deployed, the first run apart."""
    _, runs = run_profiled(path, image_size, folder, TIMED_ROUNDS, signed_activations=signed)
    spent: Counter[str] = Counter()
    for again in zip(*runs[1:], strict=True):  # the median: another program may take the processor for a while
        if again[0].op_type not in CONTROL:
            spent[again[0].op_type] += round(statistics.median(kernel.microseconds for kernel in again))
    return {kind: round(time / max(1, spent.total()), 4) for kind, time in spent.most_common()}


def check_share(audited: Audit, least_macs: float | None, least_nodes: float | None) -> None:
    """Refuse a graph of which too little is integer.

    Args:
        audited: what `audit` returns.
        least_macs: smallest share of the multiply-accumulates, 0 to 1.
        least_nodes: smallest share of the convolutions and matrix products, 0 to 1.

    Raises:
        ExportCheckError: below either, or the share of the multiply-accumulates is not known.
    """
    if least_macs is not None and audited.unknown_macs:
        raise ExportCheckError(
            f"audit: the multiply-accumulates of {', '.join(audited.unknown_macs)} are not known, and so "
            "neither is the integer share; count operators instead (--min-integer-nodes)"
        )
    share, integer, total = audited.integer_mac_share, audited.integer_ops, audited.quantizable_ops
    missed = []
    if least_macs is not None and share is not None and share < least_macs:
        missed.append(f"{share:.1%} of the multiply-accumulates are integer, expected at least {least_macs:.1%}")
    if least_nodes is not None and integer < least_nodes * total:
        missed.append(f"{integer} of {total} operators are integer, expected at least {least_nodes:.1%}")
    if missed:
        raise ExportCheckError(f"audit: {'; '.join(missed)}")
