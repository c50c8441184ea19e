"""Images that are in two splits: what is measured on them was trained on, or chosen by."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from qrobust.data.splits import Split
from qrobust.record.data import Duplicates

# A split that is measured on or chosen by, and splits that should have none of its images.
PAIRS = (
    ("validation", ("training", "calibration")),
    ("test", ("training", "calibration", "validation")),
)


class _Member(NamedTuple):
    split: str
    position: int


def digest(image: torch.Tensor) -> bytes:
    """Of an image's pixels `(C, H, W)` uint8."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def find_duplicates(
    splits: Mapping[str, Split], pixels: Mapping[str, Sequence[bytes]] | None = None
) -> tuple[Duplicates, ...]:
    """Find images that are in two splits.

    Contents are compared as the source has them (a file's bytes, an array's pixels): first by what is cheap to know
    (`Images.contents`), so few files are read. The same picture in two encodings is found among the splits whose
    pixels are given.

    Args:
        splits: by name, some of `PAIRS`.
        pixels: of some splits the `digest` of each image, in order.

    Returns:
        One entry per pair of splits that share images.
    """
    members = [_Member(name, i) for name, split in splits.items() for i in range(len(split))]
    groups = [members]
    for level in range(max((len(split.source.contents) for split in splits.values()), default=0)):

        def content(member: _Member, level: int = level) -> Hashable:
            split = splits[member.split]
            return split.source.contents[level](int(split.indices[member.position]))

        groups = _shared(groups, content)
    decoded = [_Member(name, i) for name, digests in (pixels or {}).items() for i in range(len(digests))]
    groups += _shared([decoded], lambda member: (pixels or {})[member.split][member.position])
    return tuple(
        found
        for name, others in PAIRS
        for other in others
        if (found := _pair(splits, groups, name, other)) is not None
    )


def _shared(groups: Iterable[list[_Member]], key: Callable[[_Member], Hashable]) -> list[list[_Member]]:
    """Members of a group that have the same key, where they are of several splits."""
    divided = []
    for group in groups:
        same: dict[Hashable, list[_Member]] = defaultdict(list)
        for member in group:
            same[key(member)].append(member)
        divided += [found for found in same.values() if len({member.split for member in found}) > 1]
    return divided


def _pair(splits: Mapping[str, Split], groups: Iterable[list[_Member]], name: str, other: str) -> Duplicates | None:
    """What of a split is in the other one, too."""
    equals: dict[int, int] = {}
    for group in groups:
        original = next((member.position for member in group if member.split == other), None)
        if original is not None:
            equals |= {member.position: original for member in group if member.split == name}
    if not equals:
        return None

    def called(split: str, position: int) -> str:
        found = splits[split]
        return found.source.name_of(int(found.indices[position]))

    first = min(equals)
    return Duplicates(
        split=name, of=other, n=len(equals), example=called(name, first), original=called(other, equals[first])
    )
