"""The door to onnxruntime: what the device runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from qrobust.errors import InputError


def open_session(path: Path, threads: int, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime CPU session.

    Raises:
        InputError: the file is missing or onnxruntime refuses it.
    """
    if not path.is_file():
        raise InputError(f"onnx: no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type per cause, none of them public
        raise InputError(f"onnx: onnxruntime refuses {path} ({str(error).splitlines()[0]})") from error


class OnnxClassifier:
    """A session as a classifier: images `(N, 3, S, S)` in [0, 1] to logits `(N, K)`; no gradient."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = open_session(path, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"onnx: {path} must have one image input and one output, "
                f"has inputs {[i.shape for i in inputs]} and {len(outputs)} outputs"
            )
        self.input_name = inputs[0].name

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.from_numpy(self.session.run(None, {self.input_name: images.numpy()})[0])


def optimized_copy(path: Path, folder: Path) -> Path:
    """Let onnxruntime write the graph it would execute on this CPU; returns the file in `folder`."""
    result = folder / "optimized.onnx"
    open_session(path, 1, optimized=result)
    return result


def latencies_ms(
    classifiers: dict[str, OnnxClassifier], image_size: int, batch_size: int, rounds: int = 9
) -> dict[str, float]:
    """Median milliseconds per batch, measured in turn (A B A B ...) so that drift hits all alike."""
    images = np.random.default_rng(0).random((batch_size, 3, image_size, image_size), dtype=np.float32)
    repeats: dict[str, int] = {}
    for name, classifier in classifiers.items():
        feed = {classifier.input_name: images}
        classifier.session.run(None, feed)
        started = time.perf_counter()
        classifier.session.run(None, feed)
        repeats[name] = max(1, round(0.03 / max(1e-6, time.perf_counter() - started)))
    samples: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, classifier in classifiers.items():
            feed = {classifier.input_name: images}
            started = time.perf_counter()
            for _ in range(repeats[name]):
                classifier.session.run(None, feed)
            samples[name].append((time.perf_counter() - started) / repeats[name] * 1e3)
    return {name: float(np.median(values)) for name, values in samples.items()}


def node_types(path: Path) -> Sequence[str]:
    """Operator types of the graph that onnxruntime executes, one per node."""
    from qrobust.deployment.graph import load

    with tempfile.TemporaryDirectory() as folder:
        return [node.op_type for node in load(optimized_copy(path, Path(folder))).graph.node]
