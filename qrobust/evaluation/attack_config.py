"""What is tried against the graphs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackChoices:
    """What is tried against the graphs; see `qrobust evaluate --help`.

    Attributes:
        level: `none`, `quick` or `full`.
        norms: of `linf` and `l2`; none given: those of the level.
        epsilons: L-infinity radii on the [0, 1] scale.
        l2_epsilons: L2 radii; none given: in proportion to `epsilons`.
        images: how many of the first test images.
        steps: of PGD.
    """

    level: str = "quick"
    norms: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    l2_epsilons: tuple[float, ...] = ()
    images: int = 200
    steps: int = 10

    def mistakes(self) -> list[str]:
        """A sentence for each choice that makes no sense."""
        found = []
        if self.level not in ("none", "quick", "full"):
            found.append(f"attacks: expected one of none, quick, full, got {self.level!r}")
        found += [f"norms: expected linf or l2, got {n!r}" for n in self.norms if n not in ("linf", "l2")]
        found += [f"epsilon: expected a fraction from 0 to 1, got {e}" for e in self.epsilons if not 0 <= e <= 1]
        if self.l2_epsilons and "l2" not in self.tried_norms:
            found.append("l2_epsilons: nothing is attacked in L2 without norm l2")
        return found + [
            f"l2_epsilon: expected a finite number >= 0, got {e}"
            for e in self.l2_epsilons
            if not 0 <= e < float("inf")
        ]

    @property
    def tried_norms(self) -> tuple[str, ...]:
        """The norms chosen, or else those of the level."""
        return self.norms or (("linf", "l2") if self.level == "full" else ("linf",))
