"""The command that makes many runs from one plan."""

from __future__ import annotations

from pathlib import Path

import click

from qrobust.cli.command import Command, Option
from qrobust.cli.console import console, echo
from qrobust.cli.options import with_options
from qrobust.cli.parsing import cores


@click.command(cls=Command)
@click.argument("plan_file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@with_options(
    "out",
    out={"help": "Folder of the fleet. It must be new or empty, or hold what this command left: then it goes on."},
)
@click.option(
    "--code",
    "named",
    cls=Option,
    multiple=True,
    metavar="FILE.py:NAME",
    help="Code that PLAN.toml names and that may run; repeat it for several.",
)
@click.option("--list", "listing", cls=Option, is_flag=True, help="Print the runs and make none.")
@with_options(
    "runner_name",
    "mixed_hosts",
    "threads",
    "verbose",
    "quiet",
    runner_name={
        "advanced": False,
        "help": "Where runs are made: on this machine, on the hosts of a Ray cluster (without an address, one on "
        "this machine), as Slurm jobs. Hosts share the folders.",
    },
    mixed_hosts={"advanced": False},
    threads={"help": "Threads that runs at the same time share."},
)
@click.pass_context
def fleet(
    ctx: click.Context,
    plan_file: Path,
    out: Path,
    *,
    named: tuple[str, ...],
    listing: bool,
    runner_name: str,
    mixed_hosts: bool,
    threads: int | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Make many runs from one plan, and compare them.

    PLAN.toml is a configuration as `qrobust init` writes it, which all runs share, with a table [fleet.matrix] of
    lists: a run for every combination. Each becomes an ordinary folder in DIR/runs. DIR/index.html, fleet.csv and
    fleet.json compare them, also while the fleet is at work. The same command goes on where it was interrupted, makes
    what is new in the plan, and tries again what failed.

    Exit codes: 0 all done; 1 a run failed or breaks a bound of [check]; 2 input that cannot be used; 4 a run waits
    (hours are up) or a bound is undecided.

    \b
    qrobust fleet plan.toml --out fleets/one --list
    qrobust fleet plan.toml --out fleets/one
    qrobust fleet plan.toml --out fleets/one --runner ray://head:6379
    """
    from qrobust.errors import InputError
    from qrobust.fleet.fleet import exit_code, make_fleet
    from qrobust.fleet.plan import read_plan
    from qrobust.fleet.runners import runner, split
    from qrobust.pipeline.output_folder import claimed, content
    from qrobust.record import FleetRecord
    from qrobust.report.fleet import fleet_csv, fleet_html, fleet_lines
    from qrobust.storage import write_json, write_text

    split(runner_name)
    plan = read_plan(plan_file, threads=threads or cores(), named=named)
    if listing:
        for run in plan.runs:
            echo(f"{run.name}: {', '.join(f'{axis} {value}' for axis, value in run.values.items())}")
        return
    index = out / "fleet.json"
    if content(out) and not index.is_file():
        raise InputError(f"out: expected a new or empty folder, or one that holds a fleet, got {out}")

    def written(record: FleetRecord) -> None:
        write_json(index, record.to_json())
        write_text(out / "fleet.csv", fleet_csv(record))
        write_text(out / "index.html", fleet_html(record))

    ctx.with_resource(claimed(out))
    where = runner(
        runner_name,
        out,
        at_once=plan.config.at_once,
        threads=max(run.config.threads for run in plan.runs),
        cpus=cores(),
        mixed_hosts=mixed_hosts,
    )
    record = make_fleet(plan, out, where, reporter=console(verbose, quiet), written=written)
    for line in fleet_lines(record):
        echo(line)
    echo(str(out / "index.html"))
    ctx.exit(exit_code(record.runs))
