"""A graph that takes frames as a camera gives them: crop, resize, layout and scale become its first nodes.

Filters are matrices, made in the graph for whatever size a frame has, and applied as Pillow applies them: weights of
22 bits, columns first, rounded to whole grey levels, then rows. Pillow adds in integers, a graph in float32: of a
pixel that lies all but halfway between two levels either may come out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from qrobust.errors import InputError
from qrobust.preprocessing import Step

FRAMES = "frames"
# How far each of Pillow's filters reaches, in pixels of the coarser grid.
SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
# Of Pillow's cubic, and of its luma (ITU-R 601-2) in 16 bits.
CUBIC, LUMA, LUMA_BITS = -0.5, (19595, 38470, 7471), 16
# Of Pillow's weights.
WEIGHT_BITS = 22
OPENING = "frame_"
INT64, FLOAT, DOUBLE = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


class _Nodes:
    """Nodes one after the other; values are names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        made = f"{OPENING}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=made, **attributes))
        return made

    def constant(self, value: object, kind: type = np.int64) -> str:
        name = f"{OPENING}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def cast(self, value: str, kind: int) -> str:
        return self.op("Cast", value, to=kind)

    def sides(self, frames: str) -> tuple[str, str]:
        """Height and width of `(N, C, H, W)`, each int64 `(1,)`."""
        shape = self.op("Shape", frames)
        high, wide = (self.op("Slice", shape, self.constant([i]), self.constant([i + 1])) for i in (2, 3))
        return high, wide

    def cut(self, frames: str, starts: Sequence[str], sizes: Sequence[str]) -> str:
        """A window of rows and columns."""
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            end = self.op("Add", start, size)
            frames = self.op("Slice", frames, start, end, self.constant([axis]))
        return frames


def with_camera(model: onnx.ModelProto, steps: Sequence[Step]) -> onnx.ModelProto:
    """The graph with frames as its input: uint8 RGB `(N, H, W, 3)`, all of one size, whatever that is.

    Args:
        model: takes float32 `(N, C, S, S)` in [0, 1].
        steps: from an image to that, as its metadata has them.

    Raises:
        InputError: a step that is not known.
    """
    nodes, opset = _Nodes(), next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    pixels = nodes.op("Transpose", FRAMES, perm=[0, 3, 1, 2])
    for step in steps:
        pixels = _step(nodes, pixels, step)
    given, channels, side = (
        model.graph.input[0],
        *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:3]),
    )
    front = helper.make_model(
        helper.make_graph(
            nodes.nodes,
            "camera",
            [helper.make_tensor_value_info(FRAMES, onnx.TensorProto.UINT8, ["batch", "height", "width", 3])],
            [helper.make_tensor_value_info(pixels, FLOAT, ["batch", channels, side, side])],
            nodes.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=model.ir_version,
    )
    merged = compose.merge_models(front, model, io_map=[(pixels, given.name)])
    merged.opset_import.extend(
        e for e in model.opset_import if e.domain not in {o.domain for o in merged.opset_import}
    )
    told = {entry.key: entry.value for entry in model.metadata_props}
    inside = {"input": "uint8 RGB frames (N, H, W, 3) of any one size", "steps_inside": list(steps)}
    helper.set_model_props(merged, told | {"preprocessing": json.dumps(inside)})
    onnx.checker.check_model(merged)
    return merged


def save_with_camera(file: Path, to: Path, steps: Sequence[Step]) -> None:
    """Write the graph of a file with frames as its input."""
    onnx.save(with_camera(onnx.load(file), steps), to)


def _step(nodes: _Nodes, pixels: str, step: Step) -> str:
    match step["do"]:
        case "decode":
            return _as_mode(nodes, pixels, str(step["mode"]))
        case "limit_aspect":
            high, wide = nodes.sides(pixels)
            longest = nodes.op("Mul", nodes.constant([step["at_most"]]), nodes.op("Min", high, wide))
            sizes = [nodes.op("Min", side, longest) for side in (high, wide)]
            starts = [
                _half(nodes, nodes.op("Sub", side, size)) for side, size in zip((high, wide), sizes, strict=True)
            ]
            return nodes.cut(pixels, starts, sizes)
        case "resize":
            return _resize(nodes, pixels, step)
        case "centre_crop":
            size = nodes.constant([step["size"]])
            starts = [_middle(nodes, side, size) for side in nodes.sides(pixels)]
            return nodes.cut(pixels, starts, (size, size))
        case "pad":
            return _pad(nodes, pixels, int(step["size"]), int(step["fill"]))
        case "divide":
            return nodes.op("Div", pixels, nodes.constant(step["by"], np.float32))
        case unknown:
            raise InputError(f"camera: expected a step that can be part of a graph, got {unknown!r}")


def _as_mode(nodes: _Nodes, frames: str, mode: str) -> str:
    """Whole grey levels as float32, three channels or luma."""
    if mode == "RGB":
        return nodes.cast(frames, FLOAT)
    weights = nodes.constant(np.reshape(LUMA, (1, 3, 1, 1)))
    weighed = nodes.op("Mul", nodes.cast(frames, INT64), weights)
    total = nodes.op("ReduceSum", weighed, nodes.constant([1]), keepdims=1)
    half, whole = nodes.constant(2 ** (LUMA_BITS - 1)), nodes.constant(2**LUMA_BITS)
    return nodes.cast(nodes.op("Div", nodes.op("Add", total, half), whole), FLOAT)


def _half(nodes: _Nodes, value: str) -> str:
    return nodes.op("Div", value, nodes.constant([2]))


def _middle(nodes: _Nodes, side: str, size: str) -> str:
    """Where a window of a size begins, half to even."""
    excess = nodes.cast(nodes.op("Sub", side, size), DOUBLE)
    return nodes.cast(nodes.op("Round", nodes.op("Mul", excess, nodes.constant([0.5], np.float64))), INT64)


def _pad(nodes: _Nodes, pixels: str, size: int, fill: int) -> str:
    wanted, zeros = nodes.constant([size]), nodes.constant([0, 0])
    lacking = [nodes.op("Sub", wanted, side) for side in nodes.sides(pixels)]
    before = [_half(nodes, one) for one in lacking]
    after = [nodes.op("Sub", one, start) for one, start in zip(lacking, before, strict=True)]
    pads = nodes.op("Concat", zeros, *before, zeros, *after, axis=0)
    return nodes.op("Pad", pixels, pads, nodes.constant(fill, np.float32))


def _resize(nodes: _Nodes, pixels: str, step: Step) -> str:
    high, wide = nodes.sides(pixels)
    if "shorter_side" in step:
        target, shorter = nodes.constant([step["shorter_side"]]), nodes.op("Min", high, wide)
        sizes = [nodes.op("Div", nodes.op("Mul", target, side), shorter) for side in (high, wide)]
    elif "longer_side" in step:
        sizes = [_longer(nodes, int(step["longer_side"]), side, nodes.op("Max", high, wide)) for side in (high, wide)]
    else:
        sizes = [nodes.constant([step[name]]) for name in ("height", "width")]
    name, antialias = str(step["filter"]), bool(step["antialias"])
    if name == "nearest":
        for axis, side, size in ((2, high, sizes[0]), (3, wide, sizes[1])):
            pixels = nodes.op("Gather", pixels, _nearest(nodes, side, size), axis=axis)
        return pixels
    columns = nodes.op(
        "MatMul", pixels, nodes.op("Transpose", _filter(nodes, name, wide, sizes[1], antialias), perm=[1, 0])
    )
    if antialias:
        columns = _levels(nodes, columns)
    rows = nodes.op("MatMul", _filter(nodes, name, high, sizes[0], antialias), columns)
    return _levels(nodes, rows) if antialias else nodes.op("Round", rows)


def _nearest(nodes: _Nodes, source: str, target: str) -> str:
    """Source pixels of target pixels; their places are added up one after the other, as Pillow adds them."""
    scale = _scale(nodes, source, target)
    first = nodes.op("Mul", scale, nodes.constant([0.5], np.float64))
    others = nodes.op("Expand", scale, nodes.op("Sub", target, nodes.constant([1])))
    steps = nodes.op("Concat", first, others, axis=0)
    return nodes.cast(nodes.op("CumSum", steps, nodes.constant(0)), INT64)


def _longer(nodes: _Nodes, longer: int, side: str, longest: str) -> str:
    """A side in proportion, rounded half to even, at least 1."""
    scaled = nodes.op(
        "Div", nodes.cast(nodes.op("Mul", side, nodes.constant([longer])), DOUBLE), nodes.cast(longest, DOUBLE)
    )
    return nodes.op("Max", nodes.cast(nodes.op("Round", scaled), INT64), nodes.constant([1]))


def _levels(nodes: _Nodes, values: str) -> str:
    """Rounded half up, within 0 to 255."""
    rounded = nodes.op("Floor", nodes.op("Add", values, nodes.constant(0.5, np.float32)))
    return nodes.op("Clip", rounded, nodes.constant(0, np.float32), nodes.constant(255, np.float32))


def _centres(nodes: _Nodes, source: str, target: str) -> str:
    """Centres of target pixels, measured from the edge of the source, `(i + 1/2) source / target`, `(target, 1)`."""
    index = nodes.op("Range", nodes.constant(0), nodes.op("Squeeze", target), nodes.constant(1))
    middles = nodes.op("Add", nodes.cast(index, DOUBLE), nodes.constant(0.5, np.float64))
    return nodes.op("Unsqueeze", nodes.op("Mul", middles, _scale(nodes, source, target)), nodes.constant([1]))


def _scale(nodes: _Nodes, source: str, target: str) -> str:
    return nodes.op("Div", nodes.cast(source, DOUBLE), nodes.cast(target, DOUBLE))


def _filter(nodes: _Nodes, name: str, source: str, target: str, antialias: bool) -> str:
    """Weights of source pixels in target pixels, float32 `(target, source)`, each row adding up to 1."""
    index = nodes.op("Range", nodes.constant(0), nodes.op("Squeeze", source), nodes.constant(1))
    index, centres = nodes.cast(index, DOUBLE), _centres(nodes, source, target)
    weights = (_antialiased if antialias else _between)(nodes, name, index, centres, source, target)
    shares = nodes.op("Div", weights, nodes.op("ReduceSum", weights, nodes.constant([1]), keepdims=1))
    if antialias:
        shares = _rounded(nodes, shares)
    return nodes.cast(shares, FLOAT)


def _rounded(nodes: _Nodes, shares: str) -> str:
    """To as many bits as Pillow's weights have, halves away from zero."""
    half, whole = nodes.constant(0.5, np.float64), nodes.constant(float(2**WEIGHT_BITS), np.float64)
    scaled = nodes.op("Mul", shares, whole)
    levels = nodes.op(
        "Mul", nodes.op("Sign", scaled), nodes.op("Floor", nodes.op("Add", nodes.op("Abs", scaled), half))
    )
    return nodes.op("Div", levels, whole)


def _antialiased(nodes: _Nodes, name: str, index: str, centres: str, source: str, target: str) -> str:
    """In the order of Pillow's own operations: what lies on the edge of a filter is in it or not by the last bit."""
    half = nodes.constant(0.5, np.float64)
    reach = nodes.op("Max", _scale(nodes, source, target), nodes.constant([1.0], np.float64))
    x = nodes.op("Add", nodes.op("Sub", index, centres), half)
    weights = _kernel(nodes, name, nodes.op("Mul", x, nodes.op("Div", nodes.constant(1.0, np.float64), reach)))
    support = nodes.op("Mul", nodes.constant(SUPPORT[name], np.float64), reach)
    low, high = (
        nodes.op("Floor", nodes.op("Add", nodes.op(kind, centres, support), half)) for kind in ("Sub", "Add")
    )
    seen = nodes.op("And", nodes.op("GreaterOrEqual", index, low), nodes.op("Less", index, high))
    return nodes.op("Where", seen, weights, nodes.constant(0.0, np.float64))


def _between(nodes: _Nodes, name: str, index: str, centres: str, source: str, _target: str) -> str:
    """Of the nearest pixels on both sides, the outermost centres being the edge."""
    last = nodes.cast(nodes.op("Sub", source, nodes.constant([1])), DOUBLE)
    places = nodes.op("Sub", centres, nodes.constant(0.5, np.float64))
    places = nodes.op("Min", nodes.op("Max", places, nodes.constant([0.0], np.float64)), last)
    return _kernel(nodes, name, nodes.op("Sub", index, places))


def _kernel(nodes: _Nodes, name: str, x: str) -> str:
    """A filter of Pillow's at distances, both float64."""

    def number(value: float) -> str:
        return nodes.constant(value, np.float64)

    away, zero = nodes.op("Abs", x), number(0.0)
    inside = nodes.op("Less", away, number(SUPPORT[name]))
    if name == "box":  # half open: of two pixels at the same distance the left one
        inside = nodes.op("And", nodes.op("Greater", x, number(-0.5)), nodes.op("LessOrEqual", x, number(0.5)))
        return nodes.op("Where", inside, number(1.0), zero)
    if name == "bilinear":
        return nodes.op("Max", nodes.op("Sub", number(1.0), away), zero)
    if name == "bicubic":
        square, cube = nodes.op("Mul", away, away), nodes.op("Mul", nodes.op("Mul", away, away), away)

        def polynomial(*factors: float) -> str:
            terms = [nodes.op("Mul", number(f), v) for f, v in zip(factors[:3], (cube, square, away), strict=True)]
            return nodes.op("Sum", *terms, number(factors[3]))

        near = polynomial(CUBIC + 2, -(CUBIC + 3), 0.0, 1.0)
        far = polynomial(CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC)
        bent = nodes.op("Where", nodes.op("Less", away, number(1.0)), near, far)
        return nodes.op("Where", inside, bent, zero)
    wave = nodes.op("Mul", _sinc(nodes, x), _sinc(nodes, nodes.op("Div", x, number(SUPPORT[name]))))
    return nodes.op("Where", inside, wave, zero)


def _sinc(nodes: _Nodes, x: str) -> str:
    """`sin(pi x) / (pi x)`, 1 at 0."""
    angle, one = nodes.op("Mul", x, nodes.constant(np.pi, np.float64)), nodes.constant(1.0, np.float64)
    flat = nodes.op("Equal", x, nodes.constant(0.0, np.float64))
    return nodes.op("Where", flat, one, nodes.op("Div", nodes.op("Sin", angle), nodes.op("Where", flat, one, angle)))
