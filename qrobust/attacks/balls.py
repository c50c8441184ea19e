"""The geometry of a norm, handed to attacks as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qrobust.errors import InputError


def _check(epsilon: float) -> None:
    if not 0 <= epsilon < float("inf"):
        raise InputError(f"epsilon: expected a finite number >= 0, got {epsilon}")


def _length(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class LinfBall:
    """All perturbations whose largest absolute value is at most `epsilon` (unit: the [0, 1] scale)."""

    epsilon: float

    def __post_init__(self) -> None:
        _check(self.epsilon)

    def project(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation inside the ball; `(N, 3, H, W)`."""
        return perturbation.clamp(-self.epsilon, self.epsilon)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of unit norm along which the loss rises fastest."""
        return gradient.sign()

    def start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random perturbation inside the ball."""
        return (2 * torch.rand(images.shape, generator=generator) - 1) * self.epsilon


@dataclass(frozen=True)
class L2Ball:
    """All perturbations whose Euclidean length per image is at most `epsilon`."""

    epsilon: float

    def __post_init__(self) -> None:
        _check(self.epsilon)

    def project(self, perturbation: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation inside the ball; `(N, 3, H, W)`."""
        return perturbation * (self.epsilon / _length(perturbation)).clamp(max=1)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of unit norm along which the loss rises fastest."""
        return gradient / _length(gradient)

    def start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random perturbation inside the ball."""
        direction = torch.randn(images.shape, generator=generator)
        return direction / _length(direction) * self.epsilon


Ball = LinfBall | L2Ball
