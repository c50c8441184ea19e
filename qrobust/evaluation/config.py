"""Which measure decides, and what a recommendation needs; plain choices, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qrobust.choices import Section, choice
from qrobust.errors import unknown

ACCURACY, BALANCED, RECALL, AUTO = "accuracy", "balanced", "recall:", "auto"


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Choices of what a result is judged by.

    Attributes:
        primary: the measure that remedies and recipes are chosen by: `accuracy`, `balanced` (accuracy),
            `recall:CLASS`, or `auto`, which is balanced accuracy where classes are uneven, else accuracy.
        accept_undecided: recommend a graph though images of some classes are too few to tell harm from none.
    """

    primary: str = choice(AUTO)
    accept_undecided: bool = False

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        words = (AUTO, ACCURACY, BALANCED)
        named = isinstance(self.primary, str) and self.primary.startswith(RECALL) and self.primary != RECALL
        if self.well_typed() and self.primary.strip() and self.primary not in words and not named:
            yield str(unknown("primary", self.primary, words, f"{RECALL}CLASS"))
