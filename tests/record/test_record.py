"""The record: read strictly, of this schema and the one before; its page is made from it; reports need no torch."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import qrobust
from onnx_graphs import classifier_graph

from qrobust.errors import InputError
from qrobust.pipeline import run_folder
from qrobust.pipeline.report import build_record
from qrobust.pipeline.run_folder import REMEDIES, open_run
from qrobust.record import (
    EvaluationRecord,
    Record,
    from_json,
    read_evaluation,
    read_record,
    taken,
    to_json,
    without_timings,
)
from qrobust.record.documentation import page
from qrobust.record.typed_json import MOST_NESTED
from qrobust.record.units import Count, Interval, Severity, Share
from qrobust.storage import read_json, write_sealed

# A run and an evaluation as the last version that wrote schema 1 left them.
EARLIER = Path(__file__).parents[1] / "schema_1"
GRAPHS = (*run_folder.GRAPHS, *REMEDIES, "batch_1", "batch_32")
RENAMED = {
    "methods": "remedies",
    "method": "remedy",
    "scene": "target_images",
    "stored": "corruption_sets",
    "lessons": "provenance",
    "scene_names": "scenarios",
    "scene_images": "target_images",
    "scene_alone": "target_images_only",
    "scene_splits": "target_splits",
    "drawn": "batch_norm_images",
    "polish": "evolution_strategy",
    "n_cells": "n_conditions",
    "n_seen_cells": "n_seen_conditions",
    "n_unseen_cells": "n_unseen_conditions",
    "seen_by_calibrator": "seen_by_remedy",
    "class": "class_index",
    "cells": "conditions",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """For tests of the reader."""

    share: Share
    counts: dict[str, Count]
    interval: Interval | None
    names: tuple[str, ...] = ()
    severity: Severity = 0


GOOD: dict[str, Any] = {"share": 0.5, "counts": {"a": 1}, "interval": [0, 1], "names": ["x"]}


def test_a_part_survives_the_trip() -> None:
    part = from_json(Part, GOOD, "f")
    assert part == Part(share=0.5, counts={"a": 1}, interval=(0.0, 1.0), names=("x",))
    assert from_json(Part, json.loads(json.dumps(to_json(part))), "f") == part
    assert from_json(Part, GOOD | {"of a later version": 1}, "f") == part


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": "x"}, "share: expected a number, got 'x'"),
        ({"share": True}, "share: expected a number, got true"),
        ({"share": None}, "share: expected a number, got null"),
        ({"share": 7}, "share: expected a number (fraction, 0 to 1), got 7"),
        ({"share": math.nan}, "share: expected a number that is finite, got nan"),
        ({"share": 10**400}, "share: expected a number that is finite, got a longer number"),
        ({"counts": {"a.b": 1.0}}, "counts.a.b: expected an integer, got 1.0"),
        ({"counts": {"a": -1}}, "counts.a: expected an integer (at least 0), got -1"),
        ({"counts": {"a\nb": []}}, "counts.'a\\nb': expected an integer, got a list"),
        ({"counts": []}, "counts: expected an object, got a list"),
        ({"interval": [0]}, "interval: expected a list of 2, not of 1, got a list"),
        ({"interval": [0, {}]}, "interval.1: expected a number, got an object"),
        ({"names": "x"}, "names: expected a list, got 'x'"),
        ({"names": [1]}, "names.0: expected text, got 1"),
        ({"severity": 6}, "severity: expected an integer (0 to 5), got 6"),
        ({"names": ["x" * 99, 0]}, "names.1: expected text, got 0"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(Part, GOOD | change, "record.json")
    assert str(caught.value) == f"record.json: {message}"


def test_a_missing_value_is_named() -> None:
    for key, wanted in (("share", "a number"), ("counts", "an object"), ("interval", "a list or null")):
        with pytest.raises(InputError, match=f"^f: {key}: expected {wanted}, got nothing$"):
            from_json(Part, {k: v for k, v in GOOD.items() if k != key}, "f")
    with pytest.raises(InputError, match=r"^f: the whole: expected an object, got a list$"):
        from_json(Part, [], "f")


def renamed(value: Any) -> Any:
    """JSON of schema 1 with the names of today."""
    if isinstance(value, dict):
        return {RENAMED.get(k, k): renamed(v) for k, v in value.items()}
    return [renamed(v) for v in value] if isinstance(value, list) else value


def missing(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Keys of JSON that other JSON has not, or with another value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from missing(value, after[key], f"{path}.{key}") if key in after else [f"{path}.{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from missing(a, b, f"{path}.{number}")
    elif before != after:
        yield path


@pytest.mark.parametrize(("name", "read"), [("record", read_record), ("evaluation", read_evaluation)])
def test_records_of_schema_1_keep_every_figure(name: str, read: Any) -> None:
    path = EARLIER / f"{name}.json"
    before, after = json.loads(path.read_text()), read(path).to_json()
    config = before.pop("config")
    assert (after["data"], after["config"]) == (config["data"], config)
    assert list(missing(renamed(before), after)) == [".schema"]
    assert from_json(type(read(path)), json.loads(json.dumps(after)), "f") == read(path)


def test_stages_of_schema_1_give_the_record_of_schema_1(tmp_path: Path) -> None:
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    classifier_graph(run / "float.onnx", shape=("n", 3, 32, 32))
    found = to_json(build_record(*open_run(run)[:2]))
    wanted = to_json(read_record(EARLIER / "record.json"))
    for record in (found, wanted):
        record.pop("versions")  # an old folder does not say what it was measured with
        record.pop("qrobust")
        record.pop("config")  # the choices by their names of today, or of then
        for remedy in record["remedies"]:  # what is made of the stages today was not told then
            told = {remedy.pop(key) is None for key in ("size_bytes", "weight_change", "validation")}
            assert record is found or told == {True}
    assert without_timings(found) == without_timings(wanted)


def shortened(value: Any) -> Any:
    """JSON with one of the objects of each list."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shortened(value[0])]
    return value


def paths(value: Any, seen: set[str], path: tuple[Any, ...] = (), shape: str = "") -> Iterator[tuple[Any, ...]]:
    """A path for each value of JSON, one of those that lists hold alike."""
    if shape in seen:
        return
    seen.add(shape)
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        alike = isinstance(key, int) or key in GRAPHS
        yield from paths(item, seen, (*path, key), f"{shape}.{'*' if alike else key}")


@pytest.mark.parametrize(("name", "kind"), [("record", Record), ("evaluation", EvaluationRecord)])
def test_any_malformed_record_is_refused_in_one_line(name: str, kind: type) -> None:
    read = {"record": read_record, "evaluation": read_evaluation}[name]
    good, messages = shortened(to_json(read(EARLIER / f"{name}.json"))), []
    for path in paths(good, set()):
        if not path or path[0] == "config":
            continue
        place = good
        for key in path[:-1]:
            place = place[key]
        kept = copy.copy(place)
        for value in (None, "x", -1e9, [], {"a": None}, KeyError):
            if value is KeyError:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            try:
                from_json(kind, good, "record.json")
            except InputError as error:
                messages.append(str(error))
            place.clear()
            place.update(kept) if isinstance(place, dict) else place.extend(kept)
    assert len(messages) > 500
    assert [m for m in messages if not m.startswith("record.json: ") or len(m.splitlines()) != 1] == []


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "record.json", json.loads((EARLIER / "record.json").read_text())
    deep: Any = []
    for _ in range(MOST_NESTED):
        deep = [deep]
    cases = (
        ("[" * 100_000, "cannot read"),
        ('{"a":' * 100_000, "cannot read"),
        ("[1]", "expected a JSON object"),
        ("{}", "schema: expected qrobust.run/2 or qrobust.run/1, got None"),
        (json.dumps(good | {"schema": "qrobust.run/9"}), "got 'qrobust.run/9'"),
        (json.dumps(good | {"config": []}), "config: expected an object, got a list"),
        (json.dumps(good | {"config": good["config"] | {"a": deep}}), "config: expected at most 20 levels"),
        (json.dumps(good).replace('"n_test": ', '"n_test": 9' + "9" * 5000, 1), "cannot read"),
    )
    for text, message in cases:
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_record(path)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_stage_is_named_by_the_command(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    stage = run / "stages" / "evaluate.json"
    kept = read_json(stage)
    before = (run / "record.json").read_bytes()
    row = kept["rows"][0] | {"accuracy": {"float": "x"}}
    for damaged, key in (
        (kept | {"rows": [row]}, "rows.0.accuracy.float: expected a number, got 'x'"),
        (kept | {"summary": {}}, "summary.n_test: expected an integer, got nothing"),
    ):
        write_sealed(stage, damaged)
        result = qrobust("report", run)
        assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
        assert f"evaluate.json: {key}" in result.output
    assert (run / "record.json").read_bytes() == before


def test_docs_are_those_of_the_dataclasses() -> None:
    text = (Path(__file__).parents[2] / "docs" / "record.md").read_text()
    assert text == page(), "run `python -m qrobust.record > docs/record.md`"


def test_a_part_takes_what_another_has() -> None:
    part = from_json(Part, GOOD, "f")
    assert taken(Part, part, share=0.25) == Part(share=0.25, counts={"a": 1}, interval=(0.0, 1.0), names=("x",))


def test_reports_are_written_without_torch(finished_run: Path, tmp_path: Path) -> None:
    """On a machine that has none: `import torch` fails there."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    for path in (run / "record.json", run / "report.html"):
        path.unlink()
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'qrobust'; "
        "import qrobust.report.html, qrobust.report.model_card, qrobust.report.markdown; "
        "from qrobust.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "report", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again, first = (without_timings(json.loads((p / "record.json").read_text())) for p in (run, finished_run))
    assert again == first
    assert (run / "report.html").read_text().count("<tr>") == (finished_run / "report.html").read_text().count("<tr>")


@pytest.mark.parametrize(
    "command",
    [["compare", "RUN", "RUN"], ["check", "RUN", "--max-drop", "100"], ["deploy", "RUN", "--out", "OUT"]],
    ids=["compare", "check", "deploy"],
)
def test_finished_runs_are_worked_on_without_torch(finished_run: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from qrobust.cli.main import main; main()"
    paths = {"RUN": str(finished_run), "OUT": str(tmp_path / "out")}
    arguments = [paths.get(word, word) for word in command]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
