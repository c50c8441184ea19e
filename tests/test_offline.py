"""Nothing leaves the machine, and nothing is written but where the user said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A graph in a session, here and in a worker process.
PROGRAM = """
import os
import sys
from functools import partial
from pathlib import Path

import torch

from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.evaluation.workers import processes


def ask(path, pixels):
    return os.environ["ORT_DISABLE_TELEMETRY"], len(OnnxClassifier(path, 1)(pixels.float() / 255))


if __name__ == "__main__":
    path = Path(sys.argv[1]) / "graph.onnx"
    export(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), path, 8)
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with processes(2) as by:
        print(ask(path, pixels), *by.ask([(partial(ask, path), pixels)] * 2))
"""


@pytest.mark.parametrize("given", [None, "0"])
def test_onnxruntime_is_told_to_keep_silent(given: str | None, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "program.py").write_text(PROGRAM)
    names = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | names
    environment |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, work / "program.py", work], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = given or "1"  # what the user set stays
    assert done.stdout.strip() == f"('{wanted}', 4) ('{wanted}', 4) ('{wanted}', 4)"
    if given is None:
        assert not list(home.rglob("*"))
