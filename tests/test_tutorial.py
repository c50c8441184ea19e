"""The tutorial does what it says: its files are written and its commands run, in order, in an empty folder."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from conftest import qrobust

from qrobust.record import read_record

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"


@pytest.mark.slow  # a network and a calibrator are trained
def test_every_block_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue
        for line in block.splitlines():
            program, *arguments = line.split()
            if program == "python":
                runpy.run_path(arguments[0])
                continue
            result = qrobust(*arguments)
            assert (program, result.exit_code) == ("qrobust", 0), f"{line}\n{result.output}"
    record = read_record("runs/digits/record.json")
    shifts = {row.shift for row in record.rows}
    assert shifts == {"clean", "contrast", "gaussian_noise", "rotation", "smudge.py:smudge"}
    gained = {row.shift: row.accuracy["compensated"] - row.accuracy["int8"] for row in record.rows}
    assert gained["contrast"] > 0.1  # of severity 5, which the calibrator learned from and INT8 is lost in
