"""Files that are the old ones or the whole new ones, and folders that keep what they held until theirs is made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write under. What was written becomes `path` at the end; where that fails, nothing of it is left.

    Raises:
        OSError: it cannot be written, whichever way the library that writes says so.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError:
        raise
    except Exception as error:  # torch and safetensors have types of their own for a full disk
        raise OSError(f"cannot write {path} ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def backup_dir(path: Path) -> None:
    """Make an empty folder; what it held is kept beside it until `discard_backup` or `restore_backup`.

    Raises:
        OSError: that cannot be done; the folder is as it was.
    """
    before = _before(path)
    if path.is_dir() and before.exists():
        shutil.rmtree(path)  # of a command that was killed while it replaced another's
    elif path.is_dir():
        path.absolute().rename(before)
    try:
        path.mkdir(parents=True)
    except OSError:
        restore_backup(path)
        raise


def restore_backup(path: Path) -> None:
    """Remove a folder; what it held before `backup_dir` is there again."""
    shutil.rmtree(path, ignore_errors=True)
    if has_backup(path):
        _before(path).rename(path.absolute())


def discard_backup(path: Path) -> None:
    """What a folder held before `backup_dir` is not needed any more."""
    shutil.rmtree(_before(path), ignore_errors=True)


def has_backup(path: Path) -> bool:
    """Whether there is something that `restore_backup` would restore."""
    return _before(path).exists()


def _before(path: Path) -> Path:
    return path.absolute().with_name(f".{path.absolute().name}.before")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old or the whole new one."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays so that the file is either the old or the whole new one."""
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no dict of arrays


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, as all do that are written here.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"results: cannot read {path} ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"results: expected a JSON object in {path}, got {type(found).__name__}")
    return found
