"""The stages, in order, and the comparison of all remedies.

A stage writes `stages/NAME.json` last, so that a stage either is done or has left nothing that a later
one would take for done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qrobust.errors import QRobustError
from qrobust.evaluation.workers import Workers
from qrobust.pipeline.baselines import make_baseline
from qrobust.pipeline.compensate import compensate
from qrobust.pipeline.evaluate import evaluate
from qrobust.pipeline.export import export
from qrobust.pipeline.provenance import check_images, training_data
from qrobust.pipeline.quantize import quantize, sensitivity
from qrobust.pipeline.report import write_report
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES, REMEDIES, TORCH_ONLY
from qrobust.pipeline.stage import is_current
from qrobust.record import Record
from qrobust.remedies import AUTO, BEHIND_CALIBRATOR, CALIBRATOR, LADDER, NONE, RETRAINED

__all__ = [
    "compare",
    "compensate",
    "delete_compensation",
    "evaluate",
    "export",
    "make_baseline",
    "quantize",
    "run_all",
    "sensitivity",
    "write_report",
]


def run_all(run: Run, *, resume: bool, workers: Workers = 1) -> Record:
    """All stages, with the remedy that is configured; with `resume`, those that are not done.

    Args:
        run: of the run.
        resume: whether to keep the stages that are done.
        workers: who answers the images of the evaluation, see `evaluate`.
    """
    remedy = run.config.calibrator.remedy
    stages: dict[str, Callable[[Run], None]] = {"quantize": quantize}
    if remedy in (CALIBRATOR, BEHIND_CALIBRATOR):
        stages |= {"compensate": compensate, "export": export}
    if remedy not in (CALIBRATOR, NONE, AUTO):
        stages[remedy] = partial(make_baseline, remedy=remedy)
    if remedy != AUTO:
        stages["evaluate"] = partial(evaluate, workers=workers)
    for name, stage in stages.items():
        if resume and run.require_folder().is_done(name):
            run.reporter.say(f"{name}: done before, kept")
            continue
        stage(run)
    return compare(run, workers=workers) if remedy == AUTO else write_report(run.require_folder(), run.config)


def compare(run: Run, *, baselines: bool = False, workers: Workers = 1) -> Record:
    """The ladder of remedies, measured together; what is done already is kept, what cannot be made is left out.

    Args:
        run: of the run.
        baselines: make what they must be better than, too.
        workers: who answers the images of the evaluation, see `evaluate`.
    """
    folder, failed = run.require_folder(), set()
    check_images(run)
    training_data(run)  # what no remedy could use is refused
    try:
        if not is_current(run, "compensate"):
            compensate(run)
        if not folder.is_done("export"):
            export(run)
    except QRobustError as error:
        failed.add("calibrator")
        run.reporter.warn(f"warning: calibrator left out: {error}")
    wanted = [name for name in LADDER if name != CALIBRATOR]
    for remedy in (*wanted, *BASELINES, TORCH_ONLY) if baselines else wanted:
        if is_current(run, remedy):
            continue
        try:
            make_baseline(run, remedy)
        except QRobustError as error:
            failed.add(remedy)
            run.reporter.warn(f"warning: {remedy} left out: {error}")
    evaluate(run, without=failed, workers=workers)  # what was made with other choices stays
    return write_report(run.require_folder(), run.config)


def delete_compensation(run: Run) -> None:
    """Take every way to compensate out of the run, so that the next evaluation measures the INT8 graph alone."""
    folder = run.require_folder()
    folder.delete_stages("compensate", "export", "evaluate", *REMEDIES, TORCH_ONLY)
    made = [path(name) for name in ("compensated", *REMEDIES) for path in (folder.graph, folder.card)]
    made += [folder.integers(name) for name in RETRAINED]
    for path in (*made, folder.calibrator, folder.pictures):
        path.unlink(missing_ok=True)
    folder.drop_checkpoints(folder.finished.glob("*"))
