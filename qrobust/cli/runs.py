"""Open a run's folder for a command, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console
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
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> Workbench:
    """A workbench for a new run; everything is read and checked before the folder is touched."""
    from qrobust.config import RunConfig
    from qrobust.folders import check_folder, create_folder
    from qrobust.pipeline import prepare_inputs
    from qrobust.usercode import hashes
    from qrobust.workbench import Workbench

    hashes(allow_code)  # a new run needs none: its command names every file
    check_folder(out, overwrite=overwrite)
    config = RunConfig(threads=cores() if threads is None else threads, **choices(options))
    bench = Workbench(config, None, console(verbose, quiet))
    prepare_inputs(bench, compensating=compensating)
    bench.folder = create_folder(out, bench.config_with_code, overwrite=overwrite)
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
    chosen = choices({k: v for k, v in options.items() if k not in ("verbose", "quiet", "threads", "allow_code")})
    bench = reopen(
        out, options["verbose"], options["quiet"], options["threads"],
        named=(chosen["model"], *chosen.get("shifts", ())), allow_code=options["allow_code"],
    )  # fmt: skip
    pipeline.check_same_config(bench, chosen)
    return bench


def reopen(
    folder: Path,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    named: tuple[str, ...] = (),
    allow_code: tuple[str, ...] = (),
    **options: Any,
) -> Workbench:
    """A workbench for a run that is there; see `Workbench.open`."""
    from qrobust.workbench import Workbench

    bench = Workbench.open(
        folder, console(verbose, quiet), named=named, allow_code=allow_code, threads=threads, **choices(options)
    )
    if options.get("hold_out"):
        bench.check_hold_out()
    return bench


def finish(bench: Workbench, record: dict[str, Any]) -> None:
    """Print the table and where the report lies."""
    from qrobust.report.markdown import table
    from qrobust.report.verdict import headline, verdict

    click.echo("\n".join([*table(headline(record)), "", *verdict(record), ""]))
    click.echo(f"Report: {bench.place().html}\nRecord: {bench.place().record}")
