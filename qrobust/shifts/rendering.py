"""One render for all classifiers: uint8 pixels in, the uint8 pixels a device would see out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from qrobust.errors import InputError, unknown
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.registry import (
    GRIDS,
    SEVERITIES,
    TABLES,
    Shift,
    find_shift,
)
from qrobust.shifts.rng import Generators
from qrobust.shifts.transformations import pose
from qrobust.user_code import file_of, running

# So many float32 values stay in a core's own cache.
CACHED_VALUES = 2**18
# Smaller images have nothing that could be moved or blurred, and some shifts never end on them.
LEAST_SIDE = 8

__all__ = ["generators_for", "render", "render_grid", "to_uint8", "to_unit"]


def generators_for(images: torch.Tensor, label: str) -> Generators:
    """One stream of random numbers per image, seeded by its pixels and `label` alone.

    So what an image becomes depends on neither batch size, order nor position in a data set. Of two images
    one in 2^32 pairs shares its numbers.
    """
    start = int.from_bytes(hashlib.blake2b(label.encode(errors="backslashreplace"), digest_size=8).digest(), "little")
    return Generators([start ^ zlib.crc32(pixels) for pixels in images.contiguous().numpy()])


def torch_generators_for(images: torch.Tensor, label: str) -> list[torch.Generator]:
    """One generator per image, as `generators_for`, for a user's function."""
    generators, key = [], hashlib.blake2b(label.encode(errors="backslashreplace")).digest()
    for pixels in images.contiguous().numpy():
        digest = hashlib.blake2b(pixels, digest_size=8, key=key).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
    return generators


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"images: expected uint8 (N, 3, H, W) or (N, 1, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if min(images.shape[2:]) < LEAST_SIDE:
        raise InputError(f"images: expected sides of at least {LEAST_SIDE} px, got {tuple(images.shape)}")


def render(images: torch.Tensor, name: str, severity: int, *, table: str, seed: int) -> torch.Tensor:
    """Apply a shift.

    Of a grey image three equal channels are rendered and the middle one is kept.

    Args:
        images: uint8 `(N, 3, H, W)` or grey `(N, 1, H, W)`.
        name: a key of `SHIFTS`, or `FILE.py:FUNCTION`.
        severity: 1 to 5.
        table: `imagenet-c` or `cifar-c`.
        seed: equal seeds give equal pixels.

    Returns:
        uint8 images of the same shape.

    Raises:
        InputError: wrong type or shape, unknown shift or table, a severity not defined for it, or a user's
            function that fails or returns what is no image.
    """
    _check_images(images)
    shift = find_shift(name)
    if table not in TABLES:
        raise unknown("severity_table", table, TABLES)
    strength = shift.strengths[table][severity - 1] if severity in SEVERITIES else None
    if strength is None:
        raise InputError(f"severity: expected one defined for {name}, got {severity}")
    label = f"{seed}/{Path(name).name}/{severity}/{table}"  # wherever a user's file lies
    portion = max(1, CACHED_VALUES // max(1, 3 * images[:1, 0].numel()))
    grey = images.shape[1] == 1
    result = torch.empty_like(images)
    for part, target in zip(images.split(portion), result.split(portion), strict=True):
        shown = _apply(part.repeat(1, 3, 1, 1) if grey else part, shift, strength, label)
        target.copy_(shown[:, 1:2] if grey else shown)
    return result


def _apply(images: torch.Tensor, shift: Shift, strength: tuple, label: str) -> torch.Tensor:
    """uint8, or whole numbers from 0 to 255 of another type."""
    if shift.is_custom:
        return to_uint8(_own(shift, to_unit(images), strength, torch_generators_for(images, label)))
    inputs = images if shift.on_pixels else to_unit(images)
    generators = generators_for(images if shift.random else images[:0], label)
    result = shift.function(inputs, *strength, generators=generators)
    # The result is nobody else's: rounded in place, and by way of int16, which is several times as fast.
    return result if result.dtype == torch.uint8 else result.clamp_(0, 1).mul_(255).round_().to(torch.int16)


def _own(shift: Shift, images: torch.Tensor, strength: tuple, generators: list[torch.Generator]) -> torch.Tensor:
    """A user's function, whose result is not trusted."""
    with running(file_of(shift.name), f"shift: {shift.name} failed"):
        result = shift.function(images.clone(), *strength, generators)
    if not isinstance(result, torch.Tensor) or not result.is_floating_point() or result.shape != images.shape:
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
        raise InputError(f"shift: {shift.name} must return float images {tuple(images.shape)}, got {got}")
    if result.isnan().any():
        raise InputError(f"shift: {shift.name} must return numbers, got NaN in {int(result.isnan().sum())} values")
    if result.numel() and (result.min() < 0 or result.max() > 1):
        low, high = float(result.min()), float(result.max())
        raise InputError(f"shift: {shift.name} must return images in [0, 1], got {low:.3g} to {high:.3g}")
    return result


def render_grid(images: torch.Tensor, grid: str) -> Iterator[torch.Tensor]:
    """The same images in every pose of a grid of `GRIDS`, for a worst-of-k accuracy.

    Args:
        images: as for `render`.
        grid: a key of `GRIDS`.

    Yields:
        uint8 images of the same shape, per pose.

    Raises:
        InputError: wrong type or shape, or no such grid.
    """
    _check_images(images)
    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    for degrees, right, down in GRIDS[grid]:
        yield to_uint8(pose(to_unit(images), degrees, right, down))
