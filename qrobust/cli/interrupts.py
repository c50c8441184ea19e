"""What a command says and returns when a signal ends it: what is kept, and how to go on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

# Exit codes of shells: 128 and the signal's number.
SHELL = 128
SAID = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
ARGUMENTS, BENCH = "qrobust.arguments", "qrobust.run"


class Signalled(KeyboardInterrupt):
    """A signal came; like Ctrl-C it passes what handles errors, and everything on its way cleans up."""

    # The last one: a library may have made an error of its own of the exception.
    last: int | None = None


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Signalled` meanwhile, unless whoever started this program decided otherwise."""

    def handle(number: int, _frame: object) -> NoReturn:
        Signalled.last = number
        raise Signalled

    Signalled.last = None
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    replaced = {}
    if threading.current_thread() is threading.main_thread():
        replaced = {number: was for number, was in usual.items() if signal.getsignal(number) == was}
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, was in replaced.items():
            signal.signal(number, was)


def remember_arguments(ctx: click.Context, arguments: list[str]) -> None:
    """Keep what was given on the command line, to recommend a command that goes on."""
    ctx.meta[ARGUMENTS] = list(arguments)


class Interruptible(click.Command):
    """A command that says what is kept when a signal ends it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt) and Signalled.last is None:
                raise
            raise end(_kept(ctx)) from error


def end(told: str = "the command had not begun, or was done") -> click.exceptions.Exit:
    """Say that a signal came, and what that means; what to raise for it."""
    number = signal.Signals(Signalled.last or signal.SIGINT)
    click.echo(f"{SAID[number]}: {told}", err=True)
    return click.exceptions.Exit(SHELL + number)


def work_on(run: Any) -> None:
    """Keep the run that a command works on, to tell what became of it."""
    click.get_current_context().meta[BENCH] = run


def _kept(ctx: click.Context) -> str:
    """What is left of a command's work, and the command that goes on."""
    from qrobust.pipeline.output_folder import NEW, content

    out: Path | None = ctx.params.get("out") or ctx.params.get("run_folder")
    if out is None or not (content(out) or (out / NEW).exists()):
        return "nothing is kept"
    folder = getattr(ctx.meta.get(BENCH), "folder", None)
    if (out / NEW).exists():
        kept = f"{out} is as it was, and what was trained or measured to replace it is kept in it"
    elif ctx.params.get("overwrite") and (folder is None or folder.path != out):
        return f"{out} is as it was"
    else:
        done = sorted((out / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        stages = f"the finished stages ({', '.join(path.stem for path in done)}) and " if done else ""
        kept = f"{out} keeps {stages}what was trained or measured so far"
    return f"{kept}; go on with: qrobust {shlex.join(_going_on(ctx, out))}"


def _going_on(ctx: click.Context, out: Path) -> list[str]:
    """Arguments of the command that goes on."""
    params, given = ctx.params, [part for part in ctx.meta[ARGUMENTS] if part != "--overwrite"]
    if ctx.info_name == "demo":
        from qrobust.pipeline.demo import OPTIONS

        choices = OPTIONS if params["seed"] is None else {**OPTIONS, "seed": params["seed"]}
        options = [part for key, value in choices.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        return ["run", "--resume", "--out", str(out), *options]
    resumes = "resume" in params and (params.get("out") is not None) and "--resume" not in given
    return [*given, "--resume"] if resumes else given
