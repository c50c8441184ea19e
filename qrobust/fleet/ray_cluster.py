"""Adapter to Ray, an optional dependency: units as tasks on the hosts of a cluster, or on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from types import ModuleType
from typing import Any

from qrobust.errors import InputError, QRobustError
from qrobust.fleet.unit import GRACE_S, Ending, Expected, Host, Unit, run_unit, this_host

INSTALL = "pip install 'qrobust[ray]'"
# Seconds: for a port to open, and for Ray behind it to answer.
ANSWERS_S, CONNECTS_S = 4.0, 5.0
PROBE_S = 60.0
PORT = 6379


class RayRunner:
    """Makes each unit as one Ray task; a task whose host is gone is lost, and the fleet begins it again.

    Args:
        address: HOST:PORT of a head node (`ray start --head`), or `auto`: the cluster that this machine belongs to;
            None: a cluster of this machine's, which ends with the fleet.
        threads: CPUs that the largest unit takes.
        expected: what a host must be.
        cpus: of the cluster of this machine's.

    Raises:
        InputError: Ray is missing, does not answer, has no host that is large enough, or hosts that are refused.
    """

    def __init__(self, address: str | None, threads: int, expected: Expected, cpus: int) -> None:
        self._ray, self._threads, self._expected = _ray(), threads, expected
        self._going: dict[Future[Ending | None], Any] = {}
        _connect(self._ray, address, cpus)
        self._task = self._ray.remote(run_unit)
        try:
            self._check()
        except BaseException:
            self._ray.shutdown()
            raise

    def room(self) -> int:
        """Units that the hosts of now have CPUs for."""
        return sum(cpus // self._threads for cpus in self._cpus())

    def per_host(self) -> int:
        """Units that the largest host has CPUs for."""
        return max(self._cpus(), default=0) // self._threads

    def submit(self, unit: Unit) -> Future[Ending | None]:
        """Begin a unit as soon as a host has its CPUs; None: it was not begun any more."""
        # Ray would begin the same command again; the fleet knows whether it is to go on instead.
        chosen = self._task.options(
            num_cpus=unit.threads, num_gpus=unit.gpus, max_retries=0, name=unit.key, scheduling_strategy="SPREAD"
        )
        task = chosen.remote(unit, self._expected, stays=True)
        told: Future[Ending | None] = Future()
        self._going[told] = task

        def tell(found: Future[Ending]) -> None:
            self._going.pop(told, None)
            try:
                told.set_result(self._ending(found))
            except BaseException as error:
                told.set_exception(error)

        task.future().add_done_callback(tell)
        return told

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        going = dict(self._going)
        for task in going.values():
            self._ray.cancel(task)
        wait(going, GRACE_S)
        self._ray.shutdown()

    def _cpus(self) -> list[int]:
        nodes = self._ray.nodes()
        return [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]

    def _check(self) -> None:
        """Refuse what no run could be made on.

        Raises:
            InputError: no host has the CPUs of a run, or one is refused.
        """
        most = max(self._cpus(), default=0)
        if most < self._threads:
            raise InputError(
                f"threads: expected at most the {most} CPUs of the cluster's largest host, got {self._threads}"
            )
        for host in self._hosts():
            refusal = self._expected.refusal(host)
            if refusal:
                raise InputError(f"runner: {refusal}")

    def _hosts(self) -> Sequence[Host]:
        """Every host, as it sees itself."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self._ray.remote(this_host)
        tasks = [
            ask.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote()
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        try:
            return list(self._ray.get(tasks, timeout=PROBE_S))
        except self._ray.exceptions.GetTimeoutError as error:
            raise InputError(f"runner: expected every host to answer within {PROBE_S:.0f} s, got none") from error
        except self._ray.exceptions.RayError as error:
            raise InputError(f"runner: expected qrobust on every host, got {_last(error)}") from error

    def _ending(self, found: Future[Ending]) -> Ending | None:
        """How a unit ended, whatever became of its host."""
        errors = self._ray.exceptions
        try:
            return found.result()
        except errors.TaskCancelledError:
            return None
        except errors.RayTaskError as error:
            if isinstance(error.cause, KeyboardInterrupt):
                return None
            raise QRobustError(f"runner: a host could not make a run: {_last(error)}") from error
        except errors.RayError as error:  # its process, host or memory is gone
            return Ending(-signal.SIGKILL, 0.0, lost=f"the host is gone or has ended the run: {_last(error)}")


def _ray() -> ModuleType:
    """The package, which tells nobody that it is used.

    Raises:
        InputError: it is not installed, or does not work with what is.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        import ray
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "ray"
        why = "not installed" if missing else f"installed and cannot be imported ({error})"
        raise InputError(f"runner: ray needs the package ray, which is {why}; {INSTALL}") from error
    return ray


def _connect(ray: ModuleType, address: str | None, cpus: int) -> None:
    """Join a cluster, or begin one.

    Raises:
        InputError: nothing answers, or something else than Ray.
    """
    quiet = {"log_to_driver": False, "configure_logging": False, "ignore_reinit_error": True}
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        if address != "auto":
            address = _answering(address)
        _within(CONNECTS_S, address, lambda: ray.init(address=address, **quiet))
    for number, handler in signals.items():  # Ray has handlers of its own, which would leave units at work
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _answering(address: str) -> str:
    """HOST:PORT of a head node, where something listens.

    Raises:
        InputError: it is none, or nothing listens.
    """
    host, _, port = address.partition(":")
    if not host or (port and not port.isdecimal()):
        raise InputError(f"runner: expected ray://HOST:PORT, got ray://{address}")
    try:
        socket.create_connection((host, int(port or PORT)), ANSWERS_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"runner: expected a Ray cluster (`ray start --head`) at {address}, got {why}") from error
    return f"{host}:{port or PORT}"


def _within(seconds: float, address: str, connect: Any) -> None:
    """Do what has no time limit of its own."""
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            connect()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() or failed:
        why = _last(failed[0]) if failed else f"no answer within {seconds:.0f} s"
        raise InputError(f"runner: expected a Ray cluster (`ray start --head`) at {address}, got {why}")


def _last(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
