"""The command group: the order of commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
from typing import Any

import click

from qrobust import __version__
from qrobust.cli.console import echo
from qrobust.cli.file_commands import audit, evaluate
from qrobust.cli.interrupts import (
    end,
    remember_arguments,
    signals_raise,
)
from qrobust.cli.options import (
    RunCommand,
)
from qrobust.cli.run_commands import compensate, demo, export, quantize, report, run_command, sensitivity
from qrobust.errors import InputError, QRobustError


class Group(click.Group):
    """Turns every qrobust error into one line and its exit code, in this one place."""

    command_class = RunCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        remember_arguments(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with signals_raise():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise end() from error
        except QRobustError as error:
            message, code = str(error), error.exit_code
        except OSError as error:  # a full disk, a folder that went away
            if error.errno == errno.EPIPE:  # click knows what to do when nobody reads on
                raise
            told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            message, code = told, InputError.exit_code
        except SystemExit as error:  # click's own are of another kind
            from qrobust.user_code import complaint

            message, code = f"a user's code ended the program ({complaint(error)})", InputError.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else ctx.command_path
            message, code = f"{error.format_message()} See {path} --help.", error.exit_code
        echo(f"Error: {' '.join(message.split())}", err=True)
        raise click.exceptions.Exit(code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "quantize-and-compensate" if cmd_name == "run" else cmd_name)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """INT8 image classifiers whose robustness is measured, and repaired.

    \b
    qrobust demo                      # the whole job on built-in data, a few minutes
    qrobust run --model M --data D --out DIR
                                      quantize, compensate, export, measure, report
    qrobust audit FILE.onnx           # what onnxruntime really runs on integers

    `run` is short for `quantize-and-compensate`. The stages can be run one by one on the same folder:
    quantize, evaluate, compensate, export, evaluate, report.
    """


for _command in (run_command, demo, quantize, sensitivity, compensate, export, evaluate, report, audit):
    main.add_command(_command)
