"""How long it takes to fit a calibrator, from a few steps of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qrobust.classifier import Classifier, NormalizedModel
from qrobust.compensation.batches import sampling
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.cross_fitting import FEW, FOLDS
from qrobust.compensation.fit import RESTORE_SHARE, candidates, new_calibrator, shifted_limit, validation_limit
from qrobust.compensation.gate import MOST_MEASURED, OPENINGS
from qrobust.compensation.training import VALIDATIONS, Phase, step_loss
from qrobust.compensation.validation import condition_size
from qrobust.data.splits import TrainingData
from qrobust.device import CPU_ONLY, Device
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import selection_conditions

# Images of one forward pass that is timed.
TIMED = 16


def seconds_of(work: Callable[[], object]) -> float:
    """What work takes when it is done for the second time."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def expected_seconds(
    fake_quantized: nn.Module,
    teacher: NormalizedModel,
    deployed: Classifier,
    training: TrainingData,
    validation_images: int,
    config: CalibratorConfig,
    *,
    seed: int,
    device: Device = CPU_ONLY,
) -> tuple[dict[str, float], float]:
    """Seconds per part of a calibrator's fit, and of the calibrator on one image; nothing is changed.

    Args:
        fake_quantized: the classifier with gradients.
        teacher: the float classifier.
        deployed: the classifier as it runs.
        training: what is learned from.
        validation_images: how many there are to choose by.
        config: steps and batch size.
        seed: of the images that are tried.
        device: to train on.
    """
    source = training.images.source
    size, channels = source.image_size, source.channels
    with torch.random.fork_rng():
        width, branches = candidates(teacher, training, config)[0]
        calibrator = new_calibrator(size, width, branches, channels, seed)
    weights = sampling(training.conditions)

    def step(restore_steps: int) -> None:
        phase = Phase("float", 1, restore_steps, config.learning_rate, seed, Path())
        loss = step_loss(calibrator, fake_quantized, teacher, None, training, weights, config, step=0, phase=phase)
        loss.backward()
        loss.item()  # a device may still be at work

    calibrator.train()
    with device.holding(calibrator, fake_quantized, teacher):
        restoring, behind = seconds_of(lambda: step(1)), seconds_of(lambda: step(0))
    calibrator.eval()
    images = to_unit(training.images.first(TIMED).read(slice(None)))
    with torch.inference_mode():
        alone = seconds_of(lambda: calibrator(images)) / len(images)
        classified = seconds_of(lambda: deployed(images)) / len(images)
    clean = min(validation_images, validation_limit(size, channels))
    count = len(selection_conditions(training.conditions, training.families))
    shifted = count * condition_size(validation_images, count, shifted_limit(config, size, channels))
    asked = 2 * (VALIDATIONS + 1) + len(OPENINGS)
    measured = MOST_MEASURED + (FOLDS if clean < FEW else 0)  # each fold measures a gate on the others, and itself
    return {
        "train the calibrator": config.steps * (RESTORE_SHARE * restoring + (1 - RESTORE_SHARE) * behind),
        "choose the calibrator": (asked * (clean + shifted) + measured * clean) * (alone + classified),
    }, alone
