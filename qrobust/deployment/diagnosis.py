"""Why an operator stays in float: what onnxruntime asks for before it fuses, checked on the graph before fusion.

The rules are those of onnxruntime's fusion of QuantizeLinear / DequantizeLinear groups into integer operators;
`tests/deployment/test_diagnosis.py` holds each against onnxruntime itself: the graph stays in float, and is integer
once the named thing is repaired.
"""

from __future__ import annotations

import math

import numpy as np

from qrobust.deployment.onnx_graph import (
    DEQUANTIZE,
    QUANTIZE,
    GraphView,
    Node,
    attributes,
    label,
)
from qrobust.record import Reason

EIGHT_BITS = ("int8", "uint8")
# What fuses on the CPU with 8-bit inputs and an 8-bit output.
FUSING = frozenset({"Conv", "Gemm", "MatMul"})
FUSING_OTHERS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"}
)
# What moves 8-bit values without computing: it needs one grid for input and output.
MOVING = frozenset({"MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Slice", "Squeeze", "Unsqueeze"})
# A bias whose scale is nearer to input scale times weight scale than this is taken for exact.
BIAS_RELATIVE, BIAS_ABSOLUTE = 1e-2, 1e-6
REMEDIES = {
    "file-not-quantized": "quantize the model: `qrobust quantize`, or onnxruntime's quantize_static",
    "input-not-quantized": "put QuantizeLinear and DequantizeLinear right before the node, on this input",
    "input-per-channel": "give the activation one scale and one zero point",
    "input-type": "quantize the activation to 8 bits",
    "weight-float": "store the weight as int8 behind a DequantizeLinear",
    "weight-not-quantized": "put QuantizeLinear and DequantizeLinear on this input",
    "weight-type": "store the weight as int8; 4-bit values may lie in an int4 constant that a Cast makes int8",
    "weight-blocks": "give the weight one scale, or one for each output channel",
    "weight-sign": "use int8 weights with int8 activations",
    "bias-float": "store the bias as int32 at scale (input scale x weight scale) behind a DequantizeLinear",
    "bias-type": "store the bias as int32",
    "bias-zero-point": "give the bias the zero point 0",
    "bias-scale": "give the bias the scale (input scale x weight scale), and round its integers anew",
    "output-is-result": "put QuantizeLinear and DequantizeLinear after the node",
    "output-not-quantized": "put QuantizeLinear and DequantizeLinear right after the node",
    "output-readers": "quantize the output once, and let all readers read that one DequantizeLinear",
    "activation-not-folded": "quantize what follows the activation on a grid that ends where it clips (for Relu, the "
    "smallest integer as zero point), or put QuantizeLinear and DequantizeLinear before it",
    "type-mismatch": "use one integer type for all activations",
    "signed-activations": "use uint8 activations for x86; for ARM int8 is right: audit with --target arm64",
    "gemm-factors": "fold alpha and beta into weight and bias",
    "constants-are-inputs": "take the constants off the list of the graph's inputs",
    "scales-differ": "give input and output the same scale and zero point",
    "no-integer-kernel": "replace the operator by one that has an integer form, or leave it where it is small",
    "unexplained": "none known; please report the file",
}


def _reason(code: str, why: str) -> Reason:
    return Reason(code, why, REMEDIES[code])


NOTHING_FOUND = _reason("unexplained", "everything that onnxruntime is known to ask for is there")


def _about(node: Node) -> str:
    return f"{label(node)} ({node.op_type})"


def why_float(executed: Node, view: GraphView, signed: bool) -> tuple[Node, list[Reason]]:
    """Find what keeps a convolution or matrix product in float.

    Args:
        executed: the float node of the graph that onnxruntime runs.
        view: the graph before integer operators are fused.
        signed: whether int8 activations fuse as they are (ARM), or must be made uint8 first (x86).

    Returns:
        The node before fusion, and all reasons found.
    """
    node = _before_fusion(executed, view)
    if node is None:
        return executed, [_reason("unexplained", "onnxruntime made this node while it optimised the graph")]
    if not any(other.op_type in (QUANTIZE, DEQUANTIZE) for other in view.nodes):
        return node, [_reason("file-not-quantized", "the file has no QuantizeLinear and no DequantizeLinear")]
    if node.op_type not in FUSING:
        return node, [_reason("no-integer-kernel", f"onnxruntime has no integer form of {node.op_type} on CPUs")]
    reasons = [
        *_input_reasons(node, view),
        *_weight_reasons(node, view),
        *_output_reasons(node, view),
    ]
    reasons += _bias_reasons(node, view, elsewhere=bool(reasons))
    reasons = reasons or _type_reasons(node, view, signed) or _changeable_reasons(node, view)
    return node, reasons or [NOTHING_FOUND]


def _changeable_reasons(node: Node, view: GraphView) -> list[Reason]:
    """A constant that is listed as an input may be given another value by the caller."""
    makers = [maker for value in node.input if (maker := _dequantizer(value, view)) is not None]
    around = [node, *makers, *_readers_behind_activation(node, view)]
    names = sorted({value for other in around for value in other.input} & view.changeable)
    return (
        [_reason("constants-are-inputs", f"constants around it are inputs, too: {', '.join(names)}")] if names else []
    )


def _same_node(executed: Node, view: GraphView) -> Node | None:
    """A node in the graph before fusion: by name, which files may leave out, or by what it makes."""
    kind = executed.op_type.removeprefix("Fused")
    for node in view.nodes:
        if node.name and node.name == executed.name and node.op_type in (kind, executed.op_type):
            return node
    node = view.producer.get(executed.output[0])
    return node if node is not None and node.op_type in (kind, executed.op_type) else None


def _before_fusion(executed: Node, view: GraphView) -> Node | None:
    """The same, also where an activation or a transpose was fused into the node: then up from what it makes."""
    found = _same_node(executed, view)
    node = view.producer.get(executed.output[0])
    while found is None and node is not None and node.input:
        node = view.producer.get(node.input[0])
        found = node if node is not None and node.op_type == executed.op_type.removeprefix("Fused") else None
    return found


def _dequantizer(value: str, view: GraphView) -> Node | None:
    node = view.producer.get(value)
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _origin(value: str, view: GraphView) -> str:
    if value in view.constants:
        return "is a float constant"
    node = view.producer.get(value)
    return "is the graph's float input" if node is None else f"comes in float from {_about(node)}"


def _input_reasons(node: Node, view: GraphView) -> list[Reason]:
    value = node.input[0]
    dequantizer = _dequantizer(value, view)
    if dequantizer is None:
        return [_reason("input-not-quantized", f"its input {value} {_origin(value, view)}")]
    scale, _, kind = view.grid(dequantizer)
    if scale is not None and scale.size > 1:
        return [_reason("input-per-channel", f"its input has {scale.size} scales ({label(dequantizer)})")]
    if kind not in EIGHT_BITS:
        return [_reason("input-type", f"its input is {kind} ({label(dequantizer)})")]
    return []


def _weight_reasons(node: Node, view: GraphView) -> list[Reason]:
    value = node.input[1]
    dequantizer = _dequantizer(value, view)
    if dequantizer is None:
        code = "weight-float" if value in view.constants else "weight-not-quantized"
        return [_reason(code, f"its weight {value} {_origin(value, view)}")]
    kind = view.grid(dequantizer)[2]
    if kind not in EIGHT_BITS:
        return [_reason("weight-type", f"its weight is {kind} ({label(dequantizer)})")]
    if attributes(dequantizer).get("block_size"):
        return [_reason("weight-blocks", f"its weight has a scale for each block of an axis ({label(dequantizer)})")]
    return []


def _bias_reasons(node: Node, view: GraphView, *, elsewhere: bool) -> list[Reason]:
    value = view.optional(node, 2)
    if not value:
        return []
    reasons = []
    factors = attributes(node)
    if node.op_type == "Gemm" and (factors.get("alpha", 1.0), factors.get("beta", 1.0)) != (1.0, 1.0):
        given = f"alpha {factors.get('alpha', 1.0):g} and beta {factors.get('beta', 1.0):g}"
        reasons.append(_reason("gemm-factors", f"with a bias, alpha and beta must be 1, it has {given}"))
    dequantizer = _dequantizer(value, view)
    if dequantizer is None:
        # onnxruntime quantizes a constant bias by itself once the rest is in order and a QuantizeLinear follows.
        followed = any(reader.op_type == QUANTIZE for reader in _readers_behind_activation(node, view))
        if value not in view.constants or not elsewhere or (node.op_type == "Gemm" and not followed):
            reasons.append(_reason("bias-float", f"its bias {value} {_origin(value, view)}"))
        return reasons
    _, zero, kind = view.grid(dequantizer)
    if kind != "int32":
        return [*reasons, _reason("bias-type", f"its bias is {kind} ({label(dequantizer)})")]
    if zero.any():
        return [*reasons, _reason("bias-zero-point", f"its bias has a zero point ({label(dequantizer)})")]
    if (
        node.op_type != "Conv"
        or _dequantizer(node.input[0], view) is None
        or _dequantizer(node.input[1], view) is None
    ):
        return reasons
    if "input-per-channel" in {r.code for r in _input_reasons(node, view)}:
        return reasons  # no scale of the bias would be right
    scales = _bias_scales(node, view)
    if scales is None:
        reasons.append(_reason("bias-scale", "its input, weight or bias has a scale that is computed at run time"))
    elif _differ(*scales, BIAS_ABSOLUTE):
        reasons.append(_reason("bias-scale", _bias_sentence(*scales)))
    return reasons


def _bias_scales(node: Node, view: GraphView) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale of the bias and input scale times weight scale; None unless all three are constants."""
    makers = [_dequantizer(value, view) for value in node.input[:3]]
    scales = [view.grid(maker)[0] for maker in makers if maker is not None]
    known = [scale for scale in scales if scale is not None]
    return (known[2], known[0] * known[1]) if len(known) == 3 else None


def _differ(scale: np.ndarray, expected: np.ndarray, absolute: float) -> bool:
    return scale.size != expected.size or bool((abs(scale - expected) > absolute + BIAS_RELATIVE * expected).any())


def _bias_sentence(scale: np.ndarray, expected: np.ndarray) -> str:
    return f"its bias has scale {_shown(scale)}, input times weight is {_shown(expected)}"


def misread_sums(view: GraphView, blocked: set[str]) -> list[tuple[Node, str]]:
    """Integer operators of which onnxruntime reads a scale otherwise than the file says: their sums are wrong.

    It takes every int32 bias for input scale times weight scale: unchecked for Gemm, and for Conv where the
    scales differ by less than a millionth. And it takes the scales of a weight for those of its output channels,
    whatever their axis.

    Args:
        view: the graph before integer operators are fused.
        blocked: first outputs of what stays in float, and is right.
    """
    found = []
    for node in view.nodes:
        if node.op_type not in FUSING or node.output[0] in blocked:
            continue
        axes = _weight_axes(node, view)
        if axes is not None and axes[0] != axes[1]:
            found.append((node, f"its weight has scales along axis {axes[0]}, its outputs are axis {axes[1]}"))
        elif node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            scales = _bias_scales(node, view)
            if scales is not None and _differ(*scales, absolute=0):
                found.append((node, _bias_sentence(*scales)))
    return found


def _weight_axes(node: Node, view: GraphView) -> tuple[int, int] | None:
    """The axis of a constant weight's scales and that of its output channels; None where it has one scale."""
    dequantizer = _dequantizer(node.input[1], view)
    if dequantizer is None or (weight := view.numbers(dequantizer.input[0])) is None:
        return None
    scale = view.grid(dequantizer)[0]
    if scale is None or scale.size == 1:
        return None
    channels = {"Conv": 0, "Gemm": 0 if attributes(node).get("transB") else 1}.get(node.op_type, weight.ndim - 1)
    return attributes(dequantizer).get("axis", 1) % weight.ndim, channels


def _shown(scale: np.ndarray) -> str:
    return (
        f"{scale.item():.3g}" if scale.size == 1 else f"{scale.min():.3g} to {scale.max():.3g} ({scale.size} scales)"
    )


def _output_reasons(node: Node, view: GraphView) -> list[Reason]:
    """A convolution needs exactly one reader, a QuantizeLinear; a matrix product may also stay unquantized."""
    value = node.output[0]
    readers = view.readers[value]
    activation = None
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") and value not in view.results:
        (activation,) = readers
        value = activation.output[0]
        readers = view.readers[value]
    quantizers = [reader for reader in readers if reader.op_type == QUANTIZE]
    if not quantizers and node.op_type in ("Gemm", "MatMul"):
        return []
    through = f" through {_about(activation)}" if activation is not None else ""
    if value in view.results:
        return [_reason("output-is-result", f"its output is a result of the graph{through}")]
    if len(readers) != 1:
        names = ", ".join(_about(reader) for reader in readers)
        return [_reason("output-readers", f"its output has {len(readers)} readers{through}: {names}")]
    if not quantizers:
        return [_reason("output-not-quantized", f"its output goes in float{through} to {_about(readers[0])}")]
    if activation is not None:
        return _folding_reasons(activation, quantizers[0], view)
    return []


def _folding_reasons(activation: Node, quantizer: Node, view: GraphView) -> list[Reason]:
    """A Relu or Clip folds into a grid that reaches no further than it clips."""
    low, high = _limits(activation, view)
    scale, zero, kind = view.grid(quantizer)
    if scale is None or kind not in EIGHT_BITS:
        return []
    limits = np.iinfo(kind)
    first, last = (float((end - int(zero.ravel()[0])) * scale.ravel()[0]) for end in (limits.min, limits.max))
    slack = float(scale.ravel()[0]) / 2
    if first >= low - slack and last <= high + slack:
        return []
    return [
        _reason(
            "activation-not-folded",
            f"{_about(activation)} keeps {low:g} to {high:g}, but the grid of {label(quantizer)} reaches from "
            f"{first:.3g} to {last:.3g}",
        )
    ]


def _limits(activation: Node, view: GraphView) -> tuple[float, float]:
    if activation.op_type == "Relu":
        return 0.0, math.inf
    given = attributes(activation)
    ends = []
    for index, key, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        constant = view.numbers(view.optional(activation, index))
        ends.append(float(constant.item()) if constant is not None else float(given.get(key, default)))
    return ends[0], ends[1]


def _type_reasons(node: Node, view: GraphView, signed: bool) -> list[Reason]:
    """Everything is quantized: do the integer types go together?"""
    values = node.input[:1] if node.op_type in FUSING else node.input
    inputs = {view.grid(maker)[2] for value in values if (maker := _dequantizer(value, view)) is not None}
    outputs = {
        view.grid(reader)[2] for reader in _readers_behind_activation(node, view) if reader.op_type == QUANTIZE
    }
    odd = sorted(kind for kind in inputs | outputs if kind not in EIGHT_BITS)
    if odd:
        return [_reason("input-type", f"its activations are {', '.join(odd)}")]
    if "int8" in inputs | outputs and not signed:
        return [
            _reason("signed-activations", "its activations are int8, which onnxruntime does not fuse here on x86")
        ]
    if len(inputs | outputs) > 1:
        return [_reason("type-mismatch", f"its input is {'/'.join(inputs)}, its output {'/'.join(outputs)}")]
    weight = _dequantizer(node.input[1], view) if node.op_type in FUSING else None
    if "int8" in inputs and weight is not None and view.grid(weight)[2] == "uint8":
        return [_reason("weight-sign", f"its activations are int8 but its weight is uint8 ({label(weight)})")]
    return []


def _readers_behind_activation(node: Node, view: GraphView) -> list[Node]:
    readers = view.readers[node.output[0]]
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return view.readers[readers[0].output[0]]
    return readers


def float_islands(
    executed: GraphView, before: GraphView, compute: set[str], signed: bool
) -> list[tuple[list[Node], list[Reason]]]:
    """Float operators shut in between DequantizeLinear and QuantizeLinear: a chain of integer kernels, broken.

    Args:
        executed: the graph that onnxruntime runs.
        before: the graph before integer operators are fused; layout changes added since are not listed.
        compute: first outputs of convolutions and matrix products; `why_float` explains those.
        signed: as in `why_float`.

    Returns:
        Groups of connected operators that read nothing but DequantizeLinear and constants and are read by
        QuantizeLinear alone, with what would let a group of one run on integers.
    """
    islands: list[tuple[list[Node], list[Reason]]] = []
    seen: set[str] = set()
    for dequantizer in executed.nodes:
        if dequantizer.op_type != DEQUANTIZE:
            continue
        for start in executed.readers[dequantizer.output[0]]:
            group = _connected(start, executed, seen)
            if not group or not all(_shut_in(node, executed, compute) for node in group):
                continue
            found = [_same_node(node, before) for node in group]
            known = [node for node in found if node is not None]
            if len(known) == len(found):
                islands.append((known, _island_reasons(known, before, signed)))
            elif any(node.op_type not in MOVING for node in group):  # onnxruntime moves layouts about
                islands.append((group, _island_reasons(group, executed, signed)))
    return islands


def _connected(start: Node, view: GraphView, seen: set[str]) -> list[Node]:
    """All operators that reach `start` without a QuantizeLinear or DequantizeLinear in between."""
    group, waiting = [], [start]
    while waiting:
        node = waiting.pop()
        if node.output[0] in seen or node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        seen.add(node.output[0])
        group.append(node)
        waiting += [reader for value in node.output for reader in view.readers[value]]
        waiting += [view.producer[value] for value in node.input if value in view.producer]
    return group


def _shut_in(node: Node, view: GraphView, compute: set[str]) -> bool:
    from_outside = [v for v in node.input if v and v not in view.constants and v not in view.producer]
    integers = [v for v in node.input if v in view.producer and view.producer[v].op_type == QUANTIZE]
    return not (from_outside or integers or node.output[0] in compute or view.results & set(node.output))


def _island_reasons(group: list[Node], view: GraphView, signed: bool) -> list[Reason]:
    without = {node.op_type for node in group} - FUSING_OTHERS - MOVING or {node.op_type for node in group}
    types = " and ".join(sorted(without))
    (node, *others) = group
    if others or node.op_type not in FUSING_OTHERS | MOVING | {"Relu", "Clip"}:
        instead = "; over whole images GlobalAveragePool does the same and has one" if types == "ReduceMean" else ""
        return [_reason("no-integer-kernel", f"onnxruntime has no integer form of {types} on CPUs{instead}")]
    if node.op_type in ("Relu", "Clip"):
        return _folding_reasons(node, view.readers[node.output[0]][0], view)
    reasons = _output_reasons(node, view) or _type_reasons(node, view, signed)
    if not reasons and node.op_type in MOVING:
        reasons = [_reason("scales-differ", f"{_about(node)} must have one grid for its input and its output")]
    return reasons or [NOTHING_FOUND]
