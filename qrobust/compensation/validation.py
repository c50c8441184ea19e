"""What a calibrator is chosen by: validation images, rendered once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.alignment import norms, statistics_distance
from qrobust.compensation.batches import Condition
from qrobust.data.splits import Split
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render

BATCH = 250


class Validation:
    """Validation images, rendered once, to choose by: as many clean ones as there may be, some under every cell.

    A gate is chosen among dozens by half a point of clean accuracy, which takes thousands of images to tell.

    Args:
        split: the validation split.
        conditions: (shift, severity) to render.
        table: severity table.
        seed: of the rendering.
        limit: clean images, and images under shift in all; those are shared among the cells, each cell taking other
            images of the split as far as there are enough.
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
        return [self._accuracy(part, classifier, calibrator) for part in range(len(self.parts))]

    def clean(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """Accuracy on clean images."""
        return self._accuracy(0, classifier, calibrator)

    def shifted(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """The mean accuracy over the cells."""
        found = [self._accuracy(part, classifier, calibrator) for part in range(1, len(self.parts))]
        return sum(found) / max(1, len(found))

    def measure(self, classifier: Classifier, calibrator: Classifier | None = None) -> tuple[float, float]:
        """Clean accuracy, and the mean accuracy over the cells."""
        return self.clean(classifier, calibrator), self.shifted(classifier, calibrator)

    def batches(self, part: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The images of a part, clean ones first: batches `(n, C, S, S)` in [0, 1], and their labels `(n,)`."""
        images, labels = self.parts[part]
        for some, theirs in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            yield to_unit(some).contiguous(memory_format=torch.channels_last), theirs

    @torch.inference_mode()
    def scores(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each image `(n,)`: 1 where the classifier is right; without labels, how well all fit, from 0 to 1."""
        if (labels < 0).any():
            return torch.full((len(images),), self._fit(classifier, images))
        return (classifier(images).argmax(1) == labels).float()

    @torch.inference_mode()
    def _accuracy(self, part: int, classifier: Classifier, calibrator: Classifier | None) -> float:
        seen = ((calibrator(images) if calibrator else images, labels) for images, labels in self.batches(part))
        if (self.parts[part][1] < 0).any():
            return self._fit(classifier, torch.cat([images for images, _ in seen]))
        return torch.cat([self.scores(classifier, *batch) for batch in seen]).double().mean().item()

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
