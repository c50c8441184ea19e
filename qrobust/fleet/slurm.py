"""Adapter to submitit, an optional dependency: units as Slurm jobs, or as processes of its own for tests."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

from qrobust.errors import InputError, QRobustError
from qrobust.fleet.unit import GRACE_S, SEEN_AFTER_S, Ending, Expected, Unit, run_unit

INSTALL = "pip install 'qrobust[slurm]'"
# Jobs that wait or run at the same time, at most: as many as a queue of one user usually takes.
MOST_JOBS = 64
# Minutes that a job may take, where SBATCH_TIMELIMIT does not say.
MINUTES = 24 * 60
LOOK_S, ANSWERS_S = 2.0, 8.0


class SlurmRunner:
    """Makes each unit as one Slurm job; one that leaves the queue without a result is lost, and begun again.

    Args:
        folder: that all hosts share, for what submitit keeps.
        expected: what a host must be.
        cluster: `slurm`, or submitit's `local`: processes of this machine.

    Raises:
        InputError: submitit or Slurm's commands are missing, or the controller does not answer.
    """

    def __init__(self, folder: Path, expected: Expected, cluster: str = "slurm") -> None:
        submitit, self._expected, self._slurm = _submitit(), expected, cluster == "slurm"
        if self._slurm:
            _queued()
        self._room = min(MOST_JOBS, _cpus() if self._slurm else MOST_JOBS)
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self._lost = submitit.core.utils.UncompletedJobError
        self._jobs: dict[Future[Ending | None], Any] = {}
        self._gone: dict[Future[Ending | None], float] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def room(self) -> int:
        """Jobs that wait or run at the same time: no more than the cluster has CPUs, since others would wait."""
        return self._room

    def per_host(self) -> int:
        """One: where jobs run is Slurm's choice."""
        return 1

    def submit(self, unit: Unit) -> Future[Ending | None]:
        """Put a unit into the queue; None: it was taken out again.

        Raises:
            InputError: Slurm does not take it.
        """
        told: Future[Ending | None] = Future()
        options = {"slurm_gpus_per_node": unit.gpus} if unit.gpus else {}
        self._executor.update_parameters(
            name="qrobust", cpus_per_task=unit.threads, timeout_min=MINUTES, tasks_per_node=1, **options
        )
        try:
            job = self._executor.submit(run_unit, unit, self._expected)
        except Exception as error:  # submitit's own kinds, which differ between its versions
            raise InputError(f"runner: Slurm does not take the job of {unit.key}: {error}") from error
        with self._lock:
            self._jobs[told] = job
        return told

    def stop(self) -> None:
        """Take every job out of the queue, and wait until those that run have kept what they made."""
        self._stopped.set()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel(check=False)
        until = time.monotonic() + GRACE_S
        while jobs and time.monotonic() < until:
            queued = _queued() if self._slurm else set()
            if not any(self._alive(job, queued) for job in jobs):
                return
            time.sleep(LOOK_S / 4)

    def _watch(self) -> None:
        """Tell how jobs ended, from the files that they leave; the queue is asked once for all."""
        while not self._stopped.wait(LOOK_S if self._slurm else LOOK_S / 4):
            with self._lock:
                jobs = dict(self._jobs)
            try:
                queued = _queued() if jobs and self._slurm else set()
            except InputError:
                continue  # a controller that is busy; jobs go on without it
            for told, job in jobs.items():
                self._look_at(told, job, queued)

    def _look_at(self, told: Future[Ending | None], job: Any, queued: set[str]) -> None:
        there = job.paths.result_pickle.exists()
        if not there and self._alive(job, queued):
            return
        # What a job writes last may be seen later than its end.
        since = self._gone.setdefault(told, time.monotonic())
        if not there and time.monotonic() - since < (SEEN_AFTER_S if self._slurm else 1.0):
            return
        with self._lock:
            del self._jobs[told]
        lost = f"job {job.job_id} was cancelled, or its host is gone"
        try:
            told.set_result(job.result() if there else Ending(-signal.SIGKILL, 0.0, lost=lost))
        except self._lost as error:
            told.set_result(Ending(-signal.SIGKILL, 0.0, lost=f"{lost}: {' '.join(str(error).split())[:200]}"))
        except BaseException as error:
            told.set_exception(QRobustError(f"runner: job {job.job_id} could not make a run: {error}"))

    def _alive(self, job: Any, queued: set[str]) -> bool:
        if self._slurm:
            return str(job.job_id) in queued
        return not job.done(force_check=True)


def _submitit() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed, or does not work with what is.
    """
    try:
        import submitit
        import submitit.core.utils
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "submitit"
        why = "not installed" if missing else f"installed and cannot be imported ({error})"
        raise InputError(f"runner: slurm needs the package submitit, which is {why}; {INSTALL}") from error
    return submitit


def _queued() -> set[str]:
    """Identifiers of this user's jobs that wait or run.

    It asks the queue, not the accounting: many clusters have none.

    Raises:
        InputError: there is no Slurm here, or its controller does not answer.
    """
    return set(_asked("squeue", "--noheader", "--format=%i", f"--user={getpass.getuser()}").split())


def _cpus() -> int:
    """CPUs of the partition that jobs go to, or of all where none is chosen.

    Raises:
        InputError: as for `_queued`.
    """
    partition = os.environ.get("SBATCH_PARTITION")
    chosen = [f"--partition={partition}"] if partition else []
    # Allocated, idle, other and all of them, a line for each kind of node.
    counts = _asked("sinfo", "--noheader", "--format=%C", *chosen).split()
    every = [line.rpartition("/")[2] for line in counts]
    return max(1, sum(int(count) if count.isdecimal() else MOST_JOBS for count in every))  # thousands are 1K


def _asked(*command: str) -> str:
    """What Slurm says.

    Raises:
        InputError: there is no Slurm here, or its controller does not answer.
    """
    if not shutil.which(command[0]) or not shutil.which("sbatch"):
        raise InputError(f"runner: expected Slurm's commands (sbatch, {command[0]}) on this machine, found none")
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"runner: expected Slurm's controller to answer within {ANSWERS_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())
        raise InputError(f"runner: expected a Slurm cluster, {command[0]} says: {said}") from error
    return found.stdout
