"""An evaluation as units: figures as without them, whoever makes them, and whatever becomes of who does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import qrobust, save_npz
from onnx_graphs import SIDE, GraphBuilder, classifier_graph

from qrobust.classifier import Classifier
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.errors import InputError, QRobustError
from qrobust.evaluation import predictions
from qrobust.evaluation.blocks import answer_unit, plan, send, send_pixels
from qrobust.evaluation.evaluate import evaluate
from qrobust.evaluation.predictions import BLOCK_IMAGES, BLOCKS, CLEAN, Cache, Condition, Task, kept_or_predicted
from qrobust.evaluation.workers import Workers
from qrobust.fleet.evaluation import TASKS, BlockRunner, Size, Span, Units, block_runner
from qrobust.fleet.local import LocalRunner
from qrobust.fleet.unit import KINDS, Ending, Unit, run_unit
from qrobust.pipeline.evaluate_onnx import Choices, evaluate_files
from qrobust.preprocessing import Preprocessing
from qrobust.progress import Reporter
from qrobust.record import without_timings
from qrobust.shifts.registry import defined_conditions

CONDITIONS: list[Condition] = [CLEAN, ("contrast", 5), ("gaussian_noise", 3)]
IMAGES = BLOCK_IMAGES + 20
LOST = Ending(-9, 0.0, lost="the host is gone")


class Brightest:
    """Logits are the mean of each channel; what it was asked about is counted, also by other processes' copies."""

    asked = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        Brightest.asked += len(images)
        return 10 * images.mean((2, 3))


@dataclass
class Here:
    """A runner that makes units in this process; before each it does the next of these instead, if there is one."""

    instead: list[Callable[[Unit], Ending | None]] = field(default_factory=list)
    made: list[Unit] = field(default_factory=list)
    stopped: bool = False

    def room(self) -> int:
        return 1

    def per_host(self) -> int:
        return 1

    def submit(self, unit: Unit) -> Future[Ending | None]:
        self.made.append(unit)
        told: Future[Ending | None] = Future()
        told.set_result(self.instead.pop(0)(unit) if self.instead else run_unit(unit, stays=True))
        return told

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3)).astype(np.uint8)
    source = array_images(pixels, np.arange(IMAGES) % 3, None, "test")
    source.prepare(Preprocessing(size=8, resize="none"))
    return Split(source, torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def uncounted() -> Iterator[None]:
    threads, Brightest.asked = torch.get_num_threads(), 0
    yield
    torch.set_num_threads(threads)


def cache_of(folder: Path, *names: str) -> Cache:
    return Cache(folder, folder / "attacks.npz", dict.fromkeys(names, "1"))


def measured(
    split: Split, folder: Path, by: BlockRunner | None = None, classifier: Classifier | None = None, name: str = "a"
) -> None:
    tasks = [Task(condition, split, "cifar-c") for condition in CONDITIONS]
    kept_or_predicted({name: classifier or Brightest()}, tasks, cache=cache_of(folder, name), seed=0, by=by)


def runner_of(here: Here) -> BlockRunner:
    return BlockRunner(lambda _: here, TASKS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_units_leave_the_same_files_as_this_process(split: Split, tmp_path: Path) -> None:
    measured(split, tmp_path / "here")
    measured(split, tmp_path / "units", runner_of(Here()))
    assert contents(tmp_path / "units") == contents(tmp_path / "here")
    assert not (tmp_path / "units" / BLOCKS).exists()


@pytest.mark.slow  # each unit begins a process that imports torch
def test_units_in_processes_leave_the_same_files_as_this_process(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, SIDE, SIDE, 3)).astype(np.uint8)
    source = array_images(pixels, np.arange(60) % 3, None, "test")
    source.prepare(Preprocessing(size=SIDE, resize="none"))
    split = Split(source, torch.arange(60))
    graph = OnnxClassifier(classifier_graph(tmp_path / "graph.onnx"), 1)
    measured(split, tmp_path / "here", classifier=graph)
    by = BlockRunner(lambda _: LocalRunner(1), TASKS)
    measured(split, tmp_path / "units", by, graph)
    by.close()
    assert contents(tmp_path / "units") == contents(tmp_path / "here")


@pytest.mark.slow  # each unit begins a process that imports torch
def test_a_users_shift_runs_in_units_as_it_ran_here_or_not_at_all(split: Split, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def dim(images, severity, generator):\n    return images * 0.5\n")
    graph = {"a": OnnxClassifier(classifier_graph(tmp_path / "graph.onnx"), 1)}
    few = replace(split, indices=split.indices[:60])
    few.source.prepare(Preprocessing(size=SIDE, resize="crop"))
    (condition,) = defined_conditions((f"{file}:dim",), (3,), "cifar-c")
    by = BlockRunner(lambda _: LocalRunner(1), TASKS)
    for name, runner in (("here", None), ("units", by)):
        cache = cache_of(tmp_path / name, "a")
        kept_or_predicted(graph, [Task(condition, few, "cifar-c")], cache=cache, seed=0, by=runner)
    assert contents(tmp_path / "units") == contents(tmp_path / "here")
    file.write_text("def dim(images, severity, generator):\n    return images\n")
    with pytest.raises(InputError, match=r"own\.py has changed while it was in use"):
        kept_or_predicted(
            graph, [Task(condition, few, "cifar-c")], cache=cache_of(tmp_path / "other", "a"), seed=0, by=by
        )
    by.close()


def test_what_a_host_kept_is_not_asked_again_by_this_process(split: Split, tmp_path: Path) -> None:
    """Interrupted after a block, gone on with without a runner."""

    def interrupt(unit: Unit) -> Ending | None:
        raise KeyboardInterrupt

    here = Here([lambda unit: run_unit(unit, stays=True), interrupt])
    with pytest.raises(KeyboardInterrupt):
        measured(split, tmp_path / "units", runner_of(here))
    assert here.stopped
    assert Brightest.asked == BLOCK_IMAGES
    assert not list((tmp_path / "units" / BLOCKS).glob("pixels*"))
    measured(split, tmp_path / "units")
    assert Brightest.asked == len(CONDITIONS) * IMAGES
    measured(split, tmp_path / "here")
    assert contents(tmp_path / "units") == contents(tmp_path / "here")


def test_a_second_graph_is_asked_alone(split: Split, tmp_path: Path) -> None:
    by = runner_of(Here())
    measured(split, tmp_path, by, name="a")
    tasks = [Task(condition, split, "cifar-c") for condition in CONDITIONS]
    both = {"a": Brightest(), "b": Brightest()}
    kept_or_predicted(both, tasks, cache=cache_of(tmp_path, "a", "b"), seed=0, by=by)
    assert Brightest.asked == 2 * len(CONDITIONS) * IMAGES


def test_a_lost_unit_is_begun_again_and_what_it_kept_is_not_asked_again(split: Split, tmp_path: Path) -> None:
    def dies(unit: Unit) -> Ending:
        run_unit(unit, stays=True)
        return LOST

    here = Here([dies])
    measured(split, tmp_path, runner_of(here))
    assert here.made[0].arguments == here.made[2].arguments  # the second was in hand already
    assert Brightest.asked == len(CONDITIONS) * IMAGES


@pytest.mark.parametrize(
    ("endings", "told", "kind"),
    [
        ([Ending(2, 0.0, refused="expected torch 2")], "runner: expected torch 2", InputError),
        ([LOST] * 99, "a unit failed 5 times: the host is gone", QRobustError),
        ([Ending(-11, 0.0)] * 99, "a unit failed 2 times: -11", QRobustError),
    ],
)
def test_units_that_cannot_be_made_end_the_evaluation(
    endings: list[Ending], told: str, kind: type[Exception], split: Split, tmp_path: Path
) -> None:
    here = Here([lambda unit, ending=ending: ending for ending in endings])  # type: ignore[misc]  # no type for a default
    with pytest.raises(kind, match=told):
        measured(split, tmp_path, runner_of(here))
    assert here.stopped


class Broken:
    """Its logits are no numbers."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 3), float("nan"))


def test_a_classifier_that_fails_elsewhere_is_told_as_it_would_be_here(split: Split, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classifiers: expected finite logits from a, got NaN or infinity for 50"):
        measured(split, tmp_path, runner_of(Here()), Broken())


def test_a_classifier_that_cannot_be_sent_is_refused(split: Split, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be sent to other processes"):
        measured(split, tmp_path, runner_of(Here()), lambda images: images.mean((2, 3)))


def test_a_unit_opens_no_other_file_than_was_sent(split: Split, tmp_path: Path) -> None:
    planned = plan([({"a": Brightest()}, Task(CLEAN, split, None))], cache_of(tmp_path, "a"), 0)
    file = tmp_path / "work"
    sha256 = send(planned.work, file)
    send_pixels(planned.work.blocks[0], planned.splits[0])
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(InputError, match=f"expected {re.escape(str(file))} as it was sent"):
        answer_unit(str(file), sha256, "0", "0", "1")


def test_units_are_cut_by_the_pace_of_those_before(split: Split, tmp_path: Path) -> None:
    """At 0.01 s an image, 2 s are one condition of 200 images; the last ones have at most half of what is left."""
    few = replace(split, indices=split.indices[:200])
    tasks = [Task(("contrast", severity), few, "cifar-c") for severity in range(1, 6)]
    planned = plan([({"a": Brightest()}, task) for task in tasks], cache_of(tmp_path, "a"), 0)
    found = Units(planned, Here(), tmp_path / "work", "", Size(4.0, 1))
    assert found.next() == Span(0, 0, 1)
    assert found.ended(Span(0, 0, 1), Ending(0, 2.0))
    assert [found.next() for _ in range(3)] == [Span(0, 1, 3), Span(0, 3, 4), Span(0, 4, 5)]


def test_a_host_of_another_kind_than_the_one_that_began_is_refused(tmp_path: Path) -> None:
    (tmp_path / BLOCKS).mkdir()
    (tmp_path / BLOCKS / KINDS).write_text('{"name": "there", "flags": ["none such"]}')
    with pytest.raises(InputError, match=r"CPU flags of there \(none such\).*--mixed-hosts allows it"):
        block_runner("slurm", cpus=1).begun(tmp_path)


def test_a_budget_is_for_this_host_alone(split: Split, tmp_path: Path) -> None:
    by = runner_of(Here())
    with pytest.raises(InputError, match="budget: expected with --runner local only"):
        evaluate({"a": Brightest()}, split, [], cache=cache_of(tmp_path, "a"), workers=by, budget=10.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--runner", "rya"), "expected one of ray, local, slurm.*did you mean 'ray'"),
        (("--runner", "ray", "--workers", "2"), "expected with --runner local only, ray has as many"),
    ],
)
def test_a_runner_that_cannot_be_is_one_line(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    result = qrobust("evaluate", tmp_path, *options)
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert re.search(told, result.output)


def test_blocks_are_whole_batches() -> None:
    """Else a classifier would see other batches than without them, and may say something else."""
    assert BLOCK_IMAGES % predictions.BATCH == 0


def test_a_file_that_is_rewritten_here_is_not_for_other_hosts(tmp_path: Path) -> None:
    graph = GraphBuilder(("n", 3, SIDE, SIDE))
    means = graph.op("Flatten", graph.op("GlobalAveragePool", "images"))
    file = graph.save(tmp_path / "graph.onnx", means, graph.op("Neg", means))
    chosen = choices(file, tmp_path, output=means)
    with pytest.raises(InputError, match=f"runner: expected local for {re.escape(str(file))}"):
        evaluate_files(chosen, tmp_path / "out", Reporter(), threads=1, workers=runner_of(Here()))


def test_files_are_evaluated_by_units_as_here(tmp_path: Path) -> None:
    chosen, records = choices(classifier_graph(tmp_path / "graph.onnx"), tmp_path), []
    workers: dict[str, Workers] = {"here": 1, "units": runner_of(Here())}
    for name, by in workers.items():
        made = evaluate_files(chosen, tmp_path / name, Reporter(), threads=1, workers=by)
        records.append(without_timings(made.to_json()))
    assert records[0] == records[1]
    assert contents(tmp_path / "units" / "predictions") == contents(tmp_path / "here" / "predictions")


def choices(file: Path, folder: Path, output: str | None = None) -> Choices:
    """To measure a file on few images under one condition."""
    data = save_npz(folder / "data.npz", n=30)
    return Choices((str(file),), f"npz:{data}", output=output, shifts=("contrast",), severities=(5,), image_size=SIDE)
