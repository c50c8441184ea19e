"""ONNX files with more than one image in and logits out: as a file that has no more than that."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from qrobust.deployment.onnx_graph import CORRECTION, load
from qrobust.deployment.session import open_session
from qrobust.errors import InputError, unknown

RANK = 4
LAYOUTS: dict[str, tuple[int | str, ...]] = {"nchw": ("N", 3, "H", "W"), "nhwc": ("N", "H", "W", 3)}
BOOLS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Interface:
    """How a file is used that has more than an image in and logits out, or does not say how its image lies.

    Attributes:
        output: which output holds the logits; None: the only one.
        layout: `nchw` or `nhwc`; None: as the input's shape tells.
        feed: `NAME=VALUE` of each input beside the image. Booleans that are not given are false, as an input that
            tells training from inference.
    """

    output: str | None = None
    layout: str | None = None
    feed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise InputError(f"layout: expected one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        _ = self.values

    @property
    def values(self) -> dict[str, str]:
        """Names of inputs to what they get."""
        pairs = [entry.partition("=") for entry in self.feed]
        for name, equals, value in pairs:
            if not (name and equals and value):
                raise InputError(f"feed: expected NAME=VALUE, got {name + equals + value!r}")
        return {name: value for name, _, value in pairs}


def plain_graph(path: Path, folder: Path, interface: Interface, *, one_output: bool = True) -> tuple[Path, list[str]]:
    """A file of the same graph with one image input, whose shape tells its layout, and one output.

    Args:
        path: any ONNX file.
        folder: where it is written, if anything has to change.
        interface: how the file is used.
        one_output: refuse several where none is chosen.

    Returns:
        The file, and a sentence for each thing that nobody said.

    Raises:
        InputError: a name is not one of the file's, an input has no value, or the image does not lie as was said.
    """
    session = open_session(path, 1)
    images, logits = session.get_inputs(), [o for o in session.get_outputs() if o.name != CORRECTION]
    plain = len(images) == 1 and len(images[0].shape) == RANK and (len(logits) == 1 or not one_output)
    if plain and interface == Interface():
        return path, []
    proto = load(path)
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    outputs = {value.name: value for value in graph.output if value.name != CORRECTION}
    values, said = _values(inputs, interface.values, path)
    extra = {name: inputs[name] for name in values}
    image = [value for name, value in inputs.items() if name not in extra]
    if interface.output is not None and interface.output not in outputs:
        raise unknown("output", interface.output, outputs)
    if interface.output is None and len(outputs) > 1 and one_output:
        raise InputError(f"output: expected the one of {path} that holds logits, got none; has {', '.join(outputs)}")
    numbers = [value.name for value in image if _is_number(value)]
    if len(image) - len(numbers) > 1:  # whoever opens it says what is wrong
        return path, []
    if len(image) > 1:
        raise InputError(
            f"feed: expected a value for every input of {path} but the image, got none for {', '.join(numbers)}"
        )
    changed = bool(values) or (interface.output is not None and len(graph.output) > 1)
    if image and _declare(image[0], interface.layout, path):
        changed = True
    if not changed:
        return path, said
    for name, value in values.items():
        graph.initializer.append(onnx.numpy_helper.from_array(_constant(extra[name], value, path), name))
    _keep(graph.input, image)
    if interface.output is not None:
        _keep(graph.output, [outputs[interface.output]])
    number = next(n for n in itertools.count() if not (folder / f"{n}-{path.name}").exists())
    found = folder / f"{number}-{path.name}"
    onnx.save_model(proto, found)
    return found, said


def _keep(values: object, kept: Iterable[onnx.ValueInfoProto]) -> None:
    """Leave these alone in a repeated field."""
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del values[:]  # type: ignore[attr-defined]  # protobuf's lists have no type
    values.extend(copies)  # type: ignore[attr-defined]


def _values(
    inputs: Mapping[str, onnx.ValueInfoProto], given: Mapping[str, str], path: Path
) -> tuple[dict[str, str], list[str]]:
    """What each input beside the image gets, and what of that nobody said."""
    for name in given:
        if name not in inputs:
            raise unknown("feed", name, inputs)
    values, said = dict(given), []
    for name, value in inputs.items():
        if value.type.tensor_type.elem_type == onnx.TensorProto.BOOL and name not in values:
            values[name] = "false"
            said.append(f"{path.name}: input {name!r} is given false; --feed {name}=true says otherwise")
    return values, said


def _is_number(about: onnx.ValueInfoProto) -> bool:
    """Whether an input is one number, as far as its shape tells."""
    tensor = about.type.tensor_type
    return (
        tensor.HasField("shape") and len(tensor.shape.dim) < RANK and all(d.dim_value == 1 for d in tensor.shape.dim)
    )


def _constant(about: onnx.ValueInfoProto, value: str, path: Path) -> np.ndarray:
    """A value for an input of one number, of its type and shape."""
    tensor = about.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [dim.dim_value or 1 for dim in tensor.shape.dim]
    if np.prod(dims, dtype=int) != 1:
        raise InputError(f"feed: expected an input of one number, {about.name} of {path} is of shape {tuple(dims)}")
    refused = InputError(f"feed: expected a number of {dtype.name} for {about.name}, got {value!r}")
    if dtype == np.object_:  # texts
        raise refused
    try:
        number = BOOLS[value.lower()] if dtype == np.bool_ else dtype.type(value)
    except (KeyError, ValueError, OverflowError) as error:
        raise refused from error
    if not np.isfinite(number):
        raise refused
    return np.full(dims, number, dtype)


def _declare(image: onnx.ValueInfoProto, layout: str | None, path: Path) -> bool:
    """Have an image's shape tell its layout; whether anything had to change."""
    tensor = image.type.tensor_type
    if not tensor.HasField("shape"):
        _set(tensor, LAYOUTS[layout or "nchw"])
        return True
    dims: Sequence[onnx.TensorShapeProto.Dimension] = tensor.shape.dim
    if layout is None or len(dims) != len(LAYOUTS[layout]):
        return False
    channel = LAYOUTS[layout].index(3)
    fixed = dims[channel].dim_value
    if fixed not in (0, 1, 3):
        raise InputError(
            f"layout: expected 3 channels or 1 where {layout} has them, {path} takes "
            f"{[dim.dim_value or '?' for dim in dims]}"
        )
    own = [dim.dim_value or LAYOUTS[layout][place] for place, dim in enumerate(dims)]
    _set(tensor, own)
    return True


def _set(tensor: onnx.TypeProto.Tensor, dims: Sequence[int | str]) -> None:
    tensor.shape.Clear()
    for dim in dims:
        entry = tensor.shape.dim.add()
        if isinstance(dim, str):
            entry.dim_param = dim
        else:
            entry.dim_value = dim
