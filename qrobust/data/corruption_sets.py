"""Shifted images that lie on disk: CIFAR-10-C arrays and ImageNet-C folders, read as they are published.

Both sets: Hendrycks and Dietterich, arXiv 1903.12261.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qrobust.data.folders import folder_images
from qrobust.data.sources import Images, are_images, array_images
from qrobust.errors import InputError
from qrobust.paths import check_file
from qrobust.preprocessing import Preprocessing

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CorruptionSet:
    """Shifted images by corruption and severity.

    Attributes:
        conditions: every (corruption, severity) there is, sorted.
        numbered: whether classes are numbers, which fit any classes that are as many.
        open: what opens one of them; `images` is the way to call it.
    """

    conditions: tuple[tuple[str, int], ...]
    numbered: bool
    open: Callable[[str, int], Images]

    def images(self, corruption: str, severity: int) -> Images:
        """The labelled images of one condition, decoded on demand.

        Raises:
            InputError: there is no such condition, or its files are not what the layout says.
        """
        if (corruption, severity) not in self.conditions:
            names = ", ".join(dict.fromkeys(name for name, _ in self.conditions))
            raise InputError(
                f"corruption data set: expected a severity from 1 to 5 of {names}, got {corruption} {severity}"
            )
        return self.open(corruption, severity)


def open_corruption_set(
    root: Path, *, preprocessing: Preprocessing, class_names: Sequence[str] | None = None
) -> CorruptionSet:
    """Open a corruption data set; images are read when they are asked for.

    Args:
        root: a folder with `labels.npy` beside one `.npy` per corruption (CIFAR-10-C: uint8 `(5 n, S, S, 3)`, or
            grey `(5 n, S, S)`, the five severities one after the other), or with folders
            `CORRUPTION/SEVERITY/CLASS` (ImageNet-C).
        preprocessing: how images are read; those that all have its size already stay as they are.
        class_names: in index order. Default: the labels' own range, or the sorted class folders.

    Raises:
        InputError: neither layout, a wrong count, a wrong type, or a label outside the classes.
    """
    if not root.is_dir():
        raise InputError(f"corruption data set: no folder {root}")
    open_cells = _open_arrays if (root / "labels.npy").is_file() else _open_folders
    stored = open_cells(root, class_names)

    def images(corruption: str, severity: int) -> Images:
        found = stored.open(corruption, severity)
        found.prepare(preprocessing.for_images_of(found.native_size()))
        return found

    return replace(stored, open=images)


def _load(path: Path) -> np.ndarray:
    check_file(path, "corruption data set")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"corruption data set: cannot read {path} as npy without pickles ({error})") from error


def _open_arrays(root: Path, class_names: Sequence[str] | None) -> CorruptionSet:
    labels = np.asarray(_load(root / "labels.npy"))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0 or len(labels) % 5:
        raise InputError(
            f"corruption data set: labels.npy must be 5 times as many integers as there are images, "
            f"got {labels.dtype} {labels.shape}"
        )
    count = len(labels) // 5
    if (labels.reshape(5, count) != labels[:count]).any():
        raise InputError(
            "corruption data set: labels.npy must repeat the same labels for the five severities, got others"
        )
    paths = {p.stem: p for p in sorted(root.glob("*.npy")) if p.stem != "labels"}
    if not paths:
        raise InputError(f"corruption data set: expected one .npy per corruption in {root}, found none")
    arrays = {name: _load(path) for name, path in paths.items()}
    for name, array in arrays.items():
        if not are_images(array) or len(array) != len(labels):
            raise InputError(
                f"corruption data set: {name}.npy must be uint8 ({len(labels)}, S, S, 3) or ({len(labels)}, S, S), "
                f"got {array.dtype} {array.shape}"
            )

    def images(corruption: str, severity: int) -> Images:
        block = slice((severity - 1) * count, severity * count)
        return array_images(arrays[corruption][block], labels[block], class_names, str(paths[corruption]))

    stored = CorruptionSet(tuple((name, s) for name in arrays for s in SEVERITIES), True, images)
    images(*stored.conditions[0])  # labels outside the classes are a mistake of the set, not of a condition
    return stored


def _open_folders(root: Path, class_names: Sequence[str] | None) -> CorruptionSet:
    conditions = tuple(
        (corruption.name, severity)
        for corruption in sorted(p for p in root.iterdir() if p.is_dir())
        for severity in SEVERITIES
        if (corruption / str(severity)).is_dir()
    )
    if not conditions:
        raise InputError(
            f"corruption data set: expected labels.npy or folders CORRUPTION/SEVERITY/CLASS in {root}, found none"
        )

    def read(corruption: str, severity: int) -> Images:
        return folder_images(root / corruption / str(severity), class_names)

    first = read(*conditions[0])

    def images(corruption: str, severity: int) -> Images:
        found = read(corruption, severity)
        if found.class_names != first.class_names or found.labels.tolist() != first.labels.tolist():
            raise InputError(
                f"corruption data set: {corruption}/{severity} must hold the {len(first)} images in "
                f"{len(first.class_names)} classes that {conditions[0][0]}/{conditions[0][1]} holds, "
                f"got {len(found)} in {len(found.class_names)}"
            )
        return found

    return CorruptionSet(conditions, False, images)
