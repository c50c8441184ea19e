"""Stage 6: from what the stages left to one record and its reports."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import qrobust
from qrobust.evaluation import STATISTICS
from qrobust.report.html import html_report
from qrobust.report.markdown import markdown_report
from qrobust.report.robustbench import unaggregated_csv
from qrobust.results import SCHEMA, Record, versions, write_json, write_text
from qrobust.workbench import Workbench

COMPENSATION_KEYS = (
    "width",
    "trained_on",
    "training",
    "gate_offset",
    "validation",
    "classifier_hash",
)


def build_record(bench: Workbench) -> Record:
    """Gather what the stages left into one record; see docs/record.md."""
    folder = bench.place()
    quantized = folder.need_stage("quantize", "quantize")
    evaluated = folder.need_stage("evaluate", "evaluate")
    compensated, exported = folder.stage("compensate"), folder.stage("export")
    stages = {
        "quantize": quantized,
        "compensate": compensated,
        "export": exported,
        "evaluate": evaluated,
    }
    macs = dict(quantized["macs"])
    if compensated:
        macs["calibrator"] = compensated["macs"]["calibrator"]
        macs["calibrator_share"] = macs["calibrator"] / macs["classifier"]
    summary = evaluated["summary"] | {
        "latency_ms": evaluated["latency_ms"], "size_bytes": evaluated["size_bytes"], "macs": macs,
    }  # fmt: skip
    exported = exported or {"audit": {}, "parity": {}}
    return {
        "schema": SCHEMA,
        "qrobust": qrobust.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": bench.config.as_json(),
        "n_test": evaluated["summary"]["n_test"],
        "summary": summary,
        "rows": evaluated["rows"],
        "statistics": STATISTICS,
        "severity_table": evaluated["severity_table"],
        "stored": evaluated["stored"],
        "attacks": evaluated["attacks"],
        "quantization": quantized["quantization"],
        "audit": quantized["audit"] | exported["audit"],
        "parity": quantized["parity"] | exported["parity"],
        "compensation": None if compensated is None else {k: compensated[k] for k in COMPENSATION_KEYS},
        "splits": quantized["splits"],
        "skipped_images": quantized["skipped_images"],
        "class_names": quantized["class_names"],
        "image_size": quantized["image_size"],
        "seeds": {"run": bench.config.seed},
        "versions": versions(),
        "hardware": evaluated["hardware"],
        "stages": {name: {"duration_s": s["duration_s"]} for name, s in stages.items() if s},
    }  # fmt: skip


def write_report(bench: Workbench) -> Record:
    """Stage 6: record.json, report.html, report.md and results.csv."""
    folder = bench.place()
    record = build_record(bench)
    pictures = None
    if folder.pictures.exists():
        with np.load(folder.pictures, allow_pickle=False) as stored:
            pictures = {key: stored[key] for key in stored.files}
    write_text(folder.html, html_report(record, pictures))
    write_text(folder.markdown, markdown_report(record))
    write_text(folder.path / "results.csv", unaggregated_csv(record))
    write_json(folder.record, record)
    return record
