"""What a calibrator is chosen by: validation images, rendered once."""

from __future__ import annotations

import math

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.alignment import norms, statistics_distance
from qrobust.compensation.batches import Condition
from qrobust.data.splits import Split
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render


class Validation:
    """Validation images, rendered once, to choose by: as many clean ones as there may be, some under every condition.

    A gate is chosen among dozens by half a point of clean accuracy, which takes thousands of images to tell.

    Args:
        split: the validation split.
        conditions: (shift, severity) to render.
        table: severity table.
        seed: of the rendering.
        limit: clean images, and images under shift in all; the conditions share those, each taking other images of
            the split as far as there are enough.
        target_images: validation images of the target, like one more condition: by accuracy where they have
            labels, else by how well they fit what `teacher` expects.
        teacher: the float classifier; needed for target images without labels.
    """

    def __init__(
        self,
        split: Split,
        conditions: list[Condition],
        *,
        table: str,
        seed: int,
        limit: int,
        target_images: Split | None = None,
        teacher: Classifier | None = None,
    ) -> None:
        size = min(len(split), max(20, limit // max(1, len(conditions))))
        clean = torch.arange(min(len(split), limit))
        self.teacher = teacher
        self.parts = [(split.read(clean), split.labels[clean])]
        for index, (name, severity) in enumerate(conditions):
            chosen = torch.arange(index * size, (index + 1) * size) % len(split)
            images = render(split.read(chosen), name, severity, table=table, seed=seed)
            self.parts.append((images, split.labels[chosen]))
        if target_images is not None:
            some = target_images.first(max(20, limit))
            self.parts.append((some.read(slice(None)), some.labels))

    def accuracies(self, classifier: Classifier, calibrator: Classifier | None = None) -> list[float]:
        """On clean images, in each condition, on target images; of the classifier behind the calibrator, if given."""
        return [self._accuracy(part, classifier, calibrator) for part in self.parts]

    def clean(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """Accuracy on clean images."""
        return self._accuracy(self.parts[0], classifier, calibrator)

    def shifted(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """The mean accuracy over the conditions."""
        found = [self._accuracy(part, classifier, calibrator) for part in self.parts[1:]]
        return sum(found) / max(1, len(found))

    def measure(self, classifier: Classifier, calibrator: Classifier | None = None) -> tuple[float, float]:
        """Clean accuracy, and the mean accuracy over the conditions."""
        return self.clean(classifier, calibrator), self.shifted(classifier, calibrator)

    @torch.inference_mode()
    def _accuracy(
        self, part: tuple[torch.Tensor, torch.Tensor], classifier: Classifier, calibrator: Classifier | None
    ) -> float:
        images, labels = part
        inputs = [to_unit(some).contiguous(memory_format=torch.channels_last) for some in images.split(250)]
        seen = [calibrator(some) for some in inputs] if calibrator else inputs
        if (labels < 0).any():
            return self._fit(classifier, torch.cat(seen))
        predicted = torch.cat([classifier(some).argmax(1) for some in seen])
        return (predicted == labels).sum().item() / len(labels)

    def _fit(self, classifier: Classifier, images: torch.Tensor) -> float:
        """How well images without labels fit, from 0 to 1."""
        if isinstance(self.teacher, nn.Module) and norms(self.teacher):
            return math.exp(-float(statistics_distance(self.teacher, images)))
        return float(information(classifier(images)))


def information(logits: torch.Tensor) -> torch.Tensor:
    """Mutual information of images and predictions, in units of log K: 1 is sure and balanced, 0 is neither.

    Liang et al., "Do We Really Need to Access the Source Data?", arXiv 2002.08546.

    Args:
        logits: `(N, K)`.
    """
    probabilities = logits.softmax(1)
    mean = probabilities.mean(0)
    whole = -(mean * mean.clamp(min=1e-8).log()).sum()
    each = -(probabilities * logits.log_softmax(1)).sum(1).mean()
    return (whole - each) / math.log(logits.shape[1])
