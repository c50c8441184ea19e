"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console, echo
from qrobust.cli.interrupts import work_on
from qrobust.cli.parsing import choices, cores

if TYPE_CHECKING:
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import RunFolder
    from qrobust.record import Record


def claim(out: Path, *, overwrite: bool, resumable: bool = True) -> None:
    """Have a folder for a new run until the command ends; what `check_folder` refuses is not touched."""
    from qrobust.pipeline.output_folder import claimed
    from qrobust.pipeline.run_folder import check_folder

    check_folder(out, overwrite=overwrite, resumable=resumable)
    click.get_current_context().with_resource(claimed(out, replacing=overwrite))


def begin(
    out: Path,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    compensating: bool = True,
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> Run:
    """A run for a new run in a claimed folder; everything is read and checked before it is touched."""
    from qrobust.pipeline.config import RunConfig
    from qrobust.pipeline.inputs import prepare_inputs
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import create_folder
    from qrobust.user_code import hashes

    hashes(allow_code)  # a new run needs none: its command names every file
    config = RunConfig.from_options({"threads": cores() if threads is None else threads} | choices(options))
    run = Run(config, None, console(verbose, quiet))
    work_on(run)
    prepare_inputs(run, compensating=compensating)
    run.folder = create_folder(out, run.config_with_code, overwrite=overwrite)
    return run


def begin_or_resume(
    out: Path,
    overwrite: bool,
    resume: bool,
    *,
    compensating: bool = True,
    **options: Any,
) -> Run:
    """A run for a new run, or for one that was interrupted, which must have been begun alike."""
    from qrobust.errors import InputError
    from qrobust.pipeline import inputs
    from qrobust.pipeline.output_folder import begun, claimed, configuration
    from qrobust.pipeline.run_folder import other_unfinished

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    if not (resume and configuration(out)):
        claim(out, overwrite=overwrite)
        return begin(out, overwrite, compensating=compensating, **options)
    click.get_current_context().with_resource(claimed(out))
    place = begun(out) or out
    chosen = choices({k: v for k, v in options.items() if k not in ("verbose", "quiet", "threads", "allow_code")})
    run = _open(
        place,
        options["verbose"],
        options["quiet"],
        options["threads"],
        named=(chosen["model"], *chosen.get("shifts", ())),
        allow_code=options["allow_code"],
    )
    try:
        inputs.check_same_config(run, chosen)
    except InputError as error:
        raise InputError(f"{error}{other_unfinished(place)}") from error
    return run


def claim_existing(folder: Path) -> None:
    """Have the run that a folder holds until the command ends."""
    from qrobust.pipeline.output_folder import claimed, configuration

    if configuration(folder):
        click.get_current_context().with_resource(claimed(folder, "run folder"))


def reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None, **options: Any) -> Run:
    """A run for the run that a folder holds, which it has until the command ends; see `Run.open`."""
    claim_existing(folder)
    return _open(folder, verbose, quiet, threads, **options)


def _open(
    folder: Path,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    named: tuple[str, ...] = (),
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> Run:
    from qrobust.pipeline.provenance import check_hold_out
    from qrobust.pipeline.run import Run

    run = Run.open(
        folder, console(verbose, quiet), named=named, allow_code=allow_code, threads=threads, **choices(options)
    )
    work_on(run)
    if options.get("hold_out"):
        check_hold_out(run)
    return run


def finish(folder: RunFolder, record: Record) -> None:
    """Print the table and where the report lies."""
    from qrobust.report.markdown import table
    from qrobust.report.verdict import headline, verdict

    for line in (*table(headline(record)), "", *verdict(record), ""):
        echo(line)
    echo(f"Report: {folder.html}")
    echo(f"Record: {folder.record}")
