"""Units as jobs of submitit: in processes of this machine, and on Slurm where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_graphs import SIDE, classifier_graph

from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.errors import InputError
from qrobust.evaluation.predictions import CLEAN, Cache, Task, kept_or_predicted
from qrobust.fleet import fleet as fleets
from qrobust.fleet import slurm
from qrobust.fleet.evaluation import JOBS, BlockRunner
from qrobust.fleet.plan import read_plan
from qrobust.fleet.slurm import SlurmRunner
from qrobust.fleet.unit import Expected, Unit
from qrobust.preprocessing import Preprocessing
from qrobust.record import FleetRecord


def has_submitit() -> bool:
    try:
        slurm._submitit()
    except InputError:
        return False
    return True


def has_slurm() -> bool:
    try:
        slurm._queued()
    except InputError:
        return False
    return has_submitit()


needs_submitit = pytest.mark.skipif(not has_submitit(), reason="needs submitit: pip install 'qrobust[slurm]'")
# Of submitit: files and processes that it leaves to the end of this one.
leaves_open = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> None:
    """A Slurm that answers. It is asked when a test needs it: where it is installed and stopped, it takes seconds."""
    if not has_slurm():
        pytest.skip("needs submitit, and a Slurm cluster that answers")


def asking(folder: Path, *arguments: str) -> Unit:
    (folder / "needed").touch()
    return Unit("one", arguments, folder / "out", folder / "needed", folder / "log", folder)


def test_without_submitit_the_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"slurm needs the package submitit.*pip install 'qrobust\[slurm\]'"):
        SlurmRunner(tmp_path, Expected())


def commands(folder: Path, squeue: str, monkeypatch: pytest.MonkeyPatch, sinfo: str = "echo 0/2/0/2") -> None:
    """Slurm's commands, some of which do this."""
    for name, body in (("squeue", squeue), ("sinfo", sinfo), ("sbatch", "exit 0")):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_queue_is_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, 'echo "$@" > asked; printf "7\\n12\\n"', monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert slurm._queued() == {"7", "12"}
    assert "--user=" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("partition", "said", "cpus"),
    [("", "0/2/0/2\n6/2/0/8\n", 10), ("small", "1/0/0/1\n", 1), ("", "", 1), ("", "1K/0/0/1K\n", 64)],
)
def test_cpus_are_those_of_the_partition(
    partition: str, said: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, "exit 0", monkeypatch, f'echo "$@" > asked; printf "{said}"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SBATCH_PARTITION", partition)
    assert slurm._cpus() == cpus
    assert ("--partition=small" in (tmp_path / "asked").read_text()) == bool(partition)


@needs_submitit
@pytest.mark.parametrize(("sinfo", "room"), [("echo 0/3/0/3", 3), ("echo 0/900/0/900", 64)])
def test_no_more_jobs_wait_than_there_are_cpus(
    sinfo: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, "exit 0", monkeypatch, sinfo)
    runner = SlurmRunner(tmp_path / "jobs", Expected())
    assert runner.room() == room
    runner.stop()


@pytest.mark.parametrize(
    ("squeue", "told"),
    [
        ("exec sleep 9", "controller to answer within 1 s"),
        ("echo no contact >&2; exit 1", "squeue says: no contact"),
    ],
)
def test_a_controller_that_does_not_answer_is_told(
    squeue: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, squeue, monkeypatch)
    monkeypatch.setattr(slurm, "ANSWERS_S", 1.0)
    with pytest.raises(InputError, match=told):
        slurm._queued()


def test_without_slurm_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"expected Slurm's commands \(sbatch, squeue\) on this machine, found none"):
        slurm._queued()


@needs_submitit
@leaves_open
@pytest.mark.slow  # another Python that imports torch
def test_a_job_keeps_what_a_command_says(tmp_path: Path) -> None:
    runner = SlurmRunner(tmp_path / "jobs", Expected(), "local")
    ending = runner.submit(asking(tmp_path, "--version")).result(120)
    runner.stop()
    assert ending is not None
    assert ending.exit_code == 0
    assert "qrobust" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("cluster")
@leaves_open
@pytest.mark.slow  # waits in a queue
def test_a_cancelled_job_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SEEN_AFTER_S", 3.0)
    runner = SlurmRunner(tmp_path / "jobs", Expected())
    unit = asking(tmp_path, "demo", "--out", "demo")
    told = runner.submit(unit)
    (job,) = runner._jobs.values()
    until = time.monotonic() + 60
    while not unit.log.exists() and time.monotonic() < until:
        time.sleep(0.2)
    subprocess.run([str(shutil.which("scancel")), str(job.job_id)], check=True)
    ending = told.result(120)
    runner.stop()
    assert ending is not None
    assert "cancelled" in ending.lost


# A run in short: it says that it is at work, works for a while, and leaves a record.
STANDS_IN = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
print("at work", flush=True)
time.sleep(4)
(folder / "record.json").write_text("{}")
"""


@pytest.mark.usefixtures("cluster")
@leaves_open
@pytest.mark.slow  # waits in a queue
@pytest.mark.usefixtures("modules_here")
def test_a_fleet_survives_that_a_job_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_text = '[model]\nspec = "resnet8"\n[data]\nspec = "digits"\n[fleet.matrix]\nseed = [0, 1, 2, 3, 4, 5]\n'
    (tmp_path / "stands_in.py").write_text(STANDS_IN)
    (tmp_path / "plan.toml").write_text(plan_text)
    plan, units = read_plan(tmp_path / "plan.toml", threads=1), fleets.unit
    runner, cancelled = SlurmRunner(tmp_path / "jobs", Expected()), list[str]()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleets, "figures", lambda folder, plan: None)
    monkeypatch.setattr(
        fleets,
        "unit",
        lambda run, out: replace(made := units(run, out), module="stands_in", arguments=(str(made.folder),)),
    )

    def written(record: FleetRecord) -> None:
        if record.count("done") == 2 and not cancelled:
            at_work = [job for told, job in runner._jobs.items() if not told.done()]
            cancelled.append(str(at_work[0].job_id))
            subprocess.run([str(shutil.which("scancel")), cancelled[0]], check=True)

    record = fleets.make_fleet(plan, tmp_path, runner, written=written)
    runner.stop()
    logs = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert (record.count("done"), len(cancelled)) == (6, 1)
    assert {run.attempts for run in record.runs} == {1}
    assert logs.count("told to end") + logs.count("was cancelled") == 1


@needs_submitit
@leaves_open
@pytest.mark.slow  # each unit is a job, which imports torch
def test_jobs_leave_the_same_predictions_as_this_process(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, SIDE, SIDE, 3)).astype(np.uint8)
    source = array_images(pixels, np.arange(60) % 3, None, "test")
    source.prepare(Preprocessing(size=SIDE, resize="none"))
    tasks = [Task(condition, Split(source, torch.arange(60)), "cifar-c") for condition in (CLEAN, ("fog", 5))]
    graph = {"a": OnnxClassifier(classifier_graph(tmp_path / "graph.onnx"), 1)}
    by = BlockRunner(lambda folder: SlurmRunner(folder / "slurm", Expected(), "local"), JOBS)
    for name, runner in (("here", None), ("jobs", by)):
        cache = Cache(tmp_path / name, tmp_path / name / "attacks.npz", {"a": "1"})
        kept_or_predicted(graph, tasks, cache=cache, seed=0, by=runner)
    by.close()
    for path in sorted((tmp_path / "here").iterdir()):
        assert path.read_bytes() == (tmp_path / "jobs" / path.name).read_bytes()
