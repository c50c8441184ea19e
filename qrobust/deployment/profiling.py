"""Time graphs in turn, and read from a profile which kernels ran."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.deployment.classifiers import ForeignClassifier, OnnxClassifier
from qrobust.deployment.session import MOST_SIDE, PIXELS, Session, check_batch, open_session, plainly
from qrobust.errors import InputError

# Calls before times count, seconds of one classifier's turn, and how many turns it has.
WARM_UP, ROUND_S, ROUNDS = 5, 0.02, 50


def latencies_ms(
    classifiers: Mapping[str, OnnxClassifier | ForeignClassifier],
    image_size: int,
    batch_size: int,
    rounds: int | None = None,
) -> dict[str, float]:
    """Milliseconds for so many images, measured in turn: `medians_ms` of `timed_rounds`, by default `ROUNDS`.

    Raises:
        InputError: onnxruntime cannot run a graph on so many images.
    """
    return medians_ms(timed_rounds(classifiers, image_size, batch_size, rounds))


def medians_ms(samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The first one's median, and each other's as that times the median of its ratio to the first, round by round,
    from which the machine's own drift is gone.

    Args:
        samples: of `timed_rounds`.
    """
    first = next(iter(samples.values()), np.array([]))
    return {name: float(np.median(first) * np.median(values / first)) for name, values in samples.items()}


def ratio_intervals(samples: Mapping[str, np.ndarray], reference: str) -> dict[str, tuple[float, float]]:
    """Of each but the reference, the 95 % interval of the median of its ratio to that, round by round.

    Args:
        samples: of `timed_rounds`.
        reference: a name among them.
    """
    others = {name: values for name, values in samples.items() if name != reference}
    return {name: median_interval(values / samples[reference]) for name, values in others.items()}


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a median between two of the values, whatever their distribution (the sign test's).

    Args:
        values: `(n,)`, independent; below six not even their whole range has 95 % confidence.
        confidence: at least that of the interval.
    """
    n, ordered = len(values), np.sort(values)
    # Chance that at most k - 1 of n values are below the median, in which case the k-th smallest lies above it.
    outside, k = 0.5**n, 1
    while outside + math.comb(n, k) * 0.5**n <= (1 - confidence) / 2:
        outside += math.comb(n, k) * 0.5**n
        k += 1
    return float(ordered[k - 1]), float(ordered[n - k])


def timed_rounds(
    classifiers: Mapping[str, OnnxClassifier | ForeignClassifier],
    image_size: int,
    batch_size: int,
    rounds: int | None = None,
) -> dict[str, np.ndarray]:
    """Milliseconds of each classifier for so many images, in rounds in which all have a turn; each `(rounds,)`.

    There are `ROUNDS` by default. A graph that fixes another batch is called as often as it takes.

    Raises:
        InputError: onnxruntime cannot run a graph on so many images.
    """
    feeds, calls, repeats = dict[str, dict[str, np.ndarray]](), dict[str, int](), dict[str, int]()
    for name, classifier in classifiers.items():
        n, *axes = classifier.input_shape(image_size, batch_size)
        noise = np.random.default_rng(0).random((n, *axes), dtype=np.float32)
        pixels = 255 * noise if classifier.dtype == np.uint8 else noise
        feeds[name], calls[name] = {classifier.input_name: pixels.astype(classifier.dtype)}, -(-batch_size // n)
        taken = []
        for _ in range(WARM_UP):
            started = time.perf_counter()
            _tried(classifier, feeds[name])
            taken.append(time.perf_counter() - started)
        repeats[name] = max(1, round(ROUND_S / max(1e-6, calls[name] * float(np.median(taken)))))
    samples: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(ROUNDS if rounds is None else rounds):
        for name, classifier in classifiers.items():
            started = time.perf_counter()
            for _ in range(repeats[name] * calls[name]):
                classifier.session.run(None, feeds[name])
            samples[name].append((time.perf_counter() - started) / repeats[name] * 1e3)
    return {name: np.array(values) for name, values in samples.items()}


def _tried(classifier: OnnxClassifier | ForeignClassifier, feed: dict[str, np.ndarray]) -> None:
    try:
        classifier.session.run(None, feed)
    except Exception as error:  # onnxruntime raises a type per cause, none of them public
        shape = feed[classifier.input_name].shape
        raise InputError(f"onnx: onnxruntime cannot run {classifier.path} on {shape} ({plainly(error)})") from error


def timing_s(ms: Iterable[float]) -> float:
    """Seconds that `latencies_ms` takes for classifiers of these milliseconds per batch."""
    calls = [each / 1e3 for each in ms]
    return sum(WARM_UP * call + ROUNDS * max(call, ROUND_S) for call in calls)


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


def image_feed(session: Session, path: Path, image_size: int | None) -> dict[str, np.ndarray]:
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
    every = [d or image_size or 0 for d in shape]
    check_batch(path, every)
    pixels = np.random.default_rng(0).random(every)
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
        line = plainly(error)
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
