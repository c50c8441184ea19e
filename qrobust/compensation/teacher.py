"""The float teacher's outputs on training images, computed once and kept in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from qrobust.classifier import Classifier
from qrobust.compensation.alignment import logits_and_features
from qrobust.data.splits import Split
from qrobust.device import device_of, fast_arithmetic, part_size
from qrobust.shifts.filters import to_unit

# What the float model's view of the training images may take.
TEACHER_BYTES, TEACHER_BATCH = 2**27, 128


class TeacherOutput(NamedTuple):
    """What a classifier makes of images: logits `(N, K)`, and features `(N, F)` where it has any."""

    logits: torch.Tensor
    features: torch.Tensor | None

    def of(self, chosen: torch.Tensor) -> TeacherOutput:
        """Of some of the images."""
        return TeacherOutput(
            self.logits[chosen].float(), None if self.features is None else self.features[chosen].float()
        )

    def distance(self, other: TeacherOutput) -> torch.Tensor:
        """The mean squared distance of logits, and of features, each in units of this view's variance."""
        pairs = [(self.logits, other.logits)]
        if self.features is not None and other.features is not None:
            pairs.append((self.features, other.features))
        return sum((F.mse_loss(theirs, ours) / ours.var().clamp(min=1e-6) for ours, theirs in pairs), torch.zeros(()))


def teacher_outputs(teacher: Classifier, training: Split, asked: int) -> TeacherOutput | None:
    """The float model's view of all training images, where it is asked so often that this saves time.

    Args:
        teacher: images to logits.
        training: the images.
        asked: on how many images it would be asked otherwise.

    Returns:
        In bfloat16, which halves its size, and where the teacher is. None where asking is as cheap, or where it takes
        more than `TEACHER_BYTES`.
    """
    place = device_of(teacher)
    one = _teacher_output(teacher, to_unit(training.first(1).read(slice(None)).to(place)))
    values = one.logits.numel() + (0 if one.features is None else one.features.numel())
    if len(training) > asked or 2 * len(training) * values > TEACHER_BYTES:
        return None
    parts = [_teacher_output(teacher, to_unit(images.to(place))) for images, _ in training.batches(TEACHER_BATCH)]
    features = [part.features.bfloat16() for part in parts if part.features is not None]
    return TeacherOutput(
        torch.cat([part.logits for part in parts]).bfloat16(), torch.cat(features) if features else None
    )


@torch.no_grad()
def _teacher_output(teacher: Classifier, images: torch.Tensor) -> TeacherOutput:
    return _outputs_of(teacher, images)


def _outputs_of(classifier: Classifier, images: torch.Tensor) -> TeacherOutput:
    """A classifier's outputs, asked part by part; differentiable. Images do not depend on each other in eval mode."""
    parts = [_outputs_of_part(classifier, part) for part in images.split(part_size(images))]
    features = [part.features for part in parts if part.features is not None]
    return TeacherOutput(torch.cat([part.logits for part in parts]), torch.cat(features) if features else None)


def _outputs_of_part(classifier: Classifier, images: torch.Tensor) -> TeacherOutput:
    with fast_arithmetic(images.device):
        logits, features = logits_and_features(classifier, images.contiguous(memory_format=torch.channels_last))
    return TeacherOutput(logits.float(), None if features is None else features.float())
