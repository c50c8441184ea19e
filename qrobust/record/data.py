"""Parts of a record that say what was found in the data and not used, or found twice."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.record.units import Positive


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files or folders of the data that were not used, and why.

    Attributes:
        reason: what they are, as `hidden` or `.heic, which is not read`.
        n: how many; a folder counts as one.
        example: the first of them, relative to the data's folder.
    """

    reason: str
    n: Positive
    example: str


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images of one split that are in another one, too: the same file, or the same pixels.

    Attributes:
        split: the split that is measured on or chosen by.
        of: the other split.
        n: images of `split` that are in `of`, too.
        example: one of them.
        original: what it equals in `of`.
    """

    split: str
    of: str
    n: Positive
    example: str
    original: str
