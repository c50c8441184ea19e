"""Attack graphs as chosen: plan, try or take what is kept, and sum up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from qrobust.adversarial.figures import NOTHING, figures
from qrobust.adversarial.outcomes import kept_or_tried
from qrobust.adversarial.trials import Graphs, balls, plan
from qrobust.config import AttackChoices
from qrobust.data import Split


def attacked(
    path: Path,
    graphs: Graphs,
    split: Split,
    choices: AttackChoices,
    *,
    seed: int,
    about: tuple[object, ...],
    bar: Callable[[str, int], AbstractContextManager[Any]],
) -> dict[str, object]:
    """Attack the first images; what was found is kept per trial.

    Args:
        path: of `attacks.npz`.
        graphs: by name, all with a gradient or none; the first is what others are compared with.
        split: test images.
        choices: what is tried.
        seed: of starts, noise and searches.
        about: what else the pixels depend on: the data.
        bar: makes a progress bar of a label and a length.

    Returns:
        The record's `attacks`.
    """
    some, side, classes = split.first(choices.images), split.source.image_size, len(split.source.class_names)
    channels = split.source.channels
    budgets = balls(choices.tried_norms, choices.epsilons, choices.l2_epsilons, side, channels)
    if choices.level == "none" or not len(some) or not budgets:
        return NOTHING
    gradient = all(graph.differentiable is not None for graph in graphs.values())
    trials = plan(
        choices.level, budgets, list(graphs), steps=choices.steps, side=side, channels=channels, seed=seed,
        gradient=gradient,
    )  # fmt: skip
    with bar("attack", len(some) * len(trials)) as progress:
        outcomes = kept_or_tried(
            path, graphs, some, trials, about=(some.identity(), *about, side, seed), progress=progress.update
        )
    return figures(outcomes, level=choices.level, classes=classes, reference=next(iter(graphs)))
