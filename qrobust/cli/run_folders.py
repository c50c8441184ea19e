"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console, echo
from qrobust.cli.interrupts import work_on
from qrobust.cli.parsing import choices, cores

if TYPE_CHECKING:
    from qrobust.evaluation.workers import Workers
    from qrobust.pipeline.config import RunConfig
    from qrobust.pipeline.file_run import FileRun
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import RunFolder
    from qrobust.record import Record

# Lines of the verdict at the end of a run, and the width that they have at least.
VERDICT_LINES, LEAST_WIDTH = 6, 60


def claim(out: Path, *, overwrite: bool) -> None:
    """Have a folder for a new run until the command ends; what `check_folder` refuses is not touched."""
    from qrobust.pipeline.output_folder import claimed
    from qrobust.pipeline.run_folder import check_folder

    check_folder(out, overwrite=overwrite)
    click.get_current_context().with_resource(claimed(out, replacing=overwrite))


def claim_existing(folder: Path) -> None:
    """Have the run that a folder holds until the command ends."""
    from qrobust.pipeline.output_folder import claimed, configuration

    if configuration(folder):
        click.get_current_context().with_resource(claimed(folder, "run folder"))


def begin(
    out: Path,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    compensating: bool = True,
    anyway: bool = False,
    allow_code: tuple[str, ...] = (),
    configured: Mapping[str, object] = MappingProxyType({}),
    **options: Any,
) -> Run:
    """A new run in a claimed folder; everything is read and checked before it is touched."""
    from qrobust.pipeline.inputs import prepare_inputs
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import create_folder

    run = Run(_new_config(threads, allow_code, configured, options), None, console(verbose, quiet))
    work_on(run)
    prepare_inputs(run, compensating=compensating, anyway=anyway)
    run.folder = create_folder(out, run.config_with_code, overwrite=overwrite)
    return run


def _new_config(
    threads: int | None, allow_code: tuple[str, ...], configured: Mapping[str, object], options: Mapping[str, Any]
) -> RunConfig:
    """The configuration of a new run."""
    from qrobust.errors import InputError
    from qrobust.pipeline.config import RunConfig
    from qrobust.user_code import hashes

    for name in ("model", "data"):
        if options.get(name) is None and name not in configured:
            raise InputError(f"{name}: expected one for a new run, got none; --resume continues one that --out holds")
    hashes(allow_code)  # a new run needs none: its command names every file
    given = choices(options) | ({} if threads is None else {"threads": threads})
    return RunConfig.from_options({"threads": cores(), **configured, **given})


def begin_or_resume_file(
    out: Path,
    overwrite: bool,
    resume: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    remedy: str | None = None,
    anyway: bool = False,
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> FileRun:
    """A new run of a quantized file, or one that was interrupted; its remedy is by default what it was begun with."""
    from qrobust.errors import InputError
    from qrobust.pipeline.file_inputs import prepare_file
    from qrobust.pipeline.file_run import FileRun
    from qrobust.pipeline.output_folder import configuration
    from qrobust.pipeline.run_folder import create_folder
    from qrobust.record import ImportResult
    from qrobust.remedies import CALIBRATOR

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    if resume and configuration(out):
        found = resumed(out, verbose, quiet, threads, allow_code, kind=FileRun, **options)
        assert isinstance(found, FileRun)
        done = found.require_folder().result(ImportResult, "import")
        found.remedy = remedy or (done.remedy if done else CALIBRATOR)
        return found
    claim(out, overwrite=overwrite)
    run = FileRun(_new_config(threads, allow_code, {}, options), None, console(verbose, quiet))
    run.remedy = remedy or CALIBRATOR
    work_on(run)
    prepare_file(run, anyway=anyway)
    run.folder = create_folder(out, run.config_with_code, overwrite=overwrite)
    return run


def begin_or_resume(
    out: Path,
    overwrite: bool,
    resume: bool,
    *,
    compensating: bool = True,
    anyway: bool = False,
    config: str | None = None,
    settings: tuple[str, ...] = (),
    **options: Any,
) -> Run:
    """A new run, or one that was interrupted."""
    from qrobust.errors import InputError
    from qrobust.pipeline.output_folder import configuration

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    configured = _configured(config, settings, options)
    if resume and configuration(out):
        return resumed(out, configured=configured, **options)
    claim(out, overwrite=overwrite)
    return begin(out, overwrite, compensating=compensating, anyway=anyway, configured=configured, **options)


def _configured(config: str | None, settings: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, object]:
    """Choices of a configuration file and of `--set`; none without them."""
    if config is None and not settings:
        return {}
    from qrobust.pipeline.config_file import check_named, read_choices

    found = read_choices(config, settings)
    typed = [value if isinstance(value, tuple) else (value,) for value in options.values()]
    check_named(found, [*settings, *(str(text) for value in typed for text in value)])
    names = found.get("scenarios")
    if names and not {"shifts", "train_on"} & set(found):
        found |= choices({"scenario": names, "train_on": None})
    return found


def resumed(
    out: Path,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    allow_code: tuple[str, ...] = (),
    configured: Mapping[str, object] = MappingProxyType({}),
    kind: type[Run] | None = None,
    **options: Any,
) -> Run:
    """A run that was interrupted; options that are given must be those that it was begun with."""
    from qrobust.errors import InputError
    from qrobust.pipeline.inputs import check_same_config
    from qrobust.pipeline.output_folder import begun, claimed
    from qrobust.pipeline.provenance import training_conditions
    from qrobust.pipeline.run_folder import other_unfinished

    click.get_current_context().with_resource(claimed(out))
    place, chosen = begun(out) or out, {**configured, **choices(options)}
    chosen.pop("threads", None)  # may change
    named = [
        spec
        for spec in (chosen.get("model"), *chosen.get("shifts", ()), *chosen.get("train_on", ()))
        if spec is not None
    ]
    run = _open(
        place,
        verbose,
        quiet,
        threads,
        kind=kind,
        named=tuple(named),
        allow_code=allow_code,
        device=chosen.get("device"),
        accept_undecided=chosen.get("accept_undecided"),
    )
    try:
        check_same_config(run, chosen)
    except InputError as error:
        raise InputError(f"{error}{other_unfinished(place)}") from error
    # A user's code that is refused is refused here: a first stage that fails would take the folder with it.
    _ = run.model_spec, run.config.qat.shifts and training_conditions(run)
    return run


def reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None = None, **options: Any) -> Run:
    """The run that a folder holds, held until the command ends, with the options given in place of its own."""
    claim_existing(folder)
    return _open(folder, verbose, quiet, threads, **options)


def _open(
    folder: Path,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    kind: type[Run] | None = None,
    named: tuple[str, ...] = (),
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> Run:
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import refuse_file

    if kind is None:
        refuse_file(folder)
    run = (kind or Run).open(
        folder, console(verbose, quiet), named=named, allow_code=allow_code, threads=threads, **choices(options)
    )
    work_on(run)
    _ = run.device  # one that is not there is refused before anything is done
    return run


def check_runner(name: str, workers: int = 1, *, try_out: bool = False) -> None:
    """Refuse a runner that does not exist, and processes of this machine beside those of a cluster.

    Args:
        name: of the runner.
        workers: processes of this machine.
        try_out: whether to begin it and end it again, because it is needed much later.

    Raises:
        InputError: says which.
    """
    from qrobust.errors import InputError
    from qrobust.fleet.runners import LOCAL, split

    if split(name)[0] == LOCAL:
        return
    if try_out:
        from qrobust.fleet import evaluation

        evaluation.check_runner(name, cpus=cores())
    if workers != 1:
        raise InputError(
            f"workers: expected with --runner local only, {name} has as many as it has CPUs; got {workers}"
        )


@contextmanager
def evaluating_by(
    name: str, predictions: Callable[[], Path], *, workers: int = 1, mixed_hosts: bool = False, begin: bool = False
) -> Iterator[Workers]:
    """Who answers the images of an evaluation: processes of this machine, or a runner's hosts, which end with it.

    Args:
        name: of the runner.
        predictions: folder of the evaluation's predictions, as it is now.
        workers: processes of this machine.
        mixed_hosts: whether CPUs may differ between hosts.
        begin: whether the runner is begun now, or when it is needed.

    Raises:
        InputError: the runner cannot be used.
    """
    from qrobust.evaluation.predictions import BLOCKS
    from qrobust.fleet.evaluation import block_runner
    from qrobust.fleet.runners import LOCAL, split

    if split(name)[0] == LOCAL:
        yield workers
    else:
        found = block_runner(name, cpus=cores(), mixed_hosts=mixed_hosts)
        try:
            if begin:
                found.begun(predictions())
            yield found
        finally:
            found.close()
    shutil.rmtree(predictions() / BLOCKS, ignore_errors=True)  # all is kept as whole conditions


def refuse_mlflow(uri: str | None) -> None:
    """Before anything is computed, refuse a URI that no run can be logged to."""
    if uri is not None:
        from qrobust.pipeline.mlflow_log import check_mlflow

        check_mlflow(uri)


def finish(folder: RunFolder, record: Record, *, strict: bool = False, mlflow: str | None = None) -> None:
    """Print the beginning of the verdict, where INT8 buys nothing, and where the report lies; log it, if wanted.

    Raises:
        ExportCheckError: INT8 buys nothing, and that is to be `strict`.
    """
    from qrobust.record import SLOW
    from qrobust.report.no_gain import mostly_float, slower_than_float
    from qrobust.report.verdict import NAMES, verdict

    for line in beginning(verdict(record)):
        echo(line)
    in_float, slower = mostly_float(record.audit, NAMES), slower_than_float(record, NAMES)
    candidates = record.recommendation.candidates if record.recommendation else ()
    told = {candidate.graph for candidate in candidates if SLOW in candidate.refused}  # by the verdict
    warn_of_float([*in_float.values(), *(sentence for name, sentence in slower.items() if name not in told)])
    echo(f"Report: {folder.html}")
    if mlflow is not None:
        from qrobust.pipeline.mlflow_log import log_run

        echo(f"MLflow: {mlflow}, run {log_run(mlflow, folder, record)}")
    if strict:
        refuse_float([*in_float.values(), *slower.values()])


def warn_of_float(sentences: Iterable[str]) -> None:
    """Tell of graphs for which INT8 buys nothing."""
    for sentence in sentences:
        echo(f"warning: {sentence}", err=True)


def refuse_float(sentences: Iterable[str]) -> None:
    """End with the exit code of a failed check where INT8 buys nothing.

    Raises:
        ExportCheckError: there is such a graph.
    """
    from qrobust.errors import ExportCheckError

    for sentence in sentences:
        raise ExportCheckError(f"strict: {sentence}")


def beginning(sentences: list[str]) -> list[str]:
    """As many whole sentences as a few lines of the terminal hold, the first one at any length."""
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    lines: list[str] = []
    for sentence in sentences:
        more = textwrap.wrap(sentence, width, break_on_hyphens=False)  # an option stays whole
        if lines and len(lines) + len(more) > VERDICT_LINES:
            break
        lines += more
    return lines
