"""Worker processes that render: pixels go there and come back in memory that all of them share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from qrobust.errors import InputError, QRobustError
from qrobust.shifts.rendering import render

# In a worker: the memory that it shares.
_SHARED: list[Any] = []


class Renderers:
    """Processes, one thread each, that render batches of images; see `renderers`.

    They start with the first batch, and each renders its part of every batch. A batch lies in a slot of shared
    memory, in which its rendered pixels take the place of its own: to send pixels through a pipe would take as long
    as to render them.

    Args:
        workers: how many processes.
    """

    slots = 4

    def __init__(self, workers: int) -> None:
        self._workers, self._slot_bytes = workers, 0
        self._memory: Any = None
        self._pool: ProcessPoolExecutor | None = None

    def render(
        self, batches: Iterable[torch.Tensor], name: str, severity: int, *, table: str, seed: int
    ) -> Iterator[torch.Tensor]:
        """What `rendering.render` makes of batches of images, in order and a few batches ahead."""
        ahead: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        slot = 0

        def take() -> torch.Tensor:
            pixels, parts = ahead[0]
            for part in parts:
                part.result()
            ahead.popleft()
            return pixels.clone()

        try:
            for images in batches:
                if images.numel() > self._slot_bytes:
                    while ahead:
                        yield take()
                    self._start(images.numel())
                elif len(ahead) == self.slots:
                    yield take()
                offset = slot * self._slot_bytes
                pixels = _view(self._memory, offset, images.shape).copy_(images)
                ahead.append((pixels, []))
                assert self._pool is not None
                for part in images.split(-(-len(images) // self._workers)):
                    task = self._pool.submit(_render, offset, part.shape, name, severity, table=table, seed=seed)
                    ahead[-1][1].append(task)
                    offset += part.numel()
                slot = (slot + 1) % self.slots
            while ahead:
                yield take()
        finally:
            tasks = [task for _, parts in ahead for task in parts]
            for task in tasks:
                task.cancel()
            wait(tasks)  # nobody writes into a slot any more

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
    """Whether so many processes may render.

    Raises:
        InputError: fewer than 1.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")


@contextmanager
def renderers(workers: int) -> Iterator[Renderers | None]:
    """Worker processes for rendering; with 1 nothing is started, and the result is the same.

    Raises:
        InputError: fewer than 1 worker.
        QRobustError: a worker died.
    """
    check_workers(workers)
    if workers == 1:
        yield None
        return
    found = Renderers(workers)
    try:
        yield found
    except BrokenProcessPool as error:
        raise QRobustError("workers: a process that renders died; perhaps memory ran out, try fewer") from error
    finally:
        found.close()


def _begin(memory: Any) -> None:
    torch.set_num_threads(1)
    _SHARED.append(memory)


def _render(offset: int, shape: torch.Size, name: str, severity: int, *, table: str, seed: int) -> None:
    pixels = _view(_SHARED[0], offset, shape)
    pixels.copy_(render(pixels, name, severity, table=table, seed=seed))


def _view(memory: Any, offset: int, shape: torch.Size) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=offset).view(shape)
