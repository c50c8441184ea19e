"""What a run prints and draws."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from qrobust.text import printable

if TYPE_CHECKING:
    from qrobust.progress import Reporter

LOG_SECONDS = 30


def echo(line: str, *, err: bool = False, **style: Any) -> None:
    """Print one line. What names of files, classes or nodes hold reaches no terminal as a command to it."""
    click.secho(printable(line), err=err, **style)


class _LogBar:
    """Progress for a log file: a line every half minute instead of a bar that redraws."""

    def __init__(self, label: str, length: int) -> None:
        self.label, self.length, self.done = label, length, 0
        self.start = self.told = time.time()

    def __enter__(self) -> _LogBar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, n_steps: int, current_item: str | None = None) -> None:
        self.done += n_steps
        now = time.time()
        if now - self.told >= LOG_SECONDS:
            self.told = now
            left = (now - self.start) * (self.length - self.done) / max(1, self.done)
            line = f"  {self.label}: {self.done}/{self.length}, {left:.0f} s left  {current_item or ''}"
            echo(line.rstrip(), err=True)


class Console:
    """Prints and draws for a run; `-q` silences all but warnings."""

    def __init__(self, verbose: bool, quiet: bool) -> None:
        self.verbose, self.quiet = verbose, quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            echo(text, err=True)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            echo(f"  {text}", err=True)

    def warn(self, text: str) -> None:
        echo(text, err=True, fg="yellow")

    def bar(self, label: str, length: int) -> AbstractContextManager[Any]:
        if not sys.stderr.isatty() and not self.quiet:
            return _LogBar(label, length)
        return click.progressbar(
            length=length,
            label=f"  {printable(label)}",
            file=sys.stderr,
            show_eta=True,
            hidden=self.quiet,
            item_show_func=lambda item: printable(item or ""),
            update_min_steps=max(1, length // 200),
        )


def console(verbose: bool, quiet: bool) -> Reporter:
    return Console(verbose, quiet)  # type: ignore[return-value]  # same methods, without importing torch
