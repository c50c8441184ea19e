"""Make a fleet of six small runs by each runner, take hosts and jobs away meanwhile, and compare what comes out.

    pip install 'qrobust[ray,slurm]'
    python benchmarks/fleet_runners.py --work WORK

`local`: two processes. `ray`: two nodes of one CPU on this machine. `ray-killed`: the second is killed once a run
is done and two are at work, and a third joins. `slurm`: a cluster of this machine; a job is cancelled while
it is at work; it is left out where no slurmctld answers.
Records must be equal to those of `local` but for times, graphs to the byte. `--only` makes some of them, and keeps
what the result file holds of the others.

What a runner takes is what lies between the fleet's time and its runs': seconds until the first run and after the
last one, and those in which a worker waited. Unlike the fleet's time it hardly depends on what else the machine does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from figures import git_commit

from qrobust.fleet.plan import read_plan
from qrobust.pipeline import demo
from qrobust.progress import Reporter
from qrobust.record import hardware, to_json, versions, without_timings
from qrobust.storage import read_json, write_json

RESULT = Path(__file__).parent / "results" / "fleet_runners.json"
PLAN = """
threads = 1
[model]
spec = "resnet8"
weights = "{weights}"
[data]
spec = "digits"
train_images = 64
test_images = 80
calibration_images = 32
[preprocessing]
normalization = "cifar10"
[attacks]
level = "none"
[shifts]
names = ["fog"]
severities = [5]
[calibrator]
steps = 10
[fleet]
at_once = 2
[fleet.matrix]
seed = [0, 1, 2]
quantization.bits = ["w8a8", "w4a8"]
"""
WORKERS, LOOK_S = 2, 0.2
LOCAL, RAY, KILLED, SLURM = NAMES = ("local", "ray", "ray-killed", "slurm")


def start(plan: Path, out: Path, runner: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qrobust", "fleet", str(plan), "--out", str(out), "--runner", runner, "-q"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def states(out: Path) -> list[dict[str, Any]]:
    """Runs of a fleet as its record says; empty before there is one."""
    file = out / "fleet.json"
    return list(read_json(file)["runs"]) if file.is_file() else []


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool], what: str) -> None:
    while not happened():
        if process.poll() is not None:
            raise click.ClickException(f"the fleet ended before {what}")
        time.sleep(LOOK_S)


def at_work(out: Path) -> list[str]:
    """Runs that have said something and are not done."""
    done = {run["name"] for run in states(out) if run["state"] == "done"}
    return [log.stem for log in (out / "logs").glob("*.log") if log.stem not in done]


def by_local(plan: Path, out: Path) -> dict[str, Any]:
    process = start(plan, out, "local")
    return {"exit_code": process.wait()}


def by_ray(plan: Path, out: Path, *, kill: bool = False) -> dict[str, Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    told: dict[str, Any] = {}
    try:
        second = cluster.add_node(num_cpus=1)
        began = time.monotonic()
        process = start(plan, out, f"ray://{cluster.address}")
        if kill:
            done = lambda: sum(run["state"] == "done" for run in states(out))  # noqa: E731  # one expression
            wait_for(process, lambda: done() >= 1 and len(at_work(out)) >= WORKERS, "two runs were at work")
            cluster.remove_node(second, allow_graceful=False)
            told |= {"killed_after_s": time.monotonic() - began, "done_then": done()}
            cluster.add_node(num_cpus=1)
        return told | {"exit_code": process.wait()}
    finally:
        cluster.shutdown()


def by_slurm(plan: Path, out: Path) -> dict[str, Any]:
    queue = subprocess.run(["squeue", "-h"], capture_output=True, check=False) if shutil.which("squeue") else None
    if queue is None or queue.returncode:
        return {"skipped": "no Slurm controller answers"}
    process, began = start(plan, out, "slurm"), time.monotonic()

    def running() -> list[str]:
        command = ["squeue", "-h", "--states=RUNNING", "--format=%i", "--me"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    wait_for(process, lambda: len(at_work(out)) >= WORKERS and len(running()) >= WORKERS, "two jobs were at work")
    job = running()[0]
    subprocess.run(["scancel", job], check=True)
    return {"cancelled_after_s": time.monotonic() - began, "exit_code": process.wait()}


def compared(out: Path, other: Path) -> dict[str, int]:
    """How many runs of two fleets have equal records, but for times, and equal graphs."""
    records = graphs = predictions = 0
    for folder in sorted((other / "runs").iterdir()):
        mine = out / "runs" / folder.name
        first, second = (without_timings(read_json(path / "record.json")) for path in (mine, folder))
        for record in (first, second):
            record["versions"].pop("commit", None)  # a checkout may move on between fleets
            record["config"].pop("calibration_cache")  # in each fleet's own folder
        records += first == second
        graphs += all((mine / file.name).read_bytes() == file.read_bytes() for file in folder.glob("*.onnx"))
        files = sorted(path.relative_to(folder) for path in (folder / "predictions").rglob("*.npz"))
        predictions += bool(files) and all((mine / p).read_bytes() == (folder / p).read_bytes() for p in files)
    return {"equal_records": records, "equal_graphs": graphs, "equal_predictions": predictions}


def measured(name: str, work: Path, plan: Path) -> dict[str, Any]:
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    makers = {LOCAL: by_local, RAY: by_ray, KILLED: lambda p, o: by_ray(p, o, kill=True), SLURM: by_slurm}
    began = time.monotonic()
    found = makers[name](plan, out)
    if "skipped" in found:
        return found
    runs = states(out)
    logs = "".join(log.read_text() for log in (out / "logs").glob("*.log"))
    return {
        "n": len(runs),
        "done": sum(run["state"] == "done" for run in runs),
        "lost_and_begun_again": logs.count("told to end") + logs.count("the host is gone"),
        "wall_s": time.monotonic() - began,
        "runs_s": [run["duration_s"] for run in runs],
        **found,
    } | (compared(out, work / LOCAL) if name != LOCAL else {})


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for the fleets.")
@click.option(
    "--only", default=",".join(NAMES), show_default=True, help="Which to make; `local` is what others equal."
)
def main(work: Path, only: str) -> None:
    """Make the fleets, and compare them."""
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    weights = work / "weights.pt"
    if not weights.is_file():
        with demo.weights_file(0, Reporter(), 1) as made:
            shutil.copyfile(made, weights)
    plan = work / "plan.toml"
    plan.write_text(PLAN.format(weights=weights))
    read_plan(plan, threads=1)
    known = read_json(RESULT)["runners"] if RESULT.is_file() else {}
    for name in only.split(","):
        known[name] = measured(name, work, plan)
        click.echo(f"{name}: {known[name]}")
        write_json(
            RESULT,
            {
                "what": "a fleet of six runs by each runner, while hosts and jobs are taken away",
                "workers": WORKERS,
                "runners": {key: known[key] for key in NAMES if key in known},
                "commit": git_commit(),
                "command": "python benchmarks/fleet_runners.py --work WORK",
                "hardware": to_json(hardware(1)),
                "load": list(os.getloadavg()),
                "versions": versions(),
            },
        )


if __name__ == "__main__":
    main()
