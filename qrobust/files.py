"""Files that are the old ones or the whole new ones, and nothing written or removed through a link."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
# A temporary folder with fewer bytes left is full.
FULL_BYTES = 2**16


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
def whole(path: Path) -> Iterator[Path]:
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
