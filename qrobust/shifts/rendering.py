"""One render for all classifiers: uint8 pixels in, the uint8 pixels a device would see out."""

from __future__ import annotations

import hashlib

import torch

from qrobust.errors import InputError
from qrobust.shifts.severities import SEVERITIES, TABLES, find_shift


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 `(N, 3, H, W)` to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float `(N, 3, H, W)`, clamped to [0, 1] and rounded to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def generators_for(images: torch.Tensor, label: str) -> list[torch.Generator]:
    """One generator per image, seeded by its pixels and `label` alone.

    So what an image becomes depends on neither batch size, order nor position in a data set.
    """
    generators = []
    for pixels in images.numpy():
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, key=label.encode()[:64]).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
    return generators


def render(images: torch.Tensor, name: str, severity: int, *, table: str, seed: int) -> torch.Tensor:
    """Apply a shift.

    Args:
        images: uint8 `(N, 3, H, W)`.
        name: a key of `SHIFTS`.
        severity: 1 to 5.
        table: `imagenet-c` or `cifar-c`.
        seed: equal seeds give equal pixels.

    Returns:
        uint8 images of the same shape.

    Raises:
        InputError: wrong type or shape, unknown shift or table, or a severity not defined for it.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images: expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    shift = find_shift(name)
    if table not in TABLES:
        raise InputError(f"severity_table: expected one of {', '.join(TABLES)}, got {table!r}")
    strength = shift.strengths[table][severity - 1] if severity in SEVERITIES else None
    if strength is None:
        raise InputError(f"severity: expected one defined for {name}, got {severity}")
    generators = generators_for(images, f"{seed}/{name}/{severity}/{table}")
    return to_uint8(shift.function(to_unit(images), *strength, generators=generators))
