"""Quantize a classifier as a configuration asks: observe, search or build, leave the worst layers in float; train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx, nn

from qrobust.classifier import Classifier, NormalizedModel
from qrobust.data.splits import Split, TrainingData
from qrobust.device import CPU_ONLY, Device
from qrobust.errors import InputError, unknown
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.paths import user_path
from qrobust.progress import Reporter, progress_callback
from qrobust.quantization.config import QATConfig, QuantizationConfig
from qrobust.quantization.mixed_precision import Material, Timer, within_bounds
from qrobust.quantization.observers import Observer
from qrobust.quantization.ptq import Observed, Trial, build, keep_worst_in_float, observe, search
from qrobust.quantization.qat import QatFit, train
from qrobust.quantization.range_cache import RangeCache
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.rewrites.constants import switched_off
from qrobust.quantization.rewrites.fx_utils import public_name
from qrobust.quantization.sensitivity import Fidelity, LayerEffect, fidelity, logits_on
from qrobust.quantization.target import TARGETS, Target
from qrobust.quantization.tracing import LAYERS, calls, channels_last
from qrobust.record import MixedPrecision, PrecisionBounds
from qrobust.shifts.filters import to_unit
from qrobust.stopwatch import timing

BATCH = 64
# Validation images that `ptq="auto"` chooses by, that the effect of single layers is measured on, and that training
# keeps its best state by.
SEARCH_IMAGES, SENSITIVITY_IMAGES, QAT_IMAGES = 1000, 256, 2000


@dataclass(frozen=True)
class FakeQuantizedModel:
    """What post-training quantization came to: a classifier that maps images `(N, C, S, S)` in [0, 1] to logits.

    Attributes:
        module: fake-quantized, frozen.
        recipe: what made it.
        observed: the float graph that it was made from.
        target: whose integer kernels it computes like.
        trials: what `ptq="auto"` tried, in order; empty without.
        effects: of each layer alone, where `keep_float="auto:N"` or `target_drop` measured them.
        gained: where `keep_float="auto:N"` left layers in float: the fake-quantized model without and with them in
            float, on the same validation images.
        mixed_precision: which layers got more bits for `target_drop`; None without.
        seconds: how long all of it took.
    """

    module: fx.GraphModule
    recipe: Recipe
    observed: Observed
    target: Target
    trials: list[Trial]
    effects: list[LayerEffect]
    gained: tuple[Fidelity, Fidelity] | None = None
    mixed_precision: MixedPrecision | None = None
    seconds: float = 0.0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)


@dataclass(frozen=True)
class Schedule:
    """One training of a fake-quantized model.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step.
        seed: decides images, moves and shifts of every step.
        checkpoint: file to resume from; whoever owns the folder deletes it.
    """

    steps: int
    batch_size: int
    seed: int
    checkpoint: Path


def find_target(name: str) -> Target:
    """A target by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]


def recipe_of(config: QuantizationConfig) -> Recipe:
    """How the classifier is asked to be quantized; layers that `auto:N` finds are added to it.

    Raises:
        InputError: a choice that does not exist.
    """
    exceptions = [(layer, bits) for layer, _, bits in (entry.rpartition("=") for entry in config.layer_bits)]
    exceptions += [(layer, "float") for layer in config.keep_float if not layer.startswith("auto:")]
    return Recipe(
        config.bits,
        config.edges,
        tuple(exceptions),
        config.observer,
        config.equalize,
        config.bias_correction,
        config.rounding,
    )


def calibration_batches(calibration: Split, reporter: Reporter) -> Iterator[torch.Tensor]:
    """Calibration images in [0, 1], in batches."""
    with reporter.bar("observe ranges", len(calibration)) as bar:
        for images, _ in calibration.batches(BATCH):
            yield to_unit(images)
            bar.update(len(images))


def range_cache(config: QuantizationConfig, calibration: Split) -> RangeCache | None:
    """Where ranges of these images are kept, if a configuration says so."""
    folder = config.calibration_cache
    return RangeCache(user_path(folder), calibration.identity()) if folder else None


def quantize_classifier(
    model: NormalizedModel,
    calibration: Split,
    validation: Split,
    config: QuantizationConfig,
    *,
    primary: Primary = ACCURACY,
    seed: int = 0,
    device: Device = CPU_ONLY,
    timer: Timer | None = None,
    reporter: Reporter | None = None,
) -> FakeQuantizedModel:
    """Post-training quantization of a float classifier.

    Args:
        model: in eval mode; it is not changed.
        calibration: images on which ranges are observed.
        validation: images to choose by, where the configuration leaves something to choose.
        config: how.
        primary: the measure that decides: `ptq="auto"` weighs images as it does.
        seed: of learned rounding.
        device: to observe and learn on.
        timer: of classifiers, for `target_drop` and `target_latency`; without one no time is known.
        reporter: where progress is told.

    Raises:
        InputError: the model cannot be traced, an activation has no usable range, a choice does not fit the model, or
            a file of the cache of ranges cannot be read.
        OSError: nothing can be written to the cache of ranges.
    """
    started, reporter = time.perf_counter(), reporter or Reporter()
    target, recipe, cache = find_target(config.target), recipe_of(config), range_cache(config, calibration)

    def made(chosen: Recipe) -> FakeQuantizedModel:
        if config.ptq == "auto":
            some = validation.at_most(SEARCH_IMAGES)
            module, best, trials, observed = search(
                model,
                target,
                lambda: calibration_batches(calibration, reporter),
                some,
                chosen,
                weights=torch.from_numpy(primary.weights(some.labels.numpy())),
                seed=seed,
                device=device,
                cache=cache,
                progress=lambda trial: reporter.say(f"  {trial}"),
            )
            return FakeQuantizedModel(module, best, observed, target, trials, [])
        observed = observe(model, calibration_batches(calibration, reporter), chosen, device=device, cache=cache)
        module = build(observed, target, chosen, seed=seed, device=device)
        return FakeQuantizedModel(module, chosen, observed, target, [], [])

    material = Material(
        model=model,
        target=target,
        calibration_images=lambda: calibration_batches(calibration, reporter),
        validation=validation.at_most(SEARCH_IMAGES),
        sensitivity=validation.at_most(SENSITIVITY_IMAGES),
        primary=primary,
        seed=seed,
        device=device,
        cache=cache,
    )
    if config.worst_in_float is not None:
        found = _worst_in_float(material, recipe, config.worst_in_float, made, reporter)
    elif config.target_drop is not None:
        bounds = PrecisionBounds(config.target_drop, config.target_latency)
        found = _within_bounds(material, made(recipe), bounds, timer, reporter)
    else:
        found = made(recipe)
    _check_choices(found, config)
    _warn_of_idle(found, reporter)
    return replace(found, seconds=time.perf_counter() - started)


def _worst_in_float(
    material: Material,
    recipe: Recipe,
    count: int,
    made: Callable[[Recipe], FakeQuantizedModel],
    reporter: Reporter,
) -> FakeQuantizedModel:
    """What a recipe makes with so many layers left in float, and what that gains."""
    some = material.sensitivity
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in material.model.modules())
    with reporter.bar("measure layers", layers) as bar:
        keeping, effects = keep_worst_in_float(
            material.model,
            material.target,
            material.calibration_images,
            some,
            recipe,
            count,
            device=material.device,
            cache=material.cache,
            progress=lambda name: bar.update(1, name),
        )
    without, kept = made(recipe), made(keeping)
    reference = logits_on(kept.observed.graph, some)
    before, after = (fidelity(reference, logits_on(q.module, some), some.labels) for q in (without, kept))
    return replace(kept, effects=effects, gained=(before, after))


def _within_bounds(
    material: Material, asked: FakeQuantizedModel, bounds: PrecisionBounds, timer: Timer | None, reporter: Reporter
) -> FakeQuantizedModel:
    """What was asked for, with more bits for as many layers as the bounds need."""
    start = material.measured(asked.recipe, (), asked.observed, asked.module)
    found, mixed, effects = within_bounds(
        material, start, bounds, timer=timer, progress=lambda trial: reporter.say(f"  {trial}")
    )
    return replace(
        asked,
        module=found.module,
        recipe=found.recipe,
        observed=found.observed,
        effects=effects,
        mixed_precision=mixed,
    )


def _warn_of_idle(found: FakeQuantizedModel, reporter: Reporter) -> None:
    """Tell which layers weights of zero switch off, first ones of their blocks."""
    graph = found.observed.graph
    off = switched_off(graph, (Observer,))
    names = [
        public_name(str(node.target))
        for node, _ in calls(graph, LAYERS)
        if node in off and not off.issuperset(node.all_input_nodes)
    ]
    if names:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        reporter.warn(
            f"warning: weights and bias of {names[0]!r}{more} are zero, so what they compute is switched off; it is "
            "quantized as zero"
        )


def _check_choices(found: FakeQuantizedModel, config: QuantizationConfig) -> None:
    """Refuse what no layer has a use for."""
    bits = found.recipe.for_layers(found.observed.layers)
    if not bits:
        raise InputError("model: expected a convolution or a linear layer to quantize, found none")
    weights = [chosen[0] for chosen in bits.values() if chosen is not None]
    if config.rounding != "nearest" and min(weights) >= 8:
        raise InputError(f"rounding: {config.rounding} is for weights of fewer than 8 bits, and no layer has such")
    if config.storage == "int4" and 4 not in weights:
        raise InputError("storage: int4 is for weights of 4 bits, and no layer is left with such")


def finetune(
    trainable: fx.GraphModule,
    teacher: Classifier,
    data: TrainingData,
    validation: Split,
    config: QATConfig,
    schedule: Schedule,
    *,
    reporter: Reporter,
    device: Device = CPU_ONLY,
    name: str = "qat",
    primary: Primary = ACCURACY,
    by_labels: bool = True,
) -> QatFit:
    """Train a fake-quantized model in place; a training that was killed goes on from its checkpoint.

    Args:
        trainable: from `prepare_qat`, or thawed otherwise.
        teacher: the float classifier, folded.
        data: what to learn from.
        validation: images to choose by, of which the first are taken.
        config: rate and distillation.
        schedule: steps, and where they are resumed.
        reporter: where progress is told.
        device: to train on.
        name: of the training, in messages.
        primary: the measure that decides which state is kept.
        by_labels: whether it does; without labels the state nearest to the teacher is kept.

    Returns:
        What training did; with `best_step` 0, no state was better than the start.
    """
    channels_last(trainable)
    some = validation.at_most(QAT_IMAGES)
    working = device.holding(trainable, teacher)
    with working, timing() as watch, reporter.bar(f"train the fake-quantized model ({name})", schedule.steps) as bar:
        fit = train(
            trainable,
            teacher,
            data,
            some,
            config,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            seed=schedule.seed,
            checkpoint=schedule.checkpoint,
            primary=primary,
            by_labels=by_labels,
            progress=progress_callback(bar),
        )
    reporter.detail(f"train the fake-quantized model ({name}): {watch} on {device.description}")
    if fit.diverged:
        reporter.warn(f"warning: training the fake-quantized model ({name}) diverged; the best state before is kept")
    reporter.detail(
        f"validation: {100 * fit.start_accuracy:.2f} -> {100 * fit.accuracy:.2f} %, divergence from float "
        f"{fit.start_divergence:.4f} -> {fit.divergence:.4f}"
    )
    if not (fit.best_step or fit.diverged):
        reporter.say(
            f"  the gain of training is within the standard error on {len(some):,} images; the model stays as it was"
        )
    return fit
