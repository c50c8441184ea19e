"""Where the time of a training goes: what works says so by `part`, who wants to know runs a `Stopwatch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Parts of a training's step. A batch is made within `forward`; the time of what is within another part counts for the
# inner one alone, and what is within neither `forward` nor `backward` is no part of a step.
STEP = DECODING, RENDERING, FORWARD, BACKWARD = "decoding", "rendering", "forward", "backward"


class Stopwatch:
    """Seconds and number of entries of each part.

    A device that computes on its own is waited for where a step checks that loss and gradient are finite, which is
    within `forward` and `backward`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.entries: dict[str, int] = {}
        self._within: list[str] = []
        self._since = 0.0

    def _count(self) -> None:
        """Give the time since the last change to the part that it was spent in."""
        now = time.perf_counter()
        if self._within and self._within[0] in (FORWARD, BACKWARD):
            name = self._within[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        """A part begins."""
        self._count()
        self.entries[name] = self.entries.get(name, 0) + 1
        self._within.append(name)

    def leave(self) -> None:
        """It ends."""
        self._count()
        self._within.pop()

    def __str__(self) -> str:
        """Steps a second, and the share of each part of a step."""
        steps, total = self.entries.get(FORWARD, 0), sum(self.seconds.get(name, 0.0) for name in STEP)
        if not steps or not total:
            return "no step was made"
        shares = ", ".join(f"{name} {self.seconds.get(name, 0.0) / total:.0%}" for name in STEP)
        return f"{steps / total:.3g} steps a second ({shares})"


_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def timing() -> Iterator[Stopwatch]:
    """Run a stopwatch for what is done meanwhile."""
    watch = Stopwatch()
    token = _running.set(watch)
    try:
        yield watch
    finally:
        _running.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Tell the stopwatch that runs, if one does, what is done meanwhile."""
    watch = _running.get()
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()
