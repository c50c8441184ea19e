"""The command group: the order of commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import Any

import click

from qrobust import __version__
from qrobust.cli.command import Command
from qrobust.cli.configuration_commands import init
from qrobust.cli.console import echo
from qrobust.cli.file_commands import audit, evaluate_onnx, predict
from qrobust.cli.finished_commands import check, compare, deploy
from qrobust.cli.fleet_commands import fleet
from qrobust.cli.interrupts import end, remember_arguments, signals_raise
from qrobust.cli.run_commands import compensate, demo, evaluate, export, quantize, report, run, sensitivity
from qrobust.errors import InputError, QRobustError, unknown


class Group(click.Group):
    """Commands in working order; every error becomes one line and its exit code, in this one place."""

    aliases = MappingProxyType({"quantize-and-compensate": "run"})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = self.aliases.get(args[0], args[0])
        if name not in self.commands and not name.startswith("-"):
            raise click.UsageError(str(unknown("command", name, self.commands)), ctx)
        return super().resolve_command(ctx, [name, *args[1:]])

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
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            message = command.as_typed(str(error)) if isinstance(command, Command) else str(error)
            code = error.exit_code
        except OSError as error:  # a full disk, a folder that went away
            if error.errno == errno.EPIPE:  # click knows what to do when nobody reads on
                raise
            told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            message, code = told, InputError.exit_code
        except MemoryError as error:
            message, code = f"memory: not enough for this ({str(error) or 'no more is known'})", InputError.exit_code
        except SystemExit as error:  # click's own are of another kind
            from qrobust.user_code import complaint

            message, code = f"a user's code ended the program ({complaint(error)})", InputError.exit_code
        except click.UsageError as error:
            message, code = _usage(error, ctx), error.exit_code
        echo(f"Error: {' '.join(message.split())}", err=True)
        raise click.exceptions.Exit(code)


def _usage(error: click.UsageError, ctx: click.Context) -> str:
    """What is wrong with the words that were typed, the option first, and where to read on."""
    text = error.format_message()
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        option = error.param.opts[0] if error.param else error.param_hint
        text = f"{option}: {error.message}"
    if isinstance(error, click.NoSuchOption):
        near = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
        text = f"{error.option_name}: no such option{near}"
    path = error.ctx.command_path if error.ctx else ctx.command_path
    return f"{text if text.endswith(('.', '?')) else text + '.'} See {path} --help."


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Quantize image classifiers to INT8, measure their robustness, and win it back.

    \b
    qrobust demo                                    # the whole job on built-in data, a few minutes
    qrobust run --model M --data D --out runs/one   # the whole job on yours
    qrobust evaluate-onnx float.onnx int8.onnx --data D --out evaluations/one
    qrobust compare runs/one runs/two               # the same images, paired
    qrobust check runs/two --against runs/one --max-drop 0.5    # for CI: exit code 1 if it is breached
    qrobust fleet plan.toml --out fleets/one        # many runs from one plan
    qrobust deploy runs/two --out deployed          # graph, manifest and code for the device
    qrobust audit int8.onnx

    The stages of `run` are commands, too, for the same folder: quantize, compensate, export, evaluate, report.
    COMMAND --help shows the options that matter first, COMMAND --help-all shows all.
    """


for _command in (
    demo,
    init,
    run,
    quantize,
    sensitivity,
    compensate,
    export,
    evaluate,
    report,
    evaluate_onnx,
    compare,
    check,
    fleet,
    deploy,
    predict,
    audit,
):
    main.add_command(_command)
