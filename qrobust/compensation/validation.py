"""What a calibrator is chosen by: validation images, rendered once."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from qrobust.classifier import Classifier
from qrobust.compensation.alignment import norms, statistics_distance
from qrobust.compensation.batches import Condition
from qrobust.data.splits import Split
from qrobust.device import ask, device_of
from qrobust.evaluation.clean_cost import clean_cost
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.quantization.sensitivity import divergence
from qrobust.record import CleanCost
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render

# Sums of shares are exact but for the last bits.
ROUNDING = 1e-9
# Images, and their labels; -1 where there is none.
Part = tuple[torch.Tensor, torch.Tensor]
# Of each part, which of its images, bool `(n,)`.
Rows = list[torch.Tensor]
BATCH = 250
# Images of a condition at least.
LEAST_SHIFTED = 20


class Validation:
    """Validation images, rendered once, to choose by: as many clean ones as there may be, some under every condition.

    A gate is chosen among dozens by half a point of clean accuracy, which takes thousands of images to tell.

    Args:
        split: the validation split.
        conditions: (shift, severity) to render.
        table: severity table.
        seed: of the rendering.
        limit: clean images.
        shifted_limit: images under shift in all, which the conditions share, each taking other images of the split as
            far as there are enough; by default as many as clean ones.
        target_images: validation images of the target, like one more condition: by accuracy where they have
            labels, else by how well they fit what `teacher` expects.
        teacher: the float classifier; needed for target images without labels, and without labels at all.
        by_labels: whether labels are known, or the teacher's answers on unshifted images stand for them; see
            `teacher_divergence`.
        primary: what is called accuracy here: balanced accuracy and recalls are those of all rendered images
            together, for a single condition has few of each class.
    """

    def __init__(
        self,
        split: Split,
        conditions: list[Condition],
        *,
        table: str,
        seed: int,
        limit: int,
        shifted_limit: int | None = None,
        target_images: Split | None = None,
        teacher: Classifier | None = None,
        primary: Primary = ACCURACY,
        by_labels: bool = True,
    ) -> None:
        size = condition_size(len(split), len(conditions), limit if shifted_limit is None else shifted_limit)
        clean = torch.arange(min(len(split), limit))
        # Images of one label have neighbouring numbers, so that every so-manieth takes each label's share.
        numbers = torch.empty(len(split), dtype=torch.long)
        numbers[split.labels.argsort(stable=True)] = torch.arange(len(split))
        self.numbers = [numbers[clean]]
        self.teacher, self.primary, self.conditions = teacher, primary, len(conditions)
        self.parts = [(split.read(clean), split.labels[clean])]
        # Of each rendered part, what the teacher says of its images without the shift; none where labels are known.
        self.teacher_logits = [] if by_labels else [self._teacher_logits(self.parts[0][0])]
        for index, (name, severity) in enumerate(conditions):
            chosen = torch.arange(index * size, (index + 1) * size) % len(split)
            unshifted = split.read(chosen)
            images = render(unshifted, name, severity, table=table, seed=seed)
            self.parts.append((images, split.labels[chosen]))
            if not by_labels:
                self.teacher_logits.append(self._teacher_logits(unshifted))
            self.numbers.append(numbers[chosen])
        if target_images is not None:
            some = target_images.first(max(LEAST_SHIFTED, limit))
            self.parts.append((some.read(slice(None)), some.labels))
            self.numbers.append(torch.arange(len(some)))

    def folds(self, count: int) -> list[tuple[Rows, Rows]]:
        """For each of so many folds, the rows of every part that are not in it, and those that are.

        An image is in the same fold in every part, and each fold has its share of every class. A part of fewer images
        than folds is in none.
        """
        inside = [
            [(numbers % count == fold) & (len(numbers) >= count) for numbers in self.numbers] for fold in range(count)
        ]
        return [([~rows for rows in parts], parts) for parts in inside]

    def of_rows(self, rows: Rows) -> Validation:
        """The same conditions with these rows of each part alone."""
        found = copy.copy(self)
        found.parts = [(images[own], labels[own]) for (images, labels), own in zip(self.parts, rows, strict=True)]
        found.numbers = [numbers[own] for numbers, own in zip(self.numbers, rows, strict=True)]
        # Target images, the last part, have none.
        found.teacher_logits = [logits[own] for logits, own in zip(self.teacher_logits, rows, strict=False)]
        return found

    def accuracies(self, classifier: Classifier, calibrator: Classifier | None = None) -> list[float]:
        """On clean images, in each condition, on target images; of the classifier behind the calibrator, if given."""
        return [self._scores(part, classifier, calibrator).mean().item() for part in self.parts]

    def allowed_cost(self, budget: float) -> float:
        """What may be lost on clean images, a fraction: a budget in percentage points, or one image if that is more.

        Of a budget of 0 nothing.
        """
        return max(budget / 100, 1 / len(self.parts[0][1])) if budget else 0.0

    def least_clean(self, clean: float, budget: float) -> float:
        """What is to be kept of an accuracy on clean images, both fractions; see `allowed_cost`."""
        return clean - self.allowed_cost(budget) - ROUNDING

    def clean_cost(self, before: torch.Tensor, after: torch.Tensor, budget: float, folds: int = 0) -> CleanCost:
        """What is lost on clean images between scores before and after `(n,)`, with its bound; see `CleanCost`."""
        right, labels = (before.bool().numpy(), after.bool().numpy()), self.parts[0][1].numpy()
        allowed_pp = 100 * self.allowed_cost(budget)
        found = clean_cost(*right, labels, self.primary, budget_pp=budget, allowed_pp=allowed_pp)
        return replace(found, folds=folds)

    def clean_scores(self, classifier: Classifier, calibrator: Classifier | None = None) -> torch.Tensor:
        """Scores on the clean images, see `scores`."""
        return self._scores(self.parts[0], classifier, calibrator)

    def clean(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """The primary measure on clean images."""
        return self.clean_value(self.clean_scores(classifier, calibrator))

    def shifted(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """The mean over the conditions; target images weigh as one."""
        return self.shift_value([self._scores(part, classifier, calibrator) for part in self.parts[1:]])

    def measure(self, classifier: Classifier, calibrator: Classifier | None = None) -> tuple[float, float]:
        """On clean images, and the mean over the conditions."""
        return self.clean(classifier, calibrator), self.shifted(classifier, calibrator)

    @torch.no_grad()
    def teacher_divergence(self, classifier: Classifier, calibrator: Classifier | None = None) -> float:
        """Return the KL divergence of answers on rendered images from the teacher's on the unshifted ones, in nats.

        Clean images weigh as much as all conditions together. Without labels this tells better what is gained than
        agreement does, which falls with every answer that changes, though as many become right as wrong.
        """
        each = []
        for part, expected in zip(self.parts[: self.conditions + 1], self.teacher_logits, strict=True):
            seen = (images for images, _ in self.batches(part))
            said = [ask(classifier, ask(calibrator, images) if calibrator else images) for images in seen]
            each.append(divergence(expected, torch.cat(said).float()))
        clean, *shifted = each
        return (clean + sum(shifted) / len(shifted)) / 2 if shifted else clean

    @torch.no_grad()
    def _teacher_logits(self, images: torch.Tensor) -> torch.Tensor:
        """The teacher's logits of uint8 images, `(N, K)`."""
        assert self.teacher is not None
        return torch.cat([ask(self.teacher, to_unit(some)).float() for some in images.split(BATCH)])

    def clean_value(self, scores: torch.Tensor) -> float:
        """The primary measure of scores on the clean images, see `scores`."""
        return self._value(self.parts[:1], [scores])

    def shift_value(self, scores: list[torch.Tensor]) -> float:
        """The mean over the conditions of scores on the parts after the clean one."""
        rendered, target = self.parts[1 : self.conditions + 1], self.parts[self.conditions + 1 :]
        total = len(rendered) * self._value(rendered, scores[: self.conditions]) if rendered else 0.0
        total += self._value(target, scores[self.conditions :]) if target else 0.0
        return total / max(1, len(self.parts) - 1)

    def _value(self, parts: list[Part], scores: list[torch.Tensor]) -> float:
        """The primary measure over labelled parts together, or how well one without labels fits."""
        labels, each = torch.cat([labels for _, labels in parts]), torch.cat(scores)
        return each.mean().item() if (labels < 0).any() else self.primary.value(each.numpy(), labels.numpy())

    def batches(self, part: Part) -> Iterator[Part]:
        """A part in batches: images `(n, C, S, S)` in [0, 1], and their labels `(n,)`."""
        for images, labels in zip(*(some.split(BATCH) for some in part), strict=True):
            yield to_unit(images).contiguous(memory_format=torch.channels_last), labels

    @torch.no_grad()
    def scores(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each image `(n,)`: 1 where the classifier is right; without labels, how well all fit, from 0 to 1."""
        if (labels < 0).any():
            return torch.full((len(images),), self._fit(classifier, images), dtype=torch.float64)
        return (ask(classifier, images).argmax(1) == labels).double()

    @torch.no_grad()
    def _scores(self, part: Part, classifier: Classifier, calibrator: Classifier | None) -> torch.Tensor:
        seen = ((ask(calibrator, images) if calibrator else images, labels) for images, labels in self.batches(part))
        if (part[1] < 0).any():
            return self.scores(classifier, torch.cat([images for images, _ in seen]), part[1])
        return torch.cat([self.scores(classifier, *batch) for batch in seen])

    def _fit(self, classifier: Classifier, images: torch.Tensor) -> float:
        """How well images without labels fit, from 0 to 1."""
        if isinstance(self.teacher, nn.Module) and norms(self.teacher):
            return math.exp(-float(statistics_distance(self.teacher, images.to(device_of(self.teacher)))))
        return float(information(ask(classifier, images)))


def condition_size(images: int, conditions: int, limit: int) -> int:
    """How many of so many images a condition takes, where all conditions share a limit."""
    return min(images, max(LEAST_SHIFTED, limit // max(1, conditions)))


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
