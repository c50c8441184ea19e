"""A sample of benchmarks/malformed.py, in this process: what others made ends in one line, or is accepted."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from qrobust.cli.main import main

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import malformed
from malformed_inputs import SURFACES, Base, classifier, save_npz

SEED, EACH = 7, 10


@pytest.fixture(scope="session")
def base(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("whole")
    onnx.save(classifier(), folder / "graph.onnx")
    return Base(save_npz(folder / "whole.npz"), folder / "graph.onnx", finished_run)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in this process, with an alarm instead of another process that looks on."""

    def late(*_: object) -> None:
        raise TimeoutError

    def run(arguments: list[str], folder: Path) -> malformed.Ending:
        monkeypatch.chdir(folder / "cwd")
        monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        signal.alarm(malformed.LIMIT_S)
        result = CliRunner().invoke(main, arguments)
        signal.alarm(0)
        unforeseen = result.exception is not None and not isinstance(result.exception, SystemExit)
        trace = "".join(traceback.format_exception(result.exception)) if unforeseen else ""
        return malformed.Ending(result.exit_code, result.output, trace)

    before = signal.signal(signal.SIGALRM, late)
    monkeypatch.setattr(malformed, "run", run)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("here")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the inputs are those of a POSIX system")
@pytest.mark.parametrize("number", range(EACH))
@pytest.mark.parametrize("surface", SURFACES)
def test_malformed_inputs_end_in_one_line_or_are_accepted(
    surface: str, number: int, base: Base, tmp_path: Path
) -> None:
    case, ending, wrong, _ = malformed.try_one(surface, SEED, number, base, tmp_path / "case")
    assert not wrong, f"{case}\n{ending.output}\n{ending.trace}"
