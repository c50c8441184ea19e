"""`qrobust compare`: paired over the same images, what differs in configuration, one page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import qrobust
from finished_folders import evaluation_folder

from qrobust.comparison.compare import compare
from qrobust.comparison.measured import Measured
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN
from qrobust.evaluation.statistics import mcnemar_exact
from qrobust.pipeline.finished import open_finished
from qrobust.record import RunComparison, from_json
from qrobust.report.comparison import comparison_html
from qrobust.storage import read_json, write_json

FOG, NOISE = ("fog", 3), ("gaussian_noise", 5)
LABELS = np.arange(200) % 2


def folder(path: Path, wrong: dict[tuple[str, int], int], **extra: object) -> Path:
    """`int8` is wrong for the first so many images of each condition."""
    found = {
        condition: {"int8": np.where(np.arange(200) < count, 1 - LABELS, LABELS)}
        for condition, count in wrong.items()
    }
    return evaluation_folder(path, found, LABELS, **extra)  # type: ignore[arg-type]  # of its types


def measured(path: Path, wrong: dict[tuple[str, int], int], **extra: object) -> Measured:
    return open_finished(folder(path, wrong, **extra), "run folders")


def test_changes_are_the_images_that_differ(tmp_path: Path) -> None:
    found = compare([measured(tmp_path / "a", {CLEAN: 10, FOG: 40}), measured(tmp_path / "b", {CLEAN: 30, FOG: 20})])
    (change,) = found.changes
    assert change.shift is not None
    assert (change.clean.change_pp, change.shift.change_pp) == (pytest.approx(-10), pytest.approx(10))
    assert change.agreement == 0.9
    assert change.clean_p == mcnemar_exact(np.arange(200) >= 10, np.arange(200) >= 30)


def test_three_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    found = compare([measured(tmp_path / str(n), {CLEAN: n}) for n in (20, 30, 40)])
    assert [change.clean.change_pp for change in found.changes] == [pytest.approx(-5), pytest.approx(-10)]


def test_conditions_that_not_all_have_are_left_out_and_told(tmp_path: Path) -> None:
    found = compare(
        [measured(tmp_path / "a", {CLEAN: 0, FOG: 0, NOISE: 0}), measured(tmp_path / "b", {CLEAN: 0, FOG: 9})]
    )
    assert [(row.shift, row.severity) for row in found.rows] == [CLEAN, FOG]
    assert found.notes == ("1 of 2 conditions are in all folders; only these are compared.",)


def test_with_other_severity_tables_clean_images_are_compared(tmp_path: Path) -> None:
    found = compare([measured(tmp_path / t, {CLEAN: 0, FOG: 0}, table=t) for t in ("cifar-c", "imagenet-c")])
    assert [row.shift for row in found.rows] == ["clean"]
    assert found.runs[0].shift_accuracy is None
    assert "Severity tables differ" in found.notes[0]


def test_what_differs_in_configuration_is_told(tmp_path: Path) -> None:
    paths = [folder(tmp_path / name, {CLEAN: 0}) for name in "ab"]
    for path, shifts in zip(paths, (["fog"], ["snow"]), strict=True):
        record = read_json(path / "record.json")
        record["config"] |= {"shifts": shifts, "image_size": 32, "calibration_cache": f"ranges/{shifts[0]}"}
        write_json(path / "record.json", record)
    found = compare([open_finished(path, "run folders") for path in paths])
    assert [(one.key, one.values) for one in found.differences] == [("shifts", ('["fog"]', '["snow"]'))]


def test_worst_classes_are_named(tmp_path: Path) -> None:
    even = np.where(LABELS == 0, 1, LABELS)
    paths = [
        evaluation_folder(tmp_path / name, {CLEAN: {"int8": guess}}, LABELS)
        for name, guess in (("a", LABELS), ("b", even))
    ]
    (change,) = compare([open_finished(path, "run folders") for path in paths]).changes
    assert [(c.class_index, c.n, c.drop_pp) for c in change.worst_classes] == [(0, 100, 100.0)]


def test_other_test_images_are_refused_by_their_hash(tmp_path: Path) -> None:
    runs = [measured(tmp_path / listing, {CLEAN: 0}, listing=listing) for listing in ("1111", "2222")]
    with pytest.raises(InputError, match=r"hash 1111-abcd\).*hash 2222-abcd\); give both the same --data"):
        compare(runs)


def test_one_run_is_not_enough(tmp_path: Path) -> None:
    result = qrobust("compare", folder(tmp_path / "a", {CLEAN: 0}))
    assert (result.exit_code, result.output) == (2, "Error: run folders: expected at least two, got 1\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph", "int4"], "--graph: expected one of int8, got 'int4'"),
        (["--confidence", "0.1"], "--confidence: expected 0.5 to 0.995, got 0.1"),
        (["nowhere"], "nowhere holds no finished run or evaluation"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    run = folder(tmp_path / "a", {CLEAN: 0})
    result = qrobust("compare", run, run, *options)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert message in result.output


def test_terminal_page_and_json_tell_the_same(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", {CLEAN: 10, FOG: 40}), folder(tmp_path / "b", {CLEAN: 30, FOG: 20})
    page, file = tmp_path / "c.html", tmp_path / "c.json"
    result = qrobust("compare", a, b, "--html", page, "--json", file)
    assert result.exit_code == 0, result.output
    found = from_json(RunComparison, read_json(file), file)
    low, high = found.changes[0].clean.change_interval_pp
    said = f"-10.0 points [{low:+.1f}, {high:+.1f}] on clean images"
    assert said in result.output
    assert said in page.read_text()


def test_the_page_requests_nothing_and_obeys_no_name(tmp_path: Path) -> None:
    evil = "<script src=//e.vil></script>"
    run = measured(tmp_path / "a", {CLEAN: 0}, class_names=(evil, "dog"))
    other = measured(tmp_path / "b", {CLEAN: 200}, class_names=(evil, "dog"))
    page = comparison_html(compare([run, other]))
    assert "&lt;script" in page
    assert re.findall(r"<script[^>]|<img|https?://|@import|url\(", page) == []
    assert page.count("<script>") == 1


def test_runs_are_compared(finished_run: Path) -> None:
    record = read_json(finished_run / "record.json")
    found = compare([open_finished(finished_run, "run folders")] * 2)
    assert found.runs[0].graph == "compensated"
    assert found.runs[0].clean_accuracy == record["summary"]["clean_accuracy"]["compensated"]
    assert found.runs[0].latency_ms is not None
    assert found.differences == ()
