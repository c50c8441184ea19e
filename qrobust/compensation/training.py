"""Train a calibrator in front of a frozen classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.attacks.norms import LinfBall
from qrobust.classifier import Classifier, input_gradient, state_hash
from qrobust.compensation.alignment import norms, statistics_distance
from qrobust.compensation.batches import (
    CLEAN_GROUPS,
    GROUPS,
    mixed_batch,
    sampling,
)
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.reverse import reverse_adversarial
from qrobust.compensation.teacher import TeacherOutput, _outputs_of, _teacher_output, teacher_outputs
from qrobust.compensation.validation import Validation, information
from qrobust.data.splits import TrainingData
from qrobust.device import device_of, fast_arithmetic
from qrobust.errors import InputError
from qrobust.progress import Progress
from qrobust.record import PhaseFit
from qrobust.shifts.filters import to_unit
from qrobust.stopwatch import RENDERING, part
from qrobust.training_loop import Outcome, fit

# The heads that act on the whole image learn at a part of the rate, restoring pixels and behind the
# classifier: at the full rate their jitter destabilises everything else.
HEADS = ("photometric.", "geometric.", "gate.")
HEAD_RATES = (1.0, 0.3)
RAMP_STEPS = 50
# Share of the rate behind the classifier.
CLASSIFIER_RATE = 0.5
# Behind the classifier, what the mean absolute difference to the unshifted image still weighs.
PIXEL_WEIGHT = 4.0
# What telling shifted images from clean ones weighs: it teaches the gate when to stay shut.
GATE_WEIGHT = 1.0
# Proposals for the whole image beyond this are pulled back: out there tanh has no gradient left to return by.
PROPOSAL_LIMIT, PROPOSAL_WEIGHT = 3.0, 0.1
# What unlabelled target images weigh.
ALIGNMENT_WEIGHT = 1.0
# Images on which the classifier must have a gradient, and the share of them that may have none.
PROBES, MOST_VANISHED = 32, 0.5
# Times a training run stops to validate.
VALIDATIONS = 5


@dataclass(frozen=True)
class Phase:
    """One run of the training loop over a calibrator.

    Attributes:
        name: `float`, or `int8` on the calibrator's own 8-bit grid.
        steps: optimizer steps in all.
        restore_steps: how many of them, at the start, restore pixels only.
        learning_rate: of Adam, at its peak; cosine to zero.
        seed: decides images, shifts and pixels of every step.
        checkpoint: file to resume from; whoever owns the folder deletes it.
    """

    name: str
    steps: int
    restore_steps: int
    learning_rate: float
    seed: int
    checkpoint: Path

    def rates(self, step: int) -> list[float]:
        """The learning rates of a step: of the whole, and of the heads that act on the whole image."""
        restoring = step < self.restore_steps
        begin, end = (0, self.restore_steps) if restoring else (self.restore_steps, self.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))
        rate = self.learning_rate * cosine * min(1.0, (step - begin + 1) / RAMP_STEPS)
        rate *= 1.0 if restoring else CLASSIFIER_RATE
        return [rate, rate * HEAD_RATES[0 if restoring else 1]]


def train_calibrator(
    calibrator: nn.Module,
    fake_quantized: nn.Module,
    teacher: Classifier,
    data: TrainingData,
    validation: Validation,
    config: CalibratorConfig,
    phase: Phase,
    *,
    deployed: Classifier | None = None,
    progress: Progress = lambda done, total, note: None,
) -> PhaseFit:
    """Train `calibrator` in place so that `fake_quantized` finds shifted images easier.

    First, for `phase.restore_steps`, the calibrator alone learns to give back the unshifted image (mean
    absolute difference of pixels): a dense signal at a fraction of the cost. Then the loss is the
    cross-entropy of the fake-quantized model behind the calibrator to the label (or the teacher's
    prediction), plus the squared distance of its logits and features to the float teacher's on the unshifted
    image (the association), in units of their variance; and, on shifts that keep pixels in place, the
    squared distance to the teacher's reverse adversarial example of the clean image. The pixel loss stays
    with a small weight, a quarter of each batch is clean, and the gate learns to tell which. The state that is
    kept is the one of highest clean plus shift accuracy on validation images, or without labels the one whose answers
    are nearest to the teacher's of the unshifted images.

    Args:
        calibrator: images to images, differentiable; ends with the best state. It is trained on the device where it,
            the fake-quantized model and the teacher are.
        fake_quantized: the frozen classifier; neither parameters nor buffers change.
        teacher: the float classifier.
        data: what to learn from. Where target images have no label, the calibrator makes them look like what the
            teacher's batch norms expect, or without any, like what the fake-quantized model is sure of.
        validation: images to choose by.
        config: batch size, labels and the weights of the loss. Without labels the cross-entropy is to the teacher's
            predictions, and target images count as unlabelled.
        phase: steps, learning rate, seed and checkpoint.
        deployed: the classifier as it will run, in front of which the calibrator is measured; the fake-quantized
            model if not given.
        progress: called with steps done, all steps and a note.

    Raises:
        InputError: an argument out of range, a classifier whose gradient vanishes, or a training that diverges before
            it has learned anything.
    """
    conditions, steps, restore_steps = data.conditions, phase.steps, phase.restore_steps
    if not data.renders and data.target_images is None:
        raise InputError("shifts: a calibrator needs at least one shift or target images to train on, got none")
    before = state_hash(fake_quantized.eval())
    _check_gradient(fake_quantized, validation.parts[0][0][:PROBES])
    alone = validation.accuracies(deployed or fake_quantized)[1 : len(conditions) + 1]
    weights = sampling(conditions, [1 - accuracy for accuracy in alone], config.hard_shift_share)
    known = teacher_outputs(teacher, data.images, (steps - restore_steps) * config.batch_size)
    every = max(1, (steps - restore_steps) // VALIDATIONS)
    # Target images without labels have no answers to be near to.
    by_divergence = bool(validation.teacher_logits) and data.target_images is None

    def loss(step: int, size: int) -> torch.Tensor:
        sized = replace(config, batch_size=size)
        return step_loss(calibrator, fake_quantized, teacher, known, data, weights, sized, step=step, phase=phase)

    done = fit(
        calibrator,
        _optimizer(calibrator, phase.learning_rate),
        steps=steps,
        rates=phase.rates,
        loss=loss,
        batch_size=config.batch_size,
        least_batch=GROUPS,
        judge=partial(_judge, calibrator, deployed or fake_quantized, validation, by_divergence),
        score=lambda found: (-found[2],) if by_divergence else (sum(found),),
        judge_after=lambda step: step >= restore_steps and (step - restore_steps) % every == 0,
        describe=lambda found: f"validation: shifts {100 * found[1]:.1f} %, clean {100 * found[0]:.1f} %",
        checkpoint=phase.checkpoint,
        checkpoint_every=every,
        progress=progress,
        # An identity proposes nothing that could be quantized; the gate can shut what was trained.
        replaces_start=(lambda *_: True) if restore_steps else None,
    )
    calibrator.eval()
    if done.diverged and restore_steps and not done.best_step:
        raise InputError(
            f"learning_rate: training diverged at step {done.steps}, before anything was learned; expected a rate "
            f"smaller than {phase.learning_rate:g}"
        )
    if state_hash(fake_quantized) != before:
        raise RuntimeError("the classifier changed while the calibrator was trained")
    return _phase_fit(done)


def _judge(
    calibrator: nn.Module, classifier: Classifier, validation: Validation, by_divergence: bool
) -> tuple[float, ...]:
    """Accuracy on clean images and under shift, and if asked for the divergence from the teacher."""
    calibrator.eval()
    found = validation.measure(classifier, calibrator)
    divergence = (validation.teacher_divergence(classifier, calibrator),) if by_divergence else ()
    calibrator.train()
    return *found, *divergence


def _phase_fit(done: Outcome) -> PhaseFit:
    """What the loop came to, whose judge tells accuracy on clean images and under shift first."""
    (clean, shifted), (start_clean, start_shifted) = done.best[:2], done.start[:2]
    return PhaseFit(
        start_clean_accuracy=start_clean,
        start_shift_accuracy=start_shifted,
        clean_accuracy=clean,
        shift_accuracy=shifted,
        best_step=done.best_step,
        diverged=done.diverged,
        earlier_s=done.earlier_s,
        history=tuple(sum(found[:2]) for found in done.history),
    )


def _optimizer(calibrator: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam with two groups of parameters: the whole, and the heads that act on the whole image."""
    heads = [p for n, p in calibrator.named_parameters() if n.startswith(HEADS)]
    rest = [p for n, p in calibrator.named_parameters() if not n.startswith(HEADS)]
    return torch.optim.Adam([{"params": rest}, {"params": heads}], lr=learning_rate, betas=(0.9, 0.99))


def _expected(teacher: nn.Module, calibrated: torch.Tensor) -> torch.Tensor:
    with fast_arithmetic(calibrated.device):
        return statistics_distance(teacher, calibrated.contiguous(memory_format=torch.channels_last))


def _unlabelled_loss(teacher: Classifier, calibrated: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The distance from what the float model's batch norms expect; without any, what the predictions do not tell."""
    if isinstance(teacher, nn.Module) and norms(teacher):
        return _expected(teacher, calibrated)
    return 1 - information(logits)


def _check_gradient(fake_quantized: nn.Module, pixels: torch.Tensor) -> None:
    """Refuse a classifier through which nothing can be learned from images, uint8."""
    images = to_unit(pixels.to(device_of(fake_quantized)))
    gradient, _ = input_gradient(fake_quantized, images, lambda logits: logits.amax(1))
    vanished = int((gradient.flatten(1) == 0).all(1).sum())
    if vanished > MOST_VANISHED * len(images):
        raise InputError(
            f"classifier: its gradient vanishes on {vanished} of {len(images)} images, expected at most "
            f"{MOST_VANISHED:.0%}; no calibrator can learn through it"
        )


def _with_proposals(calibrator: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the calibrator makes of the images, and what it proposed for each as a whole, the gate `(N, 1)` last.

    Its convolutions run in fast arithmetic, what they propose is applied to the images in float.
    """
    proposals: list[torch.Tensor] = []

    def widen(_: nn.Module, inputs: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        wide = tuple(None if proposal is None else proposal.float() for proposal in inputs)
        proposals.extend(proposal for proposal in wide if proposal is not None and proposal.ndim == 2)
        return wide

    handle = calibrator.get_submodule("correction").register_forward_pre_hook(widen)
    try:
        with fast_arithmetic(images.device):
            calibrated = calibrator(images.contiguous(memory_format=torch.channels_last))
        return calibrated.float(), proposals
    finally:
        handle.remove()


def step_loss(
    calibrator: nn.Module,
    fake_quantized: nn.Module,
    teacher: Classifier,
    known: TeacherOutput | None,
    data: TrainingData,
    weights: torch.Tensor,
    config: CalibratorConfig,
    *,
    step: int,
    phase: Phase,
) -> torch.Tensor:
    """The loss of one batch, a function of the weights, the seed and the step alone."""
    with part(RENDERING):
        batch = mixed_batch(data, weights, batch_size=config.batch_size, step=step, seed=phase.seed)
    batch = batch.to(device_of(calibrator))
    images, original, paired = to_unit(batch.shifted), to_unit(batch.clean), batch.paired
    calibrated, (*proposals, gate) = _with_proposals(calibrator, images)
    beyond = sum((F.relu(p.abs() - PROPOSAL_LIMIT).square().mean() for p in proposals), torch.zeros(()))
    is_shifted = ((images != original).flatten(1).any(1) | ~paired).float()[:, None]
    balance = torch.where(is_shifted > 0, CLEAN_GROUPS / GROUPS, 1 - CLEAN_GROUPS / GROUPS)
    gate_loss = 2 * GATE_WEIGHT * F.binary_cross_entropy_with_logits(gate, is_shifted, balance)
    bounds = gate_loss + PROPOSAL_WEIGHT * beyond
    pixel_loss = F.l1_loss(calibrated[paired], original[paired])
    labels = batch.labels if config.use_labels else torch.where(paired, batch.labels, -1)
    unknown = labels < 0
    if step < phase.restore_steps:
        if unknown.any() and isinstance(teacher, nn.Module) and norms(teacher):
            return pixel_loss + bounds + ALIGNMENT_WEIGHT * _expected(teacher, calibrated[unknown])
        return pixel_loss + bounds
    view = _teacher_output(teacher, original[paired]) if known is None else known.of(batch.chosen[paired])
    targets = labels.clone()
    if not config.use_labels:
        targets[paired] = view.logits.argmax(1)
    seen = _outputs_of(fake_quantized, calibrated)
    logits = seen.logits
    loss = F.cross_entropy(logits, targets, ignore_index=-1) + PIXEL_WEIGHT * pixel_loss + bounds
    if unknown.any():
        loss = loss + ALIGNMENT_WEIGHT * _unlabelled_loss(teacher, calibrated[unknown], logits[unknown])
    if config.distillation_weight:
        loss = loss + config.distillation_weight * view.distance(seen.of(paired))
    if config.reverse_weight and batch.aligned.any():
        with fast_arithmetic(images.device):
            easier = reverse_adversarial(
                teacher,
                original[batch.aligned],
                targets[batch.aligned],
                ball=LinfBall(8 / 255),
                steps=2,
                step_size=4 / 255,
            )
        loss = loss + config.reverse_weight * F.mse_loss(calibrated[batch.aligned], easier)
    return loss
