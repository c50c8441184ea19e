"""Worker processes that images are given to, in memory that all of them share."""

from __future__ import annotations

import math
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

import torch

from qrobust.errors import InputError, QRobustError

T = TypeVar("T")
# Each takes some hundred megabytes, and beyond one for each core nothing is gained.
WORKERS_PER_CORE = 4
# In a worker: the memory that it shares.
_SHARED: list[Any] = []


class Processes:
    """Processes, one thread each, that do something with batches of images; see `processes`.

    They start with the first batch, and each takes its part of every batch. A batch lies in a slot of shared memory:
    to send pixels through a pipe would take as long as to render them.

    Args:
        workers: how many processes.
    """

    slots = 4

    def __init__(self, workers: int) -> None:
        self._workers, self._slot_bytes = workers, 0
        self._memory: Any = None
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, batches: Iterable[torch.Tensor], task: Callable[[torch.Tensor], T]) -> Iterator[list[T]]:
        """What `task` makes of the parts of batches, in order and a few batches ahead.

        Args:
            batches: uint8 `(N, C, H, W)`.
            task: what can be pickled; it is called in the processes, and the pixels that it is given are its own only
                until it returns.

        Raises:
            QRobustError: a process died.
        """
        # Put together in the process by `_do`, so that what fails there comes back as its result.
        packed = pickle.dumps(task)
        ahead: deque[list[Future[Any]]] = deque()
        slot = 0

        def take() -> list[T]:
            found = [part.result() for part in ahead[0]]
            ahead.popleft()
            return found

        try:
            for images in batches:
                if images.numel() > self._slot_bytes:
                    while ahead:
                        yield take()
                    self._start(images.numel())
                elif len(ahead) == self.slots:
                    yield take()
                offset = slot * self._slot_bytes
                _teacher_output(self._memory, offset, images.shape).copy_(images)
                ahead.append([])
                assert self._pool is not None
                for part in images.split(-(-len(images) // self._workers)):
                    ahead[-1].append(self._pool.submit(_do, packed, offset, part.shape))
                    offset += part.numel()
                slot = (slot + 1) % self.slots
            while ahead:
                yield take()
        except BrokenProcessPool as error:
            raise QRobustError("workers: a process died; perhaps memory ran out, try fewer") from error
        finally:
            tasks = [part for parts in ahead for part in parts]
            for part in tasks:
                part.cancel()
            wait(tasks)  # nobody reads from a slot any more

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _start(self, slot_bytes: int) -> None:
        self.close()
        context = get_context("spawn")
        self._slot_bytes, self._memory = slot_bytes, context.RawArray("B", self.slots * slot_bytes)
        self._pool = ProcessPoolExecutor(self._workers, context, _begin, (self._memory,))


def check_workers(workers: int) -> None:
    """Whether there may be so many processes.

    Raises:
        InputError: fewer than 1, or many times more than there are cores.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    most = WORKERS_PER_CORE * (os.cpu_count() or 1)
    if workers > most:
        raise InputError(f"workers: expected at most {most}, {WORKERS_PER_CORE} for each core here, got {workers}")


@contextmanager
def processes(workers: int) -> Iterator[Processes | None]:
    """Worker processes; with 1 nothing is started, and what they would do is done here.

    Raises:
        InputError: fewer than 1 worker.
    """
    check_workers(workers)
    if workers == 1:
        yield None
        return
    found = Processes(workers)
    try:
        yield found
    finally:
        found.close()


def _begin(memory: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends these
    torch.set_num_threads(1)
    _SHARED.append(memory)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot say so: without this its processes would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(packed: bytes, offset: int, shape: torch.Size) -> Any:
    return pickle.loads(packed)(_teacher_output(_SHARED[0], offset, shape))


def _teacher_output(memory: Any, offset: int, shape: torch.Size) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=offset).view(shape)
