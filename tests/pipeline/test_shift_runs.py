"""Suites and a user's own shifts, through the command line."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import qrobust

from qrobust.record import read_record
from qrobust.shifts.registry import SUITES
from qrobust.storage import read_json


@pytest.mark.slow  # an evaluation of a whole suite
def test_an_own_shift_and_a_suite_are_measured(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    own = tmp_path / "mine.py"
    own.write_text("def dim(images, strength, generators):\n    return images * (1 - strength)\n")
    options = ("-q", "--shifts", f"{own}:dim,sensor", "--severities", "5", "--attack-images", 0)
    result = qrobust("evaluate", out, *options)
    assert result.exit_code == 0, result.output
    assert "\nBalanced accuracy: float clean" in result.output
    assert "\nClasses are even" in result.output
    assert qrobust("report", out).exit_code == 0
    # Exported again, the report has pictures of it, though there is a dot in its name.
    allowed = ("--allow-code", hashlib.sha256(own.read_bytes()).hexdigest())
    for command in ("export", "evaluate", "report"):
        result = qrobust(command, out, *(() if command == "report" else ("-q", *allowed)))
        assert result.exit_code == 0, result.output
    assert f"{own}:dim" in (out / "report.html").read_text()
    rows = {r["shift"]: r for r in read_json(out / "record.json")["rows"]}
    assert set(rows) == {"clean", f"{own}:dim", "bayer_mosaic", "vignetting", "low_light", "rolling_shutter"}
    # Severity 5 is strength 1 by default: a black picture, so one class for all.
    black = rows[f"{own}:dim"]["accuracy"]["float"]
    assert black < rows["clean"]["accuracy"]["float"]

    own.write_text("def dim(images, strength, generators):\n    return images + strength\n")
    refused = qrobust("evaluate", out, *options)
    assert refused.exit_code == 2
    assert "must return images in [0, 1]" in refused.output


def test_an_unknown_suite_is_refused(run_copy: Path) -> None:
    result = qrobust("evaluate", run_copy, "-q", "--shifts", "corruptions-16")
    assert result.exit_code == 2
    assert "corruptions-15" in result.output


def test_what_is_measured_chooses_no_recommendation(finished_run: Path) -> None:
    asked = {path.stem.rpartition("-")[0] for path in (finished_run / "predictions" / "validation").glob("*.npz")}
    assert asked == {"clean", *SUITES["generic"]}
    effects = read_record(finished_run / "record.json").effects
    assert effects is not None
    assert (effects.withheld, effects.conditions) == (True, 2 * len(SUITES["generic"]))


def test_c_bar_is_measured(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    options = ("-q", "--severities", "5", "--attacks", "none")
    assert qrobust("evaluate", out, "--shifts", "c-bar", *options).exit_code == 0
    assert qrobust("report", out).exit_code == 0
    found = read_json(out / "record.json")
    assert {row["shift"] for row in found["rows"]} == {"clean", *SUITES["c-bar"]}
    assert not any(row["seen_by_remedy"] for row in found["rows"])
