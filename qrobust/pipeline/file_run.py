"""A run of a file that is quantized already: what it was read as, and how its graph is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import fx, nn

import qrobust
from qrobust.classifier import Compensated, Normalization, NormalizedModel, Signalling
from qrobust.data.splits import PIXELS, Data
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.deploy import open_on_target, session_options
from qrobust.deployment.export import export as export_graph
from qrobust.deployment.front import FileInput, put_in_front
from qrobust.deployment.imported import LEAST_AGREEMENT, check_integers, ended, origin_of
from qrobust.errors import InputError
from qrobust.evaluation.predictions import BATCH
from qrobust.models.onnx_import.file import OnnxFile, read_onnx
from qrobust.models.onnx_import.integers import Dequantize, FakeQuantize, Quantize
from qrobust.models.onnx_import.network import Origin, as_network
from qrobust.models.onnx_import.values import Layer
from qrobust.models.registry import ModelSpec, find_model
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.run import Run
from qrobust.quantization.tracing import trace
from qrobust.record import ImportResult, Parity, SplitSummary
from qrobust.remedies import CALIBRATOR
from qrobust.shifts.filters import to_unit
from qrobust.storage import scratch

# Of a graph in torch: numbers of the file that are others than the file's.
CONSTANTS = "constants"
LEAVES = (Normalization, Quantize, Dequantize, FakeQuantize)
# Of so many images one may differ: fewer are not enough to tell a sound file by.
LEAST_COMPARED = math.ceil(1 / (1 - LEAST_AGREEMENT))


def constants_of(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """By name, the tensors of the file that are others in a graph of its integers; none in the file's own."""
    found: Mapping[str, torch.Tensor] = getattr(model, "meta", {}).get(CONSTANTS, {})
    return found


def batches_to_compare(data: Data, count: int = PARITY_IMAGES) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images on which a file and what was read of it are compared.

    Where there are few validation images, calibration and training images follow, and then the same images in the
    seven other symmetries of a square. Nothing is chosen or learned by the comparison.

    Args:
        data: the four splits; test images are not read.
        count: of images at most; fewer where they are large (`Split.at_most`), but `LEAST_COMPARED` if there are.

    Yields:
        Pixels `(n, C, S, S)` uint8 and labels `(n,)`.
    """
    left = max(LEAST_COMPARED, min(count, PIXELS // data.image_size**2))
    for mirrored, quarters in itertools.product((False, True), range(4)):
        for split in (data.validation, data.calibration, data.training):
            for pixels, labels in split.first(left).batches(BATCH):
                seen = pixels.flip(3) if mirrored else pixels
                yield seen.rot90(quarters, (2, 3)), labels
                left -= len(labels)


class FileRun(Run):
    """A run whose INT8 classifier is a file, which is its own teacher."""

    teacher_name: ClassVar[str] = "the file"
    remedy: str = CALIBRATOR

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The file.

        Raises:
            InputError: it is not an ONNX file that is quantized.
        """
        if not self.config.model.spec.endswith(".onnx"):
            raise InputError(f"model: expected FILE.onnx, got {self.config.model.spec}")
        return find_model(self.config.model.spec, quantized=True)

    @cached_property
    def origin(self) -> Origin:
        """What was read of the file."""
        found = origin_of(self.model.network)
        assert found is not None
        return found

    @property
    def given(self) -> FileInput:
        """What the file takes."""
        prepared = self.preprocessing
        assert prepared.mean is not None
        assert prepared.std is not None
        return FileInput(prepared.mean, prepared.std, prepared.channel_order, prepared.size)

    def as_the_file_ends(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as the file gives them, which may be probabilities."""
        return ended(logits, next(iter(self.origin.ending.kinds.values()), ""))

    @cached_property
    def fake_quantized(self) -> fx.GraphModule:
        """The file's integers in torch, with gradients."""
        return trace(self.model, LEAVES).eval().requires_grad_(False)

    @property
    def kept_splits(self) -> Mapping[str, SplitSummary]:
        """Which images each split held when the folder was made."""
        return self.require_folder().need_result(ImportResult, "import", "compensate").splits

    @cached_property
    def measured(self) -> Parity:
        """These integers against the file, on `batches_to_compare`.

        Raises:
            InputError: they differ; see `check_integers`.
        """
        batches = (
            (self.model.normalization(to_unit(pixels)), labels) for pixels, labels in batches_to_compare(self.data)
        )
        return check_integers(self.model.network, batches, self.config.threads, **session_options(self.target))

    def onnx_classifier(self, name: str) -> OnnxClassifier:
        """A graph of the folder; the teacher is the file."""
        return super().onnx_classifier("int8" if name == "float" else name)

    def deploy(self, model: nn.Module) -> OnnxClassifier:
        """A torch module as onnxruntime runs it: behind a calibrator stands the file itself."""
        if model is self.fake_quantized and (made := self.folder) and made.graph("int8").exists():
            return self.onnx_classifier("int8")
        behind = model.classifier if isinstance(model, Compensated) else model
        constants = constants_of(behind)
        if not (behind is self.fake_quantized or constants or isinstance(model, Compensated)):
            return super().deploy(model)
        with scratch() as folder:
            path = folder / "graph.onnx"
            calibrator = model.calibrator if isinstance(model, Compensated) else None
            self.write(path, calibrator, constants=constants)
            return open_on_target(path, self.target, self.config.threads)

    @cached_property
    def file(self) -> OnnxFile:
        """The file with its tensors."""
        return read_onnx(self.origin.file.path)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """What the layers of `fake_quantized` were read of, by name."""
        return {f"network.{name}": layer for name, layer in self.origin.layers.items()}

    def with_constants(self, constants: Mapping[str, torch.Tensor]) -> fx.GraphModule:
        """What `fake_quantized` would be if the file held other numbers; `constants_of` tells which."""
        file = replace(self.file, constants={**self.file.constants, **constants})
        model = NormalizedModel(as_network(file), self.model.normalization, self.model.logits)
        found = trace(model, LEAVES).eval().requires_grad_(False)
        found.meta[CONSTANTS] = dict(constants)
        return found

    def write(
        self,
        path: Path,
        calibrator: nn.Module | None,
        name: str = "",
        constants: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """The file's graph with images in [0, 1] as its input, and a calibrator in front.

        Args:
            path: of what is written.
            calibrator: frozen; or None.
            name: of the graph, in its metadata; without one it has none.
            constants: other numbers for tensors that the file stores, by name.
        """
        front = None
        with scratch() as folder:
            if calibrator is not None:
                told = calibrator
                if self.config.calibrator.correction_output and name:
                    told = Signalling(Compensated(calibrator, nn.Identity()))
                front = folder / "calibrator.onnx"
                export_graph(told, front, self.data.image_size, channels=self.model.channels)
            put_in_front(
                self.origin.file.path,
                self.given,
                path,
                calibrator=front,
                constants=constants,
                metadata=self._metadata(name) if name else None,
            )

    def _metadata(self, name: str) -> dict[str, object]:
        return {
            "qrobust.graph": name,
            "qrobust.version": qrobust.__version__,
            "class_names": list(self.data.class_names),
            "preprocessing": self.preprocessing.as_metadata(),
            "provenance": {
                "model": self.config.model.spec,
                "data": self.config.data.spec,
                "seed": self.config.seed,
                "torch": torch.__version__,
            },
        }
