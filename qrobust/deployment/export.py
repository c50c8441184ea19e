"""The only way to ONNX: one classifier in, one checked ONNX file out."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from qrobust.classifier import Signalling
from qrobust.deployment.onnx_graph import CORRECTION, OPSET, Node, array, attributes
from qrobust.errors import ExportCheckError, InputError
from qrobust.quantization.integer_layers import (
    WIDE,
    WIDENED,
    ActivationQuantizer,
    GlobalAveragePool,
    IntegerConv2d,
    IntegerLinear,
)
from qrobust.storage import atomic_write

INPUT, OUTPUTS = "images", ("logits", CORRECTION)


def _op(
    name: str, *inputs: torch.Tensor, shape: torch.Size, dtype: torch.dtype, **attributes: int | list[int]
) -> torch.Tensor:
    return torch.onnx.ops.symbolic(name, inputs, dict(attributes), dtype=dtype, shape=shape, version=OPSET)


def _dequantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, **axis: int) -> torch.Tensor:
    return _op("DequantizeLinear", x, scale, zero_point, shape=x.shape, dtype=torch.float32, **axis)


class _ExportedQuantizer(nn.Module):
    """QuantizeLinear then DequantizeLinear; fewer than 8 bits are clipped in their 8-bit container."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, source: ActivationQuantizer) -> None:
        super().__init__()
        integer = torch.uint8 if source.qmin >= 0 else torch.int8
        limits = torch.iinfo(integer)
        self.narrow = (source.qmin, source.qmax) != (limits.min, limits.max)
        self.register_buffer("scale", source.scale.clone())
        self.register_buffer("zero_point", source.zero_point.to(integer))
        self.register_buffer("low", torch.tensor(source.qmin, dtype=integer))
        self.register_buffer("high", torch.tensor(source.qmax, dtype=integer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        integers = _op("QuantizeLinear", x, self.scale, self.zero_point, shape=x.shape, dtype=self.zero_point.dtype)
        if self.narrow:
            integers = _op("Clip", integers, self.low, self.high, shape=x.shape, dtype=self.zero_point.dtype)
        return _dequantize(integers, self.scale, self.zero_point)


class _ExportedLayer(nn.Module):
    """DequantizeLinear on integer weights and on the int32 bias, then the float operator."""

    weight: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero: torch.Tensor
    bias: torch.Tensor
    bias_scale: torch.Tensor
    bias_zero: torch.Tensor

    def __init__(self, source: IntegerConv2d | IntegerLinear) -> None:
        super().__init__()
        self.register_buffer("weight", source.weight_int.clone())
        self.register_buffer("weight_scale", source.weight_scale.clone())
        self.register_buffer("weight_zero", torch.zeros(len(source.weight_int), dtype=torch.int8))
        self.register_buffer("bias", source.bias_int.clone())
        self.register_buffer("bias_scale", source.bias_scale.clone())
        self.register_buffer("bias_zero", torch.zeros(len(source.bias_int), dtype=torch.int32))
        self.source = source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = _dequantize(self.weight, self.weight_scale, self.weight_zero, axis=0)
        bias = _dequantize(self.bias, self.bias_scale, self.bias_zero, axis=0)
        if isinstance(self.source, IntegerConv2d):
            return self._convolution(self.source, x, weight, bias)
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])  # Gemm knows matrices only
        shape = torch.Size([rows.shape[0], weight.shape[0]])
        product = _op("Gemm", rows, weight, bias, shape=shape, dtype=torch.float32, transB=1)
        return product if x.ndim == 2 else product.reshape(*x.shape[:-1], -1)

    def _convolution(
        self, conv: IntegerConv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        left, right, top, bottom = conv.padding
        if left == right and top == bottom:
            return nn.functional.conv2d(x, weight, bias, conv.stride, (top, left), conv.dilation, conv.groups)
        sides = [
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, before, after, d, k, s in zip(
                x.shape[2:], (top, left), (bottom, right), conv.dilation, weight.shape[2:], conv.stride, strict=True
            )
        ]
        shape = torch.Size([x.shape[0], len(weight), *sides])
        return _op(
            "Conv",
            x,
            weight,
            bias,
            shape=shape,
            dtype=torch.float32,
            pads=[top, left, bottom, right],
            strides=list(conv.stride),
            dilations=list(conv.dilation),
            group=conv.groups,
        )


class _ExportedPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _op("GlobalAveragePool", x, shape=torch.Size([*x.shape[:2], 1, 1]), dtype=torch.float32)


def _exportable(model: nn.Module) -> nn.Module:
    """A copy in which every frozen layer writes its exact ONNX operators."""
    exported = copy.deepcopy(model).eval().requires_grad_(False)
    made: dict[int, nn.Module] = {}
    for parent in list(exported.modules()):
        for name, child in list(parent._modules.items()):  # named_children() hides a module's second name
            if id(child) not in made:
                if isinstance(child, ActivationQuantizer):
                    made[id(child)] = _ExportedQuantizer(child)
                elif isinstance(child, IntegerConv2d | IntegerLinear):
                    made[id(child)] = _ExportedLayer(child)
                elif isinstance(child, GlobalAveragePool):
                    made[id(child)] = _ExportedPool()
                else:
                    continue
            setattr(parent, name, made[id(child)])
    return exported


def export(
    model: nn.Module,
    path: Path,
    image_size: int,
    metadata: dict[str, object] | None = None,
    *,
    channels: int = 3,
    storage: str = "int8",
) -> None:
    """Write a classifier as one ONNX file, checked, with a dynamic batch.

    Args:
        model: maps images `(N, C, S, S)` float32 in [0, 1] to logits `(N, K)`; fake-quantized models are written with
            integer weights between QuantizeLinear and DequantizeLinear. The gate of a `Signalling` one is a second
            output, `correction`.
        path: the file, replaced only when the new one is whole.
        image_size: S in pixels.
        channels: C.
        storage: `int8`, or `int4` to store weights that fit into 4 bits as such: a smaller file that onnxruntime
            unpacks once, when it is loaded.
        metadata: stored as the file's metadata, values as JSON unless they are strings.

    Raises:
        ExportCheckError: the exporter or the ONNX checker refuses the model.
        InputError: the model joins images of a batch in a way that holds for one batch size only.
    """
    example = torch.full((2, channels, image_size, image_size), 0.5)
    noise = io.StringIO()
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _exportable(model),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=[INPUT],
                output_names=OUTPUTS[: 2 if isinstance(model, Signalling) else 1],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
                optimize=True,
            )
    except Exception as error:  # the exporter raises many types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ExportCheckError(f"export: torch.onnx cannot export this model ({reason})") from error
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    proto = program.model_proto
    if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise InputError(
            f"model: its graph holds for batches of {len(example)} alone{_joining(model, example)}; keep the images "
            "of a batch apart, such as (f(x) + f(x.flip(3))) / 2 instead of both views along the batch"
        )
    _strip(proto)
    _unshare_constants(proto)  # first: the others change constants for the one reader that they look at
    _widen(proto)
    if storage == "int4":
        _pack_weights(proto)
    for key, value in (metadata or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    proto.producer_name, proto.producer_version = "qrobust", ""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker raises several types
        name = (metadata or {}).get("qrobust.graph", path.name)
        raise ExportCheckError(f"export: the ONNX checker refuses {name} ({error})") from error
    with atomic_write(path) as part:
        onnx.save_model(proto, part)


def _joining(model: nn.Module, example: torch.Tensor) -> str:
    """The first operator of a traced model whose result is of another batch size than the images."""
    if isinstance(model, fx.GraphModule):
        graph = copy.deepcopy(model)
        ShapeProp(graph).propagate(example)
        images = {node for node in graph.graph.nodes if node.op == "placeholder"}
        for node in [n for n in graph.graph.nodes if n.op.startswith("call")]:
            meta = node.meta.get("tensor_meta")
            if images.isdisjoint(node.all_input_nodes) or not isinstance(meta, TensorMetadata):
                continue
            images.add(node)
            if meta.shape[:1] != (len(example),):
                return f", since {node.name!r} makes {meta.shape[0] if meta.shape else 'one'} rows of them"
    return ""


def _widen(proto: onnx.ModelProto) -> None:
    """Give convolutions of three uint8 channels a fourth of zeros, see `integer.WIDENED`: results stay equal."""
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Node] = []
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        pixels, weights = (made.get(name) for name in node.input[:2]) if node.op_type == "Conv" else (None, None)
        if (
            pixels is not None
            and pixels.op_type == "DequantizeLinear"
            and initializers[pixels.input[2]].data_type == onnx.TensorProto.UINT8
            and weights is not None
            and weights.op_type == "DequantizeLinear"
            and tuple(initializers[weights.input[0]].dims[1:]) == WIDENED
            and attributes(node).get("group", 1) == 1
        ):
            stored, zero = initializers[weights.input[0]], array(initializers[pixels.input[2]])
            values = np.pad(array(stored), [(0, 0), (0, WIDE - WIDENED[0]), (0, 0), (0, 0)])
            stored.CopyFrom(onnx.numpy_helper.from_array(values, stored.name))
            name = f"{node.name}_wide"
            ends = np.array([0, 0, 0, 0, 0, WIDE - WIDENED[0], 0, 0])
            graph.initializer.append(onnx.numpy_helper.from_array(ends, f"{name}_ends"))
            graph.initializer.append(onnx.numpy_helper.from_array(zero.reshape(()), f"{name}_zero"))
            integers = [pixels.input[0], f"{name}_ends", f"{name}_zero"]
            nodes.append(onnx.helper.make_node("Pad", integers, [f"{name}_integers"], f"{name}_pad"))
            scaled = [f"{name}_integers", *pixels.input[1:]]
            nodes.append(onnx.helper.make_node("DequantizeLinear", scaled, [name], f"{name}_dequantize"))
            node.input[0] = name
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in read)


def _pack_weights(proto: onnx.ModelProto) -> None:
    """Store int8 weights in [-8, 7] as int4, unpacked by a Cast, which onnxruntime folds at load time.

    A DequantizeLinear straight on int4 would leave the convolution in float.
    """
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    casts = []
    for node in proto.graph.node:
        tensor = initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.min() < -8 or values.max() > 7:
            continue
        name, packed = tensor.name, f"{tensor.name}_int4"
        nibbles = np.append(values.flatten() & 0xF, [0] * (values.size % 2)).astype(np.uint8).reshape(-1, 2)
        raw = (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()
        tensor.CopyFrom(onnx.helper.make_tensor(packed, onnx.TensorProto.INT4, values.shape, raw, raw=True))
        casts.append(onnx.helper.make_node("Cast", [packed], [name], f"{name}_unpack", to=onnx.TensorProto.INT8))
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *rest])


def _unshare_constants(proto: onnx.ModelProto) -> None:
    """Give every reader of a dequantized constant a DequantizeLinear, integers and a zero point of its own.

    onnxruntime's `session.x64quantprecision`, for x86 CPUs without VNNI, rewrites constants in place and refuses a
    graph in which two are one, as those of a layer that is called twice.
    """
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes, taken = list(proto.graph.node), set[str]()
    del proto.graph.node[:]
    for node in nodes:
        proto.graph.node.append(node)
        if node.op_type != "DequantizeLinear" or node.input[0] not in initializers:
            continue
        shared, readers = node.output[0], [n for n in nodes if node.output[0] in n.input]
        for number, reader in enumerate(readers):
            own = proto.graph.node[-1] if number == 0 else proto.graph.node.add()
            if number:
                own.CopyFrom(node)
                own.name, own.output[0] = f"{node.name}_{number}", f"{shared}_{number}"
                reader.input[list(reader.input).index(shared)] = own.output[0]
            for index, what in ((0, "integers"), (2, "zero_point")):
                if own.input[index] in taken:
                    copied = proto.graph.initializer.add()
                    copied.CopyFrom(initializers[own.input[index]])
                    copied.name = own.input[index] = f"{own.output[0]}_{what}"
                taken.add(own.input[index])


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter adds for debugging: it outweighs a small network."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
