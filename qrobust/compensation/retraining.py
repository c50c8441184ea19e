"""Remedies that train the classifier itself: one training, held to its clean budget, whatever of it may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx, nn

from qrobust.compensation.clean_budget import Averaged, cross_fitted_scores, within_clean_budget
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.cross_fitting import folds_of
from qrobust.compensation.fit import (
    QAT_RATE,
    RESTORE_SHARE,
    CalibratorData,
    FrozenClassifier,
    say_clean_cost,
    validation_of,
)
from qrobust.device import CPU_ONLY, Device
from qrobust.errors import InputError
from qrobust.progress import Reporter
from qrobust.quantization.config import QATConfig
from qrobust.quantization.integer_layers import IntegerConv2d, IntegerLinear
from qrobust.quantization.qat import convert_qat
from qrobust.quantization.quantize import Schedule, finetune
from qrobust.quantization.tracing import folded
from qrobust.record import CleanCost, QatFit, WeightChange

# Scales and biases learn at so many times the rate of weights: there are few of them, and they move little.
SCALES_RATE = 3.0


@dataclass(frozen=True)
class Retrained:
    """What training the classifier came to.

    Attributes:
        averaged: what is kept of it, frozen to its integers.
        training: what training did, on validation images.
        change: how far its weights are from those that it started at.
        clean_cost: what it costs on clean validation images, with its bound.
    """

    averaged: Averaged
    training: QatFit
    change: WeightChange
    clean_cost: CleanCost


def retrain(
    name: str,
    trainable: fx.GraphModule,
    classifier: FrozenClassifier,
    data: CalibratorData,
    config: CalibratorConfig,
    qat: QATConfig,
    *,
    checkpoint: Path,
    convert: Callable[[], fx.GraphModule] | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: Device = CPU_ONLY,
    reporter: Reporter | None = None,
) -> Retrained:
    """Train what may be trained of a classifier under shift, for as many steps as a calibrator trains through it.

    Args:
        name: `scales`, `first-stage` or `finetune`.
        trainable: the classifier, thawed where it may change; it is trained in place.
        classifier: the same, frozen: where training starts.
        data: images to learn from and to choose by; target images are left out.
        config: steps, batch size, rate, labels and the clean budget.
        qat: weight of the teacher in the loss.
        checkpoint: file to go on from.
        convert: `trainable` as it is now to a model frozen to its integers; by default `convert_qat`.
        teacher: what says how clean images are classified; by default the classifier's, its batch norms folded.
        seed: of every step.
        device: to train on.
        reporter: where progress is told.

    Raises:
        InputError: training diverges before anything is learned.
    """
    reporter = reporter or Reporter()
    size, channels = data.image_size, data.channels
    start = {key: value.detach().clone() for key, value in trainable.state_dict().items()}
    rate = config.learning_rate * QAT_RATE * (SCALES_RATE if name == "scales" else 1)
    training = finetune(
        trainable,
        teacher or folded(classifier.teacher, torch.full((1, channels, size, size), 0.5)),
        replace(data.training, target_images=None),
        data.validation,
        replace(
            qat,
            epochs=max(1.0, qat.epochs),
            learning_rate=rate,
            distillation=qat.distillation if config.use_labels else 1.0,
        ),
        Schedule(round(config.steps * (1 - RESTORE_SHARE)), config.batch_size, seed, checkpoint),
        reporter=reporter,
        device=device,
        name=name,
        primary=data.primary,
        by_labels=config.use_labels,
    )
    if training.diverged and not training.best_step:
        raise InputError(
            f"learning_rate: training ({name}) diverged at step {training.steps}, before anything was learned; "
            f"expected a rate smaller than {config.learning_rate:g}"
        )
    frozen = convert or (lambda: convert_qat(trainable))
    return _held_to_budget(
        trainable, start, training, classifier, data, config, convert=frozen, seed=seed, reporter=reporter
    )


def _held_to_budget(
    trainable: fx.GraphModule,
    start: dict[str, torch.Tensor],
    training: QatFit,
    classifier: FrozenClassifier,
    data: CalibratorData,
    config: CalibratorConfig,
    *,
    convert: Callable[[], fx.GraphModule],
    seed: int,
    reporter: Reporter,
) -> Retrained:
    """What of a training costs no more than allowed on clean validation images, and what that costs."""
    validation = validation_of(replace(data, target_validation=None), classifier.teacher, config, seed + 1)
    before = validation.clean_scores(classifier.deploy(classifier.fake_quantized))
    averaged = within_clean_budget(
        trainable,
        start,
        convert,
        classifier.deploy,
        validation,
        least_clean=validation.least_clean(validation.clean_value(before), config.clean_limit),
    )
    if averaged.share < 1:
        reporter.say(
            f"  to stay within --clean-budget {config.clean_limit:g}, {averaged.share:.0%} of the way from INT8 to "
            "the end of training is kept"
        )
    folds = folds_of(validation)
    if folds:
        after = cross_fitted_scores(averaged, before, validation, budget=config.clean_limit, folds=folds)
    else:
        after = validation.clean_scores(classifier.deploy(averaged.model))
    cost = validation.clean_cost(before, after, config.clean_limit, len(folds))
    say_clean_cost(cost, reporter)
    return Retrained(averaged, training, weight_change(classifier.fake_quantized, averaged.model), cost)


def weight_change(before: nn.Module, after: nn.Module) -> WeightChange:
    """How far the weights of one fake-quantized model are from those of another of the same layers.

    Layers of a file are torch's own, with the numbers that its integers stand for: of them no integers are compared.
    """
    kinds = IntegerConv2d | IntegerLinear
    of_file = not any(isinstance(module, kinds) for module in before.modules())
    layers, others = (
        [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear if of_file else kinds)]
        for model in (before, after)
    )
    pairs = list(zip(layers, others, strict=True))
    distance = sum(float((_weight(b) - _weight(a)).double().square().sum()) for a, b in pairs)
    size = sum(float(_weight(a).double().square().sum()) for a, _ in pairs)
    changed = 0.0 if of_file else _integers_changed(pairs)
    return WeightChange(relative_change=(distance / size) ** 0.5, integers_changed=changed)


def _weight(layer: nn.Module) -> torch.Tensor:
    """What a layer multiplies by."""
    if isinstance(layer, IntegerConv2d | IntegerLinear):
        return layer.weight()
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight


def _integers_changed(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> float:
    """The share of the integer weights that differ."""
    changed, count = 0, 0
    for before, after in pairs:
        assert isinstance(before, IntegerConv2d | IntegerLinear)
        assert isinstance(after, IntegerConv2d | IntegerLinear)
        changed += int((before.weight_int != after.weight_int).sum())
        count += before.weight_int.numel()
    return changed / count
