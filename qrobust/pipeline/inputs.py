"""Open and check everything that a run reads, before anything is written."""

from __future__ import annotations

from typing import Any

import torch

from qrobust.errors import InputError
from qrobust.pipeline.run import Workbench
from qrobust.report.markdown import skipped_sentence
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import TRIED_IMAGES, find_shift
from qrobust.shifts.rendering import render

# Rows of probabilities sum to 1 but for float32 rounding, which a thousand classes bring to 1e-4.
SUM_TOLERANCE = 1e-3


def prepare_inputs(bench: Workbench, *, compensating: bool) -> None:
    """Open everything a run reads, so that bad input is refused before anything is written.

    Args:
        bench: of the run.
        compensating: whether a calibrator will be trained, which must then fit its budget.

    Raises:
        InputError: any of it is not usable.
    """
    torch.set_num_threads(bench.config.threads)
    bench.check_hold_out()
    if bench.config.qat_shifts and not bench.training_cells:
        raise InputError("qat_shifts: expected shifts that can be rendered, got a scene's real images alone")
    _ = bench.target, bench.model_spec, bench.cells, bench.training_cells, bench.scene, bench.stored
    if bench.data.skipped:
        bench.reporter.warn(skipped_sentence(bench.data.skipped))
    for split in (bench.data.calibration, bench.data.validation, bench.data.test):
        with bench.reporter.bar("read images", len(split)) as bar:
            for images, _labels in split.batches(500):
                bar.update(len(images))
    some = bench.data.calibration.read(slice(0, TRIED_IMAGES))
    for name, severity in bench.cells:
        if find_shift(name).is_own:
            render(some, name, severity, table=bench.table, seed=bench.config.seed)
    with torch.inference_mode():
        _refuse_probabilities(bench.model(to_unit(some)))
    _ = bench.quantized
    if compensating:
        bench.calibrators_within_budget()


def _refuse_probabilities(logits: torch.Tensor) -> None:
    """A second softmax would flatten what confidence, calibration error and margins are computed from.

    Raises:
        InputError: every row `(N, K)` is one of probabilities.
    """
    if bool((logits >= 0).all() and (logits <= 1).all() and ((logits.sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        raise InputError(
            "model: expected logits, got probabilities (rows that lie in [0, 1] and sum to 1): leave the softmax out"
        )


def check_same_config(bench: Workbench, given: dict[str, Any]) -> None:
    """Refuse to resume a run with other choices than it was begun with.

    Raises:
        InputError: names the first choice that differs.
    """
    kept = bench.config.as_json()
    for key, value in given.items():
        if key != "threads" and kept.get(key) != value:
            raise InputError(f"{key}: expected {kept.get(key)!r}, with which the run was begun, got {value!r}")
