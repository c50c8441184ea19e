"""Image folders as people have them: splits, classes, and what lies between."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qrobust.data.files import LeftOutLog, image_files, is_image, visible
from qrobust.data.sources import Images, decode_file
from qrobust.errors import InputError
from qrobust.paths import check_file

# What a folder of a split may be called, in any letter case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
KINDS = {name: kind for kind, names in SPLIT_FOLDERS.items() for name in names}
SPLITS_ARE = "; ".join(f"{kind}: {' or '.join(names)}" for kind, names in SPLIT_FOLDERS.items())
# Bytes in a file's middle that tell most files of one size apart.
PART = 4096
BESIDE_SPLITS = "beside the splits"
WITHOUT_CLASS = "beside the class folders, so without a class"


def split_kind(name: str) -> str | None:
    """`train`, `val` or `test`, or None for another name."""
    return KINDS.get(name.casefold())


def split_folders(root: Path, log: LeftOutLog) -> dict[str, Path]:
    """The folders of splits in a data set's folder by kind; none where its folders are classes.

    A folder is a split if it has the name of one and holds folders. One with such a name that holds images is a class
    (trains are photographed, too) as long as nothing else there is a split.

    Args:
        root: the data set's folder.
        log: takes what lies beside the splits.

    Raises:
        InputError: a folder looks like a split but cannot be one; the message has the reason.
    """
    inside = list(visible(root, log))
    folders = [path for path in inside if path.is_dir()]
    named = [path for path in folders if split_kind(path.name)]
    splits = [path for path in named if _has_folders(path)]
    if not splits:
        _refuse_lookalikes(root, folders, named)
        return {}
    found: dict[str, Path] = {}
    for path in splits:
        kind = KINDS[path.name.casefold()]
        if kind in found:
            raise InputError(
                f"data: expected one {kind} folder in {root}, got {found[kind].name!r} and {path.name!r}"
            )
        found[kind] = path
    for path in inside:
        if path in splits:
            continue
        if path in folders:
            _refuse_beside(root, path, found)
            log.add(BESIDE_SPLITS, path)
        elif is_image(path, log):
            log.add(BESIDE_SPLITS, path)
    return found


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in visible(folder, LeftOutLog(folder)))


def _has_images(folder: Path) -> bool:
    """Whether images lie in a folder itself."""
    quiet = LeftOutLog(folder)
    return any(not path.is_dir() and is_image(path, quiet) for path in visible(folder, quiet))


def _looks_like(name: str) -> str | None:
    """The kind of split whose name is a word of this one, as in `test_images` or `seg_train2`."""
    words = re.split(r"[^a-z]+", name.casefold())
    return next((KINDS[word] for word in words if word in KINDS), None)


def _refuse_lookalikes(root: Path, folders: list[Path], named: list[Path]) -> None:
    """Refuse a data set's folder whose folders are no splits but are called as if they were."""
    if named and len(named) == len(folders) and any(map(_has_images, named)):
        raise InputError(
            f"data: {named[0].name!r} in {root} looks like a split but holds images and no class folders, so they "
            "have no labels; sort them into folders, or list them: --data list:FILE"
        )
    similar = [path for path in folders if _looks_like(path.name) and _has_folders(path)]
    if len({_looks_like(path.name) for path in similar}) > 1:
        raise InputError(
            f"data: {similar[0].name!r} and {similar[1].name!r} in {root} look like splits but are not called so; "
            f"rename them ({SPLITS_ARE})"
        )


def _refuse_beside(root: Path, path: Path, splits: dict[str, Path]) -> None:
    """Refuse a folder beside splits that may be one, or a class beside what may be no split."""
    names = " and ".join(repr(split.name) for split in splits.values())
    if split_kind(path.name) and _has_images(path):
        raise InputError(
            f"data: {path.name!r} in {root} looks like a split but holds images and no class folders, so they "
            "have no labels; move it elsewhere, or sort its images into class folders"
        )
    if _looks_like(path.name) and not split_kind(path.name) and _has_folders(path):
        raise InputError(
            f"data: {path.name!r} in {root}, beside {names}, looks like a split but is not called so; rename it "
            f"({SPLITS_ARE}), or move it elsewhere"
        )
    if len(splits) == 1 and _has_images(path):
        raise InputError(
            f"data: {names} in {root} looks like a split, but {path.name!r} beside it like a class; move one of them "
            "elsewhere, or list the images: --data list:FILE"
        )


def class_folders(root: Path, log: LeftOutLog) -> list[Path]:
    """The folders of classes in a split's folder, by name; images beside them have no class.

    Raises:
        InputError: there are none, or splits lie within the classes.
    """
    folders = []
    for path in visible(root, log):
        if path.is_dir():
            folders.append(path)
        elif is_image(path, log):
            log.add(WITHOUT_CLASS, path)
    if not folders:
        raise InputError(f"data: expected one sub-folder per class in {root}, found none")
    for folder in folders:
        quiet = LeftOutLog(folder)
        inner = {kind for path in visible(folder, quiet) if path.is_dir() and (kind := split_kind(path.name))}
        if len(inner) > 1:
            raise InputError(
                f"data: class folder {folder} holds folders of splits; put the splits above the classes "
                "(train/CLASS, test/CLASS), or list the images: --data list:FILE"
            )
    return folders


def folder_images(
    root: Path,
    class_names: Sequence[str] | None = None,
    *,
    skip_bad: bool = False,
    log: LeftOutLog | None = None,
) -> Images:
    """One sub-folder per class, sorted names being the class order unless `class_names` gives one.

    A class is everything below its folder. Where `class_names` has paths of folders such as `animal/cat`, those are
    the classes instead.

    Args:
        root: the folder.
        class_names: in index order, for folders of some of the classes.
        skip_bad: decode every file now and leave out those that cannot be; they are listed in `skipped`.
        log: of the whole data set, where this is a part; default a new one, whose entries `left_out` has.

    Raises:
        InputError: no classes, a single one without `class_names`, a class without images or not among the names.
    """
    log = log or LeftOutLog(root)
    folders = class_folders(root, log)
    if class_names is None and len(folders) == 1:
        raise InputError(
            f"data: expected at least two class folders in {root}, found {folders[0].name!r} alone; name the folder "
            "that holds the classes or the splits"
        )
    names = list(class_names) if class_names else [p.name for p in folders]
    index = {name: i for i, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    skipped: list[str] = []
    known = {name.partition("/")[0] for name in names} | set(names)
    for folder in folders:
        if folder.name not in known:
            raise InputError(
                f"data: class folder {folder.name!r} in {root} is not one of the {len(names)} class names"
            )
        files = image_files(folder, log)
        if skip_bad:
            files, bad = readable(files)
            skipped += map(str, bad)
        if not files:
            left = " that can be decoded" if skip_bad else ""
            raise InputError(f"data: class folder {folder} holds no image{left}")
        paths += files
        labels += [_class_of(path, root, index) for path in files]
    images = listed_images(root, paths, labels, names)
    images.skipped, images.left_out = tuple(skipped), log.entries()
    return images


def _class_of(path: Path, root: Path, index: dict[str, int]) -> int:
    """The class of the lowest folder above a file that has the name of one."""
    parts = path.relative_to(root).parts[:-1]
    for depth in range(len(parts), 0, -1):
        found = index.get("/".join(parts[:depth]))
        if found is not None:
            return found
    raise InputError(f"data: class folder {'/'.join(parts)!r} in {root} is not one of the {len(index)} class names")


def flat_images(root: Path, *, skip_bad: bool = False) -> Images:
    """The image files that lie in a folder itself, none of its sub-folders; without labels, each being -1.

    With `skip_bad` every file is decoded now, and those that cannot be are left out and listed in `skipped`.
    """
    log = LeftOutLog(root)
    files = [path for path in visible(root, log) if not path.is_dir() and is_image(path, log)]
    paths, bad = readable(files) if skip_bad else (files, [])
    images = listed_images(root, paths, [-1] * len(paths), ())
    images.skipped, images.left_out = tuple(map(str, bad)), log.entries()
    return images


def listed_images(root: Path, paths: Sequence[Path], labels: Sequence[int], names: Sequence[str]) -> Images:
    """Image files, named from a folder; the version changes when one of them is written again, too."""
    version, listing = hashlib.sha256(), hashlib.sha256()
    sizes: list[int] = []
    for path in paths:
        name, status = os.path.relpath(path, root), path.stat()
        sizes.append(status.st_size)
        listing.update(os.fsencode(f"{name}\n"))
        version.update(os.fsencode(f"{name} {status.st_size} {status.st_mtime_ns}\n"))
    images = Images(
        lambda i: decode_file(paths[i]),
        labels,
        names,
        lambda i: str(paths[i]),
        version.hexdigest(),
        listing.hexdigest(),
    )
    images.contents = (
        sizes.__getitem__,
        lambda i: _part(paths[i], sizes[i] // 2, PART),
        lambda i: _part(paths[i], 0),
    )
    return images


def _part(path: Path, start: int, length: int = -1) -> bytes:
    """Digest of some of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    check_file(path, "data")
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(length), digest_size=16).digest()
    except OSError as error:
        raise InputError(f"data: cannot read {path} ({error.strerror})") from error


def readable(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files that can be decoded, and those that cannot, each in the same order."""
    good: list[Path] = []
    bad: list[Path] = []
    for path in paths:
        try:
            decode_file(path)
        except InputError:
            bad.append(path)
        else:
            good.append(path)
    return good, bad
