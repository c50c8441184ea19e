"""`qrobust check`: exit codes, and the forms that CI systems read."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import make_folder, qrobust
from finished_folders import evaluation_folder
from onnx_graphs import classifier_graph

from qrobust.evaluation.kept import CLEAN
from qrobust.record import GateResult, from_json
from qrobust.report.gate import gate_annotations, gate_markdown
from qrobust.storage import read_json, write_json

PAGE = Path(__file__).parents[2] / "docs" / "gate-a-pull-request.md"


def folder(path: Path, n: int = 1000, wrong: int = 20) -> Path:
    """`float` is right for all images, `int8` wrong for the first so many."""
    labels = np.arange(n) % 2
    found = np.where(np.arange(n) < wrong, 1 - labels, labels)
    return evaluation_folder(path, {CLEAN: {"float": labels, "int8": found}}, labels)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--max-drop", 5], 0),
        (["--max-drop", 1], 1),
        (["--max-drop", "a"], 2),
        ([], 2),
        (["--max-drop", 2.1], 4),
        (["--max-drop", 2.1, "--undecided", "pass"], 0),
        (["--max-drop", 2.1, "--max-latency-ratio", 1, "--undecided", "pass"], 1),
    ],
)
def test_exit_codes(tmp_path: Path, options: list[object], code: int) -> None:
    result = qrobust("check", folder(tmp_path / "run"), *options)
    assert result.exit_code == code, result.output


def test_an_undecided_bound_says_how_many_images_would_do(tmp_path: Path) -> None:
    result = qrobust("check", folder(tmp_path / "run"), "--max-drop", 2.1)
    assert re.search(r"^undecided .* about [\d,]+ images would decide$", result.output, re.MULTILINE), result.output
    assert result.output.splitlines()[-1] == "Undecided: 1 undecided, by intervals at 95 %."


def test_a_file_other_than_was_measured_is_a_failed_export_check(tmp_path: Path) -> None:
    run, file = folder(tmp_path / "run"), tmp_path / "int8.onnx"
    file.write_bytes(b"other")
    record = read_json(run / "record.json")
    record["models"]["int8"]["file"] = str(file)
    write_json(run / "record.json", record)
    result = qrobust("check", run, "--max-drop", 1)
    assert result.exit_code == 3
    assert f"{file} is not the file that was measured" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop", "1", "--graph", "int9"], "--graph: expected one of int8, float, got 'int9'"),
        (["--max-drop", "1", "--against-graph", "int8"], "--against-graph: expected with --against, got it alone"),
        (["--max-drop", "1", "--against", "nowhere"], "--against: nowhere holds no finished run or evaluation"),
        (["--max-drop", "1", "--confidence", "1"], "--confidence: expected 0.5 to 0.995, got 1"),
        (["--max-drop", "1", "--undecided", "maybe"], "--undecided: expected fail or pass, got 'maybe'"),
        (["--min-recall", "cat"], "--min-recall: expected a class and a share, such as cat=0.9, got 'cat'"),
        (["--min-recall", "cow=0.9"], "--min-recall: expected one of cat, dog, got 'cow'"),
        (["--max-drop", "101"], "--max-drop: expected percentage points from -100 to 100, got 101"),
        (["--config", "none.toml"], "--config: no file none.toml"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    result = qrobust("check", folder(tmp_path / "run", n=10), *options)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert message in result.output


def test_a_folder_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    result = qrobust("check", tmp_path, "--max-drop", 1)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "holds no finished run or evaluation" in result.output


def config(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_bounds_come_from_a_file_and_options_go_before_them(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    file = config(tmp_path / "q.toml", "[check]\nmax-drop = 1\nmin_accuracy = 0.5\n[check.min_recall]\ncat = 0.9\n")
    assert qrobust("check", run, "--config", file).exit_code == 1
    result = qrobust("check", run, "--config", file, "--max-drop", 5)
    assert (result.exit_code, result.output.count("pass ")) == (0, 3), result.output


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = "[check]\nmax_drip = 1\nmin_accuracy = '0.5'\nmin_gain = true\n[check.min_recall]\ncat = 'all'\n"
    result = qrobust("check", folder(tmp_path / "run", 10), "--config", config(tmp_path / "q.toml", text))
    assert result.exit_code == 2
    for said in (
        "check.max_drip: no such key; did you mean 'max_drop'?",
        "check.min_accuracy: expected a number, got '0.5'",
        "check.min_gain: expected a number, got True",
        "check.min_recall.cat: expected a number, got 'all'",
    ):
        assert said in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_drop = 1", "expected a table [check]"),
        ("[check", "cannot read"),
        ("check = 1", "expected a table [check]"),
    ],
)
def test_a_file_without_bounds_is_refused(tmp_path: Path, text: str, message: str) -> None:
    result = qrobust("check", folder(tmp_path / "run", 10), "--config", config(tmp_path / "q.toml", text))
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert message in result.output


def test_junit_has_a_case_per_bound(tmp_path: Path) -> None:
    file = tmp_path / "check.xml"
    options = ("--max-drop", 1, "--min-accuracy", 0.5, "--max-shift-drop", 1, "--junit", file)
    assert qrobust("check", folder(tmp_path / "run"), *options).exit_code == 1
    suite = ElementTree.parse(file).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "0")
    assert [case.find("failure") is not None for case in suite] == [True, True, False]


def test_junit_skips_what_is_undecided_and_passes(tmp_path: Path) -> None:
    file = tmp_path / "check.xml"
    qrobust("check", folder(tmp_path / "run"), "--max-drop", 2.1, "--undecided", "pass", "--junit", file)
    suite = ElementTree.parse(file).getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")


def test_github_gets_an_error_for_a_breach_only(tmp_path: Path) -> None:
    result = qrobust("check", folder(tmp_path / "run"), "--max-drop", 1, "--min-accuracy", 0.5, "--github")
    lines = [line for line in result.output.splitlines() if line.startswith("::")]
    assert len(lines) == 1
    assert lines[0].startswith(
        "::error title=qrobust --max-drop::clean accuracy lost from float to int8: +2.00 points"
    )


def test_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    """A class may be called like a workflow command, a cell of a table or a control character."""
    from qrobust.comparison.bounds import check
    from qrobust.pipeline.finished import open_finished

    evil = "cat\n::error::|x\x1b"
    run = evaluation_folder(tmp_path / "run", {CLEAN: {"a": [0, 1], "b": [1, 1]}}, [0, 1], class_names=(evil, "dog"))
    result = check(open_finished(run, "run folder"), {"min_recall": {evil: 0.9}})
    (line,) = gate_annotations(result)
    assert line.startswith("::error title=qrobust --min-recall cat\\n%3A%3Aerror%3A%3A|x\\x1b::")
    assert "\\|x" in gate_markdown(result)
    assert "\x1b" not in gate_markdown(result)


def test_json_is_the_result(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    qrobust("check", folder(tmp_path / "run"), "--max-drop", 5, "--json", file)
    found = from_json(GateResult, read_json(file), file)
    assert (found.bounds[0].outcome, found.reference, found.exit_code) == ("pass", "float", 0)


def test_bounds_of_a_run(finished_run: Path) -> None:
    record = read_json(finished_run / "record.json")
    result = qrobust(
        "check", finished_run, "--min-integer-share", 0.95, "--max-latency-ratio", 1e6, "--max-size-ratio", 1,
        "--max-clean-cost", 100, "--min-unseen-gain", -100, "--min-recall", "3=0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    gain, (low, high) = record["summary"]["unseen_gain_pp"], record["summary"]["unseen_gain_interval_pp"]
    assert f"shifts it never saw: {gain:+.2f} points [{low:+.2f}, {high:+.2f}], n = 80" in result.output


def test_a_graph_of_a_run_that_was_changed_since_fails(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with (run / "int8.onnx").open("ab") as file:
        file.write(b"more")
    codes = [qrobust("check", run, "--graph", g, "--max-drop", 100).exit_code for g in ("int8", "compensated")]
    assert codes == [3, 0]


def commands(page: str) -> list[list[str]]:
    """What a page's code blocks call qrobust with."""
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^\s*(?:- |run: )?qrobust (.+)$", code, re.MULTILINE)]


def test_commands_of_the_page_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a run and two graphs, as the page has it; a gate may say no."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "runs/new")
    shutil.copytree(finished_run, "runs/main")
    labels = np.arange(200) % 2
    evaluation_folder(Path("evaluations/new"), {CLEAN: {"float": labels, "int8": labels}}, labels)
    make_folder(tmp_path / "images")
    Path("models").mkdir()
    for name in ("float", "int8"):
        classifier_graph(Path("models") / f"{name}.onnx", classes=2)
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "qrobust.toml").write_text("\n".join(blocks))
    found = commands(PAGE.read_text())
    assert len(found) >= 5
    for command in found:
        measures = command[0] == "evaluate-onnx"
        if measures:
            shutil.rmtree("evaluations/new")
        result = qrobust(*command)
        assert result.exit_code in ((0,) if measures else (0, 1, 4)), (command, result.output)
        if measures:
            shutil.copytree("evaluations/new", "evaluations/main")  # what the last build of main left
