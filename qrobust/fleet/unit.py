"""A unit of work: a `qrobust` command that any host may begin, and any other go on with."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from qrobust import __version__
from qrobust.errors import InputError, QRobustError
from qrobust.pipeline.output_folder import wait_until_free
from qrobust.record import hardware, versions
from qrobust.storage import write_text

# Seconds that a process has to keep what it made, once it was told to end; as long, one waits for a lost one's lock.
GRACE_S = 60.0
# Seconds until what one host wrote is seen by another, through a shared file system at its slowest.
SEEN_AFTER_S = 15.0
POLL_S = 0.1
# Exit codes of a command that a signal ended, and of one that kept what it made when it came.
TOLD_TO_END = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
KINDS = "hosts.json"
Process: TypeAlias = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Host:
    """What the figures of a run depend on beside its configuration.

    Attributes:
        name: of the machine.
        flags: instruction sets of its CPU that integer arithmetic gains by; sums differ between them.
        versions: of qrobust, Python and the packages that figures depend on.
    """

    name: str
    flags: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Unit:
    """A command, which is idempotent: it goes on with what an earlier one left in its folder.

    Attributes:
        key: of the unit; the same work has the same key.
        arguments: of `qrobust`.
        folder: that it alone writes; None: it writes beside others.
        needed: a file that the host must see.
        log: its output is added to this file.
        place: current folder of the command.
        threads: CPUs that it takes.
        gpus: that it takes.
        module: whose command it is.
        call: does the same with these arguments in a process that stays, and keeps what it opened; None: nothing.
    """

    key: str
    arguments: tuple[str, ...]
    folder: Path | None
    needed: Path
    log: Path
    place: Path
    threads: int = 1
    gpus: int = 0
    module: str = "qrobust"
    call: Callable[..., None] | None = None


@dataclass(frozen=True)
class Ending:
    """How a unit ended.

    Attributes:
        exit_code: of its command; negative: the signal that ended it.
        seconds: that it took.
        lost: why nobody knows how it ended, such as a host that is gone; empty: it is known.
        refused: why a host did not begin it; empty: it did.
    """

    exit_code: int
    seconds: float
    lost: str = ""
    refused: str = ""


class Runner(Protocol):
    """Where units are made."""

    def room(self) -> int:
        """How many units may be begun or wait at the same time, now."""

    def per_host(self) -> int:
        """How many units one host makes at the same time, as far as that is known."""

    def submit(self, unit: Unit) -> Future[Ending | None]:
        """Begin a unit, now or later; None: it was not begun any more."""

    def stop(self) -> None:
        """End what runs, so that it can go on, and begin nothing more."""


@dataclass(frozen=True)
class Expected:
    """What a host must be to work on a fleet.

    Attributes:
        versions: those of who began the fleet.
        kinds: file in which the first host of a fleet keeps what CPU it has; None: CPUs may differ.
    """

    versions: Mapping[str, str] = field(default_factory=lambda: dict(this_host().versions))
    kinds: Path | None = None

    def refusal(self, host: Host) -> str:
        """Why a host may not work on a fleet; empty: it may."""
        for name, wanted in self.versions.items():
            got = host.versions.get(name)
            if got != wanted:
                return f"expected {name} {wanted} as here on every host, got {got or 'none'} on {host.name}"
        first = _first_of_its_kind(self.kinds, host) if self.kinds else host
        if first.flags == host.flags:
            return ""
        return (
            f"expected hosts with the CPU flags of {first.name} ({_listed(first)}), which was the first, got "
            f"{_listed(host)} on {host.name}: integer sums differ between them; --mixed-hosts allows it"
        )


def this_host() -> Host:
    """The host that this runs on. A checkout's commit is no version: an installed copy does not know it."""
    known = {name: value for name, value in versions().items() if name != "commit"}
    return Host(platform.node(), hardware(1).flags, {"qrobust": __version__, **known})


def run_unit(unit: Unit, expected: Expected | None = None, *, stays: bool = False) -> Ending:
    """Make a unit on this host, in a process that does not outlive this one, however this one ends.

    Args:
        unit: what to make.
        expected: what the host must be; None: anything.
        stays: whether this process makes other units later; then it makes those itself that can be called.

    Raises:
        BaseException: what interrupted this; the unit was then ended, and has kept what it made.
    """
    host = this_host()
    refusal = (expected.refusal(host) if expected else "") or _not_seen(unit, host)
    if refusal:
        return Ending(InputError.exit_code, 0.0, refused=refusal)
    began = time.monotonic()
    if stays and unit.call:
        return Ending(_called(unit, unit.call), time.monotonic() - began)
    if unit.folder:
        wait_until_free(unit.folder, GRACE_S)
    process = begin(unit)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)  # a wait for the process itself is not interrupted everywhere
    except BaseException:
        end([process])
        raise
    finally:
        code = ended(process)
    lost = f"it was told to end on {host.name}, as a cancelled job is" if code in TOLD_TO_END else ""
    return Ending(code, time.monotonic() - began, lost=lost)


def _called(unit: Unit, call: Callable[..., None]) -> int:
    """Exit code of a unit that this process makes itself; its log tells of what failed."""
    os.chdir(unit.place)
    try:
        call(*unit.arguments)
    except QRobustError as error:
        with unit.log.open("a", encoding="utf-8") as log:
            log.write(f"Error: {error}\n")
        return error.exit_code
    return 0


def begin(unit: Unit) -> Process:
    """The process of a unit's command; it ends when nobody holds the other end of its input any more."""
    # -P: what lies in the current folder, such as a `numpy.py`, is no package.
    command = [sys.executable, "-P", "-m", "qrobust.guarded", unit.module, *unit.arguments]
    with unit.log.open("ab") as log:
        # A session of its own: a Ctrl-C comes to it from here alone, once.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=unit.place
        )


def ended(process: Process) -> int:
    """Exit code of a process, once it has ended."""
    code = process.wait()
    if process.stdin:
        process.stdin.close()
    return code


def end(processes: Sequence[Process]) -> None:
    """Tell processes to end, and end those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _not_seen(unit: Unit, host: Host) -> str:
    """Why a unit cannot be made here: this host sees other folders."""
    until = time.monotonic() + SEEN_AFTER_S
    while not (unit.needed.is_file() and unit.place.is_dir()):
        if time.monotonic() > until:
            lacking = unit.place if unit.needed.is_file() else unit.needed
            return f"expected folders that all hosts share, got {host.name}, which does not see {lacking}"
        time.sleep(POLL_S)
    return ""


def _first_of_its_kind(file: Path, host: Host) -> Host:
    """The first host of a fleet, as the file says; this one, if there was none."""
    part = file.with_name(f"{file.name}.{host.name}.{os.getpid()}")
    try:
        if not file.exists():
            write_text(part, json.dumps({"name": host.name, "flags": list(host.flags)}))
            os.link(part, file)  # fails where another host was first
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Host(str(kept["name"]), tuple(map(str, kept["flags"])), {})
    except (ValueError, KeyError, TypeError) as error:
        raise QRobustError(f"out: expected what the first host was in {file}, got something else") from error


def _listed(host: Host) -> str:
    return ", ".join(host.flags) or "none"
