"""The door to onnxruntime: what the device runs."""

from __future__ import annotations

import functools
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qrobust.config import BOUNDS
from qrobust.errors import InputError
from qrobust.inputs import check_file

# Else onnxruntime looks up a host for telemetry and writes an id of the device below the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # reads it while it is imported

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# Side of images, in pixels, that no classifier takes.
MOST_SIDE = int(BOUNDS["image_size"][1])
# Types an image input may have.
PIXELS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


def open_session(
    path: Path,
    threads: int,
    optimized: Path | None = None,
    *,
    signed_activations: bool | None = None,
    exact_sums: bool = False,
    level: str = "all",
    without: tuple[str, ...] = (),
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime CPU session.

    Args:
        path: the ONNX file.
        threads: threads within an operator.
        optimized: where onnxruntime writes the graph it executes; its large constants lie beside it (.bin).
        signed_activations: True fuses int8 activations as onnxruntime does on ARM, False treats them as on
            x86, where it first tries to make them uint8; None is this CPU's own way.
        exact_sums: where this CPU's kernels saturate (see `sums_saturate`), take slower ones that do not. Those for
            `signed_activations` never do.
        level: how far onnxruntime optimises: `all`, `basic` (before integer operators are fused) or `none`.
        without: names of onnxruntime's graph transformers to leave out.
        profile: prefix of the file in which onnxruntime notes every kernel that ran.

    Raises:
        InputError: the file is missing, it loops, or onnxruntime refuses it.
    """
    from qrobust.deployment.graph import refuse_loops

    check_file(path, "onnx")
    refuse_loops(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.graph_optimization_level = LEVELS[level]
    # Else the threads of a session that is done spin on, and slow down the next session by two to three times.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if signed_activations is not None:
        options.add_session_config_entry("session.qdqisint8allowed", str(int(signed_activations)))
    if exact_sums and not signed_activations and sums_saturate():
        # Only there: with VNNI it changes no sum, but kernels that take longer are chosen.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Otherwise it would point, from another folder, at the external data of the original.
        data = f"{optimized.stem}.bin"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except Exception as error:  # onnxruntime raises a type per cause, none of them public
        from qrobust.deployment.graph import complaint

        reason = complaint(path) or _plainly(error)
        raise InputError(f"onnx: onnxruntime refuses {path} ({reason})") from error


# Of onnxruntime's messages: its own name and codes, and where in its sources they were raised.
CODES = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?|Exception during initialization: "
    r"|\S*\w\.(?:cc|h):\d+ (?:(?:\S+ )?\S*::\S*\(.*?\) |\w+ )"
)


def _plainly(error: Exception) -> str:
    """The first line of what onnxruntime says, without codes and places in its sources."""
    return CODES.sub("", str(error).splitlines()[0])


@functools.cache
def sums_saturate() -> bool:
    """Whether this CPU's integer kernels add pairs of products in 16 bits, as x86 ones without VNNI: one is tried."""
    from qrobust.deployment.graph import one_product

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(one_product(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"activations": np.full((1, 2), 255, np.uint8)})
    return int(found[0, 0]) != 2 * 255 * 127


def sums(*, signed_activations: bool | None = None, exact_sums: bool = False) -> str:
    """How a session of these options adds products: `exact`, `saturating`, or where it would, `exact-by-request`."""
    if signed_activations or not sums_saturate():
        return "exact"
    return "exact-by-request" if exact_sums else "saturating"


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
        self, path: Path, threads: int, *, signed_activations: bool | None = None, exact_sums: bool = True
    ) -> None:
        self.path, self.signed_activations, self.exact_sums = path, signed_activations, exact_sums
        self.session = open_session(path, threads, signed_activations=signed_activations, exact_sums=exact_sums)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"onnx: {path} must have one image input and one output, "
                f"has inputs {[i.shape for i in inputs]} and {len(outputs)} outputs"
            )
        self.input_name, self.channels = inputs[0].name, inputs[0].shape[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return torch.from_numpy(self.session.run(None, {self.input_name: images.detach().numpy()})[0])
        except Exception as error:  # onnxruntime raises a type per cause, none of them public
            shape = tuple(images.shape)
            raise InputError(f"onnx: onnxruntime cannot run {self.path} on {shape} ({_plainly(error)})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_once, (self.path, self.signed_activations, self.exact_sums)


@functools.cache
def _opened_once(path: Path, signed_activations: bool | None, exact_sums: bool) -> OnnxClassifier:
    return OnnxClassifier(path, 1, signed_activations=signed_activations, exact_sums=exact_sums)


# Calls before times count, and seconds of one classifier's turn.
WARM_UP, ROUND_S = 5, 0.02


def latencies_ms(
    classifiers: dict[str, OnnxClassifier], image_size: int, batch_size: int, rounds: int = 50
) -> dict[str, float]:
    """Milliseconds per batch, measured in turn (A B A B ...): the first one's median, and for each other that
    times the median of its ratio to the first, round by round, from which the machine's own drift is gone.
    """
    channels = next((classifier.channels for classifier in classifiers.values()), 3)
    images = np.random.default_rng(0).random((batch_size, channels, image_size, image_size), dtype=np.float32)
    repeats: dict[str, int] = {}
    for name, classifier in classifiers.items():
        feed = {classifier.input_name: images}
        calls = []
        for _ in range(WARM_UP):
            started = time.perf_counter()
            classifier.session.run(None, feed)
            calls.append(time.perf_counter() - started)
        repeats[name] = max(1, round(ROUND_S / max(1e-6, float(np.median(calls)))))
    samples: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, classifier in classifiers.items():
            feed = {classifier.input_name: images}
            started = time.perf_counter()
            for _ in range(repeats[name]):
                classifier.session.run(None, feed)
            samples[name].append((time.perf_counter() - started) / repeats[name] * 1e3)
    first = np.array(next(iter(samples.values()), []))
    return {name: float(np.median(first) * np.median(np.array(values) / first)) for name, values in samples.items()}


@dataclass(frozen=True)
class Kernel:
    """One operator that onnxruntime ran.

    Attributes:
        node: the node's name in the graph that ran.
        op_type: its operator.
        inputs: shapes of its inputs; constants that onnxruntime packed beforehand are missing.
        outputs: shapes of its outputs.
        microseconds: how long it took.
    """

    node: str
    op_type: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    microseconds: int


def image_feed(session: onnxruntime.InferenceSession, path: Path, image_size: int | None) -> dict[str, np.ndarray]:
    """Random pixels for a session with one image input, a single image where the batch is open.

    Args:
        session: of the file at `path`, which is named in errors.
        path: the file.
        image_size: the side, in pixels, of axes that the file leaves open.

    Raises:
        InputError: there is not one input of four axes, or its size is neither in the file nor given.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"onnx: {path} must have one image input, has {len(inputs)}: {[i.name for i in inputs]}")
    (image,) = inputs
    if len(image.shape) != 4 or image.type not in PIXELS:
        raise InputError(
            f"onnx: {path} must have an image input (N, C, H, W) or (N, H, W, C), "
            f"has {image.name!r} {image.type} {image.shape}"
        )
    if image_size is not None and not 1 <= image_size <= MOST_SIDE:
        bound = "at least 1" if image_size < 1 else f"at most {MOST_SIDE}"
        raise InputError(f"image_size: expected {bound}, got {image_size}")
    shape = [d if isinstance(d, int) and d > 0 else None for d in image.shape]
    if shape[0] is None:
        shape[0] = 1
    if shape[1] is None and shape[3] not in (1, 3):
        shape[1] = 3
    if None in shape and image_size is None:
        raise InputError(f"onnx: {path} leaves the size of {image.name!r} {image.shape} open: --image-size is needed")
    if image_size is not None and None not in shape and image_size not in shape[1:]:
        raise InputError(f"onnx: {path} takes images {image.shape}, got --image-size {image_size}")
    pixels = np.random.default_rng(0).random([d or image_size or 0 for d in shape])
    scale = 255 if image.type == "tensor(uint8)" else 1
    return {image.name: (pixels * scale).astype(PIXELS[image.type])}


def run_profiled(
    path: Path, image_size: int | None, folder: Path, rounds: int = 1, **session_options: Any
) -> tuple[int, list[list[Kernel]]]:
    """Run a graph on one thread; the batch it was given, and the kernels of each round.

    Args:
        path: the ONNX file; see `image_feed` for what its input must be.
        image_size: the side of axes that the file leaves open.
        folder: for onnxruntime's profile.
        rounds: how often to run.
        session_options: for `open_session`.

    Raises:
        InputError: onnxruntime refuses the file or cannot run it.
    """
    session = open_session(path, 1, profile=folder / "profile", **session_options)
    feed = image_feed(session, path, image_size)
    try:
        for _ in range(rounds):
            session.run(None, feed)
    except Exception as error:  # as in open_session
        line = _plainly(error)
        found = re.search(r"Name:'(.*?)' Status Message: (?:.* was false\. )?(.*)", line)
        reason = f"{f'node {found[1]}: ' if found[1] else ''}{found[2]}" if found else line
        raise InputError(f"onnx: onnxruntime cannot run {path} ({reason})") from error
    notes = Path(session.end_profiling())
    try:
        events = json.loads(notes.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"onnx: onnxruntime's profile {notes} is not whole; is the folder (TMPDIR) full?") from error
    runs: list[list[Kernel]] = [[]]
    for event in events:
        if event["name"] == "model_run":  # noted when a run ends
            runs.append([])
        elif event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            about = event["args"]
            inputs, outputs = (
                tuple(tuple(shape) for entry in about[key] for shape in entry.values())
                for key in ("input_type_shape", "output_type_shape")
            )
            name = event["name"].removesuffix("_kernel_time")
            runs[-1].append(Kernel(name, about["op_name"], inputs, outputs, event["dur"]))
    return next(iter(feed.values())).shape[0], runs[:rounds]
