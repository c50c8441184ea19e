"""The stages, in order, and the comparison of all remedies.

A stage writes `stages/NAME.json` last, so that a stage either is done or has left nothing that a later
one would take for done.
"""

from __future__ import annotations

from qrobust.errors import QRobustError
from qrobust.pipeline.baselines import make_alternative
from qrobust.pipeline.compensate import compensate
from qrobust.pipeline.evaluate import evaluate
from qrobust.pipeline.export import export
from qrobust.pipeline.provenance import check_images, check_unseen
from qrobust.pipeline.quantize import quantize, sensitivity
from qrobust.pipeline.report import write_report
from qrobust.pipeline.run import Workbench
from qrobust.pipeline.run_folder import ALTERNATIVES, TORCH_ONLY
from qrobust.pipeline.stage import STAGES, kept
from qrobust.record import Record

__all__ = [
    "compare",
    "compensate",
    "evaluate",
    "export",
    "forget_compensation",
    "make_alternative",
    "quantize",
    "run_all",
    "sensitivity",
    "write_report",
]


def run_all(bench: Workbench, *, resume: bool) -> Record:
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
