"""Worker processes that render and classify batches of images, which lie in memory that all of them share."""

from __future__ import annotations

import functools
import math
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload, runtime_checkable

import torch

from qrobust.errors import InputError, QRobustError

if TYPE_CHECKING:
    from qrobust.classifier import Classifier
    from qrobust.evaluation.predictions import Cache, Task

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
        packed_task, sent, slot = None, b"", 0
        try:
            for task, images in work:
                while waiting and (len(waiting) == self._slots or images.numel() > self._slot_bytes):
                    yield waiting.popleft().result()
                if task is not packed_task:
                    packed_task, sent = task, packed(task)
                pool = self._with_slots_of(images.numel())
                offset, slot = slot * self._slot_bytes, (slot + 1) % self._slots
                _view(self._memory, offset, images.shape).copy_(images)
                waiting.append(pool.submit(_do, sent, offset, images.shape))
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


@runtime_checkable
class Cluster(Protocol):
    """Hosts that answer blocks of images, and keep what was said in the folder of predictions."""

    def together(self) -> int:
        """How many conditions are worth being asked about together."""

    def answer(
        self,
        asked: Sequence[tuple[Mapping[str, Classifier], Task]],
        cache: Cache,
        seed: int,
        progress: Callable[[int], None],
    ) -> None:
        """Have every block of every task answered and kept; what is kept already is not asked about.

        Args:
            asked: classifiers by name, which can be pickled, and what they are shown.
            cache: of the evaluation.
            seed: of the rendering.
            progress: called with the number of images done.
        """


# How many processes, processes that have started for what came before, or other hosts.
Workers: TypeAlias = int | Processes | Cluster


def check_workers(workers: Workers, budget: float | None = None) -> None:
    """Check the number of processes, and whether a budget can be kept with other hosts.

    Raises:
        InputError: fewer than 1, or many times more than there are cores; a budget, which is judged by this host.
    """
    if isinstance(workers, Cluster) and budget is not None:
        raise InputError(f"budget: expected with --runner local only, whose pace is measured, got {budget:g} s")
    if not isinstance(workers, int):
        return
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    most = WORKERS_PER_CORE * (os.cpu_count() or 1)
    if workers > most:
        raise InputError(f"workers: expected at most {most}, {WORKERS_PER_CORE} for each core here, got {workers}")


@overload
def processes(workers: int) -> AbstractContextManager[Processes | None]: ...


@overload
def processes(workers: Workers) -> AbstractContextManager[Processes | Cluster | None]: ...


@contextmanager  # type: ignore[misc]  # the first of these is the case without other hosts
def processes(workers: Workers) -> Iterator[Processes | Cluster | None]:
    """Worker processes; with 1 nothing is started, and this process does the work itself.

    What is given stays open for what comes next: each takes seconds to start.

    Raises:
        InputError: fewer than 1 worker.
    """
    if not isinstance(workers, int):
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


def packed(task: object) -> bytes:
    """A task as another process gets it.

    Raises:
        InputError: it cannot be sent.
    """
    try:
        return pickle.dumps(task)
    except Exception as error:  # whatever an object raises that is not made to be pickled
        raise InputError(
            f"workers: expected 1, for a classifier cannot be sent to other processes ({error}); functions and "
            "classes at the top of a module can"
        ) from error


def _do(sent: bytes, offset: int, shape: torch.Size) -> Any:
    return _unpacked(sent)(_view(_SHARED[0], offset, shape))


def _view(memory: Any, offset: int, shape: torch.Size) -> torch.Tensor:
    """A batch that lies in shared memory."""
    return torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=offset).view(shape)


@functools.lru_cache(maxsize=1)
def _unpacked(sent: bytes) -> Callable[[torch.Tensor], Any]:
    """Put together here and not by the queue, so that what fails comes back as the result of a task."""
    return unpacked(sent)


def unpacked(sent: bytes) -> Any:
    """What `packed` made; it runs code, so whoever calls this knows who sent it."""
    return pickle.loads(sent)
