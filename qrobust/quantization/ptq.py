"""Post-training quantization: observe once, then build fake-quantized models by any recipe from what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import fx, nn

from qrobust.classifier import Normalization, refuse_quantized
from qrobust.data.splits import Split
from qrobust.device import CPU_ONLY, Device, device_of
from qrobust.errors import InputError
from qrobust.quantization.adaround import learn_rounding
from qrobust.quantization.bias_correction import correct_biases
from qrobust.quantization.convert import convert, skeleton
from qrobust.quantization.equalization import equalize
from qrobust.quantization.observers import RANGES, Observer
from qrobust.quantization.range_cache import RangeCache
from qrobust.quantization.recipe import Recipe, layer_of
from qrobust.quantization.rewrites.fx_utils import public_name
from qrobust.quantization.sensitivity import (
    LayerEffect,
    fidelity,
    layer_effects,
    logits_on,
    worst_layers,
)
from qrobust.quantization.target import Target
from qrobust.quantization.torch_ao import insert_observers
from qrobust.quantization.tracing import (
    LAYERS,
    calls,
    channels_last,
    described,
    layer_names,
    traced,
)
from qrobust.record import Trial

# Calibration images that bias correction and learned rounding work on, and the memory they may take.
KEPT_IMAGES, KEPT_BYTES = 256, 2**24
ROUNDING_STEPS = 600


@dataclass(frozen=True)
class Observed:
    """A float graph that has seen the calibration images.

    Attributes:
        graph: with an `Observer` wherever the fake-quantized model will have a quantizer.
        layers: names of all convolutions and linear layers, in order of execution.
        images: some of the calibration images, `(N, C, S, S)` in [0, 1].
        recipe: its `equalize` and its float layers are in the graph; the rest is still open.
    """

    graph: fx.GraphModule
    layers: list[str]
    images: torch.Tensor
    recipe: Recipe


def prepare(
    model: nn.Module, example: torch.Tensor, recipe: Recipe, leaves: tuple[type[nn.Module], ...] = ()
) -> tuple[fx.GraphModule, list[str]]:
    """Trace a network, fold and equalize it, and put an observer wherever a grid is needed.

    Args:
        model: in eval mode; it is not changed.
        example: one input `(1, C, S, S)`.
        recipe: decides equalization and which layers stay in float.
        leaves: module classes that stay in float as they are.

    Returns:
        The graph, and its layers' names.

    Raises:
        InputError: the model cannot be traced, is quantized already, or the recipe names no layer of it.
    """
    refuse_quantized(model)
    graph = traced(model, (Normalization, *leaves), example)
    layers = layer_names(graph)
    bits = recipe.for_layers(layers)
    if recipe.equalize:
        equalize(graph)
    in_float = tuple(str(n.target) for n, _ in calls(graph, LAYERS) if bits[public_name(str(n.target))] is None)
    prepared = insert_observers(graph, example, leaves=leaves, in_float=in_float)
    channels_last(prepared)
    return prepared, layers


def observe(
    model: nn.Module,
    calibration_images: Iterable[torch.Tensor],
    recipe: Recipe,
    *,
    leaves: tuple[type[nn.Module], ...] = (),
    device: Device = CPU_ONLY,
    cache: RangeCache | None = None,
) -> Observed:
    """Let a float network see the calibration images, once, in bounded memory.

    Args:
        model: in eval mode; it is not changed.
        calibration_images: batches `(N, C, S, S)` in [0, 1].
        recipe: decides equalization and which layers stay in float.
        leaves: module classes that stay in float.
        device: to work on.
        cache: of ranges: what an earlier run saw of these images is not observed again.

    Raises:
        InputError: no images, or an activation that is NaN or infinite; the message names its node and the nearest
            layer; or a file of the cache cannot be read.
        OSError: nothing can be written to the cache.
    """
    batches = (images for images in calibration_images if len(images))
    first = next(batches, None)
    if first is None:
        raise InputError("calibration_images: expected at least one image, got none")
    graph, layers = prepare(model, first[:1], recipe, leaves)
    known = cache is not None and cache.restore(graph, device)
    kept: list[torch.Tensor] = []
    room = min(KEPT_IMAGES, KEPT_BYTES // (4 * first[0].numel()))
    with device.holding(graph):
        for images in chain([first], batches):
            if not known:
                see(graph, images.contiguous(memory_format=torch.channels_last))
            if room > 0:
                kept.append(images[:room].clone())  # a view would keep the whole batch
                room -= len(kept[-1])
            if known and room <= 0:
                break
    if cache is not None and not known:
        cache.keep(graph, device)
    _enable(graph, False)
    return Observed(graph, layers, torch.cat(kept), recipe)


def see(graph: fx.GraphModule, images: torch.Tensor) -> None:
    """Let an observing graph see a batch `(N, C, S, S)`.

    Raises:
        InputError: an activation is NaN or infinite; the message names its node and the nearest layer.
    """
    with torch.inference_mode():
        logits = graph(images.to(device_of(graph)))
    for node, observer in calls(graph, Observer):
        assert isinstance(observer, Observer)
        if not observer.finite:
            raise InputError(
                f"calibration: activation {described(graph, node.all_input_nodes[0])} holds NaN or infinity; check "
                f"the weights and the images"
            )
    if not torch.isfinite(logits).all():
        raise InputError("calibration: the output holds NaN or infinity; check the weights and the images")


def _enable(graph: fx.GraphModule, enabled: bool) -> None:
    for module in graph.modules():
        if isinstance(module, Observer):
            module.enabled = enabled


def build(
    observed: Observed, target: Target, recipe: Recipe, *, seed: int = 0, device: Device = CPU_ONLY
) -> fx.GraphModule:
    """The fake-quantized model that a recipe makes of an observed network.

    Args:
        observed: of the same float layers and equalization as `recipe`.
        target: integer types and ranges.
        recipe: how to quantize.
        seed: of learned rounding.
        device: to learn on.

    Raises:
        InputError: an activation has no usable range.
    """
    fake_quantized = convert(observed.graph, target, recipe, recipe.for_layers(observed.layers))
    with device.holding(observed.graph, fake_quantized):
        if recipe.rounding == "adaround":
            learn_rounding(observed.graph, fake_quantized, observed.images, steps=ROUNDING_STEPS, seed=seed)
        if recipe.correct_bias:
            correct_biases(observed.graph, fake_quantized, observed.images)
    return fake_quantized


def quantize(
    model: nn.Module,
    target: Target,
    calibration_images: Iterable[torch.Tensor],
    *,
    recipe: Recipe | None = None,
    leaves: tuple[type[nn.Module], ...] = (),
    seed: int = 0,
) -> fx.GraphModule:
    """Turn a float network into its fake-quantized model.

    Args:
        model: in eval mode; it is not changed.
        target: integer types and ranges.
        calibration_images: batches `(N, C, S, S)` in [0, 1] on which ranges are observed.
        recipe: how; default `Recipe()`.
        leaves: module classes that stay in float.
        seed: of learned rounding.

    Raises:
        InputError: the model cannot be traced, or an activation has no usable range.
    """
    recipe = recipe or Recipe()
    return build(observe(model, calibration_images, recipe, leaves=leaves), target, recipe, seed=seed)


def restore(
    model: nn.Module,
    target: Target,
    image_size: int,
    state: dict[str, torch.Tensor],
    *,
    channels: int = 3,
    recipe: Recipe | None = None,
    leaves: tuple[type[nn.Module], ...] = (),
) -> fx.GraphModule:
    """Rebuild a fake-quantized model from the float model, the recipe that made it, and its own state dict.

    Raises:
        InputError: the state dict is of another fake-quantized model.
    """
    recipe = recipe or Recipe()
    example = torch.full((1, channels, image_size, image_size), 0.5)
    graph, layers = prepare(model, example, recipe, leaves)
    fake_quantized = skeleton(graph, target, recipe.for_layers(layers))
    try:
        fake_quantized.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"run folder: its integer weights are of another network, or another version made them ({error})"
        ) from error
    return fake_quantized


def search(
    model: nn.Module,
    target: Target,
    calibration_images: Callable[[], Iterable[torch.Tensor]],
    validation: Split,
    recipe: Recipe,
    *,
    weights: torch.Tensor | None = None,
    seed: int = 0,
    device: Device = CPU_ONLY,
    cache: RangeCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[fx.GraphModule, Recipe, list[Trial], Observed]:
    """Try recipes one choice at a time and keep the best so far (`--ptq auto`).

    First every rule for ranges, then equalization, then learned rounding (below 8 bits), then bias
    correction: at most nine fake-quantized models. The best is the one of least divergence from the float model on
    validation images: accuracy differences among good 8-bit fake-quantized models are noise.

    Args:
        model: float, in eval mode.
        target: integer types and ranges.
        calibration_images: gives the batches anew each time it is called (at most twice).
        validation: images to choose by.
        recipe: bits, edges and exceptions are kept, the rest is where the search starts.
        weights: of the validation images `(n,)`, which sum to 1: what counts. Default: all alike.
        seed: of learned rounding.
        device: to work on.
        cache: of ranges.
        progress: called with a line on each trial, and on what was kept.

    Returns:
        The best fake-quantized model, its recipe, every trial in order, and the observed graph that the
        fake-quantized model was made from.
    """
    observations: dict[bool, Observed] = {}
    trials: list[Trial] = []
    reference: torch.Tensor | None = None
    best: tuple[float, fx.GraphModule, Recipe] | None = None

    def logits(module: nn.Module) -> torch.Tensor:
        with device.holding(module):
            return logits_on(module, validation)

    def attempt(candidate: Recipe) -> None:
        nonlocal best, reference
        if candidate.equalize not in observations:
            seen = observe(model, calibration_images(), candidate, device=device, cache=cache)
            observations[candidate.equalize] = seen
        observed = observations[candidate.equalize]
        if reference is None:
            reference = logits(observed.graph)
        fake_quantized = build(observed, target, candidate, seed=seed, device=device)
        found = fidelity(reference, logits(fake_quantized), validation.labels, weights)
        away = found.divergence
        kept = best is None or away < best[0]
        if kept:
            best = (away, fake_quantized, candidate)
        choices = (candidate.ranges, candidate.equalize, candidate.correct_bias, candidate.rounding)
        trials.append(Trial(*choices, away, found.agreement, found.accuracy, kept))
        progress(f"tried {candidate.tricks()}: divergence from float {away:.5f}")

    def current() -> Recipe:
        assert best is not None
        return best[2]

    attempt(recipe)
    for ranges in RANGES:
        if ranges != recipe.ranges:
            attempt(replace(recipe, ranges=ranges))
    attempt(replace(current(), equalize=not recipe.equalize))
    if any(b is not None and b[0] < 8 for b in recipe.for_layers(observations[recipe.equalize].layers).values()):
        attempt(replace(current(), rounding="adaround" if recipe.rounding == "nearest" else "nearest"))
    attempt(replace(current(), correct_bias=not recipe.correct_bias))
    assert best is not None
    progress(f"kept {best[2].tricks()}: divergence from float {best[0]:.5f}")
    return best[1], best[2], trials, observations[best[2].equalize]


def keep_worst_in_float(
    model: nn.Module,
    target: Target,
    calibration_images: Callable[[], Iterable[torch.Tensor]],
    validation: Split,
    recipe: Recipe,
    count: int,
    *,
    device: Device = CPU_ONLY,
    cache: RangeCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Recipe, list[LayerEffect]]:
    """The recipe with the `count` layers left in float whose quantization alone costs most.

    Args:
        model: float, in eval mode.
        target: integer types and ranges.
        calibration_images: gives the batches anew.
        validation: images to measure on.
        recipe: whose layers are judged.
        count: how many.
        device: to work on.
        cache: of ranges.
        progress: called with each layer's name once it is measured.

    Returns:
        The recipe, and the effect of each layer.

    Raises:
        InputError: `count` is below 1 or not below the number of quantized layers.
    """
    observed = observe(model, calibration_images(), recipe, device=device, cache=cache)
    quantized = len({layer_of(n) for n, bits in recipe.for_layers(observed.layers).items() if bits is not None})
    if quantized < 2:
        raise InputError(f"keep_float: auto:{count} would leave no layer to quantize, only {quantized} is quantized")
    if not 1 <= count < quantized:
        raise InputError(
            f"keep_float: expected auto:N with N from 1 to {quantized - 1} for the {quantized} layers that are "
            f"quantized, got auto:{count}"
        )
    built = build(observed, target, recipe, device=device)
    effects = layer_effects(observed.graph, built, validation, progress, device=device)
    return recipe.keeping_float(worst_layers(effects, count)), effects
