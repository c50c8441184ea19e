"""What is tried against the graphs; plain choices, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qrobust.choices import Section, choice


@dataclass(frozen=True)
class AttackConfig(Section):
    """Choices of an evaluation by attacks.

    Attributes:
        level: `none`, `quick` or `full`.
        norms: of `linf` and `l2`; none given: those of the level.
        epsilons: L-infinity radii on the [0, 1] scale.
        l2_epsilons: L2 radii on the [0, 1] scale; none given: in proportion to `epsilons`.
        images: how many of the first test images.
        steps: of PGD.
    """

    level: str = choice("quick", option="attacks", one_of=("none", "quick", "full"))
    norms: tuple[str, ...] = choice((), one_of=("linf", "l2"))
    epsilons: tuple[float, ...] = choice((1 / 255, 2 / 255, 4 / 255, 8 / 255), at_least=0, at_most=1)
    l2_epsilons: tuple[float, ...] = choice((), at_least=0)
    images: int = choice(200, option="attack_images", at_least=0)
    steps: int = choice(10, option="attack_steps", at_least=1)

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if self.well_typed() and self.l2_epsilons and "l2" not in self.tried_norms:
            yield "l2_epsilons: nothing is attacked in L2 without norm l2"

    @property
    def tried_norms(self) -> tuple[str, ...]:
        """The norms chosen, or else those of the level."""
        return self.norms or (("linf", "l2") if self.level == "full" else ("linf",))
