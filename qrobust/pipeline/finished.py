"""Open the folder of a finished run or evaluation, to compare what was measured; needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from qrobust.comparison.measured import Measured
from qrobust.errors import InputError
from qrobust.evaluation.kept import read_kept
from qrobust.pipeline.run_folder import RunFolder
from qrobust.record import (
    EARLIER_SCHEMAS,
    EVALUATION_SCHEMA,
    EvaluationRecord,
    Record,
    read_evaluation,
    read_record,
)
from qrobust.storage import read_json

# Predictions give the accuracies of the record up to rounding.
TOLERANCE = 1e-9


def open_finished(path: Path, option: str) -> Measured:
    """What a finished run or evaluation measured: its record, and the predictions that belong to it.

    Args:
        path: the folder.
        option: that named it, for messages.

    Raises:
        InputError: the folder is not finished, its files are damaged, or the record is of other predictions.
    """
    file = path / "record.json"
    if not file.is_file():
        raise InputError(
            f"{option}: {path} holds no finished run or evaluation (no record.json); `qrobust report` or "
            "`qrobust evaluate-onnx` makes it"
        )
    evaluation = read_json(file).get("schema") in (EVALUATION_SCHEMA, EARLIER_SCHEMAS[EVALUATION_SCHEMA])
    record: Record | EvaluationRecord = read_evaluation(file) if evaluation else read_record(file)
    kept = read_kept(path / "predictions", [(row.shift, row.severity) for row in record.rows])
    for row in record.rows:
        own = kept.predictions[row.shift, row.severity]
        for name, accuracy in row.accuracy.items():
            if name not in own or abs(np.mean(own[name].prediction == kept.labels) - accuracy) > TOLERANCE:
                raise InputError(
                    f"{option}: the record in {path} is not of the predictions that lie beside it ({name}, "
                    f"{row.shift} at severity {row.severity}); `qrobust report {path}` makes it again"
                )
    return Measured(str(path), record, kept)


def failed_checks(path: Path, measured: Measured, graph: str) -> tuple[str, ...]:
    """A sentence for each export check that a graph failed; none for a graph that is as it was measured.

    A graph of a run needs an audit and a parity in the record, and a file that lies there must be the one that was
    measured. Where only the record and the predictions were brought along, there is no file to compare.
    """
    record, failed = measured.record, []
    if isinstance(record, Record):
        held = {"audit": set(record.audit), "parity": set(record.parity)}
        failed = [f"the record holds no {check} of {graph}" for check, graphs in held.items() if graph not in graphs]
        file, measured_hash = RunFolder(path).graph(graph), (record.graph_sha256 or {}).get(graph)
    else:
        file, measured_hash = Path(record.models[graph].file), record.models[graph].sha256
    if measured_hash and file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != measured_hash:
        failed.append(f"{file} is not the file that was measured (its SHA-256 is another)")
    return tuple(failed)
