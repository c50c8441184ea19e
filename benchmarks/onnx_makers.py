"""How the files of `onnx_files.py` are made: by tools that are not qrobust's, from networks that are trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qrobust.classifier import NormalizedModel


@dataclass(frozen=True, eq=False)
class Source:
    """A trained network.

    Attributes:
        name: of the network.
        model: with its normalisation inside.
        side: of its images, in px.
    """

    name: str
    model: NormalizedModel
    side: int


Make = Callable[[Source, Path, "torch.Tensor"], None]


@dataclass(frozen=True)
class Case:
    """A file to make.

    Attributes:
        source: name of the network.
        maker: which tool writes the file, after which exporter.
        make: from the network, the path and images `(n, 3, S, S)` in uint8.
        normalization: what the input is; empty for bytes.
        compensate: whether a calibrator is put in front.
    """

    source: str
    maker: str
    make: Make
    normalization: str = "none"
    compensate: bool = False


def small_network() -> torch.nn.Module:
    """Depthwise convolutions, squeeze-and-excitation, hardswish, a concatenation: logits `(N, 10)` of 32 px."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, wide: int, out: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(wide, wide, 3, 2, 1, groups=wide, bias=False)
            self.norm, self.act = nn.BatchNorm2d(wide), nn.Hardswish()
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide // 4, 1), nn.ReLU(), nn.Conv2d(wide // 4, wide, 1)
            )
            self.point, self.last = nn.Conv2d(wide, out - wide, 1, bias=False), nn.BatchNorm2d(out)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act(self.norm(self.depthwise(x)))
            y = y * nn.functional.hardsigmoid(self.gate(y))
            return nn.functional.relu6(self.last(torch.cat([self.point(y), self.pool(x)], 1)))

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 48),
        Block(48, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(96, 10),
    )


def by_torch(source: Source, path: Path, images: torch.Tensor, *, opset: int, new: bool, bare: bool = False) -> None:
    """torch's exporter: the new one (`dynamo`) or the old one (TorchScript).

    Args:
        bare: leave out the normalisation, which is then the caller's.
    """
    network = source.model.network if bare else source.model
    _export(network, images[:2].float() / 255, path, opset=opset, new=new)


def bytes_by_torch(
    source: Source, path: Path, images: torch.Tensor, *, opset: int, new: bool, copied: bool = True
) -> None:
    """A file that takes pixels as a camera gives them: `(N, S, S, 3)` in uint8.

    Args:
        copied: lay the planes out anew. Else the new exporter writes a later reshape as a gather from places that it
            counts from the batch.
    """
    from torch import nn

    class Camera(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = source.model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            planes = pixels.permute(0, 3, 1, 2)
            return self.model((planes.contiguous() if copied else planes).float() / 255)

    _export(Camera().eval(), images[:2].permute(0, 2, 3, 1).contiguous(), path, opset=opset, new=new)


def _export(network: torch.nn.Module, example: torch.Tensor, path: Path, *, opset: int, new: bool) -> None:
    import torch

    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": opset}
    if new:
        batch = ({0: torch.export.Dim("N")},)
        made = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=batch, verbose=False, **names)
        assert made is not None
        made.save(path, external_data=False)
        return
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(network, (example,), path, dynamo=False, dynamic_axes=axes, **names)


def by_quantize_static(
    source: Source, path: Path, images: torch.Tensor, *, before: Make, kind: str, signed: bool, per_channel: bool
) -> None:
    """onnxruntime's `quantize_static` on the float file that `before` makes."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self, left: list[Any]) -> None:
            self.left = left

        def get_next(self) -> dict[str, Any] | None:
            return {"x": self.left.pop()} if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        before(source, plain, images)
        (taken,) = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"]).get_inputs()
        pixels = (
            images.permute(0, 2, 3, 1).numpy() if taken.type == "tensor(uint8)" else (images.float() / 255).numpy()
        )
        quantize_static(
            plain,
            path,
            Images([pixels[start : start + 32] for start in range(0, len(pixels), 32)]),
            quant_format=QuantFormat[kind],
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
        )


def in_half_precision(source: Source, path: Path, images: torch.Tensor, *, before: Make) -> None:
    """onnxruntime's converter to float16, inputs and outputs too."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    before(source, path, images)
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=False), path)


def optimized(source: Source, path: Path, images: torch.Tensor, *, before: Make) -> None:
    """What onnxruntime writes of a graph that it simplified with ONNX's own operators."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        before(source, plain, images)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])


def converted(source: Source, path: Path, images: torch.Tensor, *, before: Make, opset: int) -> None:
    """onnx's converter to another opset."""
    import onnx
    from onnx import version_converter

    before(source, path, images)
    onnx.save(version_converter.convert_version(onnx.load(path), opset), path)


def slim(source: Source, path: Path, images: torch.Tensor, *, before: Make) -> None:
    """onnxslim's simpler graph."""
    import onnx
    import onnxslim

    before(source, path, images)
    onnx.save(onnxslim.slim(str(path)), path)


def by_qrobust(source: Source, path: Path, images: torch.Tensor) -> None:
    """qrobust's own INT8 graph."""
    import torch

    import qrobust

    quantized = qrobust.quantize(source.model, (images, torch.zeros(len(images), dtype=torch.int64)))
    qrobust.export_onnx(quantized, path, image_size=source.side)


def old(opset: int, *, bare: bool = False) -> Make:
    return partial(by_torch, opset=opset, new=False, bare=bare)


def new(opset: int, *, bare: bool = False) -> Make:
    return partial(by_torch, opset=opset, new=True, bare=bare)


def static(before: Make, kind: str = "QDQ", *, signed: bool = False, per_channel: bool = True) -> Make:
    return partial(by_quantize_static, before=before, kind=kind, signed=signed, per_channel=per_channel)


OLD, NEW = "torch (TorchScript)", "torch (dynamo)"
STATIC = "onnxruntime quantize_static"
CASES: dict[str, Case] = {
    "resnet20-old-11": Case("resnet20", OLD, old(11)),
    "resnet20-old-13-normalized": Case("resnet20", OLD, old(13, bare=True), "imagenet"),
    "resnet20-old-17": Case("resnet20", OLD, old(17)),
    "resnet20-new-18": Case("resnet20", NEW, new(18)),
    "resnet20-new-21-normalized": Case("resnet20", NEW, new(21, bare=True), "imagenet"),
    "resnet20-bytes-old-15": Case("resnet20", OLD, partial(bytes_by_torch, opset=15, new=False), ""),
    "resnet20-bytes-new-18": Case("resnet20", NEW, partial(bytes_by_torch, opset=18, new=True), ""),
    "resnet20-bytes-strided-18": Case("resnet20", NEW, partial(bytes_by_torch, opset=18, new=True, copied=False), ""),
    "resnet20-half": Case("resnet20", "onnxruntime float16", partial(in_half_precision, before=old(17))),
    "resnet20-optimized": Case("resnet20", "onnxruntime optimizer", partial(optimized, before=new(18))),
    "resnet20-converted": Case("resnet20", "onnx version_converter", partial(converted, before=old(13), opset=20)),
    "resnet20-slim": Case("resnet20", "onnxslim", partial(slim, before=new(18))),
    "resnet20-qdq": Case("resnet20", STATIC, static(old(17)), compensate=True),
    "resnet20-qdq-signed-13": Case("resnet20", STATIC, static(old(13), signed=True, per_channel=False), "none", True),
    "resnet20-qoperator-11": Case("resnet20", STATIC, static(old(11), "QOperator", per_channel=False), "none", True),
    "resnet20-qoperator-signed": Case("resnet20", STATIC, static(new(18), "QOperator", signed=True), "none", True),
    "resnet20-bytes-qdq": Case(
        "resnet20", STATIC, static(partial(bytes_by_torch, opset=17, new=False)), "", compensate=True
    ),
    "resnet20-qrobust": Case("resnet20", "qrobust", by_qrobust, compensate=True),
    "digits-old-16": Case("digits", OLD, old(16)),
    "digits-new-19": Case("digits", NEW, new(19)),
    "digits-bytes-new-20": Case("digits", NEW, partial(bytes_by_torch, opset=20, new=True), ""),
    "digits-half": Case("digits", "onnxruntime float16", partial(in_half_precision, before=old(13))),
    "digits-slim": Case("digits", "onnxslim", partial(slim, before=old(14))),
    "digits-converted": Case("digits", "onnx version_converter", partial(converted, before=old(12), opset=17)),
    "digits-qdq": Case("digits", STATIC, static(new(18)), compensate=True),
    "digits-qdq-signed-13": Case("digits", STATIC, static(old(13), signed=True), compensate=True),
    "digits-qoperator-12": Case("digits", STATIC, static(old(12), "QOperator", per_channel=False), compensate=True),
    "digits-qoperator-signed": Case("digits", STATIC, static(old(17), "QOperator", signed=True), compensate=True),
    "digits-bytes-qdq": Case("digits", STATIC, static(partial(bytes_by_torch, opset=17, new=False)), "", True),
    "digits-qrobust": Case("digits", "qrobust", by_qrobust, compensate=True),
    "regnetx-new-20": Case("regnetx_002", NEW, new(20)),
    "dla46_c-old-12": Case("dla46_c", OLD, old(12)),
    "cs3darknet-new-19": Case("cs3darknet_s", NEW, new(19)),
    "resnet18-old-14": Case("resnet18", OLD, old(14)),
    "repvgg-old-17": Case("repvgg_a0", OLD, old(17)),
    "gernet-new-18": Case("gernet_s", NEW, new(18)),
    "hgnetv2-half": Case("hgnetv2_b0", "onnxruntime float16", partial(in_half_precision, before=old(16))),
    "regnetx-qdq": Case("regnetx_002", STATIC, static(old(17)), compensate=True),
    "resnet18-qoperator": Case("resnet18", STATIC, static(old(17), "QOperator"), "none", True),
    "cs3darknet-qdq": Case("cs3darknet_s", STATIC, static(new(18), signed=True)),
}
