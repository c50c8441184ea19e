"""What a calibrator meets in training: clean images, shifted ones, and target images, mixed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from qrobust.data.splits import TrainingData
from qrobust.shifts.registry import find_shift
from qrobust.shifts.rendering import render

Condition = tuple[str, int]
# Shares of a batch: this many groups, each under one shift drawn anew; the first ones stay clean.
GROUPS = 16
CLEAN_GROUPS = 4


@dataclass(frozen=True)
class MixedBatch:
    """Images as a calibrator meets them in training; a quarter of them clean.

    Attributes:
        chosen: positions in the training split `(N,)`.
        clean: uint8 `(N, C, S, S)`.
        shifted: the same images under the shifts, uint8.
        labels: `(N,)`; -1 where there is none.
        aligned: whether each pixel still shows the same spot of the scene, `(N,)`.
        paired: whether there is a clean image at all, `(N,)`; target images have none, and stand in both
            places.
    """

    chosen: torch.Tensor
    clean: torch.Tensor
    shifted: torch.Tensor
    labels: torch.Tensor
    aligned: torch.Tensor
    paired: torch.Tensor


def mixed_batch(data: TrainingData, weights: torch.Tensor, *, batch_size: int, step: int, seed: int) -> MixedBatch:
    """The batch of one step: a function of the seed and the step alone.

    Args:
        data: what to draw from. Target images take half of what is not clean, or all where there are no conditions.
        weights: how likely each condition is, see `sampling`.
        batch_size: images.
        step: of the training.
        seed: of the training.
    """
    training, conditions, target_images = data.images, data.conditions, data.target_images
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen = torch.randint(len(training), (batch_size,), generator=generator)
    clean, labels = (
        list(training.read(chosen).tensor_split(GROUPS)),
        list(training.labels[chosen].tensor_split(GROUPS)),
    )
    shifted, aligned, paired = [], [], []
    for index, part in enumerate(clean):
        is_scene = target_images is not None and index >= CLEAN_GROUPS and (index % 2 == 0 or not conditions)
        if is_scene:
            assert target_images is not None
            real = torch.randint(len(target_images), (len(part),), generator=generator)
            clean[index], labels[index] = target_images.read(real), target_images.labels[real]
            shifted.append(clean[index])
            aligned += [False] * len(part)
        elif index < CLEAN_GROUPS:
            shifted.append(part)
            aligned += [True] * len(part)
        else:
            name, severity = conditions[int(torch.multinomial(weights, 1, generator=generator))]
            shifted.append(render(part, name, severity, table=data.table, seed=seed * 1_000_003 + step))
            aligned += [find_shift(name).keeps_pixels] * len(part)
        paired += [not is_scene] * len(part)
    return MixedBatch(
        chosen, torch.cat(clean), torch.cat(shifted), torch.cat(labels), torch.tensor(aligned), torch.tensor(paired)
    )


def sampling(conditions: list[Condition], errors: list[float] | None = None, hard_share: float = 0.0) -> torch.Tensor:
    """How likely each condition is to be drawn, summing to 1: every shift alike, then every severity of it.

    Args:
        conditions: (shift, severity).
        errors: of the classifier alone in each condition.
        hard_share: share of the draws, from 0 to 1, that go by those errors instead, to what hurts most.
    """
    count = Counter(name for name, _ in conditions)
    alike = torch.tensor([1 / (len(count) * count[name]) for name, _ in conditions])
    if errors is None or not sum(errors):
        return alike
    hurting = alike * torch.tensor(errors)
    return (1 - hard_share) * alike + hard_share * hurting / hurting.sum()
