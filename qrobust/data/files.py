"""Which files and folders of a data set are read: everything else is counted, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, features

from qrobust.errors import InputError
from qrobust.record.data import LeftOut

# What is decoded, whatever a file's name says. Only formats that Pillow decodes in memory: others start programs, as
# EPS does Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF"),
    *(("AVIF",) if "avif" in features.get_supported() else ()),
)
# What is taken for an image by its name; a file without suffix, by its content.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
    | {".png", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
# What systems and archives put beside files; names that begin with a dot are hidden, too.
SYSTEM_NAMES = frozenset(("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"))

HIDDEN = "hidden or the system's"
BROKEN_LINK = "links to nothing"
REPEATED_FOLDER = "links to folders above or read already"
NO_IMAGE = "without suffix and no image"


@dataclass
class LeftOutLog:
    """Counts what is not used, by reason, while a data set's folder is read.

    Attributes:
        root: the data set's folder, to which examples are relative.
    """

    root: Path
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """One more file or folder that is not used."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._examples.setdefault(reason, os.path.relpath(path, self.root))

    def entries(self) -> tuple[LeftOut, ...]:
        """One per reason, the most frequent first."""
        ordered = sorted(self._counts, key=lambda reason: -self._counts[reason])
        return tuple(LeftOut(reason=r, n=self._counts[r], example=self._examples[r]) for r in ordered)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system or an archive has put there."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def visible(folder: Path, log: LeftOutLog) -> Iterator[Path]:
    """What lies in a folder itself, by name, without what is hidden.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"data: cannot read folder {folder} ({error.strerror})") from error
    for name in names:
        if is_hidden(name):
            log.add(HIDDEN, folder / name)
        else:
            yield folder / name


def is_image(path: Path, log: LeftOutLog) -> bool:
    """Whether a file is taken for an image: by its suffix, without one by how it begins."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        if path.is_symlink() and not path.exists():
            log.add(BROKEN_LINK, path)
            return False
        return True
    if suffix:
        log.add(f"{suffix}, which is not read", path)
        return False
    if path.is_file() and _begins_as_image(path):
        return True
    log.add(BROKEN_LINK if path.is_symlink() and not path.exists() else NO_IMAGE, path)
    return False


def _begins_as_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def image_files(folder: Path, log: LeftOutLog) -> list[Path]:
    """Every image file below a folder, sorted.

    Links to folders are followed, but no folder is read twice, and none that lies above: a loop ends.

    Raises:
        InputError: a folder cannot be read.
    """
    read = {_identity(above) for above in {*log.root.resolve().parents, *folder.resolve().parents, log.root}}
    files: list[Path] = []
    folders = [folder]
    while folders:
        here = folders.pop()
        if (identity := _identity(here)) in read:
            log.add(REPEATED_FOLDER, here)
            continue
        read.add(identity)
        for path in visible(here, log):
            if path.is_dir():
                folders.append(path)
            elif is_image(path, log):
                files.append(path)
    return sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
