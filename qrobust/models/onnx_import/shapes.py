"""Rules for what moves numbers and counts axes; sums and means over axes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.models.onnx_import.site import Site
from qrobust.models.onnx_import.values import BATCHES, UnsupportedError, Value, constant

# In one constant that a file computes: 1 GiB of float32.
MOST_NUMBERS = 2**28
Result = Value | tuple[Value, ...]
Rule = Callable[[Site], Result]


def _each(site: Site, function: Callable[..., torch.Tensor], *values: Value) -> Value:
    """A function of values on each batch, none of which a pixel changes."""
    if any(value.node is not None for value in values):
        raise UnsupportedError("of what the image changes")
    first, second = (function(*(value.samples[i] for value in values)) for i in (0, 1))
    return Value((first, second))


def shape(site: Site) -> Value:
    """The shape, as numbers: no pixel changes it."""
    start, end = site.integer("start", 0), site.integer("end", len(site.value().shape))
    first, second = (
        torch.tensor(list(sample.shape)[start:end], dtype=torch.int64) for sample in site.value().samples
    )
    return Value((first, second))


def size(site: Site) -> Value:
    first, second = (torch.tensor(sample.numel()) for sample in site.value().samples)
    return Value((first, second))


def _resolved(wanted: Sequence[int], x: torch.Tensor, images: int, site: Site) -> list[int]:
    """The shape that `Reshape` asks for, for so many images where the file fixes how many."""
    sizes = [int(n) for n in wanted]
    if not site.integer("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if -1 in sizes:
        known = math.prod(n for n in sizes if n != -1)
        if site.batch is not None and sizes[0] == site.batch and x.shape[0] == images != sizes[0]:
            sizes[0], known = images, known // sizes[0] * images
        if known == 0 or x.numel() % known:
            raise UnsupportedError(f"from {list(x.shape)} to {list(map(int, wanted))}")
        return [x.numel() // known if n == -1 else n for n in sizes]
    if math.prod(sizes) != x.numel() and site.batch is not None and sizes and sizes[0] % site.batch == 0:
        sizes[0] = sizes[0] // site.batch * images
    if math.prod(sizes) != x.numel():
        raise UnsupportedError(f"from {list(x.shape)} to {list(map(int, wanted))}")
    return sizes


def reshape(site: Site) -> Value:
    x, wanted = site.value(0), site.value(1)
    if wanted.node is not None:
        raise UnsupportedError("to a shape that the image changes")
    samples = [
        sample.reshape(_resolved(numbers.tolist(), sample, images, site))
        for sample, numbers, images in zip(x.samples, wanted.samples, BATCHES, strict=True)
    ]
    return _as(site, x, Value((samples[0], samples[1])))


def _as(site: Site, x: Value, target: Value) -> Value:
    """`x` in the shape of `target`, which has its numbers."""
    if x.node is None:
        return target
    sizes = target.open_shape
    if sizes == x.open_shape:
        return x
    if len(sizes) == 2 and sizes[0] == -1 and target.shape[0] == x.shape[0] != x.open_shape[0]:
        return site.builder.apply(torch.flatten, x, 1)
    return site.builder.apply(torch.reshape, x, sizes)


def flatten(site: Site) -> Value:
    axis = site.integer("axis", 1)
    x = site.value()
    axis = axis % len(x.shape) if axis < 0 else axis
    samples = [s.reshape(math.prod(s.shape[:axis]), math.prod(s.shape[axis:])) for s in x.samples]
    return _as(site, x, Value((samples[0], samples[1])))


def squeeze(site: Site) -> Value:
    x, axes = site.value(), site.numbers(1, "axes")
    if axes is None:
        axes = [i for i, (n, m) in enumerate(zip(*(s.shape for s in x.samples), strict=True)) if n == m == 1]
    for axis in sorted((a % len(x.shape) for a in axes), reverse=True):
        if x.shape[axis] != 1:
            raise UnsupportedError(f"of axis {axis}, which has {x.shape[axis]} entries")
        x = site.builder.apply(torch.squeeze, x, axis)
    return x


def unsqueeze(site: Site) -> Value:
    x, axes = site.value(), site.numbers(1, "axes") or []
    rank = len(x.shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = site.builder.apply(torch.unsqueeze, x, axis)
    return x


def transpose(site: Site) -> Value:
    x = site.value()
    order = site.integers("perm", list(range(len(x.shape)))[::-1])
    return permuted(site, x, order)


def permuted(site: Site, x: Value, order: Sequence[int]) -> Value:
    """Axes in another order; one that another undoes is none."""
    source, before = _unpermuted(site, x)
    whole = [before[axis] for axis in order]
    if whole == list(range(len(whole))):
        return source
    return site.builder.apply(torch.permute, source, whole)


def _unpermuted(site: Site, x: Value) -> tuple[Value, list[int]]:
    """What axes were moved of, and in which order; itself where nothing was."""
    node = x.node
    if isinstance(node, fx.Node) and node.target is torch.permute and isinstance(node.args[0], fx.Node):
        order = [int(axis) for axis in node.args[1]]  # type: ignore[union-attr, arg-type]  # as it was made here
        back = [order.index(axis) for axis in range(len(order))]
        first, second = (sample.permute(back) for sample in x.samples)
        return Value((first, second), node.args[0]), order
    return x, list(range(len(x.shape)))


def concatenation(site: Site) -> Value:
    values = [site.value(i) for i in range(len(site.inputs))]
    if len(values) == 1:
        return values[0]
    return site.builder.apply(torch.cat, values, site.integer("axis", 0))


def cut(site: Site) -> Value:
    """`Slice`."""
    x = site.value()
    starts, ends = _bounds(site, 1, "starts"), _bounds(site, 2, "ends")
    axes = site.numbers(3, "axes") or list(range(len(starts)))
    steps = site.numbers(4, "steps") or [1] * len(starts)
    parts: list[Any] = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, count = axis % len(x.shape), x.shape[axis]
        if step == -1 and start in (-1, count - 1) and end <= -count - 1:
            x = site.builder.apply(torch.flip, x, [axis])
        elif step < 0:
            raise UnsupportedError("backwards in steps")
        else:
            parts[axis] = slice(start, None if end >= 2**31 - 1 else end, step)
    while parts and parts[-1] == slice(None):
        parts.pop()
    return site.builder.apply(operator.getitem, x, tuple(parts)) if parts else x


def _bounds(site: Site, place: int, name: str) -> list[int]:
    found = site.numbers(place, name)
    if found is None:
        raise UnsupportedError(f"without {name}")
    return found


def split(site: Site) -> tuple[Value, ...]:
    x, sizes = site.value(), site.numbers(1, "split")
    axis, count = site.integer("axis", 0), site.integer("num_outputs", len(site.operator.outputs))
    if sizes is None:
        length = -(-x.shape[axis] // count)
        sizes = [min(length, x.shape[axis] - i * length) for i in range(count)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    before = [slice(None)] * (axis % len(x.shape))
    return tuple(
        site.builder.apply(operator.getitem, x, (*before, slice(end - size, end)))
        for size, end in zip(sizes, ends, strict=True)
    )


def gather(site: Site) -> Value:
    x, index, axis = site.value(), site.value(1), site.integer("axis", 0)
    if index.node is not None:
        raise UnsupportedError("at places that the image changes")
    if x.node is None:
        return _each(site, lambda t, i: _gathered(t, i, axis), x, index)
    if not index.is_constant:
        return _all_in_order(site, x, index, axis)
    places = index.samples[0]
    before = [slice(None)] * (axis % len(x.shape))
    if places.ndim == 0:
        return site.builder.apply(operator.getitem, x, (*before, int(places)))
    if places.ndim != 1:
        raise UnsupportedError(f"at places of shape {list(places.shape)}")
    count = x.shape[axis % len(x.shape)]
    start, length = int(places[0]) % count, len(places)
    if places.tolist() == list(range(start, start + length)):
        return site.builder.apply(operator.getitem, x, (*before, slice(start, start + length)))
    return site.builder.apply(torch.index_select, x, axis % len(x.shape), constant(places % count))


def _all_in_order(site: Site, x: Value, index: Value, axis: int) -> Value:
    """Every entry of an axis in its place, counted from the batch: as torch writes a reshape of a strided view.

    Raises:
        UnsupportedError: they are others, or in another order.
    """
    axis %= len(x.shape)
    samples = []
    for sample, places in zip(x.samples, index.samples, strict=True):
        if not torch.equal(places.flatten(), torch.arange(sample.shape[axis])):
            raise UnsupportedError("at places that the batch changes")
        samples.append(sample.reshape([*sample.shape[:axis], *places.shape, *sample.shape[axis + 1 :]]))
    return _as(site, x, Value((samples[0], samples[1])))


def _gathered(values: torch.Tensor, places: torch.Tensor, axis: int) -> torch.Tensor:
    axis %= values.ndim
    found = values.index_select(axis, places.flatten() % max(values.shape[axis], 1))
    return found.reshape([*values.shape[:axis], *places.shape, *values.shape[axis + 1 :]])


def gather_points(site: Site) -> Value:
    """`GatherND`, of what no pixel changes."""
    if site.integer("batch_dims", 0):
        raise UnsupportedError("in batches")
    return _each(site, lambda values, places: values[tuple(places.unbind(-1))], site.value(0), site.value(1))


def padding(site: Site) -> Value:
    x, mode = site.value(), site.text("mode", "constant")
    pads = site.numbers(1, "pads") or []
    axes = site.numbers(3, "axes")
    rank = len(x.shape)
    both = [[0, 0] for _ in range(rank)]
    for i, axis in enumerate(axes if axes is not None else range(rank)):
        both[axis] = [pads[i], pads[i + len(pads) // 2]]
    value = float(site.tensor(2, "a filling")) if site.has(2) else site.number("value", 0.0)
    if not any(map(any, both)):
        return x
    sides = [n for axis in reversed(both) for n in axis]
    if mode != "constant" or (rank == 4 and not any(sides[4:]) and min(sides) >= 0 and value == 0):
        kinds = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "edge": nn.ReplicationPad2d}
        if mode not in kinds or rank != 4 or any(sides[4:]) or min(sides) < 0:
            raise UnsupportedError(f"in mode {mode} with {sides}")
        return site.builder.call(kinds[mode]((sides[0], sides[1], sides[2], sides[3])), x)
    while sides[-2:] == [0, 0]:
        sides = sides[:-2]
    return site.builder.apply(F.pad, x, sides, "constant", value)


def expand(site: Site) -> Value:
    x, wanted = site.value(), site.value(1)
    if wanted.node is not None:
        raise UnsupportedError("to a shape that the image changes")
    samples = [
        s.expand(torch.broadcast_shapes(s.shape, tuple(n.tolist())))
        for s, n in zip(x.samples, wanted.samples, strict=True)
    ]
    target = Value((samples[0], samples[1]))
    if x.node is None or target.open_shape == x.open_shape:
        return target if x.node is None else x
    if target.open_shape[0] != x.open_shape[0]:
        raise UnsupportedError("along the batch")
    return site.builder.apply(operator.add, x, constant(torch.zeros(target.shape[1:])))


def tile(site: Site) -> Value:
    x, repeats = site.value(), site.value(1)
    if x.node is None:
        return _each(site, lambda t, n: t.repeat(n.tolist()), x, repeats)
    return site.builder.apply(torch.tile, x, [int(n) for n in site.tensor(1, "repeats")])


def filled(site: Site) -> Value:
    """`ConstantOfShape`."""
    value = site.operator.attributes.get("value", torch.zeros(1))
    assert isinstance(value, torch.Tensor)
    if any(math.prod(sample.tolist()) > MOST_NUMBERS for sample in site.value().samples):
        raise UnsupportedError("of so many numbers")
    return _each(site, lambda n: torch.full(n.tolist(), value.item(), dtype=value.dtype), site.value())


def steps(site: Site) -> Value:
    """`Range`."""
    return _each(site, lambda a, b, c: torch.arange(a.item(), b.item(), c.item()), *(site.value(i) for i in range(3)))


def constant_node(site: Site) -> Value:
    for name, found in site.operator.attributes.items():
        if isinstance(found, torch.Tensor):
            return constant(found)
        if name.startswith("value_"):
            return constant(torch.tensor(found))
    raise UnsupportedError("without a value")


def reduction(function: Callable[..., Any]) -> Rule:
    """A sum, mean or the like over axes."""

    def rule(site: Site) -> Value:
        x = site.value()
        axes, kept = site.numbers(1, "axes"), bool(site.integer("keepdims", 1))
        if axes is None or not axes:
            if site.integer("noop_with_empty_axes", 0):
                return x
            axes = list(range(len(x.shape)))
        source, order = _unpermuted(site, x)
        dims = sorted(order[axis] for axis in axes)
        left = [axis for axis in order if axis not in dims]
        if not kept and left == sorted(left):
            return site.builder.apply(function, source, dims, False)
        return site.builder.apply(function, x, sorted(a % len(x.shape) for a in axes), kept)

    return rule


def _sum_of_squares(x: torch.Tensor, dims: list[int], kept: bool) -> torch.Tensor:
    return x.square().sum(dims, kept)


def _sum_of_sizes(x: torch.Tensor, dims: list[int], kept: bool) -> torch.Tensor:
    return x.abs().sum(dims, kept)


def _length(x: torch.Tensor, dims: list[int], kept: bool) -> torch.Tensor:
    return x.square().sum(dims, kept).sqrt()


def depth_to_space(site: Site) -> Value:
    block, mode = site.integer("blocksize", 1), site.text("mode", "DCR")
    if mode == "CRD":
        return site.builder.call(nn.PixelShuffle(block), site.value())
    n, c, h, w = site.value().open_shape
    del n
    x = site.builder.apply(torch.reshape, site.value(), [-1, block, block, c // block**2, h, w])
    x = site.builder.apply(torch.permute, x, [0, 3, 4, 1, 5, 2])
    return site.builder.apply(torch.reshape, x, [-1, c // block**2, h * block, w * block])


def space_to_depth(site: Site) -> Value:
    block = site.integer("blocksize", 1)
    _, c, h, w = site.value().open_shape
    x = site.builder.apply(torch.reshape, site.value(), [-1, c, h // block, block, w // block, block])
    x = site.builder.apply(torch.permute, x, [0, 3, 5, 1, 2, 4])
    return site.builder.apply(torch.reshape, x, [-1, c * block**2, h // block, w // block])


def resize(site: Site) -> Value:
    x, mode = site.value(), site.text("mode", "nearest")
    if len(x.shape) != 4 or "axes" in site.operator.attributes:
        raise UnsupportedError(f"on {len(x.shape)} axes, or some of them")
    scales = (
        site.tensor(2 if site.opset >= 11 and site.operator.kind == "Resize" else 1, "scales")
        if not site.has(3)
        else None
    )
    target = _target(site, x, scales)
    where = site.text(
        "coordinate_transformation_mode", "half_pixel" if site.operator.kind == "Resize" else "asymmetric"
    )
    times = [t / s for t, s in zip(target, x.shape[2:], strict=True)]
    whole = all(t == int(t) for t in times)
    if mode == "nearest" and whole and (where != "align_corners"):
        return site.builder.call(nn.Upsample(scale_factor=(times[0], times[1]), mode="nearest"), x)
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if site.integer("antialias", 0):
            raise UnsupportedError("with antialiasing")
        aligned = where == "align_corners"
        return site.builder.call(nn.Upsample(size=(target[0], target[1]), mode="bilinear", align_corners=aligned), x)
    raise UnsupportedError(f"in mode {mode} ({where}) from {list(x.shape[2:])} to {target}")


def _target(site: Site, x: Value, scales: torch.Tensor | None) -> list[int]:
    """Height and width behind a `Resize`."""
    if site.operator.kind == "Upsample" and "scales" in site.operator.attributes:
        found = site.operator.attributes["scales"]
        scales = torch.tensor(found)
    if scales is not None:
        return [math.floor(n * s + 1e-6) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    wanted = site.value(3)
    if wanted.node is not None or not torch.equal(*(sample[2:] for sample in wanted.samples)):
        raise UnsupportedError("to a size that the image or the batch changes")
    return [int(n) for n in wanted.samples[0][2:]]


def einsum(site: Site) -> Value:
    return site.builder.apply(
        torch.einsum, site.text("equation", ""), *(site.value(i) for i in range(len(site.inputs)))
    )


RULES: dict[str, Rule] = {
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concatenation,
    "Slice": cut,
    "Split": split,
    "Gather": gather,
    "GatherND": gather_points,
    "Pad": padding,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": filled,
    "Range": steps,
    "Constant": constant_node,
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum),
    "ReduceMax": reduction(torch.amax),
    "ReduceMin": reduction(torch.amin),
    "ReduceL1": reduction(_sum_of_sizes),
    "ReduceL2": reduction(_length),
    "ReduceSumSquare": reduction(_sum_of_squares),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "Upsample": resize,
    "Einsum": einsum,
}
