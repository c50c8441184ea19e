"""Worker processes that render and classify batches of images, which lie in memory that all of them share."""

from __future__ import annotations

import functools
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
from typing import Any, TypeAlias, TypeVar

import torch

from qrobust.errors import InputError, QRobustError

T = TypeVar("T")
# Batches per process that wait in memory, one of which is being worked on.
AHEAD = 2
# Each takes some hundred megabytes, and beyond one for each core nothing is gained.
WORKERS_PER_CORE = 4
# In a worker: the memory that it shares.
_SHARED: list[Any] = []


class Processes:
    """Processes of one thread each that do something with batches of images; see `processes`.

    Each batch goes whole to one process, so that a classifier sees the same batches whatever their number. It lies in
    a slot of shared memory: pickled or as a shared tensor of its own, the way of the pixels takes longer
    (`benchmarks/workers.py`). Processes start with the first batch, and anew with one that no slot can hold.

    Args:
        count: how many processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots, self._slot_bytes = AHEAD * count, 0
        self._memory: Any = None
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, work: Iterable[tuple[Callable[[torch.Tensor], T], torch.Tensor]]) -> Iterator[T]:
        """Call a task with each batch, a few batches ahead; results come in order.

        Args:
            work: tasks, which can be pickled, each with a batch, uint8 `(N, C, H, W)`.

        Raises:
            InputError: a task cannot be pickled.
            QRobustError: a process died.
        """
        waiting: deque[Future[T]] = deque()
        packed_task, packed, slot = None, b"", 0
        try:
            for task, images in work:
                while waiting and (len(waiting) == self._slots or images.numel() > self._slot_bytes):
                    yield waiting.popleft().result()
                if task is not packed_task:
                    packed_task, packed = task, _packed(task)
                pool = self._with_slots_of(images.numel())
                offset, slot = slot * self._slot_bytes, (slot + 1) % self._slots
                _view(self._memory, offset, images.shape).copy_(images)
                waiting.append(pool.submit(_do, packed, offset, images.shape))
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
            wait(waiting)  # nobody reads from a slot any more

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _with_slots_of(self, size: int) -> ProcessPoolExecutor:
        """The processes, which share memory with slots of so many bytes at least."""
        if self._pool is None or size > self._slot_bytes:
            self.close()
            context = get_context("spawn")
            self._slot_bytes, self._memory = size, context.RawArray("B", self._slots * size)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._memory,))
        return self._pool


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


def _packed(task: object) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:  # whatever an object raises that is not made to be pickled
        raise InputError(
            f"workers: expected 1, for a classifier cannot be sent to other processes ({error}); functions and "
            "classes at the top of a module can"
        ) from error


def _do(packed: bytes, offset: int, shape: torch.Size) -> Any:
    return _unpacked(packed)(_view(_SHARED[0], offset, shape))


def _view(memory: Any, offset: int, shape: torch.Size) -> torch.Tensor:
    """A batch that lies in shared memory."""
    return torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=offset).view(shape)


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[torch.Tensor], Any]:
    """Put together here and not by the queue, so that what fails comes back as the result of a task."""
    return pickle.loads(packed)
