"""What a calibrator meets in training: clean images, shifted ones, and target images, mixed."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, fields

import torch

from qrobust.data.splits import TrainingData
from qrobust.shifts.generic import draw
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

    def to(self, place: torch.device) -> MixedBatch:
        """The same batch on a device."""
        return MixedBatch(**{entry.name: getattr(self, entry.name).to(place) for entry in fields(self)})


def mixed_batch(data: TrainingData, weights: torch.Tensor, *, batch_size: int, step: int, seed: int) -> MixedBatch:
    """The batch of one step: a function of the seed and the step alone.

    Args:
        data: what to draw from. Target images take half of what is not clean, or all where nothing is rendered; of
            what is rendered, random operations have their share.
        weights: how likely each condition is, see `sampling`; not used without conditions.
        batch_size: images.
        step: of the training.
        seed: of the training.
    """
    training, target_images = data.images, data.target_images
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen = torch.randint(len(training), (batch_size,), generator=generator)
    images, labels = training.read(chosen), training.labels[chosen]
    clean, shifted = images.clone(), images.clone()
    aligned, paired = torch.ones(batch_size, dtype=torch.bool), torch.ones(batch_size, dtype=torch.bool)
    groups = list(torch.arange(batch_size).tensor_split(GROUPS))
    real_groups = [
        index
        for index in range(CLEAN_GROUPS, GROUPS)
        if target_images is not None and (index % 2 == 0 or not data.renders)
    ]
    for index in real_groups:
        assert target_images is not None
        rows = groups[index]
        real = torch.randint(len(target_images), (len(rows),), generator=generator)
        clean[rows], labels[rows] = target_images.read(real), target_images.labels[real]
        shifted[rows] = clean[rows]
        aligned[rows] = paired[rows] = False
    rendered = [groups[index] for index in range(CLEAN_GROUPS, GROUPS) if index not in real_groups]
    is_drawn = data.drawn_groups(len(rendered))
    for rows in itertools.compress(rendered, [not drawn for drawn in is_drawn]):
        name, severity = data.conditions[int(torch.multinomial(weights, 1, generator=generator))]
        shifted[rows] = render(clean[rows], name, severity, table=data.table, seed=seed * 1_000_003 + step)
        aligned[rows] = find_shift(name).keeps_pixels
    if any(is_drawn):
        rows = torch.cat(list(itertools.compress(rendered, is_drawn)))
        shifted[rows], aligned[rows] = draw(
            clean[rows], training.indices[chosen[rows]], seed=seed, epoch=step, families=data.families
        )
    return MixedBatch(chosen, clean, shifted, labels, aligned, paired)


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
