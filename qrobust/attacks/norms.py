"""The geometry of a norm, handed to attacks as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qrobust.errors import InputError


def _check(epsilon: float) -> None:
    if not 0 <= epsilon < float("inf"):
        raise InputError(f"epsilon: expected a finite number >= 0, got {epsilon}")


LEVELS = 255  # steps of a uint8 pixel on the [0, 1] scale
SLACK = 1e-6  # 255 * (8 / 255) may be a hair below 8


def _length(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class LinfBall:
    """All perturbations whose largest absolute value is at most `epsilon` (unit: the [0, 1] scale)."""

    epsilon: float

    def __post_init__(self) -> None:
        _check(self.epsilon)

    def project(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation inside the ball; `(N, C, H, W)`."""
        return perturbation.clamp(-self.epsilon, self.epsilon)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of unit norm along which the loss rises fastest."""
        return gradient.sign()

    def start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random perturbation inside the ball."""
        return (2 * torch.rand(images.shape, generator=generator) - 1) * self.epsilon

    def length(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The norm of each image's perturbation, `(N,)`."""
        return perturbation.flatten(1).abs().amax(1)

    def whole(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation of whole uint8 steps (float64, unit 1/255) inside the ball."""
        limit = math.floor(LEVELS * self.epsilon + SLACK)
        return (LEVELS * perturbation.double()).round().clamp(-limit, limit)


@dataclass(frozen=True)
class L2Ball:
    """All perturbations whose Euclidean length per image is at most `epsilon`."""

    epsilon: float

    def __post_init__(self) -> None:
        _check(self.epsilon)

    def project(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation inside the ball; `(N, C, H, W)`."""
        return perturbation * (self.epsilon / _length(perturbation)).clamp(max=1)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of unit norm along which the loss rises fastest."""
        return gradient / _length(gradient)

    def start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random perturbation inside the ball."""
        direction = torch.randn(images.shape, generator=generator)
        return direction / _length(direction) * self.epsilon

    def length(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The norm of each image's perturbation, `(N,)`."""
        return perturbation.flatten(1).norm(dim=1)

    def whole(self, perturbation: torch.Tensor) -> torch.Tensor:
        """A perturbation of whole uint8 steps (float64, unit 1/255) inside the ball, near the given one.

        Every value is rounded to the nearest step. Where that leaves the ball, values that were rounded away
        from zero are rounded towards it instead, the most doubtful first, as few as needed.
        """
        exact = LEVELS * self.project(perturbation.double()).flatten(1)
        size = exact.abs().round()
        outward = size - exact.abs()
        order = outward.argsort(dim=1, descending=True)
        saved = torch.where(outward > 0, 2 * size - 1, 0).gather(1, order)  # s^2 - (s - 1)^2
        excess = (size**2).sum(1, keepdim=True) - (LEVELS * self.epsilon + SLACK) ** 2
        back = (saved.cumsum(1) - saved < excess) & (saved > 0)
        size -= torch.zeros_like(size).scatter(1, order, back.double())
        return (exact.sign() * size).view_as(perturbation)


Ball = LinfBall | L2Ball
