"""A torch classifier as onnxruntime runs it on a target: exported to a file that does not stay, and opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from torch import nn

from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.profiling import latencies_ms
from qrobust.quantization.target import Target
from qrobust.storage import scratch


class SessionOptions(TypedDict):
    """How onnxruntime is to compute as on a target, whatever this CPU; see `open_session`."""

    signed_activations: bool | None
    exact_sums: bool


def session_options(target: Target) -> SessionOptions:
    """The options with which a session has a target's integers, though not its speed."""
    return {"signed_activations": target.signed or None, "exact_sums": target.exact_sums}


def open_on_target(path: Path, target: Target, threads: int = 1) -> OnnxClassifier:
    """A graph as the target runs it."""
    return OnnxClassifier(path, threads, **session_options(target))


def deploy(
    model: nn.Module, target: Target, *, image_size: int, channels: int = 3, threads: int = 1
) -> OnnxClassifier:
    """A classifier as onnxruntime runs it on a target.

    Args:
        model: images `(N, C, S, S)` in [0, 1] to logits; a float or a fake-quantized one.
        target: whose integers are computed.
        image_size: S in pixels.
        channels: C, 3 or 1.
        threads: of the session.

    Raises:
        ExportCheckError: the exported file is not valid ONNX.
    """
    with scratch() as folder:
        path = folder / "graph.onnx"
        export(model, path, image_size, channels=channels)
        return open_on_target(path, target, threads)


def times_ms(
    first: nn.Module,
    others: Iterable[nn.Module],
    target: Target,
    *,
    image_size: int,
    channels: int = 3,
    threads: int = 1,
) -> list[float]:
    """Milliseconds for one image of the first classifier, and of each other as measured in turn with the first.

    Args:
        first: as for `deploy`.
        others: likewise; no two of them are held at once.
        target, image_size, channels, threads: as for `deploy`.

    Raises:
        ExportCheckError: an exported file is not valid ONNX.
    """

    def deployed(model: nn.Module) -> OnnxClassifier:
        return deploy(model, target, image_size=image_size, channels=channels, threads=threads)

    reference = deployed(first)
    times = [latencies_ms({"first": reference}, image_size, 1)["first"]]
    for other in others:
        both = latencies_ms({"first": reference, "other": deployed(other)}, image_size, 1)
        times.append(times[0] * both["other"] / both["first"])
    return times
