"""The Python API: every step of the pipeline as a function of its inputs, without a run folder.

Import these names from `qrobust` itself. Images are `(N, C, S, S)` in [0, 1], C being 3 or 1; a classifier is
anything that maps them to logits `(N, K)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qrobust.classifier import Classifier, Compensated, NormalizedModel
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.fit import CalibratorData, CalibratorFit, Checkpoints, FrozenClassifier
from qrobust.compensation.fit import fit_calibrator as fit
from qrobust.data.loading import open_data
from qrobust.data.own_images import as_split
from qrobust.data.splits import Data, TrainingData
from qrobust.deployment.audit import explained_audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.deploy import deploy, times_ms
from qrobust.deployment.export import export
from qrobust.deployment.imported import check_import, origin_of
from qrobust.deployment.parity import parity as compare_outputs
from qrobust.deployment.profiling import latencies_ms
from qrobust.device import find_device
from qrobust.errors import InputError
from qrobust.models.loading import as_classifier, interface_of, load_model
from qrobust.models.outputs import unwrapped
from qrobust.models.registry import find_model
from qrobust.paths import user_path
from qrobust.preprocessing import Preprocessing, PreprocessingConfig, resolve
from qrobust.progress import Reporter
from qrobust.quantization.config import QuantizationConfig
from qrobust.quantization.quantize import FakeQuantizedModel, find_target, quantize_classifier
from qrobust.quantization.sensitivity import LayerEffect, layer_effects
from qrobust.quantization.tracing import folded
from qrobust.record import ExplainedAudit, Parity
from qrobust.shifts.filters import to_unit
from qrobust.shifts.generic import FAMILIES
from qrobust.shifts.registry import refuse_measured_alone, table_for
from qrobust.storage import scratch

# Random images on which a network that was read of an ONNX file is compared with the file.
IMPORTED_IMAGES = 4


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
    calibration_images: int | None = None,
    seed: int = 0,
) -> Data:
    """Open a data set as four disjoint, seeded splits.

    Args:
        spec: `imagefolder:DIR`, `list:FILE`, `npz:FILE`, `torchvision:NAME` or `digits`.
        image_size: S in pixels. Default: the images' own where they are small and alike.
        preprocessing: how images get that size, instead of `image_size`.
        calibration_images: how many training images ranges are observed on. Default: an eighth, 32 to 512.
        seed: of the splits.

    Returns:
        `calibration`, `training`, `validation` and `test` splits, and `class_names`.

    Raises:
        InputError: there is no such data set, or too few images for a split.
    """
    data = open_data(spec, seed=seed, image_size=image_size, calibration_images=calibration_images)
    return data if preprocessing is None else data.prepared(preprocessing)


def load_classifier(
    spec: str | nn.Module,
    *,
    num_classes: int,
    image_size: int,
    weights: str | Path | None = None,
    pretrained: bool = False,
    normalization: str | None = None,
    channel_order: str = "rgb",
    seed: int = 0,
) -> NormalizedModel:
    """A float classifier in evaluation mode, whose normalisation is inside.

    Args:
        spec: a network of one's own, which is left in evaluation mode, without gradients and without what wraps it;
            a built-in name, `torchvision:NAME`, `timm:NAME`, `FILE.py:FACTORY` or `FILE.onnx`, which
            is compared with the network that is made of it.
        num_classes: K.
        image_size: S in pixels.
        weights: a checkpoint, or `FILE:KEY` where it holds several weights; nothing in it is executed.
        pretrained: take torchvision's or timm's own weights.
        normalization: `imagenet`, `cifar10`, `none` or `m,m,m/s,s,s`. Default: the named network's; a network of
            one's own needs one.
        channel_order: of the network; a `bgr` one is given RGB images all the same, and swaps inside.
        seed: of random weights, where there are none to load.

    Raises:
        InputError: weights that do not fit, or a network of one's own without `normalization`.
    """
    if isinstance(spec, nn.Module):
        if normalization is None:
            raise InputError("normalization: expected one for a network of your own, such as 'imagenet', got none")
        return _own(spec, num_classes, image_size, normalization, channel_order)
    found = load_model(
        find_model(spec),
        classes=num_classes,
        image_size=image_size,
        weights=None if weights is None else user_path(weights),
        pretrained=pretrained,
        normalization=normalization,
        seed=seed,
        channel_order=channel_order,
    )
    if origin_of(found.network) is not None:
        shape = (IMPORTED_IMAGES, found.channels, image_size, image_size)
        check_import(
            found.network, found.normalization(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        )
    return found


def _own(network: nn.Module, classes: int, image_size: int, normalization: str, order: str) -> NormalizedModel:
    """A classifier of a network of one's own."""
    inner = unwrapped(network)
    assert isinstance(inner, nn.Module)
    name = type(inner).__name__
    interface = interface_of(inner.eval().requires_grad_(False), name, classes, image_size)
    chosen = PreprocessingConfig(normalization=normalization, channel_order=order)
    prepared = resolve(chosen, PreprocessingConfig(), image_size, native_size=None, channels=interface.channels)
    return as_classifier(inner, name, prepared, interface.output)


def quantize(
    model: NormalizedModel,
    calibration: Any,
    config: QuantizationConfig | None = None,
    *,
    validation: Any = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> FakeQuantizedModel:
    """Post-training quantization: the classifier with the integers that its exported graph will have.

    Args:
        model: from `load_classifier`; it is not changed.
        calibration: images on which ranges are observed: a split, `(images, labels)` in uint8, or a torch data set.
        config: bits, target and tricks.
        validation: labelled images to choose by. Default: `calibration`.
        seed: of learned rounding.
        device: to work on: `auto` (a GPU if there is one), `cpu`, `cuda:N` or `mps`. The result is on the CPU.
        reporter: where progress is told.

    Raises:
        InputError: the model cannot be traced, an activation has no usable range, or there is no such device.
    """
    observed_on = as_split(calibration)
    chosen_by = observed_on if validation is None else as_split(validation)
    chosen = config or QuantizationConfig()

    def timer(first: nn.Module, others: Iterable[nn.Module]) -> list[float]:
        shape = observed_on.read(slice(1)).shape
        return times_ms(first, others, find_target(chosen.target), image_size=shape[-1], channels=shape[1])

    return quantize_classifier(
        model,
        observed_on,
        chosen_by,
        chosen,
        seed=seed,
        device=find_device(device),
        timer=timer,
        reporter=reporter,
    )


def sensitivity(quantized: FakeQuantizedModel, validation: Any, *, device: str = "auto") -> list[LayerEffect]:
    """What quantizing each layer alone costs on labelled validation images, in order of execution."""
    place = find_device(device)
    return layer_effects(quantized.observed.graph, quantized.module, as_split(validation), device=place)


def export_onnx(
    model: nn.Module | FakeQuantizedModel, path: str | Path, *, image_size: int, channels: int = 3
) -> Path:
    """Write a classifier as one checked ONNX file with a dynamic batch.

    Args:
        model: a float classifier, a fake-quantized one, or `compensated(...)`; integers are written as such.
        path: the file; its folder must exist.
        image_size: S in pixels.
        channels: C, 3 or 1.

    Raises:
        ExportCheckError: the exporter or the ONNX checker refuses the model.
    """
    module = model.module if isinstance(model, FakeQuantizedModel) else model
    if isinstance(module, NormalizedModel):
        module = folded(module, torch.full((1, channels, image_size, image_size), 0.5))
    export(module, Path(path), image_size, channels=channels)
    return Path(path)


def audit(path: str | Path, *, image_size: int | None = None) -> ExplainedAudit:
    """Count what onnxruntime runs on integers in an ONNX file, and say what keeps the rest in float."""
    return explained_audit(Path(path), image_size)


def parity(torch_classifier: Classifier, onnx_classifier: Classifier, images: Any) -> Parity:
    """Compare a torch classifier with its graph on labelled images; see `qrobust.deployment.parity.parity`."""
    split = as_split(images)
    return compare_outputs(torch_classifier, onnx_classifier, to_unit(split.read(slice(None))), split.labels)


def latency(classifiers: Mapping[str, OnnxClassifier], *, image_size: int, batch_size: int = 1) -> dict[str, float]:
    """Milliseconds per batch of ONNX Runtime classifiers, measured in turn, so that ratios can be believed."""
    return latencies_ms(dict(classifiers), image_size, batch_size)


def fit_calibrator(
    quantized: FakeQuantizedModel,
    teacher: NormalizedModel,
    data: Data,
    conditions: Sequence[tuple[str, int]] = (),
    config: CalibratorConfig | None = None,
    *,
    families: Sequence[str] = FAMILIES,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    reporter: Reporter | None = None,
) -> CalibratorFit:
    """Train a calibrator in front of a frozen quantized classifier, and choose it by what onnxruntime measures.

    Args:
        quantized: from `quantize`; none of it changes.
        teacher: the float classifier.
        data: from `load_data`; it learns from `training`, chooses by `validation` and never sees `test`.
        conditions: (shift, severity) pairs to train on, beside random operations.
        config: budgets and training.
        families: of random operations to train on, see `qrobust.shifts.generic`; where there are conditions they have
            half of the rendered images.
        seed: of the first weights, and of every step.
        device: to train on, as for `quantize`.
        checkpoint: folder to resume from. Default: none is kept.
        reporter: where progress is told.

    Raises:
        InputError: no calibrator fits the budgets, there is nothing to learn from, or a condition is for measuring
            alone.
    """
    refuse_measured_alone("conditions", [name for name, _ in conditions])
    size, channels = data.image_size, teacher.channels

    def deployed(module: nn.Module) -> OnnxClassifier:
        return deploy(module, quantized.target, image_size=size, channels=channels)

    training = TrainingData(data.training, list(conditions), table_for(size), families=tuple(families))
    classifier = FrozenClassifier(quantized.module, teacher, quantized.target, deployed)
    images = CalibratorData(training, data.validation, data.calibration)
    with scratch() as temporary:
        folder = temporary if checkpoint is None else Path(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(folder / "float.pt", folder / "int8.pt", folder / "chosen.json")
        return fit(
            classifier,
            images,
            config or CalibratorConfig(),
            checkpoints=checkpoints,
            seed=seed,
            device=find_device(device),
            reporter=reporter,
        )


def compensated(fitted: CalibratorFit, quantized: FakeQuantizedModel) -> Compensated:
    """The calibrator in front of the classifier, as one torch module to measure or export."""
    return Compensated(fitted.calibrator, quantized.module)
