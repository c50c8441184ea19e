"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console
from qrobust.cli.parsing import choices, cores

if TYPE_CHECKING:
    from qrobust.pipeline.run import Run

# Lines of the verdict at the end of a run, and the width that they have at least.
VERDICT_LINES, LEAST_WIDTH = 6, 60


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
    """A new run; everything is read and checked before the folder is touched."""
    from qrobust.errors import InputError
    from qrobust.pipeline.config import RunConfig
    from qrobust.pipeline.inputs import prepare_inputs
    from qrobust.pipeline.run import Run
    from qrobust.pipeline.run_folder import check_folder, create_folder

    for name in ("model", "data"):
        if options.get(name) is None:
            raise InputError(f"{name}: expected one for a new run, got none; --resume continues one that --out holds")
    check_folder(out, overwrite=overwrite)
    config = RunConfig.from_options({"threads": cores() if threads is None else threads} | choices(options))
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
    """A new run, or one that was interrupted."""
    from qrobust.errors import InputError

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    if resume and (out / "config.json").is_file():
        return resumed(out, **options)
    return begin(out, overwrite, compensating=compensating, **options)


def resumed(out: Path, verbose: bool, quiet: bool, threads: int | None, **options: Any) -> Run:
    """A run that was interrupted; options that are given must be those that it was begun with."""
    from qrobust.pipeline.inputs import check_same_config

    run = reopen(out, verbose, quiet, threads)
    check_same_config(run, choices(options))
    return run


def reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None = None, **options: Any) -> Run:
    """A run that is there, with the options that are given in place of its own."""
    from qrobust.pipeline.provenance import check_hold_out
    from qrobust.pipeline.run import Run

    run = Run.open(folder, console(verbose, quiet), threads=threads, **choices(options))
    if options.get("hold_out"):
        check_hold_out(run)
    return run


def finish(run: Run, record: dict[str, Any]) -> None:
    """Print the beginning of the verdict, and where the report lies."""
    from qrobust.report.verdict import verdict

    click.echo("\n".join([*beginning(verdict(record)), f"Report: {run.require_folder().html}"]))


def beginning(sentences: list[str]) -> list[str]:
    """As many whole sentences as a few lines of the terminal hold, the first one at any length."""
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    lines: list[str] = []
    for sentence in sentences:
        more = textwrap.wrap(sentence, width)
        if lines and len(lines) + len(more) > VERDICT_LINES:
            break
        lines += more
    return lines
