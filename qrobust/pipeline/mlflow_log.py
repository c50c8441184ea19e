"""The only module that imports mlflow: a finished run's figures and files, sent to where the user says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from qrobust.errors import InputError
from qrobust.pipeline.run_folder import RunFolder
from qrobust.record import Record, to_json
from qrobust.report.verdict import verdict

INSTALL = "pip install mlflow-skinny"
# Of all runs, unless MLflow's own variable MLFLOW_EXPERIMENT_NAME says another.
EXPERIMENT = "qrobust"
# Most characters of a parameter and of a tag, and most parameters and metrics of one call.
LONGEST, MOST_PARAMETERS, MOST_METRICS = 500, 100, 1000
# MLflow's own, unless they are set: it would send usage figures to its makers, would refuse the folders that `file:`
# names, and would ask a server that does not answer for four minutes.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
# What a metric's name may not hold.
STRANGE = re.compile(r"[^\w\-. /]")
# Ends of an interval.
ENDS = ("low", "high")


def check_mlflow(uri: str) -> None:
    """See that a run can be logged, before it is made.

    Args:
        uri: of a tracking server, or `file:DIR`.

    Raises:
        InputError: mlflow is not installed, the URI holds a password, or nothing answers there.
    """
    if not uri.strip():
        raise InputError("mlflow: expected the URI of a tracking server or file:DIR, got nothing")
    if urlsplit(uri).password:
        raise InputError(
            "mlflow: expected a URI without a password, which the record would keep; MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD hold it"
        )
    mlflow = _mlflow()
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # mlflow's own, those of its HTTP library and of the file system
        raise InputError(f"mlflow: {uri} does not answer ({_line(error)})") from error


def log_run(uri: str, folder: RunFolder, record: Record) -> str:
    """Log a finished run: choices as parameters, figures as metrics, report, record, cards and graphs as artefacts.

    Args:
        uri: as for `check_mlflow`.
        folder: of the run.
        record: of the run.

    Returns:
        MLflow's id of the run.

    Raises:
        InputError: as `check_mlflow`, or something cannot be logged.
    """
    check_mlflow(uri)
    mlflow = _mlflow()
    client, now = mlflow.MlflowClient(uri), int(time.time() * 1e3)
    metrics = [mlflow.entities.Metric(name, value, now, 0) for name, value in figures(record).items()]
    parameters = [mlflow.entities.Param(name, value) for name, value in choices(record).items()]
    try:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        logged = client.create_run(experiment, run_name=folder.path.resolve().name, tags=_tags(record)).info.run_id
        ended = "FAILED"
        try:
            for start in range(0, len(metrics), MOST_METRICS):
                client.log_batch(logged, metrics=metrics[start : start + MOST_METRICS])
            for start in range(0, len(parameters), MOST_PARAMETERS):
                client.log_batch(logged, params=parameters[start : start + MOST_PARAMETERS])
            for file in _files(folder, record):
                client.log_artifact(logged, str(file))
            ended = "FINISHED"
        finally:
            client.set_terminated(logged, ended)
    except Exception as error:  # as above
        raise InputError(f"mlflow: the run is whole, but {uri} does not take it ({_line(error)})") from error
    return str(logged)


def figures(record: Record) -> dict[str, float]:
    """Numbers of a summary by their paths, such as `clean_accuracy.int8`; intervals as `.low` and `.high`."""
    return dict(_numbers("", to_json(record.summary)))


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list) and len(value) == len(ENDS) and all(type(one) is float for one in value):
        yield from ((f"{STRANGE.sub('_', path)}.{end}", one) for end, one in zip(ENDS, value, strict=True))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield STRANGE.sub("_", path), float(value)


def choices(record: Record) -> dict[str, str]:
    """The configuration as text, without choices that are none."""
    given = {name: value for name, value in to_json(record.config).items() if value not in (None, [], {}, "")}
    return {name: str(value)[:LONGEST] for name, value in given.items()}


def _tags(record: Record) -> dict[str, str]:
    told = {
        "qrobust.verdict": verdict(record)[0],
        "qrobust.version": record.qrobust,
        "qrobust.onnxruntime": record.versions["onnxruntime"],
    }
    return {name: text[:LONGEST] for name, text in told.items()}


def _files(folder: RunFolder, record: Record) -> Iterator[Path]:
    """What a reader of the run wants, as far as it is there."""
    graphs = (path for name in record.summary.clean_accuracy for path in (folder.graph(name), folder.card(name)))
    for path in (folder.record, folder.html, folder.markdown, folder.file("results.csv"), *graphs):
        if path.is_file():
            yield path


def _mlflow() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
        import mlflow.entities
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mlflow"
        why = "not installed" if missing else f"installed and cannot be imported ({error})"
        raise InputError(f"mlflow: needs the package mlflow, which is {why}; {INSTALL}") from error
    return mlflow


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
