"""Files that are the old ones or the whole new ones, and folders that keep what they held until theirs is made."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import InputError
from qrobust.paths import check_file

PART = ".part"
# A temporary folder with fewer bytes left is full.
FULL_BYTES = 2**16
# A list of numbers in indented JSON; within a text no line ends.
NUMBERS = re.compile(r"\[\n\s*([-+.\deE]+(?:,\n\s*[-+.\deE]+)*)\n\s*\]")


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write in; it becomes `path` at the end, or is removed where that fails.

    Its name cannot be foreseen and nothing of that name is there before: a link that lies in wait is not followed.
    Whatever the library that writes makes of the file, it gets the mode that the umask gives to new files.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PART}")
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        try:
            yield part
            part.chmod(mode)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(PART)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """As `replacement`, for a library that only writes: whatever it raises is that it cannot.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with replacement(path) as part:
        try:
            yield part
        except OSError:
            raise
        except Exception as error:  # torch and safetensors have types of their own for a full disk
            raise OSError(f"cannot write {path} ({error})") from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed at the end.

    Raises:
        OSError: something failed while no room was left in it, whichever way the library that wrote there said so.
    """
    with tempfile.TemporaryDirectory(prefix="qrobust-") as name:
        try:
            yield Path(name)
        except Exception as error:
            if shutil.disk_usage(name).free < FULL_BYTES:
                told = f"{os.strerror(errno.ENOSPC)}; set TMPDIR to a folder with room"
                raise OSError(errno.ENOSPC, told, tempfile.gettempdir()) from error
            raise


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Where files that only qrobust reads keep the checksum of all else in them.
CHECKSUM = "checksum"


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old or the whole new one."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all; lists of numbers on one line, which a thousand classes make long."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_text(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON that only qrobust reads: with a checksum, by which `read_json` knows whether it was changed."""
    write_json(path, {**value, CHECKSUM: _checksum(value)})


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


def _checksum(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def save_npz(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """Write arrays, with a checksum, so that the file is either the old or the whole new one."""
    arrays = {name.encode(errors="backslashreplace").decode(): array for name, array in arrays.items()}
    arrays[CHECKSUM] = np.array(_array_checksum(arrays))
    with atomic_write(path) as part, part.open("wb") as file:
        save = np.savez_compressed if compressed else np.savez
        save(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no dict of arrays


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
