"""Commands in processes of this machine, some at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# Seconds that a process has to keep what it made, once it was told to end.
GRACE_S = 60


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        exit_code: negative: the signal that ended it.
        seconds: that it took.
    """

    exit_code: int
    seconds: float


class LocalRunner:
    """Runs `qrobust` commands in processes of their own; `stop` ends them, and each keeps what it made.

    Args:
        at_once: commands at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._threads = ThreadPoolExecutor(at_once)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def submit(self, arguments: Sequence[str], log: Path) -> Future[Ending | None]:
        """Begin a command as soon as there is room, its output added to a file; None: it was not begun any more."""
        return self._threads.submit(self._run, [sys.executable, "-m", "qrobust", *arguments], log)

    def _run(self, command: list[str], log: Path) -> Ending | None:
        began = time.monotonic()
        with log.open("ab") as file:
            with self._lock:
                if self._stopped:
                    return None
                # A group of its own: a Ctrl-C comes to it from here alone, once.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        return Ending(code, time.monotonic() - began)

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
