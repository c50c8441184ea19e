"""Classify image files with a graph of qrobust's, by the code that goes to devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrobust.deployment.infer import Network
from qrobust.deployment.onnx_graph import check_bounded
from qrobust.deployment.session import plainly
from qrobust.errors import InputError
from qrobust.paths import check_file


def predict(graph: Path, images: Sequence[Path], *, threads: int = 1) -> list[tuple[str, float]]:
    """Class name and confidence of each image file.

    Args:
        graph: ONNX file that a run exported; its metadata says how an image becomes its input.
        images: files.
        threads: of the session.

    Raises:
        InputError: a file is missing or cannot be used; one line names it.
    """
    check_bounded(check_file(graph, "onnx"))
    for image in images:
        check_file(image, "image")
    try:
        network = Network(graph, threads)
    except ValueError as error:
        raise InputError(f"onnx: {error}") from error
    except Exception as error:  # onnxruntime raises a type per cause, none of them public
        raise InputError(f"onnx: onnxruntime refuses {graph} ({plainly(error)})") from error
    try:
        return network.classify(images)
    except ValueError as error:
        raise InputError(f"image: {error}") from error
