"""The record of a run: plain data, one JSON file with a schema name."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import InputError
from qrobust.files import whole
from qrobust.inputs import check_file

SCHEMA, EVALUATION_SCHEMA = "qrobust.run/1", "qrobust.evaluation/1"
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")
# Where files that only qrobust reads keep the checksum of all else in them.
CHECKSUM = "checksum"
Record = dict[str, Any]
# Keys whose values differ between two runs of the same seed.
TIMING_KEYS = frozenset({
    "created", "command", "duration_s", "training_s", "latency_ms", "latency_ratio", "float_latency_ratio",
    "time_share", "earlier_s",
})  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old or the whole new one."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that only qrobust reads: with a checksum, by which `read_json` knows whether it was changed."""
    write_json(path, value | {CHECKSUM: _checksum(value)})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, as all do that are written here.

    Raises:
        InputError: it is missing or damaged, or was changed since `write_sealed` wrote it.
    """
    check_file(path, "results")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise InputError(f"results: cannot read {path} ({error})") from error
    except RecursionError as error:
        raise InputError(f"results: cannot read {path} (it is nested too deeply)") from error
    if not isinstance(found, dict):
        raise InputError(f"results: expected a JSON object in {path}, got {type(found).__name__}")
    checksum = found.pop(CHECKSUM, None)  # earlier versions wrote none
    if checksum is not None and checksum != _checksum(found):
        raise InputError(f"results: {path} was changed since it was written; remove it and make it again")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, with a checksum, so that the file is either the old or the whole new one."""
    arrays = {name.encode(errors="backslashreplace").decode(): array for name, array in arrays.items()}
    arrays[CHECKSUM] = np.array(_array_checksum(arrays))
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no dict of arrays


def read_npz(path: Path, name: str, needs: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays that `save_npz` wrote.

    Args:
        path: the file.
        name: what it holds, for the message.
        needs: arrays that must be among them.

    Raises:
        InputError: it is missing or damaged, was changed or is another file.
    """
    check_file(path, name)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        checksum = arrays.pop(CHECKSUM, None)  # earlier versions wrote none
        changed = checksum is not None and str(checksum) != _array_checksum(arrays)
    except Exception as error:  # numpy raises a different type for each kind of damage
        raise InputError(f"{name}: cannot read {path} ({error}); removed, it is made again") from error
    if changed:
        raise InputError(f"{name}: {path} was changed since it was written; removed, it is made again")
    if missing := sorted(set(needs) - set(arrays)):
        raise InputError(f"{name}: expected {', '.join(missing)} in {path}, got {', '.join(arrays) or 'nothing'}")
    return arrays


def _array_checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
