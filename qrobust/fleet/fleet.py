"""Make the runs of a plan: what is finished stays, what was interrupted goes on, what fails is tried again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from qrobust import __version__
from qrobust.comparison.bounds import check
from qrobust.errors import InputError
from qrobust.evaluation.statistics import CONFIDENCE
from qrobust.fleet.plan import Plan, PlannedRun
from qrobust.fleet.unit import Ending, Runner, Unit
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.config_file import as_toml
from qrobust.pipeline.finished import failed_checks, open_finished
from qrobust.pipeline.output_folder import configuration
from qrobust.progress import Bar, Reporter
from qrobust.record import DONE, FAILED, WAITING, FleetFigures, FleetRecord, FleetRun, Record
from qrobust.storage import write_text
from qrobust.text import printable
from qrobust.user_code import is_code

RUNS, CONFIGS, LOGS, RANGES = "runs", "configs", "logs", "ranges"
# Exit codes of a run whose input cannot be used, or whose graph fails a check: it would end so again.
FINAL = (2, 3)
OUTCOMES = {0: "pass", 1: "breach", 3: "failed", 4: "undecided"}
LONGEST_MESSAGE = 300
# How often a run is begun again because its host is gone: then it may be what takes hosts with it.
MOST_LOSSES = 5
LOOK_AGAIN_S = 10.0


def make_fleet(
    plan: Plan,
    out: Path,
    runner: Runner,
    *,
    reporter: Reporter | None = None,
    written: Callable[[FleetRecord], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> FleetRecord:
    """Make every run of a plan that is not finished, as run folders in `out/runs`.

    Args:
        plan: what to make.
        out: folder of the fleet, which is there.
        runner: where runs are made.
        reporter: where progress is told.
        written: called with what is known, at the beginning and whenever a run has ended.
        clock: seconds, for the plan's `hours`.

    Raises:
        InputError: a folder of a run holds something else.
    """
    reporter = reporter or Reporter()
    for name in (RUNS, CONFIGS, LOGS):
        (out / name).mkdir(exist_ok=True)
    made = {run.name: _looked_at(run, out, plan) for run in plan.runs}

    most = 1

    def told() -> FleetRecord:
        nonlocal most
        most = max(most, runner.per_host())
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = FleetRecord(
            qrobust=__version__,
            created=created,
            axes=plan.axes,
            at_once=most,
            runs=tuple(made[run.name] for run in plan.runs),
        )
        written(record)
        return record

    told()
    left = [run for run in plan.runs if made[run.name].state != DONE]
    if len(left) < len(plan.runs):
        reporter.say(f"{len(plan.runs) - len(left)} of {len(plan.runs)} runs are finished already")
    deadline = clock() + 3600 * plan.config.hours if plan.config.hours else float("inf")
    try:
        with reporter.bar("fleet", len(left)) as bar:
            for ended in _attempts(left, plan, out, runner, made, lambda: clock() < deadline):
                _tell(made[ended.name], reporter, bar)
                told()
    except BaseException:
        runner.stop()
        raise
    return told()


def _attempts(
    left: Sequence[PlannedRun],
    plan: Plan,
    out: Path,
    runner: Runner,
    made: dict[str, FleetRun],
    may_begin: Callable[[], bool],
) -> Iterator[PlannedRun]:
    """Runs as they end for good, `made` telling how; as many at once as the plan says."""
    queue, going, losses = list(left), dict[Future[Ending | None], PlannedRun](), Counter[str]()
    while queue or going:
        while queue and len(going) < max(1, runner.room()) and may_begin():
            run = queue.pop(0)
            going[runner.submit(unit(run, out))] = run
        if not going:
            return  # no time is left
        # Hosts come and go: there may be more room before a run has ended.
        for future in wait(going, LOOK_AGAIN_S, return_when=FIRST_COMPLETED).done:
            run = going.pop(future)
            ending = future.result()
            if ending is None:
                continue
            if ending.refused:
                raise InputError(f"runner: {ending.refused}")
            if ending.lost:
                losses[run.name] += 1
                _log(out / LOGS / f"{run.name}.log", ending.lost)
                if losses[run.name] < MOST_LOSSES:
                    queue.insert(0, run)  # a plan that begins with its longest runs goes on so: fewer hosts wait last
                    continue
            made[run.name] = found = _ended(run, ending, made[run.name], out, plan)
            again = found.state == FAILED and ending.exit_code not in FINAL and not ending.lost
            if again and found.attempts < plan.config.attempts:
                queue.append(run)
            else:
                yield run


def unit(run: PlannedRun, out: Path) -> Unit:
    """What makes a run, or goes on with it, wherever the fleet's folder is seen."""
    from qrobust.device import gpus_of  # torch, which reading a fleet does without

    out = out.absolute()
    return Unit(
        key=run.name,
        arguments=tuple(arguments(run, out)),
        folder=out / RUNS / run.name,
        needed=out / CONFIGS / f"{run.name}.toml",
        log=out / LOGS / f"{run.name}.log",
        place=Path.cwd(),
        threads=run.config.threads,
        gpus=gpus_of(run.config.device),
    )


def _log(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")


def arguments(run: PlannedRun, out: Path) -> list[str]:
    """Of the `qrobust` command that makes a run, or goes on with it; its configuration is written first.

    Runs of a fleet share the ranges that they observe, unless they are told to share them elsewhere.
    """
    folder, file = out / RUNS / run.name, out / CONFIGS / f"{run.name}.toml"
    quantization = run.config.quantization
    ranges = replace(quantization, calibration_cache=quantization.calibration_cache or str(out / RANGES))
    write_text(file, as_toml(replace(run.config, quantization=ranges)))
    begun = ["--resume"] if configuration(folder) else ["--config", str(file)]
    return ["run", *begun, "--out", str(folder), *_code(run.config)]


def _code(config: RunConfig) -> Iterator[str]:
    """Options that name a user's code, which no run takes from a file alone."""
    if is_code(config.model.spec):
        yield from ("--model", config.model.spec)
    for option, names in (("--shifts", config.shifts.names), ("--train-on", config.shifts.train_on)):
        if any(map(is_code, names)):
            yield from (option, ",".join(names))


def _looked_at(run: PlannedRun, out: Path, plan: Plan) -> FleetRun:
    """A run as its folder is."""
    folder = out / RUNS / run.name
    known = FleetRun(name=run.name, values=dict(run.values), state=WAITING)
    if not (folder / "record.json").is_file():
        return known
    return replace(known, state=DONE, figures=figures(folder, plan))


def _ended(run: PlannedRun, ending: Ending, before: FleetRun, out: Path, plan: Plan) -> FleetRun:
    known = replace(
        before,
        state=FAILED,
        exit_code=ending.exit_code,
        attempts=before.attempts + 1,
        duration_s=before.duration_s + ending.seconds,
        message=None,
    )
    if ending.exit_code:
        return replace(known, message=_last_line(out / LOGS / f"{run.name}.log"))
    try:
        return replace(known, state=DONE, figures=figures(out / RUNS / run.name, plan))
    except InputError as error:
        return replace(known, message=str(error))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return printable(lines[-1])[:LONGEST_MESSAGE] if lines else ""


def _tell(run: FleetRun, reporter: Reporter, bar: Bar) -> None:
    bar.update(1, run.name)
    if run.state == FAILED:
        reporter.warn(f"warning: {run.name} failed (exit code {run.exit_code}): {run.message}")


def figures(folder: Path, plan: Plan) -> FleetFigures:
    """What a finished run says of the graph that ships, and how it stands to the plan's bounds.

    Raises:
        InputError: the folder is damaged, or of something else.
    """
    measured = open_finished(folder, "out")
    record, graph = measured.record, measured.graph(None)
    if not isinstance(record, Record):
        raise InputError(f"out: expected a run in {folder}, got an evaluation of files")
    summary, calibrated = record.summary, graph != "int8"
    gate = None
    if plan.limits:
        checks = failed_checks(folder, measured, graph)
        result = check(measured, plan.limits, graph=graph, confidence=CONFIDENCE, failed_checks=checks)
        gate = OUTCOMES[result.exit_code]
    return FleetFigures(
        graph=graph,
        recommended=record.recommendation.graph if record.recommendation else None,
        n_test=record.n_test,
        clean_accuracy=summary.clean_accuracy[graph],
        clean_interval=summary.clean_interval[graph],
        shift_accuracy=summary.shift_accuracy.get(graph),
        shift_interval=summary.shift_interval.get(graph),
        gain_pp=summary.compensation_gain_pp if calibrated else None,
        gain_interval_pp=summary.compensation_gain_interval_pp if calibrated else None,
        unseen_gain_pp=summary.unseen_gain_pp if calibrated else None,
        unseen_gain_interval_pp=summary.unseen_gain_interval_pp if calibrated else None,
        clean_cost_pp=summary.clean_cost_pp if calibrated else None,
        clean_cost_interval_pp=summary.clean_cost_interval_pp if calibrated else None,
        latency_ms=summary.latency_ms[graph].batch_1 if graph in summary.latency_ms else None,
        size_bytes=summary.size_bytes[graph],
        gate=gate,
    )


def exit_code(runs: Iterable[FleetRun]) -> int:
    """Of a fleet: 0 where all runs are done and none breaks a bound, 1 where one failed or breaks one, else 4."""
    every = list(runs)
    gates = {run.figures.gate for run in every if run.figures}
    if any(run.state == FAILED for run in every) or gates & {"breach", "failed"}:
        return 1
    return 4 if any(run.state == WAITING for run in every) or "undecided" in gates else 0
