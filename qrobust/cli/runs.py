"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrobust.cli.console import console, echo
from qrobust.cli.options import choices, cores

if TYPE_CHECKING:
    from qrobust.workbench import Workbench


def begin(
    out: Path,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    compensating: bool = True,
    **options: Any,
) -> Workbench:
    """A workbench for a new run; everything is read and checked before the folder is touched."""
    from qrobust.config import RunConfig
    from qrobust.folders import check_folder, create_folder
    from qrobust.pipeline import prepare_inputs
    from qrobust.workbench import Workbench

    check_folder(out, overwrite=overwrite)
    config = RunConfig(threads=cores() if threads is None else threads, **choices(options))
    bench = Workbench(config, None, console(verbose, quiet))
    prepare_inputs(bench, compensating=compensating)
    bench.folder = create_folder(out, config, overwrite=overwrite)
    return bench


def begin_or_resume(
    out: Path,
    overwrite: bool,
    resume: bool,
    *,
    compensating: bool = True,
    **options: Any,
) -> Workbench:
    """A workbench for a new run, or for one that was interrupted, which must have been begun alike."""
    from qrobust import pipeline
    from qrobust.errors import InputError

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    if not (resume and (out / "config.json").is_file()):
        return begin(out, overwrite, compensating=compensating, **options)
    bench = reopen(out, options["verbose"], options["quiet"], options["threads"])
    given = {k: v for k, v in options.items() if k not in ("verbose", "quiet", "threads")}
    pipeline.check_same_config(bench, choices(given))
    return bench


def reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None, **options: Any) -> Workbench:
    from qrobust.workbench import Workbench

    bench = Workbench.open(folder, console(verbose, quiet), threads=threads, **choices(options))
    if options.get("hold_out"):
        bench.check_hold_out()
    return bench


def finish(bench: Workbench, record: dict[str, Any]) -> None:
    """Print the table and where the report lies."""
    from qrobust.report.markdown import table
    from qrobust.report.verdict import headline, verdict

    for line in (*table(headline(record)), "", *verdict(record), ""):
        echo(line)
    echo(f"Report: {bench.place().html}")
    echo(f"Record: {bench.place().record}")
