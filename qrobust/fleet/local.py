"""Units in processes of this machine, some at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from qrobust.errors import InputError
from qrobust.fleet.unit import Ending, Expected, Process, Unit, begin, end, ended, this_host


class LocalRunner:
    """Makes units in processes of their own; `stop` ends them, and each keeps what it made.

    Args:
        at_once: units at the same time.
        expected: what this host must be; None: anything.
    """

    def __init__(self, at_once: int, expected: Expected | None = None) -> None:
        self._at_once, self._expected = at_once, expected
        self._threads = ThreadPoolExecutor(at_once)
        self._running: set[Process] = set()
        self._lock, self._stopped = threading.Lock(), False

    def room(self) -> int:
        """Units at the same time."""
        return self._at_once

    def per_host(self) -> int:
        """The same: there is one host."""
        return self._at_once

    def submit(self, unit: Unit) -> Future[Ending | None]:
        """Begin a unit as soon as there is room; None: it was not begun any more."""
        return self._threads.submit(self._run, unit)

    def _run(self, unit: Unit) -> Ending | None:
        refusal = self._expected.refusal(this_host()) if self._expected else ""
        if refusal:
            return Ending(InputError.exit_code, 0.0, refused=refusal)
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                return None
            process = begin(unit)
            self._running.add(process)
        code = ended(process)
        with self._lock:
            self._running.discard(process)
        return Ending(code, time.monotonic() - began)

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        end(running)
        self._threads.shutdown(cancel_futures=True)
