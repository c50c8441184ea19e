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
