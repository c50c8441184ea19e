"""The stages, in order. Each reads the run's folder, does one thing, and leaves its result there.

A stage writes `stages/NAME.json` last, so that a stage either is done or has left nothing that a later
one would take for done.
"""

from __future__ import annotations

from typing import Any

import torch

from qrobust.errors import InputError, QRobustError
from qrobust.folders import ALTERNATIVES, TORCH_ONLY
from qrobust.pipeline.alternatives import make_alternative
from qrobust.pipeline.compensating import compensate, export
from qrobust.pipeline.lessons import check_images, check_unseen
from qrobust.pipeline.measuring import evaluate
from qrobust.pipeline.quantizing import quantize, sensitivity
from qrobust.pipeline.reporting import write_report
from qrobust.pipeline.stage import STAGES, kept
from qrobust.report.markdown import skipped_sentence
from qrobust.results import Record
from qrobust.shifts.rendering import render, to_unit
from qrobust.shifts.severities import TRIED_IMAGES, find_shift
from qrobust.workbench import Workbench

__all__ = [
    "STAGES", "check_same_config", "compare", "compensate", "evaluate", "export", "forget_compensation",
    "make_alternative", "prepare_inputs", "quantize", "run", "sensitivity", "write_report",
]  # fmt: skip

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


def run(bench: Workbench, *, resume: bool) -> Record:
    """All stages; with `resume`, those that are not done."""
    for name, stage in zip(STAGES, (quantize, compensate, export, evaluate), strict=True):
        if resume and bench.place().stage(name):
            bench.reporter.say(f"{name}: done before, kept")
            continue
        stage(bench)
    return write_report(bench)


def compare(bench: Workbench) -> Record:
    """Every way to compensate, measured together; what is done already is kept, what cannot be made is left out."""
    folder, failed = bench.place(), set()
    check_images(bench)
    check_unseen(bench)
    _ = bench.lessons, bench.training_cells, bench.scene  # what no method could use is refused
    try:
        if not kept(bench, "compensate"):
            compensate(bench)
        if not folder.stage("export"):
            export(bench)
    except QRobustError as error:
        failed.add("calibrator")
        bench.reporter.warn(f"warning: calibrator left out: {error}")
    for method in (*ALTERNATIVES, TORCH_ONLY):
        if kept(bench, method):
            continue
        try:
            make_alternative(bench, method)
        except QRobustError as error:
            failed.add(method)
            bench.reporter.warn(f"warning: {method} left out: {error}")
    evaluate(bench, without=failed)  # what was made with other choices stays
    return write_report(bench)


def forget_compensation(bench: Workbench) -> None:
    """Take every way to compensate out of the run, so that the next evaluation measures the INT8 graph alone."""
    folder = bench.place()
    folder.forget("compensate", "export", "evaluate", *ALTERNATIVES, TORCH_ONLY)
    made = [path(name) for name in ("compensated", *ALTERNATIVES) for path in (folder.graph, folder.card)]
    for path in (*made, folder.calibrator, folder.pictures):
        path.unlink(missing_ok=True)
    folder.drop_checkpoints(folder.finished.glob("*"))


def check_same_config(bench: Workbench, given: dict[str, Any]) -> None:
    """Refuse to resume a run with other choices than it was begun with.

    Raises:
        InputError: names the first choice that differs.
    """
    kept = bench.config.as_json()
    for key, value in given.items():
        if key != "threads" and kept.get(key) != value:
            raise InputError(f"resume: the run was begun with {key}={kept.get(key)!r}, got {value!r}")
