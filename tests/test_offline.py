"""Nothing leaves the machine, and nothing is written but where the user said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def environment(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return own | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])} | changes


def test_onnxruntime_is_told_to_keep_silent(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "program.py").write_text(PROGRAM)
    command = [sys.executable, work / "program.py", work]
    own = environment(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('1', 4) ('1', 4) ('1', 4)"
    assert not list(home.rglob("*"))


def test_what_the_user_told_onnxruntime_stays() -> None:
    code = "import os; from qrobust.deployment import session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(ORT_DISABLE_TELEMETRY="0"), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
