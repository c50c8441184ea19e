"""The only module that imports onnxruntime: open a graph as a session."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from qrobust.errors import InputError
from qrobust.paths import check_file

# Else onnxruntime looks up a host for telemetry and writes an id of the device below the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime  # reads it while it is imported

Session: TypeAlias = onnxruntime.InferenceSession
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# Side of images, in pixels, that no classifier takes.
MOST_SIDE = 4096
# Numbers in one batch of images: 1 GiB of float32.
MOST_VALUES = 2**28
# The transformer whose layouts depend on how wide this CPU's vectors are.
OF_THIS_CPU = "NchwcTransformer"
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
) -> Session:
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
    from qrobust.deployment.onnx_graph import check_bounded

    check_file(path, "onnx")
    check_bounded(path)
    options = _options(threads)
    options.graph_optimization_level = LEVELS[level]
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
    return _opened(path, options, without)


def save_ort(path: Path, to: Path, *, signed_activations: bool | None = None) -> None:
    """Write the graph that onnxruntime executes in ORT format, without what is for this very CPU.

    Args:
        path: the ONNX file.
        to: the copy.
        signed_activations: as for `open_session`.

    Raises:
        InputError: as `open_session`.
    """
    from qrobust.deployment.onnx_graph import check_bounded

    check_file(path, "onnx")
    check_bounded(path)
    options = _options(1)
    options.optimized_model_filepath = str(to)
    options.add_session_config_entry("session.save_model_format", "ORT")
    if signed_activations is not None:
        options.add_session_config_entry("session.qdqisint8allowed", str(int(signed_activations)))
    _opened(path, options, (OF_THIS_CPU,))


def open_ort(path: Path, threads: int) -> Session:
    """A session of a file in ORT format, which `save_ort` wrote.

    Raises:
        InputError: the file is missing, or onnxruntime refuses it.
    """
    check_file(path, "ort")
    return _opened(path, _options(threads))


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    # Else the threads of a session that is done spin on, and slow down the next session by two to three times.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _opened(path: Path, options: onnxruntime.SessionOptions, without: Sequence[str] = ()) -> Session:
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(without),
            enable_fallback=0,  # it would print, and try the same provider again
        )
    except Exception as error:  # onnxruntime raises a type per cause, none of them public
        from qrobust.deployment.onnx_graph import complaint

        reason = complaint(path) or plainly(error)
        raise InputError(f"onnx: onnxruntime refuses {path} ({reason})") from error


# Of onnxruntime's messages: its own name and codes, and where in its sources they were raised.
CODES = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?|Exception during initialization: "
    r"|\S*\w\.(?:cc|h):\d+ (?:(?:\S+ )?\S*::\S*\(.*?\) |\w+ )"
)


def plainly(error: Exception) -> str:
    """The first line of what onnxruntime says, without codes and places in its sources."""
    return CODES.sub("", str(error).splitlines()[0])


@functools.cache
def sums_saturate() -> bool:
    """Whether this CPU's integer kernels add pairs of products in 16 bits, as x86 ones without VNNI: one is tried."""
    from qrobust.deployment.onnx_graph import one_product

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        one_product(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    (found,) = session.run(None, {"activations": np.full((1, 2), 255, np.uint8)})
    return int(found[0, 0]) != 2 * 255 * 127


def sums(*, signed_activations: bool | None = None, exact_sums: bool = False) -> str:
    """How a session of these options adds products: `exact`, `saturating`, or where it would, `exact-by-request`."""
    if signed_activations or not sums_saturate():
        return "exact"
    return "exact-by-request" if exact_sums else "saturating"


def check_batch(path: Path, shape: Sequence[int]) -> None:
    """Refuse a graph whose smallest batch would fill the memory.

    Raises:
        InputError: it holds more than `MOST_VALUES` numbers.
    """
    if math.prod(shape) > MOST_VALUES:
        raise InputError(f"onnx: {path} takes images {tuple(shape)}, expected at most {MOST_VALUES} numbers a batch")
