"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console
from qrobust.cli.parsing import choices, cores

if TYPE_CHECKING:
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import RunFolder
    from qrobust.record import Record


def begin(
    out: Path,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    compensating: bool = True,
    **options: Any,
) -> Run:
    """A run for a new run; everything is read and checked before the folder is touched."""
    from qrobust.pipeline.config import RunConfig
    from qrobust.pipeline.inputs import prepare_inputs
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import check_folder, create_folder

    check_folder(out, overwrite=overwrite)
    config = RunConfig(threads=cores() if threads is None else threads, **choices(options))
    run = Run(config, None, console(verbose, quiet))
    prepare_inputs(run, compensating=compensating)
    run.folder = create_folder(out, config, overwrite=overwrite)
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

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    if not (resume and (out / "config.json").is_file()):
        return begin(out, overwrite, compensating=compensating, **options)
    run = reopen(out, options["verbose"], options["quiet"], options["threads"])
    given = {k: v for k, v in options.items() if k not in ("verbose", "quiet", "threads")}
    inputs.check_same_config(run, choices(given))
    return run


def reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None, **options: Any) -> Run:
    from qrobust.pipeline.run import Run

    run = Run.open(folder, console(verbose, quiet), threads=threads, **choices(options))
    if options.get("hold_out"):
        run.check_hold_out()
    return run


def finish(folder: RunFolder, record: Record) -> None:
    """Print the table and where the report lies."""
    from qrobust.report.markdown import table
    from qrobust.report.verdict import headline, verdict

    click.echo("\n".join([*table(headline(record)), "", *verdict(record), ""]))
    click.echo(f"Report: {folder.html}\nRecord: {folder.record}")
