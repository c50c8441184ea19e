"""A folder that one command at a time writes in, and that keeps what it holds until something else can replace it.

The folder itself is never moved, replaced or, unless the command made it, removed: it may be a link, a mount point,
or lie where nothing else may be written. What is to replace its content is built in a folder inside, `NEW`:

1. Until the new content is complete (`COMPLETE`), the old one stays as it is, where it is.
2. From then on the new one counts: the old one is removed and the new one takes its place. Whatever ends the
   command meanwhile, the next one on the folder finishes that first (`discard_backup`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from qrobust.errors import InputError
from qrobust.storage import PART, remove

LOCK = ".qrobust.lock"
# What commands make in such a folder; anything else in it is the user's, and stays.
MADE = (
    "config.json",
    "config.toml",
    "record.json",
    "report.html",
    "report.md",
    "results*.csv",
    "*.card.md",
    "*.onnx",
    "*.safetensors",
    "attacks.npz",
    "pictures.npz",
    "missed.npz",
    "stages",
    "checkpoints",
    "predictions",
)
# What is to replace the content: being built; complete; complete, and the old content is gone.
NEW, READY, MOVING = ".qrobust-new", ".qrobust-ready", ".qrobust-moving"
# `lost+found` is what a file system of its own holds from its beginning.
NOT_CONTENT = (LOCK, NEW, READY, MOVING, "lost+found")
CONFIG = "config.json"
# The file that says that a run is quantized, that a quantized file is imported, that an evaluation is done.
COMPLETE = (Path("stages", "quantize.json"), Path("stages", "import.json"), Path("record.json"))
LEFT_BEHIND = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(PART)}")


def plain(path: Path) -> Path:
    """A path without `..`, which leads elsewhere once a folder before it is made or is a link."""
    return path.resolve() if ".." in path.parts else path


def content(path: Path) -> list[Path]:
    """What lies in a folder, but for what is there on its own account or about to replace it."""
    return sorted(found for found in path.iterdir() if found.name not in NOT_CONTENT) if path.is_dir() else []


def made_in(path: Path) -> list[Path]:
    """What commands made in a folder, its configuration last."""
    found = [entry for entry in content(path) if any(fnmatch(entry.name, name) for name in MADE)]
    return sorted(found, key=lambda entry: entry.name == CONFIG)


def holds_current_folder(path: Path) -> bool:
    """Whether a folder is the current one, or one that it lies in."""
    here = Path.cwd()
    return path.resolve() in (here, *here.parents)


@contextmanager
def claimed(path: Path, option: str = "out", *, replacing: bool = False) -> Iterator[None]:
    """Have a folder for this process alone; it is made where it is not there, and removed where it stays empty.

    The operating system gives the lock back when the process ends, however it ends.

    Args:
        path: the folder.
        option: that named it, for errors.
        replacing: whether what it holds will be replaced as a whole, and so may have links to folders.

    Raises:
        InputError: another process has it, it cannot be written, or a folder in it is a link.
    """
    made: list[Path] = []
    lock = FileLock(path / LOCK, blocking=False)
    try:
        made += _make(path)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{option}: another qrobust command is at work in {path}; wait until it ends, or name another folder"
        ) from error
    except OSError as error:
        _unmake(made)
        raise InputError(f"{option}: cannot write to {path} ({error.strerror or error})") from error
    try:
        _refuse_links(path, option, everywhere=not replacing)
        discard_backup(path)
        try:
            yield
        finally:
            with suppress(OSError, InputError):
                discard_backup(path)
    finally:
        with suppress(OSError):
            (path / LOCK).unlink()
        lock.release()
        _unmake(made)


def wait_until_free(path: Path, seconds: float) -> None:
    """Wait until no process has a folder, or for so many seconds; one that is about to end may still have it."""
    if not path.is_dir():
        return
    lock = FileLock(path / LOCK, timeout=seconds)
    with suppress(Timeout, OSError):
        lock.acquire()
        (path / LOCK).unlink()
    lock.release()


def configuration(path: Path) -> Path | None:
    """The configuration of what a command made in a folder, or left on its way there when it was killed."""
    places = (path, path / NEW, path / READY, path / MOVING)
    return next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)


def begun(path: Path) -> Path | None:
    """Where something was begun that a command can go on with: what is to replace the content, else the content."""
    return next((place for place in (path / NEW, path) if (place / CONFIG).is_file()), None)


def make_place(path: Path) -> Path:
    """An empty folder to build in: the claimed one if it holds nothing, else `NEW` in it, in place of an earlier one.

    Raises:
        OSError: it cannot be made.
    """
    remove(path / NEW)
    if not content(path):
        return path
    (path / NEW).mkdir()
    return path / NEW


def promote(place: Path) -> Path:
    """What was built, and is complete, takes the place of what the folder held; returns the folder."""
    if place.name != NEW:
        return place
    discard_backup(place.parent)
    return place.parent


def discard(place: Path) -> None:
    """Remove what was built, and nothing that was there before."""
    for entry in [place] if place.name == NEW else made_in(place):
        remove(entry)


def discard_backup(path: Path) -> None:
    """Finish what a command was at when it was killed: replacing the content by what is complete, writing files."""
    new, ready, moving = (path / name for name in (NEW, READY, MOVING))
    if any((new / file).is_file() for file in COMPLETE):
        new.rename(ready)
    if (ready / CONFIG).is_file():
        old = made_in(path)
        if old and old[-1].name != CONFIG:  # it is the last to go: without it the rest is not of a command
            raise InputError(
                f"out: {path} holds {old[0].name} beside {READY}, expected one of them; remove the other"
            )
        for entry in old:
            remove(entry)
        ready.rename(moving)
    if moving.is_dir():
        for entry in list(moving.iterdir()):
            if os.path.lexists(path / entry.name):
                raise InputError(f"out: {path} holds {entry.name} twice, also in {MOVING}; remove one of them")
            entry.rename(path / entry.name)
        moving.rmdir()
    for folder, _, files in os.walk(path):
        for name in filter(LEFT_BEHIND.fullmatch, files):
            Path(folder, name).unlink()


def _make(path: Path) -> list[Path]:
    """Make a folder, through a link to where it is to be; returns the folders that were made, outermost first."""
    path = path.resolve()
    missing = [folder for folder in (*reversed(path.parents), path) if not folder.exists()]
    for number, folder in enumerate(missing):
        try:
            folder.mkdir(exist_ok=True)
        except OSError:
            _unmake(missing[:number])
            raise
    return missing


def _unmake(folders: list[Path]) -> None:
    with suppress(OSError):  # one that is not empty stays, and those that it lies in
        for folder in reversed(folders):
            folder.rmdir()


def _refuse_links(path: Path, option: str, *, everywhere: bool) -> None:
    """What is written to, moved or removed in a folder must lie in it, also where somebody else made the folder."""
    links = [path / name for name in (NEW, READY, MOVING)]
    if everywhere:
        links += [Path(folder, name) for folder, names, _ in os.walk(path) for name in names]
    for link in links:
        if link.is_symlink():
            raise InputError(
                f"{option}: expected folders of its own in {path}, {link.relative_to(path)} is a link: what is "
                "written there would go elsewhere; remove the link"
            )
