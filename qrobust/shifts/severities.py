"""Severity is data: what strength a severity from 1 to 5 means, per table.

`imagenet-c` and `cifar-c` are the two tables published with arXiv 1903.12261 (for 224 px and 32 px
images); they differ a lot, so a record always names the one used. Transformations have one scale of
their own, in physical units, whatever the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qrobust.errors import InputError
from qrobust.shifts import corruptions as c
from qrobust.shifts import transformations as t

TABLES = ("cifar-c", "imagenet-c")
SEVERITIES = (1, 2, 3, 4, 5)
# From this side on the ImageNet constants are the meaningful ones.
IMAGENET_TABLE_SIZE = 64


@dataclass(frozen=True)
class Shift:
    """One kind of shift.

    Attributes:
        name: as in reports and options.
        family: `noise`, `blur`, `weather`, `digital`, `geometry` or `colour`.
        function: images, strengths and generators to images.
        unit: what the strength means.
        strengths: table name to the arguments for severities 1 to 5 (None: not defined there).
        keeps_pixels: each pixel still shows the same spot of the scene.
    """

    name: str
    family: str
    function: Callable[..., torch.Tensor]
    unit: str
    strengths: dict[str, tuple[tuple | None, ...]]
    keeps_pixels: bool = True


def _corruption(
    function: Callable[..., torch.Tensor], family: str, unit: str, cifar: tuple, imagenet: tuple
) -> Shift:
    tables = {"cifar-c": cifar, "imagenet-c": imagenet}
    arguments: dict[str, tuple[tuple | None, ...]] = {
        k: tuple(s if isinstance(s, tuple) else (s,) for s in v) for k, v in tables.items()
    }
    return Shift(function.__name__, family, function, unit, arguments)


def _transformation(function: Callable[..., torch.Tensor], unit: str, strengths: tuple) -> Shift:
    arguments = tuple((s,) for s in strengths)
    return Shift(function.__name__, "geometry", function, unit, dict.fromkeys(TABLES, arguments), keeps_pixels=False)


_ALL = (
    _corruption(c.gaussian_noise, "noise", "standard deviation, of 1",
                (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    _corruption(c.shot_noise, "noise", "photons at white",
                (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    _corruption(c.impulse_noise, "noise", "fraction of values",
                (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    _corruption(c.defocus_blur, "blur", "radius and rim, px",
                ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
                ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    _corruption(c.motion_blur, "blur", "radius and sigma, px",
                ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
                ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    _corruption(c.fog, "weather", "thickness and roughness decay",
                ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
                ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    _corruption(c.brightness, "weather", "added to value, of 1",
                (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    _corruption(c.contrast, "digital", "factor",
                (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    _corruption(c.jpeg_compression, "digital", "quality",
                (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    _corruption(c.pixelate, "digital", "fraction of the side",
                (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    _transformation(t.rotation, "degrees", (6, 12, 18, 24, 30)),
    _transformation(t.translation, "fraction of the side", (0.05, 0.10, 0.15, 0.20, 0.25)),
    _transformation(t.scale, "factor", (0.94, 0.88, 0.82, 0.76, 0.70)),
    _transformation(t.shear, "degrees", (5, 10, 15, 20, 25)),
    Shift("inversion", "colour", t.inversion, "full negative (severity 5 only)",
          dict.fromkeys(TABLES, (None, None, None, None, ()))),
)  # fmt: skip

SHIFTS: dict[str, Shift] = {s.name: s for s in _ALL}


def table_for(image_size: int) -> str:
    """The severity table that suits images of this side in pixels."""
    return "imagenet-c" if image_size >= IMAGENET_TABLE_SIZE else "cifar-c"


def find_shift(name: str) -> Shift:
    """The shift of this name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in SHIFTS:
        raise InputError(f"shift: expected one of {', '.join(SHIFTS)}, got {name!r}")
    return SHIFTS[name]


def cells(names: tuple[str, ...], severities: tuple[int, ...], table: str) -> list[tuple[str, int]]:
    """Every (shift, severity) that is defined, in order: the rows of an evaluation.

    Raises:
        InputError: an unknown shift or table, or a severity outside 1 to 5.
    """
    if table not in TABLES:
        raise InputError(f"severity_table: expected one of {', '.join(TABLES)}, got {table!r}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise InputError(f"severity: expected an integer from 1 to 5, got {severity}")
    found = []
    for name in names:
        strengths = find_shift(name).strengths[table]
        found += [(name, s) for s in severities if strengths[s - 1] is not None]
    return found
