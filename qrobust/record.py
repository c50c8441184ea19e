"""The record of a run: plain data, one JSON file with a schema name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qrobust.errors import InputError
from qrobust.storage import read_json

SCHEMA, EVALUATION_SCHEMA = "qrobust.run/1", "qrobust.evaluation/1"
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")
Record = dict[str, Any]
# Keys whose values differ between two runs of the same seed.
TIMING_KEYS = frozenset(
    {
        "created",
        "command",
        "duration_s",
        "training_s",
        "latency_ms",
        "latency_ratio",
        "float_latency_ratio",
        "time_share",
        "earlier_s",
    }
)


def read_record(path: Path, schema: str = SCHEMA) -> Record:
    """Read a record and check its schema."""
    record = read_json(path)
    found = record.get("schema")
    if found != schema:
        raise InputError(f"results: expected schema {schema!r} in {path}, got {found!r}")
    return record


def without_timings(value: Any) -> Any:
    """A record without what differs between two runs of the same seed: times, and the command line."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMING_KEYS}
    if isinstance(value, list):
        return [without_timings(v) for v in value]
    return value


def hardware(threads: int) -> dict[str, object]:
    """The processor a figure was measured on."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass  # not Linux: the platform's own word must do
    found = sorted(f for f in flags if f in {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    return {"processor": name, "flags": found, "cores": os.cpu_count(), "threads": threads}


def versions() -> dict[str, str]:
    """Of Python and the packages that a figure depends on."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}
