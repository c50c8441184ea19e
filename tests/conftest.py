"""Shared ground: one small real run on handwritten digits, made once."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch._export import utils as exporting
from torch.onnx._internal.exporter._registration import ONNXRegistry

from qrobust.classifier import Normalization, NormalizedModel
from qrobust.cli.main import main
from qrobust.deployment import footprint, profiling
from qrobust.models.resnet import SmallResNet
from qrobust.pipeline import demo, evaluate, evaluate_onnx, quantize
from qrobust.progress import Reporter
from qrobust.record import Footprint
from qrobust.storage import read_json

# The exporter lists the operators that it knows, and torch those that it has, anew for each graph: that takes half of
# the time of a small one.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
exporting._materialize_cpp_cia_ops = functools.cache(exporting._materialize_cpp_cia_ops)
# Times are not what is tried here; latencies take a second for each graph.
profiling.ROUND_S, profiling.ROUNDS = 1e-3, 6
# Nor is how exactly saturation is estimated: on 256 images it takes a second of every quantization.
quantize.SATURATION_IMAGES = 64
# Tracing a network makes millions of objects, none of them in cycles that fill the memory: they are looked for less
# often.
gc.set_threshold(50_000, 20, 20)
# One thread for each worker of xdist, and for what tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of two workers on the same cores would wait for each other: each worker, and what it starts, has a core.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER.isdecimal() and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER) % len(CORES)]})
# A shell's background jobs ignore Ctrl-C, and so would all that they start: what tests send a signal must heed it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A whole run, small enough for a test.
SMALL = [
    "--data",
    "digits",
    "--normalization",
    "cifar10",
    "--calibration-images",
    "64",
    "--train-images",
    "256",
    "--test-images",
    "80",
    "--shifts",
    "contrast,gaussian_noise,rotation,inversion",
    "--severities",
    "5",
    "--train-on",
    "contrast,gaussian_noise,inversion",
    "--steps",
    "200",
    "--learning-rate",
    "0.004",
    "--batch-size",
    "16",
    "--attack-images",
    "12",
    "--epsilons",
    "2/255,8/255",
    "--threads",
    "1",
    "-q",
]


def footprints_here(
    paths: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    threads: int = 1,
    signed_activations: bool | None = None,
) -> dict[str, Footprint]:
    """What `footprints` measures, in this process: another Python takes a second to start."""
    return {name: footprint.measured(path, shapes[name], threads, signed_activations) for name, path in paths.items()}


evaluate.footprints = evaluate_onnx.footprints = footprints_here


def qrobust(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


# What modules name that run commands, start processes or export networks, which takes seconds.
NO_UNIT = {"CliRunner", "subprocess", "processes", "footprints", "browser", "export", "export_graph", "deploy"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as unit tests those of modules that do nothing in `NO_UNIT`; the slow ones go first.

    Else one worker may end with a slow one while the others wait.
    """
    for item in items:
        known = vars(item.module)  # type: ignore[attr-defined]  # every item is a function here
        # The command, or the package's front door, behind which whole jobs are.
        works = "qrobust" in known or NO_UNIT & {*known}
        if not works and not {"slow", "heavy"} & {*item.keywords}:
            item.add_marker(pytest.mark.unit)
    items.sort(key=lambda item: "slow" not in item.keywords)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder that all workers of xdist share: the first that asks makes it."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    path, done = shared / name, shared / f"{name}.done"
    with filelock.FileLock(shared / f"{name}.lock"):
        if not done.exists():
            make(path)
            done.touch()
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 trained on the digits, as the demo does it but shorter."""

    def make(path: Path) -> None:
        patch = pytest.MonkeyPatch()
        patch.setattr(demo, "EPOCHS", 6)
        with demo.weights_file(0, Reporter(), 1) as made:
            patch.undo()
            made.rename(path)

    return made_once(tmp_path_factory, "weights.pt", make)


@pytest.fixture(scope="session")
def finished_run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, which all workers share.

    Nothing may be changed in it, nor may a command have it for itself: what changes a run takes `run_copy`.
    """

    def make(path: Path) -> None:
        result = qrobust("run", "--model", "resnet8", "--weights", weights, "--out", path, *SMALL)
        assert result.exit_code == 0, result.output

    return made_once(tmp_path_factory, "finished-run", make)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a whole run that is this test's own."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def modules_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the temporary folder can be imported by what the test starts."""
    paths = [str(tmp_path), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def random_model(channels: int = 3) -> NormalizedModel:
    """A random residual network for so many channels whose batch norms are not the identity."""
    torch.manual_seed(0)
    network = SmallResNet(8, 10, width=8)
    if channels != 3:
        network.conv1 = torch.nn.Conv2d(channels, 8, 3, 1, 1, bias=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    normalize = Normalization((0.5,) * channels, (0.25,) * channels)
    return NormalizedModel(network, normalize).eval().requires_grad_(False)


@pytest.fixture
def small_model() -> NormalizedModel:
    """`random_model` for three channels."""
    return random_model()


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth random images `(24, 3, 32, 32)` in [0, 1]."""
    coarse = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)


@pytest.fixture
def digit_pixels() -> torch.Tensor:
    """Real digits, uint8 `(16, 3, 32, 32)`."""
    from qrobust.data.loading import open_data

    return open_data("digits", seed=0).test.read(slice(0, 16))


def save_npz(path: Path, n: int = 60, classes: int = 3, **extra: object) -> Path:
    """A small data set of flat coloured images with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = rng.integers(0, 40, (n, 16, 16, 3)) + (labels * 60)[:, None, None, None]
    arrays = {"images": images.astype(np.uint8), "labels": labels} | extra
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no dict of arrays
    return path


def make_folder(root: Path, parts: tuple[str, ...] = ("train", "test"), per_class: int = 20, size: int = 16) -> Path:
    """An image folder of two classes."""
    rng = np.random.default_rng(0)
    for part in parts:
        for index, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 100, (size, size, 3)) + 100 * index
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def evaluate_files(models: Sequence[Path], data: str, out: Path, *options: object) -> dict:
    result = qrobust("evaluate-onnx", *models, "--data", data, "--out", out, "--threads", 1, "-q", *options)
    assert result.exit_code == 0, result.output
    return read_json(out / "record.json")
