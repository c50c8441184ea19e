"""Worker processes: the same pixels and answers as without them, and what happens when one dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_graphs import SIDE, classifier_graph

from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import ForeignClassifier, OnnxClassifier
from qrobust.errors import InputError, QRobustError
from qrobust.evaluation.predictions import CLEAN, FIELDS, predict
from qrobust.evaluation.workers import AHEAD, Processes, processes
from qrobust.preprocessing import Preprocessing
from qrobust.shifts.rendering import render


def rendered(name: str, severity: int, pixels: torch.Tensor) -> torch.Tensor:
    """As a task of a process, which may only send what is its own."""
    return render(pixels, name, severity, table="imagenet-c", seed=0)


def die(pixels: torch.Tensor) -> None:
    os._exit(1)


def threads_of(classifier: OnnxClassifier, pixels: torch.Tensor) -> tuple[int, int]:
    """Threads of the session in this process, and which object it is."""
    return classifier.session.get_session_options().intra_op_num_threads, id(classifier)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, which take seconds to start."""
    with processes(2) as by:
        assert by is not None
        yield by


def test_worker_processes_change_nothing(digit_pixels: torch.Tensor, two: Processes) -> None:
    """Whatever the sizes of batches, and after a reader who stopped early."""
    tasks = [partial(rendered, *condition) for condition in (("gaussian_noise", 3), ("glass_blur", 5), ("frost", 1))]
    batches = [digit_pixels[:1], *digit_pixels.split(3), digit_pixels[:1, :1], *digit_pixels.split(1)]
    assert len(batches) > AHEAD * two.count  # so some wait for others
    stopped = two.ask((tasks[0], images) for images in digit_pixels.split(1))
    next(stopped)
    stopped.close()
    work = [(task, images) for task in tasks for images in batches]
    for (task, images), found in zip(work, two.ask(work), strict=True):
        assert torch.equal(found, task(images))
    with pytest.raises(InputError, match="smog"):
        list(two.ask([(partial(rendered, "smog", 5), digit_pixels)]))
    with pytest.raises(InputError, match="workers: expected 1, for a classifier cannot be sent to other processes"):
        list(two.ask([(lambda pixels: pixels, digit_pixels)]))


def test_processes_that_are_given_stay_open(digit_pixels: torch.Tensor, two: Processes) -> None:
    with processes(two) as by:
        assert by is two
    assert list(two.ask([(len, digit_pixels)])) == [16]


def test_a_worker_that_dies_is_said(digit_pixels: torch.Tensor) -> None:
    def in_processes() -> None:
        with processes(2) as by:
            assert by is not None
            list(by.ask([(die, digit_pixels)]))

    with pytest.raises(QRobustError, match="workers: a process died"):
        in_processes()


PARENT = """
import multiprocessing, torch
from qrobust.evaluation.workers import processes

def size(pixels):
    return len(pixels)

if __name__ == "__main__":
    with processes(2) as by:
        assert list(by.ask([(size, torch.zeros(1, 3, 8, 8).byte())] * 4)) == [1] * 4
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        input()
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlives its parent"
        time.sleep(0.1)


def test_too_few_are_refused() -> None:
    with pytest.raises(InputError, match="workers: expected at least 1, got 0"), processes(0):
        pass


@pytest.fixture
def split() -> Split:
    pixels = torch.randint(256, (23, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = array_images(pixels.numpy(), np.arange(23) % 3, None, "made up")
    source.prepare(Preprocessing(size=SIDE, resize="none"))
    return Split(source, torch.arange(23))


@pytest.mark.parametrize("condition", [CLEAN, ("gaussian_noise", 5)])
def test_sessions_in_processes_say_the_same(
    split: Split, condition: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two: Processes
) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BATCH", 5)
    own = classifier_graph(tmp_path / "own.onnx")
    foreign = ForeignClassifier(classifier_graph(tmp_path / "softmax.onnx", softmax=True), 2)
    foreign.examine(split.read(slice(None)).float() / 255, 3)
    assert foreign.output == "probabilities"
    asked = {"own": OnnxClassifier(own, 2), "foreign": foreign}
    done: list[int] = []
    alone = predict(asked, split, condition, table="cifar-c", seed=0)
    shared = predict(asked, split, condition, table="cifar-c", seed=0, by=two, progress=done.append)
    assert sum(done) == len(split)
    for name in asked:
        for field in FIELDS:
            assert np.array_equal(getattr(alone[name], field), getattr(shared[name], field)), field


def test_a_session_is_opened_once_in_each_process_with_one_thread(tmp_path: Path, two: Processes) -> None:
    classifier = OnnxClassifier(classifier_graph(tmp_path / "own.onnx"), 2)
    found = set(two.ask([(partial(threads_of, classifier), torch.zeros(2, 3, SIDE, SIDE).byte())] * 6))
    assert {threads for threads, _ in found} == {1}
    assert len(found) <= 2


def test_a_session_that_fails_in_a_process_is_said_there(split: Split, tmp_path: Path, two: Processes) -> None:
    gone = classifier_graph(tmp_path / "gone.onnx")
    classifier = OnnxClassifier(gone, 1)
    gone.unlink()
    with pytest.raises(InputError, match=r"onnx: no file .*gone\.onnx"):
        predict({"gone": classifier}, split, CLEAN, table="cifar-c", seed=0, by=two)
