"""Target images, labelled or not: what a camera delivers where the classifier will live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from qrobust.data.files import is_hidden
from qrobust.data.folders import flat_images, folder_images
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.paths import user_path
from qrobust.preprocessing import Preprocessing
from qrobust.record import SplitSummary

# Shares of the images that are learned from and chosen by; the rest is measured on.
TRAINING, VALIDATION = 0.6, 0.2
LEAST = 5


@dataclass(frozen=True)
class TargetImages:
    """Three disjoint splits of target images; without labels, every label is -1."""

    training: Split
    validation: Split
    test: Split
    labelled: bool

    def summary(self) -> dict[str, SplitSummary]:
        """What each split holds, for the record."""
        return {name: getattr(self, name).summary() for name in ("training", "validation", "test")}


def folder_of(spec: str) -> Path:
    """The folder that `imagefolder:DIR` names, however it is spelled."""
    return user_path(spec.removeprefix("imagefolder:")).resolve()


@contextmanager
def naming_target_images() -> Iterator[None]:
    """What is wrong with images is said of the target images, not of the data."""
    try:
        yield
    except InputError as error:
        raise InputError(
            "target_images:" + str(error).removeprefix("data:").removeprefix("target_images:")
        ) from error


def open_target_images(
    folder: Path,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    seed: int,
    skip_bad: bool = False,
) -> TargetImages:
    """Open a folder of target images, split by seed: three fifths to learn from, one to choose, one to test.

    Args:
        folder: with one sub-folder per class (labelled), or with the images themselves (not labelled).
        preprocessing: how images are read; those that all have its size already stay as they are.
        class_names: of the classifier, in index order; the folder may hold some of them.
        seed: of the splits.
        skip_bad: leave out files that cannot be decoded, instead of an error where they are read.

    Raises:
        InputError: no folder, no images or too few, both forms at once, or a class that the classifier does not know.
    """
    if not folder.is_dir():
        raise InputError(f"target_images: no folder {folder}")
    loose = flat_images(folder, skip_bad=skip_bad)
    labelled = any(p.is_dir() and not is_hidden(p.name) for p in folder.iterdir())
    if labelled and len(loose):
        raise InputError(f"target_images: expected images or class folders in {folder}, got both")
    with naming_target_images():
        images = folder_images(folder, class_names, skip_bad=skip_bad) if labelled else loose
    if len(images) < LEAST:
        raise InputError(f"target_images: expected at least {LEAST} images in {folder}, got {len(images)}")
    with naming_target_images():
        images.prepare(preprocessing.for_images_of(images.native_size()))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    first, second = round(TRAINING * len(images)), round((TRAINING + VALIDATION) * len(images))
    parts = order[:first], order[first:second], order[second:]
    training, validation, test = (Split(images, part) for part in parts)
    return TargetImages(training, validation, test, labelled)
