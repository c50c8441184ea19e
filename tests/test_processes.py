"""Worker processes: the same pixels and answers as without them, and what happens when one dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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
from qrobust.evaluation.predictions import CLEAN, predict
from qrobust.evaluation.workers import processes
from qrobust.shifts.rendering import render


def rendered(name: str, severity: int, pixels: torch.Tensor) -> torch.Tensor:
    """As a task of a process, which may only send what is its own."""
    return render(pixels, name, severity, table="imagenet-c", seed=0)


def die(pixels: torch.Tensor) -> None:
    os._exit(1)


def threads_of(classifier: OnnxClassifier, pixels: torch.Tensor) -> tuple[int, int]:
    """Threads of the session in this process, and which object it is."""
    return classifier.session.get_session_options().intra_op_num_threads, id(classifier)


def test_worker_processes_change_nothing(digit_pixels: torch.Tensor) -> None:
    """Whatever the order of sizes, and after a reader who stopped early."""
    conditions = [("gaussian_noise", 3), ("glass_blur", 5), ("frost", 1)]
    grey = digit_pixels[:1, :1]
    sizes = [digit_pixels[:1], *digit_pixels.split(3), grey]
    with processes(2) as by:
        assert by is not None
        assert len(digit_pixels) > by.slots  # so slots are used again
        stopped = by.ask(digit_pixels.split(1), partial(rendered, "fog", 5))
        next(stopped)
        stopped.close()
        for condition in conditions:
            for batches in (sizes, digit_pixels.split(1)):
                found = by.ask(batches, partial(rendered, *condition))
                for images, parts in zip(batches, found, strict=True):
                    assert torch.equal(torch.cat(parts), rendered(*condition, images))
        with pytest.raises(InputError, match="smog"):
            list(by.ask([digit_pixels], partial(rendered, "smog", 5)))


def test_a_worker_that_dies_is_said(digit_pixels: torch.Tensor) -> None:
    def in_processes() -> None:
        with processes(2) as by:
            assert by is not None
            list(by.ask([digit_pixels], die))

    with pytest.raises(QRobustError, match="workers: a process died"):
        in_processes()


PARENT = """
import os, torch
from qrobust.processes import processes

def own_id(pixels):
    return os.getpid()

if __name__ == "__main__":
    with processes(2) as by:
        print(*next(by.ask([torch.zeros(2, 3, 8, 8).byte()], own_id)), flush=True)
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
    source.image_size = SIDE
    return Split(source, torch.arange(23))


@pytest.mark.parametrize("cell", [CLEAN, ("gaussian_noise", 5)])
def test_sessions_in_processes_say_the_same(
    split: Split, condition: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.evaluation.predictions.BATCH", 5)
    own = classifier_graph(tmp_path / "own.onnx")
    foreign = ForeignClassifier(classifier_graph(tmp_path / "softmax.onnx", softmax=True), 2)
    foreign.examine(split.read(slice(None)).float() / 255, 3)
    assert foreign.probabilities
    asked = {"own": OnnxClassifier(own, 2), "foreign": foreign}
    done: list[int] = []
    alone = predict(asked, split, condition, table="cifar-c", seed=0)
    with processes(2) as by:
        shared = predict(asked, split, condition, table="cifar-c", seed=0, by=by, progress=done.append)
    assert sum(done) == len(split)
    for name in asked:
        assert np.array_equal(alone[name].prediction, shared[name].prediction)
        # In single precision a product may be summed in another order for another batch.
        assert np.allclose(alone[name].margin, shared[name].margin, atol=1e-5)


def test_a_session_is_opened_once_in_each_process_with_one_thread(tmp_path: Path) -> None:
    classifier = OnnxClassifier(classifier_graph(tmp_path / "own.onnx"), 2)
    with processes(2) as by:
        assert by is not None
        found = {
            answer
            for parts in by.ask(torch.zeros(6, 2, 3, SIDE, SIDE).byte(), partial(threads_of, classifier))
            for answer in parts
        }
    assert {threads for threads, _ in found} == {1}
    assert len(found) <= 2


def test_a_session_that_fails_in_a_process_is_said_there(split: Split, tmp_path: Path) -> None:
    gone = classifier_graph(tmp_path / "gone.onnx")
    classifier = OnnxClassifier(gone, 1)
    gone.unlink()
    with processes(2) as by, pytest.raises(InputError, match=r"onnx: no file .*gone\.onnx"):
        predict({"gone": classifier}, split, CLEAN, table="cifar-c", seed=0, by=by)
