"""Worker processes that render and classify batches of images."""

from __future__ import annotations

import functools
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from qrobust.errors import InputError, QRobustError

T = TypeVar("T")
# Batches per process that wait in memory, one of which is being worked on.
AHEAD = 2
# Each takes some hundred megabytes, and beyond one for each core nothing is gained.
WORKERS_PER_CORE = 4


class Processes:
    """Processes of one thread each that do something with batches of images; see `processes`.

    Each batch goes whole to one process, so that a classifier sees the same batches whatever their number. Processes
    start with the first batches.

    Args:
        count: how many processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)

    def ask(self, work: Iterable[tuple[Callable[[torch.Tensor], T], torch.Tensor]]) -> Iterator[T]:
        """Call a task with each batch, a few batches ahead; results come in order.

        Args:
            work: tasks, which can be pickled, each with a batch, uint8 `(N, C, H, W)`.

        Raises:
            InputError: a task cannot be pickled.
            QRobustError: a process died.
        """
        waiting: deque[Future[T]] = deque()
        packed_task, packed = None, b""
        try:
            for task, images in work:
                if len(waiting) == AHEAD * self.count:
                    yield waiting.popleft().result()
                if task is not packed_task:
                    packed_task, packed = task, _packed(task)
                waiting.append(self._pool.submit(_do, packed, images.numpy()))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise QRobustError(
                "workers: a process died; memory may have run out (try fewer), or the script that started them does "
                "so without `if __name__ == '__main__':`"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


# How many processes, or processes that have started for what came before.
Workers: TypeAlias = int | Processes


def check_workers(workers: int) -> None:
    """Check the number of processes.

    Raises:
        InputError: fewer than 1, or many times more than there are cores.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    most = WORKERS_PER_CORE * (os.cpu_count() or 1)
    if workers > most:
        raise InputError(f"workers: expected at most {most}, {WORKERS_PER_CORE} for each core here, got {workers}")


@contextmanager
def processes(workers: Workers) -> Iterator[Processes | None]:
    """Worker processes; with 1 nothing is started, and this process does the work itself.

    Processes that are given stay open for what comes next: each takes seconds to start.

    Raises:
        InputError: fewer than 1 worker.
    """
    if isinstance(workers, Processes):
        yield workers
        return
    check_workers(workers)
    if workers == 1:
        yield None
        return
    found = Processes(workers)
    try:
        yield found
    finally:
        found.close()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends these
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot say so: without this its processes would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _packed(task: object) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:  # whatever an object raises that is not made to be pickled
        raise InputError(
            f"workers: expected 1, for a classifier cannot be sent to other processes ({error}); functions and "
            "classes at the top of a module can"
        ) from error


def _do(packed: bytes, pixels: np.ndarray) -> Any:
    return _unpacked(packed)(torch.from_numpy(pixels))


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[torch.Tensor], Any]:
    """Put together here and not by the queue, so that what fails comes back as the result of a task."""
    return pickle.loads(packed)
