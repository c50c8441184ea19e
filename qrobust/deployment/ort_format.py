"""A graph in onnxruntime's own format: optimised beforehand, also for builds of onnxruntime that read no ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qrobust.deployment.session import Session, open_ort, open_session, save_ort
from qrobust.errors import ExportCheckError
from qrobust.quantization.target import Target

BATCH = 16


def save_checked_ort(file: Path, to: Path, target: Target, images: np.ndarray) -> float:
    """Write a graph's copy in ORT format, and compare what both make of images.

    Kernels are chosen when the copy is written, as on the target, and no session changes them later.

    Args:
        file: the ONNX file.
        to: the copy; its name ends in `.ort`.
        target: CPU family of both.
        images: float32 `(N, C, S, S)` in [0, 1].

    Returns:
        The largest difference of a logit.

    Raises:
        ExportCheckError: the copy predicts another class for an image.
        InputError: onnxruntime refuses the file.
    """
    signed = target.signed or None
    save_ort(file, to, signed_activations=signed)
    wanted, got = (
        _logits(session, images) for session in (open_session(file, 1, signed_activations=signed), open_ort(to, 1))
    )
    different = int((wanted.argmax(1) != got.argmax(1)).sum())
    if different or not np.isfinite(got).all():
        raise ExportCheckError(f"ort: the copy in ORT format predicts another class for {different} of {len(images)}")
    return float(np.abs(wanted - got).max())


def _logits(session: Session, images: np.ndarray) -> np.ndarray:
    name = session.get_inputs()[0].name
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
