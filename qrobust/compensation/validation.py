"""What a calibrator is chosen by: validation images, rendered once."""

from __future__ import annotations

import math

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.alignment import norms, statistics_distance
from qrobust.compensation.batches import Cell
from qrobust.data import Split
from qrobust.shifts.rendering import render, to_unit

# Clean validation images at most.
MOST_CLEAN = 2000


class Validation:
    """Validation images, rendered once, to choose by: many clean ones, some under every cell.

    Args:
        split: the validation split.
        cells: (shift, severity) to render.
        table: severity table.
        seed: of the rendering.
        limit: images under shift in all, shared among the cells, each cell taking other images of the
            split as far as there are enough.
        scene: validation images of a new scene, which count like one more cell: by accuracy where they have
            labels, else by how well they fit what `teacher` expects.
        teacher: the float classifier; needed for a scene without labels.
    """

    def __init__(
        self,
        split: Split,
        cells: list[Cell],
        *,
        table: str,
        seed: int,
        limit: int,
        scene: Split | None = None,
        teacher: Classifier | None = None,
    ) -> None:
        size = min(len(split), max(20, limit // max(1, len(cells))))
        clean = torch.arange(min(len(split), MOST_CLEAN))
        self.teacher = teacher
        self.parts = [(split.read(clean), split.labels[clean])]
        for index, (name, severity) in enumerate(cells):
            chosen = torch.arange(index * size, (index + 1) * size) % len(split)
            images = render(split.read(chosen), name, severity, table=table, seed=seed)
            self.parts.append((images, split.labels[chosen]))
        if scene is not None:
            some = scene.first(max(20, limit))
            self.parts.append((some.read(slice(None)), some.labels))

    @torch.inference_mode()
    def accuracies(self, classifier: Classifier, calibrator: Classifier | None = None) -> list[float]:
        """On clean images, in each cell, then on the scene; of the classifier behind the calibrator, if given."""
        found = []
        for images, labels in self.parts:
            inputs = [to_unit(part).contiguous(memory_format=torch.channels_last) for part in images.split(250)]
            seen = [calibrator(part) for part in inputs] if calibrator else inputs
            if (labels < 0).any():
                found.append(self._fit(classifier, torch.cat(seen)))
                continue
            predicted = torch.cat([classifier(part).argmax(1) for part in seen])
            found.append((predicted == labels).sum().item() / len(labels))
        return found

    def _fit(self, classifier: Classifier, images: torch.Tensor) -> float:
        """How well images without labels fit, from 0 to 1."""
        if isinstance(self.teacher, nn.Module) and norms(self.teacher):
            return math.exp(-float(statistics_distance(self.teacher, images)))
        return float(information(classifier(images)))

    def measure(self, classifier: Classifier, calibrator: Classifier | None = None) -> tuple[float, float]:
        """Clean accuracy, and the mean accuracy over the cells."""
        clean, *shifted = self.accuracies(classifier, calibrator)
        return clean, sum(shifted) / max(1, len(shifted))


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
