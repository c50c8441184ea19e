"""Mixed precision to a bound: the most sensitive layers get more bits until few enough points are lost.

Layers of fewer than 8 bits get 8 first, which costs no time on a CPU; where that is not enough, layers stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx, nn

from qrobust.data.splits import Split
from qrobust.device import Device
from qrobust.evaluation.primary import Primary
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.range_cache import RangeCache
from qrobust.quantization.recipe import BITS, FLOAT, Recipe, layer_of
from qrobust.quantization.sensitivity import layer_effects, logits_on, worst_layers
from qrobust.quantization.target import Target
from qrobust.record import LayerEffect, LayerStep, MixedPrecision, PrecisionBounds

WIDEST = "w8a8"
# Images that the ranges of a graph are observed on which is timed and nothing else.
TIMED_IMAGES = 8
# A layer, and the bits that it gets: `w8a8` or `float`.
Step = tuple[str, str]
# Milliseconds for one image of the first classifier, and of each other as measured in turn with the first.
Timer = Callable[[nn.Module, Iterable[nn.Module]], list[float]]


@dataclass(frozen=True)
class Candidate:
    """A fake-quantized model that may be chosen.

    Attributes:
        steps: what it has beyond the recipe that was asked for.
        recipe: what made it.
        observed: the float graph that it was made from.
        module: frozen.
        drop_pp: float minus this, in points of the measure that decides.
        interval_pp: of that, at 95 %, paired.
    """

    steps: tuple[Step, ...]
    recipe: Recipe
    observed: Observed
    module: fx.GraphModule
    drop_pp: float
    interval_pp: tuple[float, float]


@dataclass(frozen=True)
class Material:
    """What candidates are made of, and what they are measured on.

    Attributes:
        model: float, in eval mode.
        target: integer types and ranges.
        calibration_images: gives the batches anew.
        validation: images that drops are measured on.
        sensitivity: images that the effect of single layers is measured on.
        primary: the measure that decides.
        seed: of learned rounding, and of the bootstrap.
        device: to work on.
        cache: of ranges.
    """

    model: nn.Module
    target: Target
    calibration_images: Callable[[], Iterable[torch.Tensor]]
    validation: Split
    sensitivity: Split
    primary: Primary
    seed: int
    device: Device
    cache: RangeCache | None = None

    def measured(
        self, recipe: Recipe, steps: tuple[Step, ...], observed: Observed, module: fx.GraphModule
    ) -> Candidate:
        """A candidate of a model that is there."""
        before, after = (self._right(one) for one in (observed.graph, module))
        drop, interval = self.primary.difference(before, after, self.validation.labels.numpy(), self.seed)
        return Candidate(steps, recipe, observed, module, drop, interval)

    def candidate(self, asked: Recipe, steps: tuple[Step, ...]) -> Candidate:
        """The recipe that was asked for with these steps, observed and built."""
        recipe = stepped(asked, steps)
        observed = observe(self.model, self.calibration_images(), recipe, device=self.device, cache=self.cache)
        module = build(observed, self.target, recipe, seed=self.seed, device=self.device)
        return self.measured(recipe, steps, observed, module)

    def timed(self, asked: Recipe, steps: tuple[Step, ...], images: torch.Tensor) -> fx.GraphModule:
        """A model of the same operators, whose values are not to be trusted: a few images `(N, C, S, S)` made it."""
        recipe = replace(stepped(asked, steps), rounding="nearest", correct_bias=False)
        return build(observe(self.model, [images], recipe), self.target, recipe)

    def _right(self, module: nn.Module) -> np.ndarray:
        with self.device.holding(module):
            predicted = logits_on(module, self.validation).argmax(1).cpu()
        right: np.ndarray = (predicted == self.validation.labels).numpy()
        return right


def stepped(asked: Recipe, steps: tuple[Step, ...]) -> Recipe:
    """A recipe whose layers have the bits of these steps; a later one wins."""
    return replace(asked, exceptions=(*asked.exceptions, *steps))


def within_bounds(
    material: Material,
    start: Candidate,
    bounds: PrecisionBounds,
    *,
    timer: Timer | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Candidate, MixedPrecision, list[LayerEffect]]:
    """Give layers more bits, the most sensitive first, until the drop is within its bound.

    More layers are taken to lose no more, so their number is doubled until it is enough, and halved between. Where
    time is then beyond its bound, layers are given back, those that cost most time first, unless the drop leaves its
    bound. Where both bounds cannot be met, the drop's is; where that cannot, the least drop is kept.

    Args:
        material: of candidates.
        start: as asked for, with no steps.
        bounds: what is to be met.
        timer: of classifiers; without one, no time is known, and a bound on it counts as not met.
        progress: called with a line on each candidate, and where layers are measured.

    Returns:
        The choice, what it came to, and the effect of each layer alone where layers were ranked.
    """
    tried = [start]

    def attempt(steps: tuple[Step, ...]) -> Candidate:
        made = material.candidate(start.recipe, steps)
        tried.append(made)
        progress(f"tried more bits for {len(steps)} of the layers: drop {made.drop_pp:+.2f} points")
        return made

    found, effects = start, list[LayerEffect]()
    for bits in (WIDEST, FLOAT):
        if found.drop_pp > bounds.drop_pp:
            layers, ranked = _ranked(material, found, bits, progress)
            effects = effects or ranked
            found = _raised(found, [(name, bits) for name in layers], bounds.drop_pp, attempt)
    if found.drop_pp > bounds.drop_pp:
        found = min(tried, key=lambda one: one.drop_pp)
    times = _times(material, start, found, timer) if timer else None
    if times and bounds.latency_ms and times[-1] > bounds.latency_ms and found.drop_pp <= bounds.drop_pp:
        fewer = _given_back(found, times, bounds, attempt)
        times = _times(material, start, fewer, timer) if timer and fewer is not found else times
        found = fewer
    return found, _record(start, found, bounds, times, len(material.validation), len(tried)), effects


def _ranked(
    material: Material, base: Candidate, bits: str, progress: Callable[[str], None]
) -> tuple[list[str], list[LayerEffect]]:
    """Layers that may get these bits, the most sensitive first, and the effects that this is by."""
    has = {layer_of(name): own for name, own in base.recipe.for_layers(base.observed.layers).items() if own}
    may = {name for name, own in has.items() if bits == FLOAT or min(own) < min(BITS[WIDEST])}
    if not may:
        return [], []
    progress(f"drop {base.drop_pp:+.2f} points: measure what each layer alone costs")
    effects = layer_effects(base.observed.graph, base.module, material.sensitivity, device=material.device)
    ranked = [name for name in worst_layers(effects, len(effects)) if name in may]
    # A network without any layer on integers is no quantized one.
    return ranked[: len(has) - 1] if bits == FLOAT else ranked, effects


def _raised(
    base: Candidate, steps: list[Step], most_pp: float, attempt: Callable[[tuple[Step, ...]], Candidate]
) -> Candidate:
    """The candidate with the fewest of these steps, in their order, that is within the bound; else with all."""
    if not steps:
        return base
    low, count = 0, 1
    while (found := attempt((*base.steps, *steps[:count]))).drop_pp > most_pp and count < len(steps):
        low, count = count, min(len(steps), 2 * count)
    while found.drop_pp <= most_pp and count - low > 1:
        middle = (low + count) // 2
        fewer = attempt((*base.steps, *steps[:middle]))
        if fewer.drop_pp <= most_pp:
            found, count = fewer, middle
        else:
            low = middle
    return found


def _times(material: Material, start: Candidate, found: Candidate, timer: Timer) -> list[float]:
    """Milliseconds without steps, and after each of them."""
    images = start.observed.images[:TIMED_IMAGES]
    prefixes = (found.steps[: count + 1] for count in range(len(found.steps)))
    return timer(start.module, (material.timed(start.recipe, steps, images) for steps in prefixes))


def _given_back(
    found: Candidate, times: list[float], bounds: PrecisionBounds, attempt: Callable[[tuple[Step, ...]], Candidate]
) -> Candidate:
    """Without the steps that cost most time, as far as the drop stays within its bound, until time is, too."""
    assert bounds.latency_ms is not None
    cost = {step: after - before for step, before, after in zip(found.steps, times, times[1:], strict=False)}
    left = times[-1]
    for step in sorted(found.steps, key=lambda one: -cost[one]):
        if left <= bounds.latency_ms or cost[step] <= 0:
            break
        fewer = attempt(tuple(one for one in found.steps if one != step))
        if fewer.drop_pp <= bounds.drop_pp:
            found, left = fewer, left - cost[step]
    return found


def _record(
    start: Candidate, found: Candidate, bounds: PrecisionBounds, times: list[float] | None, n: int, tried: int
) -> MixedPrecision:
    """What the choice came to."""
    after = times[1:] if times else [None] * len(found.steps)
    layers = [LayerStep(name, bits, ms) for (name, bits), ms in zip(found.steps, after, strict=True)]
    latency = times[-1] if times else None
    asked = bounds.latency_ms
    return MixedPrecision(
        bounds=bounds,
        n=n,
        tried=tried,
        start_drop_pp=start.drop_pp,
        start_drop_interval_pp=start.interval_pp,
        start_latency_ms=times[0] if times else None,
        layers=tuple(layers),
        drop_pp=found.drop_pp,
        drop_interval_pp=found.interval_pp,
        latency_ms=latency,
        drop_met=found.drop_pp <= bounds.drop_pp,
        latency_met=None if asked is None else latency is not None and latency <= asked,
    )
