"""What long work tells of itself: lines, and bars that may change their length."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

Progress = Callable[[int, int, str], None]


def progress_callback(bar: Bar) -> Progress:
    """What a training loop calls with the steps done so far, for a bar of those that it makes itself.

    A training first calls with where it begins: its pace is that of the steps from there on, not of what came before.
    """
    before = None

    def progress(step: int, _total: int, note: str) -> None:
        nonlocal before
        if before is None:
            bar.length -= step
            bar.start = time.time()
        else:
            bar.update(step - before, note)
        before = step

    return progress


class Bar(Protocol):
    """What a progress bar can do; its length and when it began (`time.time()`) may change until its first step."""

    length: Any
    start: float

    def update(self, n_steps: int, current_item: str | None = None) -> None: ...


class _NoBar:
    length = 0
    start = 0.0

    def update(self, n_steps: int, current_item: str | None = None) -> None:
        return None


class Reporter:
    """Where a run tells what it does; this one keeps silent. The CLI has one that draws."""

    def say(self, text: str) -> None:
        """A line worth reading."""

    def detail(self, text: str) -> None:
        """A line for `--verbose`."""

    def warn(self, text: str) -> None:
        """A line that must not be missed."""

    def bar(self, label: str, length: int) -> AbstractContextManager[Bar]:
        """A progress bar of `length` steps."""
        return nullcontext(_NoBar())
