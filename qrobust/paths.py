"""Paths as users write them, and the one kind of file that is read: a regular one."""

from __future__ import annotations

import stat
from pathlib import Path

from qrobust.errors import InputError

KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def user_path(path: str | Path) -> Path:
    """A path with the home folder for `~`.

    Raises:
        InputError: there is no such user, or the path cannot be one.
    """
    if "\0" in str(path):
        raise InputError(f"path: expected one without NUL characters, got {str(path)!r}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"path: {path} names the home folder of a user who is not known") from error


def check_file(path: Path, name: str) -> Path:
    """The path of a regular file: to open a FIFO or a device may never return.

    Args:
        path: the file, or a link to it.
        name: what it is for, for the message.

    Raises:
        InputError: there is none, or it is of another kind.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"{name}: no file {path}") from error
    except OSError as error:
        raise InputError(f"{name}: cannot read {path} ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{name}: expected a regular file, {path} is a {KINDS.get(stat.S_IFMT(mode), 'special file')}"
        )
    return path
