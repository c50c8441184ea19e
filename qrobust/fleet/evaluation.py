"""An evaluation by any runner: units are blocks of images under some conditions, and are found by their hash."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from qrobust.classifier import Classifier
from qrobust.errors import InputError, QRobustError
from qrobust.evaluation.blocks import Planned, answer_unit, plan, send, send_pixels
from qrobust.evaluation.kept import condition_file
from qrobust.evaluation.predictions import BLOCKS, Cache, Task
from qrobust.fleet.fleet import FINAL, LOOK_AGAIN_S, MOST_LOSSES
from qrobust.fleet.runners import SLURM, runner, split
from qrobust.fleet.unit import KINDS, POLL_S, SEEN_AFTER_S, Ending, Expected, Runner, Unit, this_host
from qrobust.storage import scratch
from qrobust.text import printable

# As the last units are begun, each has at most this share of what is left for one worker, so that all end together.
SHARE_OF_REST = 0.5
# Conditions with images of their own that are listed together, as long as no runner says how many it has room for.
MOST_TOGETHER = 16
# How often a unit is begun that something else than its input ends, such as a lack of memory.
ATTEMPTS = 2
# Of the units before, how much they count for the pace that the next is cut by.
MEMORY = 0.8


@dataclass(frozen=True)
class Size:
    """How large units are.

    Attributes:
        unit_s: seconds that one should take.
        ahead: units in hand for each that a runner has room for.
    """

    unit_s: float
    ahead: int


# Where processes stay, short ones, and some that wait, so that no worker waits for this process.
TASKS = Size(20.0, 2)
# Where each is a job that waits in a queue and begins a process.
JOBS = Size(300.0, 2)


@dataclass(frozen=True)
class Span:
    """Conditions of a block, from the first to before the last, that nobody has in hand.

    Attributes:
        block: number of the block.
        first: position of a condition.
        last: position of a condition.
    """

    block: int
    first: int
    last: int


class BlockRunner:
    """Answers blocks of images on a runner's hosts; a lost host costs what its units had not kept yet.

    Args:
        begin: makes the runner, which may keep what it needs in a folder that all hosts see.
        size: of units.
    """

    def __init__(self, begin: Callable[[Path], Runner], size: Size) -> None:
        self._begin, self._size = begin, size
        self._runner: Runner | None = None
        self._sent = 0

    def together(self) -> int:
        """Conditions that are worth being asked about together: as many as are answered at the same time."""
        return max(1, self._runner.room()) if self._runner else MOST_TOGETHER

    def begun(self, predictions: Path) -> Runner:
        """The runner, which is begun if it was not.

        Args:
            predictions: folder of the evaluation's predictions.

        Raises:
            InputError: it cannot be used.
        """
        if self._runner is None:
            folder = predictions.absolute() / BLOCKS
            folder.mkdir(parents=True, exist_ok=True)
            self._runner = self._begin(folder)
        return self._runner

    def answer(
        self,
        asked: Sequence[tuple[Mapping[str, Classifier], Task]],
        cache: Cache,
        seed: int,
        progress: Callable[[int], None],
    ) -> None:
        """Have every block of every task answered and kept; see `qrobust.evaluation.workers.Cluster`.

        Raises:
            InputError: a host is refused, or a classifier does not answer as it must.
            QRobustError: units fail, or take hosts with them.
        """
        planned = plan(asked, cache, seed)
        progress(planned.known)
        if not planned.work.blocks:
            return
        runner, folder = self.begun(cache.predictions), cache.predictions.absolute() / BLOCKS
        folder.mkdir(parents=True, exist_ok=True)
        self._sent += 1
        work = folder / f"work-{self._sent}"
        sha256 = send(planned.work, work)
        try:
            Units(planned, runner, work, sha256, self._size).make(progress)
            _wait_until_seen(planned)
        except BaseException:
            self.close()
            raise
        finally:
            work.unlink(missing_ok=True)
            for block in planned.work.blocks:
                block.pixels.unlink(missing_ok=True)

    def close(self) -> None:
        """End what runs; of what was kept nothing is lost."""
        if self._runner is not None:
            self._runner.stop()
            self._runner = None


def block_runner(name: str, *, cpus: int, mixed_hosts: bool = False) -> BlockRunner:
    """Answers the blocks of an evaluation by the runner of that name, other than `local`.

    This host is the first, which the others must be like: here is attacked, and times are taken.

    Args:
        name: see `qrobust.fleet.runners.split`.
        cpus: of this machine.
        mixed_hosts: whether CPUs may differ between hosts, and so may figures.

    Raises:
        InputError: there is no such runner.
    """
    kind, _ = split(name)

    def begin(folder: Path) -> Runner:
        refusal = "" if mixed_hosts else Expected(kinds=folder / KINDS).refusal(this_host())
        if refusal:
            raise InputError(f"runner: {refusal}")
        return runner(name, folder, at_once=cpus, threads=1, cpus=cpus, mixed_hosts=mixed_hosts)

    return BlockRunner(begin, JOBS if kind == SLURM else TASKS)


def check_runner(name: str, *, cpus: int) -> None:
    """Begin a runner and end it: what is told hours later otherwise is told now.

    Args:
        name: see `qrobust.fleet.runners.split`.
        cpus: of this machine.

    Raises:
        InputError: it cannot be used.
    """
    with scratch() as folder:
        runner(name, folder, at_once=cpus, threads=1, cpus=cpus).stop()


def _wait_until_seen(planned: Planned) -> None:
    """Until what other hosts wrote is seen here; what is not by then, this process answers itself."""
    until = time.monotonic() + SEEN_AFTER_S
    for block in planned.work.blocks:
        for asked in block.asked:
            while not condition_file(block.folder, asked.condition).exists() and time.monotonic() < until:
                time.sleep(POLL_S)


class Units:
    """The units of one piece of work, cut by the pace of those before.

    Args:
        planned: the work.
        runner: that makes them.
        work: file of the work.
        sha256: of that file.
        size: of units.

    Attributes:
        left: what nobody has in hand.
    """

    def __init__(self, planned: Planned, runner: Runner, work: Path, sha256: str, size: Size) -> None:
        self._planned, self._runner, self._size = planned, runner, size
        self._work, self._sha256 = work, sha256
        blocks = planned.work.blocks
        self.left = deque(Span(number, 0, len(block.asked)) for number, block in enumerate(blocks))
        self._open = [len(block.asked) for block in blocks]
        self._pace: float | None = None  # seconds of an image under a condition
        self._losses, self._attempts = Counter[tuple[int, int]](), Counter[tuple[int, int]]()

    def make(self, progress: Callable[[int], None]) -> None:
        """Make all of them, some at a time."""
        going = dict[Future[Ending | None], Span]()
        while self.left or going:
            while self.left and len(going) < self._size.ahead * max(1, self._runner.room()):
                span = self.next()
                going[self._runner.submit(self._unit(span))] = span
            for future in wait(going, LOOK_AGAIN_S, return_when=FIRST_COMPLETED).done:
                span = going.pop(future)
                if self.ended(span, future.result()):
                    progress((span.last - span.first) * self._images(span))

    def _images(self, span: Span) -> int:
        return len(self._planned.work.blocks[span.block].labels)

    def next(self) -> Span:
        """The next unit: of the block that was begun, as many conditions as take the time that a unit should."""
        span = self.left.popleft()
        count = 1
        if self._pace is not None:
            rest = sum(one.last - one.first for one in (span, *self.left))
            fair = math.ceil(SHARE_OF_REST * rest / max(1, self._runner.room()))
            count = max(1, min(fair, round(self._size.unit_s / max(1e-9, self._pace * self._images(span)))))
        last = min(span.last, span.first + count)
        if last < span.last:
            self.left.appendleft(replace(span, first=last))
        return replace(span, last=last)

    def _unit(self, span: Span) -> Unit:
        block = self._planned.work.blocks[span.block]
        if not block.pixels.exists():
            send_pixels(block, self._planned.splits[span.block])
        numbers = tuple(map(str, (span.block, span.first, span.last)))
        return Unit(
            key=f"block {' '.join(numbers)}",
            arguments=(str(self._work), self._sha256, *numbers),
            folder=None,
            needed=block.pixels,
            log=self._log(span),
            place=Path.cwd(),
            module="qrobust.fleet.block",
            call=answer_unit,
        )

    def _log(self, span: Span) -> Path:
        return self._work.with_name(f"{self._work.name}-{span.block}-{span.first}.log")

    def ended(self, span: Span, ending: Ending | None) -> bool:
        """Whether a unit is done; else it is begun again, where that is of use.

        Raises:
            InputError: its host is refused, or its input cannot be used.
            QRobustError: it failed too often.
        """
        if ending is None:
            return False  # it was stopped
        if ending.refused:
            raise InputError(f"runner: {ending.refused}")
        said = _last_line(self._log(span))
        if not ending.lost and ending.exit_code == 0:
            self._open[span.block] -= span.last - span.first
            self._learn(span, ending.seconds)
            if not self._open[span.block]:
                self._planned.work.blocks[span.block].pixels.unlink(missing_ok=True)
            return True
        counted, most = (self._losses, MOST_LOSSES) if ending.lost else (self._attempts, ATTEMPTS)
        counted[span.block, span.first] += 1
        if not ending.lost and ending.exit_code in FINAL:
            raise InputError(said)
        if counted[span.block, span.first] >= most:
            raise QRobustError(f"runner: a unit failed {most} times: {ending.lost or said or ending.exit_code}")
        self.left.appendleft(span)
        return False

    def _learn(self, span: Span, seconds: float) -> None:
        found = seconds / ((span.last - span.first) * self._images(span))
        self._pace = found if self._pace is None else MEMORY * self._pace + (1 - MEMORY) * found


def _last_line(log: Path) -> str:
    """What a unit said last, whose log is removed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    return next((printable(line).removeprefix("Error: ") for line in reversed(lines) if line.strip()), "")
