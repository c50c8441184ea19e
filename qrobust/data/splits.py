"""Splits: some images of a source, in a fixed seeded order."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from qrobust.data.sources import Images
from qrobust.preprocessing import Preprocessing
from qrobust.record import SplitSummary
from qrobust.record.data import LeftOut
from qrobust.stopwatch import DECODING, part

SPLIT_NAMES = ("calibration", "training", "validation", "test")
# Where images are large, fewer of them are chosen by: pixels of all of them, and the fewest images that say anything.
PIXELS, FEWEST = 2**24, 16


@dataclass(frozen=True)
class Split:
    """Some images of a source, in a fixed seeded order."""

    source: Images
    indices: torch.Tensor
    named: torch.Tensor | None = None  # what every image of the source is called here, if not by the source
    taken_from: str | None = None  # which part of the data that is, where the data has parts

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> torch.Tensor:
        """Class indices `(n,)` int64."""
        return (self.source.labels if self.named is None else self.named)[self.indices]

    def relabelled(self, labels: torch.Tensor) -> Split:
        """The same images with other labels `(n,)`, one for each; -1 for none."""
        return replace(self, named=torch.full_like(self.source.labels, -1).index_put((self.indices,), labels))

    def read(self, positions: torch.Tensor | slice) -> torch.Tensor:
        """Images at these positions of the split, uint8 `(n, C, S, S)`."""
        with part(DECODING):
            return self.source.read(self.indices[positions])

    def first(self, count: int) -> Split:
        """The first so many images of the seeded order, or all there are."""
        return replace(self, indices=self.indices[:count])

    def at_most(self, count: int, pixels: int = PIXELS) -> Split:
        """The first images, at most so many and so many pixels of them, but no fewer than say anything."""
        return self.first(max(FEWEST, min(count, pixels // self.source.image_size**2)))

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in order: (uint8 `(n, C, S, S)`, labels `(n,)`)."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self.read(part), self.labels[part]

    def fingerprint(self) -> str:
        """SHA-256 over the ordered indices: equal fingerprints mean equal splits of one source."""
        return hashlib.sha256(self.indices.numpy().tobytes()).hexdigest()[:16]

    def summary(self) -> SplitSummary:
        """How many images, which of the source's, and which the source holds, for the record."""
        return SplitSummary(
            n=len(self),
            fingerprint=self.fingerprint(),
            listing=self.source.listing[:16],
            taken_from=self.taken_from,
        )

    def identity(self) -> tuple[str, ...]:
        """What answers about these images depend on: which they are, their labels, source's version, pixels."""
        labels = hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()[:16]
        return self.fingerprint(), labels, self.source.version, self.source.prepared.pixels


@dataclass(frozen=True)
class Data:
    """Four disjoint splits and what they share.

    Attributes:
        calibration: images on which quantization ranges are observed.
        training: images to train on.
        validation: images to choose by.
        test: images to measure on.
        class_names: in index order.
        native_size: side in px of the images as they lie there, where they are square and alike; else None.
        skipped: files that could not be decoded.
        left_out: files and folders of the data that are not used, by reason.
    """

    calibration: Split
    training: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    native_size: int | None = None
    skipped: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are read."""
        return self.test.source.prepared

    @property
    def image_size(self) -> int:
        """S of what is read."""
        return self.preprocessing.size

    def prepared(self, preprocessing: Preprocessing) -> Data:
        """The same images, to be read so from now on."""
        for name in SPLIT_NAMES:
            getattr(self, name).source.prepare(preprocessing)
        return self

    @property
    def taken_from(self) -> dict[str, str]:
        """Which folder or part of the data each split is from, where the data has parts."""
        splits = {name: getattr(self, name).taken_from for name in SPLIT_NAMES}
        return {name: source for name, source in splits.items() if source}

    def summary(self) -> dict[str, SplitSummary]:
        """What each split holds, for the record."""
        return {name: getattr(self, name).summary() for name in SPLIT_NAMES}


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from: images, and the conditions that they are rendered under.

    Attributes:
        images: to draw from.
        conditions: (shift, severity); without any, and without families, clean images alone.
        table: severity table.
        target_images: real images of new surroundings, to learn from, too; those without a label have -1.
        families: of random operations, see `qrobust.shifts.generic`, drawn anew for every image.
        generic_share: of the rendered images, how many are drawn from the families where there are conditions, too.
    """

    images: Split
    conditions: list[tuple[str, int]]
    table: str
    target_images: Split | None = None
    families: tuple[str, ...] = ()
    generic_share: float = 0.5

    @property
    def renders(self) -> bool:
        """Some images are rendered under a shift."""
        return bool(self.conditions or self.families)

    def drawn_groups(self, count: int) -> list[bool]:
        """Which of so many groups of rendered images are drawn from the families: their share, evenly spread."""
        if not (self.conditions and self.families):
            return [bool(self.families)] * count
        through = [math.floor(place * self.generic_share + 0.5) for place in range(count + 1)]
        return [after > before for before, after in itertools.pairwise(through)]
