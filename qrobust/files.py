"""Files that are the old ones or the whole new ones, and folders that keep what they held until theirs is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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


def set_aside(path: Path) -> None:
    """Make an empty folder; what it held is kept beside it until `settle` or `give_back`.

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
        give_back(path)
        raise


def give_back(path: Path) -> None:
    """Remove a folder; what it held before `set_aside` is there again."""
    shutil.rmtree(path, ignore_errors=True)
    if holds_back(path):
        _before(path).rename(path.absolute())


def settle(path: Path) -> None:
    """What a folder held before `set_aside` is not needed any more."""
    shutil.rmtree(_before(path), ignore_errors=True)


def holds_back(path: Path) -> bool:
    """Whether there is something that `give_back` would restore."""
    return _before(path).exists()


def _before(path: Path) -> Path:
    return path.absolute().with_name(f".{path.absolute().name}.before")
