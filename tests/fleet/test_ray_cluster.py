"""Units on a Ray cluster: how they end, who may work on them, and addresses at which there is none."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import qrobust
from onnx_graphs import SIDE, classifier_graph

from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.errors import InputError
from qrobust.evaluation.predictions import BLOCK_IMAGES, CLEAN, Cache, Task, kept_or_predicted
from qrobust.fleet import fleet as fleets
from qrobust.fleet import ray_cluster
from qrobust.fleet.evaluation import TASKS, BlockRunner
from qrobust.fleet.plan import read_plan
from qrobust.fleet.ray_cluster import RayRunner
from qrobust.fleet.unit import Expected, Unit, this_host
from qrobust.preprocessing import Preprocessing
from qrobust.record import FleetRecord

PLAN = '[model]\nspec = "resnet8"\n[data]\nspec = "digits"\n[fleet.matrix]\nseed = [0]\n'


def has_ray() -> bool:
    try:
        ray_cluster._ray()
    except InputError:
        return False
    return True


needs_ray = pytest.mark.skipif(not has_ray(), reason="needs the package ray: pip install 'qrobust[ray]'")
# Ray's own, and sockets and files that it leaves to the end of the process.
ray_warns = pytest.mark.filterwarnings("ignore")


def expected(folder: Path) -> Expected:
    return Expected(kinds=folder / "hosts.json")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RayRunner]:
    made = RayRunner(None, 1, expected(tmp_path), 2)
    yield made
    made.stop()


def test_without_ray_the_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray needs the package ray.*pip install 'qrobust\[ray\]'"):
        RayRunner(None, 1, expected(tmp_path), 2)


@needs_ray
def test_an_address_where_nothing_listens_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    result = qrobust("fleet", tmp_path / "plan.toml", "--out", tmp_path / "out", "--runner", f"ray://{address}")
    assert result.exit_code == 2
    assert result.output.startswith("Error: runner: expected a Ray cluster")
    assert len(result.output.splitlines()) == 1
    assert address in result.output


@needs_ray
@ray_warns
@pytest.mark.slow  # Ray tries for five seconds
def test_an_address_where_something_else_listens_is_told_within_ten_seconds(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        began = time.monotonic()
        with pytest.raises(InputError, match="no answer within 5 s"):
            RayRunner(f"127.0.0.1:{other.getsockname()[1]}", 1, expected(tmp_path), 2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", [":1", "a:b"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InputError, match="expected ray://HOST:PORT"):
        ray_cluster._answering(address)


@needs_ray
@ray_warns
@pytest.mark.slow  # starts a cluster
def test_units_run_on_a_cluster_of_this_machine(runner: RayRunner, tmp_path: Path) -> None:
    (tmp_path / "needed").touch()
    unit = Unit("one", ("--version",), tmp_path / "out", tmp_path / "needed", tmp_path / "log", tmp_path)
    assert runner.room() == 2
    ending = runner.submit(unit).result(120)
    assert ending is not None
    assert ending.exit_code == 0
    assert "qrobust" in unit.log.read_text()
    refused = replace(unit, needed=tmp_path / "not there")
    ending = runner.submit(refused).result(120)
    assert ending is not None
    assert "does not see" in ending.refused


@needs_ray
@ray_warns
@pytest.mark.slow  # starts clusters
@pytest.mark.parametrize(
    ("threads", "versions", "told"),
    [(8, {}, "threads: expected at most the 2 CPUs"), (1, {"qrobust": "0.0.1"}, "expected qrobust 0.0.1 as here")],
)
def test_hosts_that_cannot_be_used_are_refused(
    threads: int, versions: dict[str, str], told: str, tmp_path: Path
) -> None:
    wanted = Expected({**this_host().versions, **versions}, tmp_path / "hosts.json")
    with pytest.raises(InputError, match=told):
        RayRunner(None, threads, wanted, 2)


@needs_ray
@ray_warns
@pytest.mark.slow  # starts a cluster
@pytest.mark.usefixtures("modules_here")
def test_a_stopped_runner_ends_its_units_which_keep_what_they_made(tmp_path: Path) -> None:
    """As Ctrl-C does; a second unit, which waits for room, is not begun."""
    (tmp_path / "needed").touch()
    (tmp_path / "sleeping.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('kept', flush=True)))\n"
        "print('at work', flush=True)\ntime.sleep(600)\n"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    used = RayRunner(None, 1, expected(tmp_path), 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    units = [
        Unit(name, (), tmp_path / name, tmp_path / "needed", tmp_path / f"{name}.log", tmp_path, module="sleeping")
        for name in ("first", "second")
    ]
    told = [used.submit(unit) for unit in units]
    until = time.monotonic() + 60
    while not units[0].log.is_file() or "at work" not in units[0].log.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    used.stop()
    assert [future.result(10) for future in told] == [None, None]
    assert units[0].log.read_text().split() == ["at", "work", "kept"]
    assert not units[1].log.exists()


# A run in short: it says that it is at work, works for a while, and leaves a record; two in one folder fail.
STANDS_IN = """
import sys, time
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with FileLock(folder / "alone", blocking=False):
    print("at work", flush=True)
    time.sleep(4)
    (folder / "record.json").write_text("{}")
"""


@needs_ray
@ray_warns
@pytest.mark.slow  # starts a cluster, and waits for runs
@pytest.mark.usefixtures("modules_here")
def test_a_killed_node_costs_its_run_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes, six runs; the second node is killed while it is at work."""
    from ray.cluster_utils import Cluster

    (tmp_path / "stands_in.py").write_text(STANDS_IN)
    (tmp_path / "plan.toml").write_text(PLAN.replace("[0]", "[0, 1, 2, 3, 4, 5]"))
    plan, units = read_plan(tmp_path / "plan.toml", threads=1), fleets.unit
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleets, "figures", lambda folder, plan: None)
    monkeypatch.setattr(
        fleets,
        "unit",
        lambda run, out: replace(made := units(run, out), module="stands_in", arguments=(str(made.folder),)),
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second, killed = cluster.add_node(num_cpus=1), list[int]()

    def written(record: FleetRecord) -> None:
        if record.count("done") == 2 and not killed:
            killed.append(used.room())
            threading.Timer(2.0, lambda: cluster.remove_node(second, allow_graceful=False)).start()

    try:
        used = RayRunner(cluster.address, 1, expected(tmp_path), 2)
        record = fleets.make_fleet(plan, tmp_path, used, written=written)
        left = used.room()
        used.stop()
    finally:
        cluster.shutdown()
    logs = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert (record.count("done"), killed, left) == (6, [2], 1)
    assert {run.attempts for run in record.runs} == {1}
    assert (logs.count("at work"), logs.count("the host is gone")) == (7, 1)


@needs_ray
@ray_warns
@pytest.mark.slow  # starts a cluster, and measures for seconds
def test_a_killed_node_changes_nothing_of_an_evaluation(tmp_path: Path) -> None:
    """Two nodes; the second is killed once a block is answered."""
    from ray.cluster_utils import Cluster

    count = 2 * BLOCK_IMAGES
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    source = array_images(pixels, np.arange(count) % 3, None, "test")
    source.prepare(Preprocessing(size=SIDE, resize="none"))
    split = Split(source, torch.arange(count))
    graph = {"a": OnnxClassifier(classifier_graph(tmp_path / "graph.onnx"), 1)}
    conditions = [CLEAN, *((name, severity) for name in ("glass_blur", "frost") for severity in range(1, 6))]
    tasks = [Task(condition, split, "cifar-c") for condition in conditions]
    caches = [Cache(tmp_path / name, tmp_path / name / "attacks.npz", {"a": "1"}) for name in ("here", "cluster")]
    kept_or_predicted(graph, tasks, cache=caches[0], seed=0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second, done = cluster.add_node(num_cpus=1), [0]

    def progress(n: int) -> None:
        if n and not done[0]:
            cluster.remove_node(second, allow_graceful=False)
        done[0] += n

    by = BlockRunner(lambda _: RayRunner(cluster.address, 1, expected(tmp_path), 2), TASKS)
    try:
        kept_or_predicted(graph, tasks, cache=caches[1], seed=0, by=by, progress=progress)
        by.close()
    finally:
        cluster.shutdown()
    assert done[0] == len(conditions) * count
    for path in sorted(caches[0].predictions.iterdir()):
        assert path.read_bytes() == (caches[1].predictions / path.name).read_bytes()
