"""ONNX files as classifiers: those exported here, and those made elsewhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qrobust.deployment.onnx_graph import CORRECTION
from qrobust.deployment.session import PIXELS, Session, check_batch, open_session, plainly
from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing, parse_normalization
from qrobust.record.typed_json import from_json

CHANNELS = (1, 3)
TINY = torch.finfo(torch.float32).tiny
LOGITS, SCORES = "logits", "scores"
# What probabilities sum to.
WHOLE = {"probabilities": 1.0, "percentages": 100.0}
# Rows of probabilities sum to 1 but for rounding: at worst that of 8-bit outputs, half a step of 1/256 a class.
SUM_TOLERANCE, STEP = 5e-3, 1 / 256


def parse_input_range(text: str | None, channels: int = 3) -> tuple[float, np.ndarray, np.ndarray]:
    """Factor, means and standard deviations: a graph is fed `(factor * images - mean) / std`.

    Args:
        text: `unit` ([0, 1]), `byte` ([0, 255]), `imagenet` or `m,m,m/s,s,s`, for one channel `m/s`; None: `unit`.
        channels: of the images.

    Raises:
        InputError: none of these.
    """
    if text is None or text in ("unit", "byte"):
        return 255.0 if text == "byte" else 1.0, np.zeros(channels, np.float32), np.ones(channels, np.float32)
    try:
        mean, std = parse_normalization(text, channels)
    except InputError:
        known = "unit, byte, imagenet or m,m,m/s,s,s" if channels == 3 else "unit, byte or m/s"
        raise InputError(f"input_range: expected {known}, got {text!r}") from None
    return 1.0, np.array(mean, np.float32), np.array(std, np.float32)


def _logits_outputs(session: Session) -> list[Any]:
    """A graph's outputs without what a calibrator tells beside them."""
    return [output for output in session.get_outputs() if output.name != CORRECTION]


class ForeignClassifier:
    """Any ONNX image classifier as a classifier of images `(N, C, S, S)` in [0, 1]; no gradient.

    Axes are told from the input's shape, `(N, C, S, S)` or `(N, S, S, C)`, C being 3 or 1; a fixed batch is filled
    up; probabilities become their logarithms, which are logits with the same softmax and the same margins. To another
    process it goes as its file, which is opened there once, with one thread.

    Args:
        path: the ONNX file.
        threads: threads within an operator.
        input_range: see `parse_input_range`. Default: `byte` where the input is uint8, else `unit`.
        channel_order: `bgr` for a graph that takes channels as OpenCV reads them.

    Attributes:
        image_size: the side that the graph fixes, or None.
        channels: C, which is 3 where the graph leaves it open.
        batch: the batch that the graph fixes, or None.
        layout: `NCHW` or `NHWC`.
        output: what it gives: `logits`; `probabilities` or `percentages`, whose logarithms are taken for logits; or
            `scores` in [0, 1] that are none of these, such as a sigmoid's for each class. Known after `examine`.
        declared: how images become the input of a graph that was exported here, as its metadata says; else None.

    Raises:
        InputError: onnxruntime refuses the file, or it has not one square image input and one output.
    """

    def __init__(self, path: Path, threads: int, input_range: str | None = None, channel_order: str = "rgb") -> None:
        self.path, self.input_range, self.channel_order = path, input_range, channel_order
        self.session = open_session(path, threads)
        inputs, outputs = self.session.get_inputs(), _logits_outputs(self.session)
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in PIXELS:
            raise InputError(
                f"onnx: {path} must have one image input and one output, has inputs "
                f"{[(i.type, i.shape) for i in inputs]} and {len(outputs)} outputs"
            )
        self.input_name, self.dtype = inputs[0].name, PIXELS[inputs[0].type]
        self.output_name = outputs[0].name
        batch, *axes = [d if isinstance(d, int) and d > 0 else None for d in inputs[0].shape]
        self.batch = batch
        self.layout = "NHWC" if axes[2] in CHANNELS and axes[0] not in CHANNELS else "NCHW"
        channels, sides = (axes[0], axes[1:]) if self.layout == "NCHW" else (axes[2], axes[:2])
        fixed = {side for side in sides if side is not None}
        self.channels = 3 if channels is None else channels
        if self.channels not in CHANNELS or len(fixed) > 1:
            raise InputError(
                f"onnx: {path} must take square images (N, C, S, S) or (N, S, S, C) of 3 channels or 1, takes "
                f"{inputs[0].shape}"
            )
        self.image_size = fixed.pop() if fixed else None
        check_batch(path, (batch or 1, self.channels, self.image_size or 1, self.image_size or 1))
        if self.dtype == np.uint8 and input_range not in (None, "byte"):
            raise InputError(f"input_range: {path} takes uint8 pixels, expected byte, got {input_range!r}")
        self.factor, self.mean, self.std = parse_input_range(
            "byte" if self.dtype == np.uint8 else input_range, self.channels
        )
        self.output = LOGITS
        self.declared = _declared(path, self.session.get_modelmeta().custom_metadata_map)

    def input_shape(self, image_size: int, batch_size: int = 1) -> tuple[int, ...]:
        """Of so many images of this side, or of as many as the graph fixes, as the graph takes them."""
        sides = (image_size, image_size)
        axes = (self.channels, *sides) if self.layout == "NCHW" else (*sides, self.channels)
        return (self.batch or batch_size, *axes)

    def examine(self, images: torch.Tensor, classes: int) -> None:
        """See from real images what outputs are, and whether there is one finite one per class.

        Args:
            images: `(N, C, S, S)` in [0, 1].
            classes: how many there are in the data.

        Raises:
            InputError: the number of outputs is another, there is one class only, or an output is NaN or infinite.
        """
        output = self(images)
        if output.shape[1] != classes:
            raise InputError(
                f"onnx: {self.path} gives {tuple(output.shape[1:])} numbers per image, the data has {classes} "
                "classes; --class-names lists all classes in index order where the data holds only some"
            )
        if classes < 2:
            raise InputError(
                f"onnx: expected logits of at least 2 classes from {self.path}, got {tuple(output.shape)}"
            )
        wrong = int((~output.isfinite()).any(1).sum())
        if wrong:
            raise InputError(
                f"onnx: expected finite logits from {self.path}, got NaN or infinity for {wrong} of {len(output)} "
                "images; check --input-range and the weights"
            )
        rounded = bool((output / STEP == (output / STEP).round()).all())
        tolerance = max(SUM_TOLERANCE, classes * STEP / 2 if rounded else 0)
        self.output = LOGITS
        if (output < 0).any():
            return
        for kind, whole in WHOLE.items():
            in_range = bool((output <= whole * (1 + SUM_TOLERANCE)).all())
            if in_range and bool(((output.sum(1) - whole).abs() <= whole * tolerance).all()):
                self.output = kind
                return
        if (output <= 1).all():
            self.output = SCORES

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        ordered = images.flip(1) if self.channel_order == "bgr" else images
        pixels = ordered.numpy().transpose(0, 2, 3, 1)
        fed = (pixels * self.factor - self.mean) / self.std
        pixels = fed.round() if self.dtype == np.uint8 else fed
        if self.layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
        pixels = np.ascontiguousarray(pixels, self.dtype)
        step = self.batch or len(pixels)
        output = np.concatenate([self._run(pixels[i : i + step], step) for i in range(0, len(pixels), step)])
        logits = torch.from_numpy(output.astype(np.float32)).flatten(1)
        return (logits / WHOLE[self.output]).clamp(min=TINY).log() if self.output in WHOLE else logits

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_foreign, (self.path, self.input_range, self.channel_order, self.output)

    def _run(self, pixels: np.ndarray, batch: int) -> np.ndarray:
        """One batch, filled up with its last image where it is short.

        Raises:
            InputError: onnxruntime cannot run it, or the output is not one row of logits per image.
        """
        filled = np.concatenate([pixels, pixels[-1:].repeat(batch - len(pixels), axis=0)])
        try:
            output = self.session.run([self.output_name], {self.input_name: filled})[0]
        except Exception as error:  # onnxruntime raises a type per cause, none of them public
            reason = str(error).splitlines()[0]
            raise InputError(f"onnx: onnxruntime cannot run {self.path} on {filled.shape} ({reason})") from error
        # Axes of length 1 may stand beside that of the classes, as a global pool leaves them.
        if not (
            isinstance(output, np.ndarray)
            and output.dtype.kind in "fiu"
            and output.ndim >= 2
            and len(output) == batch
            and output[0].size == max(output.shape[1:])
        ):
            got = f"{output.dtype} {output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
            raise InputError(
                f"onnx: expected logits (N, K), one per class, from {self.path}, got {got} for {batch} images"
            )
        return output[: len(pixels)]


def _declared(path: Path, metadata: Mapping[str, str]) -> Preprocessing | None:
    """What the metadata of a graph of qrobust's says; earlier versions did not say all.

    Raises:
        InputError: it makes no sense.
    """
    if "qrobust.graph" not in metadata or "declared" not in metadata.get("preprocessing", ""):
        return None
    try:
        about = json.loads(metadata["preprocessing"])["declared"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"onnx: {path}: expected JSON in the metadata 'preprocessing' ({error})") from error
    return from_json(Preprocessing, about, f"onnx: {path}: preprocessing")


@functools.cache
def _opened_foreign(path: Path, input_range: str | None, channel_order: str, output: str) -> ForeignClassifier:
    found = ForeignClassifier(path, 1, input_range, channel_order)
    found.output = output
    return found


class OnnxClassifier:
    """A session as a classifier: images `(N, C, S, S)` in [0, 1] to logits `(N, K)`; no gradient.

    To another process it goes as its file, which is opened there once, with one thread.

    Args:
        path: the ONNX file.
        threads: threads within an operator.
        signed_activations: see `open_session`.
        exact_sums: see `open_session`.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        *,
        signed_activations: bool | None = None,
        exact_sums: bool = True,
    ) -> None:
        path = Path(path)
        self.path, self.signed_activations, self.exact_sums = path, signed_activations, exact_sums
        self.session = open_session(path, threads, signed_activations=signed_activations, exact_sums=exact_sums)
        inputs, outputs = self.session.get_inputs(), _logits_outputs(self.session)
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"onnx: {path} must have one image input and one output, "
                f"has inputs {[i.shape for i in inputs]} and {len(outputs)} outputs"
            )
        self.input_name, self.channels = inputs[0].name, inputs[0].shape[1]
        self.output_name, self.dtype = outputs[0].name, np.float32
        batch = inputs[0].shape[0]
        self.batch = batch if isinstance(batch, int) and batch > 0 else None  # that the graph fixes

    def input_shape(self, image_size: int, batch_size: int = 1) -> tuple[int, ...]:
        """Of so many images of this side, or of as many as the graph fixes."""
        return (self.batch or batch_size, self.channels, image_size, image_size)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.batch is None or len(images) == self.batch:
            return self._run(images)
        missing = -len(images) % self.batch
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return torch.cat([self._run(part) for part in filled.split(self.batch)])[: len(images)]

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        try:
            (logits,) = self.session.run([self.output_name], {self.input_name: images.detach().contiguous().numpy()})
            return torch.from_numpy(logits)
        except Exception as error:  # onnxruntime raises a type per cause, none of them public
            shape = tuple(images.shape)
            raise InputError(f"onnx: onnxruntime cannot run {self.path} on {shape} ({plainly(error)})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_once, (self.path, self.signed_activations, self.exact_sums)


@functools.cache
def _opened_once(path: Path, signed_activations: bool | None, exact_sums: bool) -> OnnxClassifier:
    return OnnxClassifier(path, 1, signed_activations=signed_activations, exact_sums=exact_sums)
