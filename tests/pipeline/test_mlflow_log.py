"""`--mlflow`: what is logged, and what is refused. Logging itself needs the package."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from conftest import qrobust
from reports import main_record

from qrobust.errors import InputError
from qrobust.pipeline.mlflow_log import EXPERIMENT, INSTALL, check_mlflow, choices, figures, log_run
from qrobust.pipeline.run_folder import RunFolder
from qrobust.record import read_record

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason=f"needs mlflow: {INSTALL}")


def test_figures_have_the_paths_of_the_record() -> None:
    record = main_record()
    found = figures(record)
    assert found["clean_accuracy.int8"] == record.summary.clean_accuracy["int8"]
    assert (found["clean_interval.int8.low"], found["clean_interval.int8.high"]) == record.summary.clean_interval[
        "int8"
    ]
    assert found["latency_ms.compensated.batch_1"] == record.summary.latency_ms["compensated"].batch_1
    assert found["size_bytes.int8"] == record.summary.size_bytes["int8"]
    assert all(type(value) is float for value in found.values())


def test_choices_that_are_none_are_left_out() -> None:
    found = choices(main_record())
    assert (found["model"], found["seed"], found["severities"]) == ("resnet20", "0", "[3, 5]")
    assert {"class_names", "keep_float"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (" ", "mlflow: expected the URI of a tracking server or file:DIR, got nothing"),
        ("https://me:secret@example.com", "mlflow: expected a URI without a password, which the record would keep"),
    ],
)
def test_a_uri_that_is_of_no_use_is_refused(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_mlflow(uri)
    assert "secret" not in str(caught.value)


def test_without_the_package_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    out = tmp_path / "run"
    options = ["--model", "resnet8", "--data", "digits", "--out", out, "--mlflow", f"file:{tmp_path}"]
    result = qrobust("run", *options)
    assert (result.exit_code, out.exists()) == (2, False)
    assert "--mlflow: needs the package mlflow, which is not installed" in result.output
    assert result.output.strip().endswith(INSTALL)


@needs_mlflow
def test_a_finished_run_is_logged(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    result = qrobust("report", run, "--mlflow", f"file:{tmp_path / 'store'}")
    assert result.exit_code == 0, result.output
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{tmp_path / 'store'}")
    (logged,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    record = read_record(run / "record.json")
    assert result.output.strip().endswith(logged.info.run_id)
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", "run")
    assert logged.data.metrics == pytest.approx(figures(record))
    assert logged.data.params == choices(record)
    files = {entry.path for entry in client.list_artifacts(logged.info.run_id)}
    assert files == {
        "record.json",
        "report.html",
        "report.md",
        "results.csv",
        *(f"{name}{end}" for name in ("float", "int8", "compensated") for end in (".onnx", ".card.md")),
    }


@needs_mlflow
def test_what_cannot_be_logged_leaves_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError("the server is gone\nand more")

    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    uri = f"file:{tmp_path / 'store'}"
    with pytest.raises(
        InputError, match=r"mlflow: the run is whole, but .* does not take it \(the server is gone\)$"
    ):
        log_run(uri, RunFolder(tmp_path), main_record())
    client = MlflowClient(uri)
    (logged,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert logged.info.status == "FAILED"
