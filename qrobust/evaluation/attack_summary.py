"""The figures of attacks: results per attack and epsilon, the worst case, reliability flags."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qrobust.attacks.diagnostics import differential_risk, reliability_flags, worst_case
from qrobust.data.splits import Split
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.attack_outcomes import Label, Outcomes, kept_or_tried
from qrobust.evaluation.attack_plan import Graphs, balls, plan
from qrobust.evaluation.statistics import wilson_interval

REFERENCE = "float"
NOTHING: dict[str, object] = {"level": "none", "n": 0, "rows": [], "worst": [], "zero_gradients": {}, "flags": []}


def figures(outcomes: Outcomes, *, level: str, classes: int, reference: str = REFERENCE) -> dict[str, object]:
    """The record's `attacks`.

    Args:
        outcomes: of all trials.
        level: `quick` or `full`.
        classes: how many the classifiers tell apart.
        reference: the graph that the others are compared with.
    """
    blind = {label.classifier: float((~found).mean()) for label, found in outcomes.of("gradient")}
    return {
        "level": level,
        "n": len(outcomes.label),
        "rows": [
            _row(outcomes, label, right, reference) for label, right in outcomes.of() if label.kind != "gradient"
        ],
        "worst": _worst(outcomes),
        "zero_gradients": blind,
        "flags": _flags(outcomes, blind, 1 / classes),
    }


def _share(right: np.ndarray) -> dict[str, object]:
    hits, n = int(right.sum()), len(right)
    return {"n": n, "robust_accuracy": hits / n, "interval": list(wilson_interval(hits, n))}


def _row(outcomes: Outcomes, label: Label, right: np.ndarray, reference: str) -> dict[str, object]:
    """A row; what the reference says of the same pixels is compared with, where they are the same."""
    row = (
        {
            "classifier": label.classifier,
            "source": label.source or None,
            "attack": label.attack,
            "kind": label.kind,
            "norm": label.norm,
            "epsilon": None if label.norm == "pose" else label.epsilon,
        }
        | _share(right)
        | {"differential_risk": None, "differential_interval": None}
    )
    same = outcomes.of(
        classifier=reference, source=label.source, attack=label.attack, norm=label.norm, epsilon=label.epsilon
    )
    compared = next((r for other, r in same if other.kind != "gradient"), None)
    if compared is not None and label.classifier != reference and label.kind != "pose":
        risk = differential_risk(torch.from_numpy(compared), torch.from_numpy(right))
        n = len(right)
        row |= {"differential_risk": risk, "differential_interval": list(wilson_interval(round(risk * n), n))}
    return row


def _budgets(outcomes: Outcomes) -> dict[str, dict[str, list[float]]]:
    """Per graph and norm the radii tried, rising."""
    found: dict[str, dict[str, set[float]]] = {}
    for label, _ in outcomes.of("white-box", "black-box", "transfer", "noise"):
        found.setdefault(label.classifier, {}).setdefault(label.norm, set()).add(label.epsilon)
    return {name: {norm: sorted(radii) for norm, radii in norms.items()} for name, norms in found.items()}


def _clean(outcomes: Outcomes, name: str) -> np.ndarray:
    return next(right for _, right in outcomes.of("clean", classifier=name))


def _worst(outcomes: Outcomes) -> list[dict[str, object]]:
    """Images that withstand everything that lies within a ball: all attacks, all sources, smaller balls too."""
    rows = []
    for name, norms in _budgets(outcomes).items():
        for norm, radii in norms.items():
            for epsilon in radii:
                tried = {"clean": torch.from_numpy(_clean(outcomes, name))} | {
                    str(label): torch.from_numpy(right)
                    for label, right in outcomes.of(classifier=name, norm=norm)
                    if label.epsilon <= epsilon
                }
                right = worst_case(tried).numpy()
                rows.append(
                    {"classifier": name, "norm": norm, "epsilon": epsilon, "attacks": len(tried) - 1} | _share(right)
                )
    return rows


def _flags(outcomes: Outcomes, blind: dict[str, float], chance: float) -> list[str]:
    flags = []
    for name, norms in _budgets(outcomes).items():
        for number, norm in enumerate(norms):
            # Of a graph without a gradient, what searches find has to stand by itself.
            strongest, beside = ("white-box", ("black-box", "transfer")) if name in blind else ("black-box", ())
            own = _by_epsilon(outcomes, strongest, name, norm)
            white = {0.0: float(_clean(outcomes, name).mean())} | {
                epsilon: float(np.logical_and.reduce(list(found.values())).mean()) for epsilon, found in own.items()
            }
            others: dict[str, dict[float, float]] = {}
            for kind in beside:
                for epsilon, found in _by_epsilon(outcomes, kind, name, norm).items():
                    for called, right in found.items():
                        others.setdefault(called, {})[epsilon] = float(right.mean())
            noise = {
                e: float(next(iter(f.values())).mean()) for e, f in _by_epsilon(outcomes, "noise", name, norm).items()
            }
            flags += reliability_flags(
                f"{name}, {norm}",
                white,
                others=others,
                noise=noise,
                chance=chance,
                zero_gradients=0.0 if number else blind.get(name, 0.0),
                by="the gradient" if name in blind else "the search",
            )
    return flags


def _by_epsilon(outcomes: Outcomes, kind: str, name: str, norm: str) -> dict[float, dict[str, np.ndarray]]:
    found: dict[float, dict[str, np.ndarray]] = {}
    for label, right in outcomes.of(kind, classifier=name, norm=norm):
        called = f"{label.attack} from {label.source}" if kind == "transfer" else label.attack
        found.setdefault(label.epsilon, {})[called] = right
    return found


def attacked(
    path: Path | None,
    graphs: Graphs,
    split: Split,
    choices: AttackConfig,
    *,
    seed: int,
    about: tuple[object, ...],
    bar: Callable[[str, int], AbstractContextManager[Any]],
) -> dict[str, object]:
    """Attack the first images; what was found is kept per trial.

    Args:
        path: of `attacks.npz`; None keeps nothing.
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
        choices.level,
        budgets,
        list(graphs),
        steps=choices.steps,
        side=side,
        channels=channels,
        seed=seed,
        gradient=gradient,
    )
    with bar("attack", len(some) * len(trials)) as progress:
        outcomes = kept_or_tried(
            path, graphs, some, trials, about=(some.identity(), *about, side, seed), progress=progress.update
        )
    return figures(outcomes, level=choices.level, classes=classes, reference=next(iter(graphs)))
