"""What is tried: which attacks, with whose gradients, within which balls.

Every trial makes its pixels once and shows them to all graphs. So an attack on one graph is white-box or black-box
there and a transfer everywhere else, and float and INT8 are compared on the same adversarial pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from qrobust.attacks.base import Attack, craft, on_pixels
from qrobust.attacks.diagnostics import has_gradient
from qrobust.attacks.hop_skip_jump import hop_skip_jump
from qrobust.attacks.losses import cross_entropy, dlr
from qrobust.attacks.noise import random_noise
from qrobust.attacks.norms import Ball, L2Ball, LinfBall
from qrobust.attacks.pgd import apgd, fgsm, pgd
from qrobust.attacks.queries import is_right
from qrobust.attacks.square import square
from qrobust.classifier import Classifier
from qrobust.evaluation.predictions import BATCH
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import GRIDS
from qrobust.shifts.rendering import render_grid

# What `full` spends: PGD's random starts, APGD's steps, queries of the attacks without gradient.
RESTARTS, APGD_STEPS, QUERIES = 5, 50, 1000
POSES = ("rotations", "translations")
# RobustBench's L2 ball beside 8/255 at 32 px in RGB; others are in proportion to the L-infinity ball and to the root
# of how many values an image has.
USUAL_LINF, USUAL_L2, USUAL_SIDE = 8 / 255, 0.5, 32
# At this L-infinity distance any image can be made grey, so what withstands it shows that the attack is blind.
GREY = 128 / 255


@dataclass(frozen=True)
class Graph:
    """A graph of a run.

    Attributes:
        differentiable: the torch classifier that was exported, with straight-through gradients; None for a file
            that was made elsewhere.
        deployed: the exported graph on onnxruntime, which alone is scored.
        digest: hash of the exported file.
    """

    differentiable: Classifier | None
    deployed: Classifier
    digest: str


Graphs = Mapping[str, Graph]
Judge = Callable[[Graphs, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Trial:
    """One way to make pixels, and whom they are shown to.

    Attributes:
        attack: its name with its budget of steps or queries, as in the record.
        source: the graph that is attacked, or "" where none is looked at.
        norm: `Linf`, `L2`, `pose`, or `none` for pixels as they are.
        epsilon: radius of the ball on the [0, 1] scale; 0 for other norms.
        kind: what it is to its source: `clean`, `gradient` (is there any?), `white-box`, `black-box`, `noise` or
            `pose`.
        judges: the graphs that are asked.
        judge: graphs, pixels uint8 `(n, C, S, S)` and labels `(n,)` to a bool `(n,)` per judging graph: still right;
            of kind `gradient`: the loss has one.
    """

    attack: str
    source: str
    norm: str
    epsilon: float
    kind: str
    judges: tuple[str, ...]
    judge: Judge

    def kind_for(self, classifier: str) -> str:
        """What it is to a graph: an attack on another graph is a transfer."""
        return "transfer" if self.kind in ("white-box", "black-box") and classifier != self.source else self.kind


def l2_radius(epsilon: float, side: int, channels: int = 3) -> float:
    """The L2 budget that goes with an L-infinity budget, for images of `side` px: 0.5 with 8/255 at 32 px in RGB."""
    return USUAL_L2 * epsilon / USUAL_LINF * side / USUAL_SIDE * math.sqrt(channels / 3)


def balls(
    norms: Sequence[str], epsilons: Sequence[float], l2_epsilons: Sequence[float], side: int, channels: int = 3
) -> list[tuple[str, Ball]]:
    """The budgets, with the name of their norm, in rising order.

    Args:
        norms: of `linf` and `l2`.
        epsilons: L-infinity radii on the [0, 1] scale.
        l2_epsilons: L2 radii; those of `l2_radius` where there are none.
        side: of the images in pixels.
        channels: of the images.
    """
    found: list[tuple[str, Ball]] = []
    if "linf" in norms:
        found += [("Linf", LinfBall(e)) for e in sorted(set(epsilons))]
    if "l2" in norms:
        radii = l2_epsilons or [l2_radius(e, side, channels) for e in epsilons]
        found += [("L2", L2Ball(e)) for e in sorted(set(radii))]
    return found


def plan(
    level: str,
    budgets: Sequence[tuple[str, Ball]],
    names: Sequence[str],
    *,
    steps: int,
    side: int,
    channels: int = 3,
    seed: int,
    gradient: bool = True,
) -> list[Trial]:
    """All trials, the cheap ones first.

    Args:
        level: `quick` (PGD, or Square without a gradient; random noise) or `full`.
        budgets: see `balls`.
        names: of the graphs.
        steps: gradient steps of PGD.
        side: of the images in pixels.
        channels: of the images.
        seed: of starts, noise and searches.
        gradient: whether the graphs have one.
    """
    full, everyone = level == "full", tuple(names)
    looking, asking = _attacks(full, steps) if gradient else ({}, _asking(full))
    trials = [Trial("none", "", "none", 0.0, "clean", everyone, _shown)]
    trials += [Trial("none", n, "none", 0.0, "gradient", (n,), partial(_gradient, n)) for n in names if gradient]
    grids = POSES if full else ()
    trials += [
        Trial(f"{g}-{len(GRIDS[g])}", "", "pose", 0.0, "pose", everyone, partial(_worst_pose, g)) for g in grids
    ]

    def within(kind: str, name: str, attack: Attack, source: str, norm: str, ball: Ball) -> Trial:
        judge = partial(_adversarial, attack, source, kind, ball, seed)
        return Trial(name, "" if kind == "noise" else source, norm, ball.epsilon, kind, everyone, judge)

    trials += [within("noise", "random-noise", random_noise, names[0], *budget) for budget in budgets]
    for called, attack in list(looking.items())[:1]:
        norms = dict.fromkeys(norm for norm, _ in budgets)
        trials += [
            within("white-box", called, attack, n, norm, _grey(norm, side, channels)) for n in names for norm in norms
        ]
    for kind, attacks in (("white-box", looking), ("black-box", asking)):
        for called, attack in attacks.items():
            trials += [within(kind, called, attack, name, *budget) for name in names for budget in budgets]
    return list({(t.attack, t.source, t.norm, t.epsilon, t.kind): t for t in trials}.values())


def _attacks(full: bool, steps: int) -> tuple[dict[str, Attack], dict[str, Attack]]:
    """Attacks by name: those that need a gradient, the usual one first, and those that do not."""
    if not full:
        return {f"pgd-{steps}": partial(pgd, steps=steps)}, {}
    return {
        f"pgd-{steps}x{RESTARTS}": partial(pgd, steps=steps, restarts=RESTARTS),
        "fgsm": fgsm,
        f"apgd-ce-{APGD_STEPS}": partial(apgd, steps=APGD_STEPS, loss=cross_entropy),
        f"apgd-dlr-{APGD_STEPS}": partial(apgd, steps=APGD_STEPS, loss=dlr),
    }, _asking(full)


def _asking(full: bool) -> dict[str, Attack]:
    """Attacks that need no gradient, by name."""
    attacks: dict[str, Attack] = {f"square-{QUERIES}": partial(square, queries=QUERIES)}
    return attacks | ({f"hop-skip-jump-{QUERIES}": partial(hop_skip_jump, queries=QUERIES)} if full else {})


def _grey(norm: str, side: int, channels: int) -> Ball:
    return LinfBall(GREY) if norm == "Linf" else L2Ball(GREY * math.sqrt(channels) * side)


def _shown(graphs: Graphs, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """In the batches of an evaluation, so that epsilon 0 is clean accuracy to the bit."""
    images = to_unit(pixels)
    return {name: is_right(graph.deployed, images, labels, BATCH) for name, graph in graphs.items()}


def _gradient(source: str, graphs: Graphs, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    differentiable = graphs[source].differentiable
    assert differentiable is not None
    return {source: has_gradient(differentiable, to_unit(pixels), labels)}


def _worst_pose(grid: str, graphs: Graphs, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Right in every pose."""
    right = {name: torch.ones(len(labels), dtype=torch.bool) for name in graphs}
    for posed in render_grid(pixels, grid):
        for name, found in _shown(graphs, posed, labels).items():
            right[name] &= found
    return right


def _adversarial(
    attack: Attack,
    source: str,
    kind: str,
    ball: Ball,
    seed: int,
    graphs: Graphs,
    pixels: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    graph = graphs[source]
    attacked = graph.differentiable if kind == "white-box" else on_pixels(graph.deployed)
    assert attacked is not None
    return _shown(graphs, craft(attack, attacked, pixels, labels, ball=ball, seed=seed), labels)
