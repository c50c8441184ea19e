"""Stage 6: from what the stages left to one record and its reports."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import qrobust
from qrobust.evaluation.summary import STATISTICS
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES, TORCH_ONLY, RunFolder
from qrobust.record import SCHEMA, Record, versions
from qrobust.report.html import html_report
from qrobust.report.markdown import markdown_report
from qrobust.report.model_card import model_card
from qrobust.report.robustbench import csv_files
from qrobust.storage import write_json, write_text

COMPENSATION_KEYS = (
    "width",
    "branches",
    "latency_ratio",
    "training_images",
    "trained_on",
    "training",
    "gate_gain",
    "gate_offset",
    "polish",
    "validation",
    "classifier_hash",
)


def build_record(run: Run) -> Record:
    """Gather what the stages left into one record; see docs/record.md."""
    folder = run.require_folder()
    quantized = folder.need_stage("quantize", "quantize")
    evaluated = folder.need_stage("evaluate", "evaluate")
    measured = "compensated" in evaluated["summary"]["clean_accuracy"]  # else it is there, but was left out
    compensated, exported = (folder.stage(name) if measured else None for name in ("compensate", "export"))
    stages = {
        "quantize": quantized,
        "compensate": compensated,
        "export": exported,
        "evaluate": evaluated,
    }
    macs = dict(quantized["macs"])
    if compensated:
        compensated.setdefault("gate_gain", 1.0)  # in folders of versions that did not choose one
        macs["calibrator"] = compensated["macs"]["calibrator"]
        macs["calibrator_share"] = macs["calibrator"] / macs["classifier"]
    summary = evaluated["summary"] | {
        "latency_ms": evaluated["latency_ms"],
        "size_bytes": evaluated["size_bytes"],
        "macs": macs,
    }
    others = [found for name in BASELINES if (found := folder.stage(name))]
    gates = {
        gate: {k: v for made in (quantized, exported, *others) if made for k, v in made[gate].items()}
        for gate in ("audit", "parity")
    }
    return {
        "schema": SCHEMA,
        "qrobust": qrobust.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": run.config.as_json(),
        "n_test": evaluated["summary"]["n_test"],
        "summary": summary,
        "rows": evaluated["rows"],
        "methods": [_with_costs(row, evaluated, folder) for row in evaluated["methods"]],
        "scene": evaluated["scene"],
        "statistics": STATISTICS,
        "severity_table": evaluated["severity_table"],
        "stored": evaluated["stored"],
        "attacks": evaluated["attacks"],
        "quantization": quantized["quantization"],
        "audit": gates["audit"],
        "parity": gates["parity"],
        "compensation": None if compensated is None else {k: compensated[k] for k in COMPENSATION_KEYS},
        "splits": evaluated.get("splits", quantized["splits"]),
        "skipped_images": quantized["skipped_images"],
        "class_names": quantized["class_names"],
        "image_size": quantized["image_size"],
        "channels": run.onnx_classifier("float").channels,
        "seeds": {"run": run.config.seed},
        "versions": versions(),
        "hardware": evaluated["hardware"],
        "stages": {name: {"duration_s": s["duration_s"]} for name, s in stages.items() if s},
    }


def _with_costs(row: dict[str, Any], evaluated: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """What a method gains, and beside it what it takes to run it and what it learned from."""
    name = row["method"]
    made = folder.need_stage("compensate" if name == "compensated" else name, "compensate")
    if name == TORCH_ONLY:
        return row | {"runtime": "torch", "trained_on": [], "lessons": None, "training_s": 0.0, "diverged": False}
    latency = evaluated["latency_ms"]
    return row | {
        "runtime": "onnxruntime",
        "macs": made["macs"]["calibrator"],
        "trained_on": made["trained_on"],
        "lessons": made.get("lessons"),
        "training_s": made["duration_s"],
        "diverged": _diverged(made),
        "classifier_hash": made.get("classifier_hash"),
        "latency_ratio": {b: latency[name][b] / latency["int8"][b] for b in latency[name]},
        "float_latency_ratio": {b: latency["float"][b] / latency[name][b] for b in latency[name]},
    }


def _diverged(made: dict[str, Any]) -> bool:
    """Whether a training of a stage stopped at what is not finite; a calibrator has two."""
    training = made.get("training", {})
    fits = [training] if "diverged" in training else training.values()
    return any(fit["diverged"] for fit in fits)


def write_report(run: Run) -> Record:
    """Stage 6: record.json, report.html, report.md, results.csv, and a model card beside every graph."""
    folder = run.require_folder()
    record = build_record(run)
    pictures = None
    if record["compensation"] and folder.pictures.exists():
        with np.load(folder.pictures, allow_pickle=False) as stored:
            pictures = {key: stored[key] for key in stored.files}
    write_text(folder.html, html_report(record, pictures))
    write_text(folder.markdown, markdown_report(record))
    for name, text in csv_files(record).items():
        write_text(folder.path / name, text)
    for name in record["summary"]["clean_accuracy"]:
        write_text(folder.card(name), model_card(record, name))
    write_json(folder.record, record)
    return record
