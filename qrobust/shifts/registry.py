"""Severity is data: what strength a severity from 1 to 5 means, per table.

`imagenet-c` and `cifar-c` are the two tables published with arXiv 1903.12261 (for 224 px and 32 px
images); they differ a lot, so a record always names the one used. Transformations have one scale of
their own, in physical units, whatever the table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qrobust.errors import InputError, nearest, unknown
from qrobust.paths import user_path
from qrobust.shifts import c_bar
from qrobust.shifts import corruptions as c
from qrobust.shifts import generic as g
from qrobust.shifts import transformations as t
from qrobust.shifts.c_bar.strengths import STRENGTHS
from qrobust.user_code import (
    UserFile,
    file_of,
    is_code,
    loaded,
)

TABLES = ("cifar-c", "imagenet-c")
SEVERITIES = (1, 2, 3, 4, 5)
# Of random operations, to choose by: their strength is continuous in training.
GENERIC_SEVERITIES = (3, 5)
# Images on which a user's own shift is tried before anything is written.
TRIED_IMAGES = 8
C_BAR = "c-bar"  # the suite that nothing learns from, nor is chosen by
STORED = "stored:"  # begins the name of a set of shifted images that lies on disk
# From this side on the ImageNet constants are the meaningful ones.
IMAGENET_TABLE_SIZE = 64


@dataclass(frozen=True)
class Shift:
    """One kind of shift.

    Attributes:
        name: as in reports and options.
        family: `noise`, `blur`, `weather`, `digital`, `geometry`, `colour`, `sensor`, `c-bar`, `generic` or
            `own`.
        function: images, strengths and generators to images.
        unit: what the strength means.
        strengths: table name to the arguments for severities 1 to 5 (None: not defined there).
        keeps_pixels: each pixel still shows the same spot of the scene.
        random: the function draws random numbers.
        on_pixels: the function takes uint8 instead of float32 in [0, 1].
        is_custom: a user's function, whose output is checked.
        version: changes when equal arguments give other pixels than before, so that what was kept is not reused.
    """

    name: str
    family: str
    function: Callable[..., torch.Tensor]
    unit: str
    strengths: dict[str, tuple[tuple | None, ...]]
    keeps_pixels: bool = True
    random: bool = True
    on_pixels: bool = False
    is_custom: bool = False
    version: str = ""


def _version(*, random: bool = True, version: str = "", **_: object) -> str:
    """Of a shift; of a random one, of the numbers that it draws."""
    return "counters" if random else version


def _arguments(strengths: tuple) -> tuple[tuple, ...]:
    return tuple(s if isinstance(s, tuple) else (s,) for s in strengths)


def _corruption(
    function: Callable[..., torch.Tensor], family: str, unit: str, cifar: tuple, imagenet: tuple, **traits: Any
) -> Shift:
    tables: dict[str, tuple[tuple | None, ...]] = {"cifar-c": _arguments(cifar), "imagenet-c": _arguments(imagenet)}
    return Shift(function.__name__, family, function, unit, tables, **traits | {"version": _version(**traits)})


def _transformation(
    function: Callable[..., torch.Tensor], family: str, unit: str, strengths: tuple, **traits: Any
) -> Shift:
    """One scale for both tables; without strengths, all or nothing: severity 5 only."""
    arguments = _arguments(strengths) if strengths else (None, None, None, None, ())
    if function is t.jpeg_chain:  # one argument, which is a tuple
        arguments = tuple((s,) for s in strengths)
    traits = {"keeps_pixels": family != "geometry", "random": False} | traits
    tables: dict[str, tuple[tuple | None, ...]] = dict.fromkeys(TABLES, arguments)
    return Shift(function.__name__, family, function, unit, tables, **traits | {"version": _version(**traits)})


# The published ImageNet-C code takes its elastic constants from a side of 244 px and applies them to 224 px.
_ELASTIC = tuple(
    tuple(fraction * 244 / 224 for fraction in row)
    for row in (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )
)
_CORRUPTIONS = (
    _corruption(
        c.gaussian_noise,
        "noise",
        "standard deviation, of 1",
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    _corruption(c.shot_noise, "noise", "photons at white", (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    _corruption(
        c.impulse_noise,
        "noise",
        "fraction of values",
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.03, 0.06, 0.09, 0.17, 0.27),
        on_pixels=True,
    ),
    _corruption(
        c.defocus_blur,
        "blur",
        "radius and rim, px",
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        random=False,
        version="without negligible weights",
    ),
    _corruption(
        c.glass_blur,
        "blur",
        "sigma and reach, px; rounds",
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    _corruption(
        c.motion_blur,
        "blur",
        "radius and sigma, px",
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # numpy.arange, by which the published code counts the layers, may or may not reach its end.
    _corruption(
        c.zoom_blur,
        "blur",
        "difference of enlargements, and their number",
        ((0.01, 6), (0.01, 11), (0.01, 16), (0.01, 21), (0.01, 26)),
        ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),
        random=False,
        on_pixels=True,
        version="small ones by a matrix",
    ),
    _corruption(
        c.snow,
        "weather",
        "noise, zoom, threshold, smear, kept share",
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    _corruption(
        c.frost,
        "weather",
        "kept share, share of frost, size of its picture",
        ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    ),
    _corruption(
        c.fog,
        "weather",
        "thickness and roughness decay",
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    ),
    _corruption(
        c.brightness,
        "weather",
        "added to value, of 1",
        (0.05, 0.1, 0.15, 0.2, 0.3),
        (0.1, 0.2, 0.3, 0.4, 0.5),
        random=False,
    ),
    _corruption(
        c.contrast, "digital", "factor", (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), random=False
    ),
    _corruption(
        c.elastic_transform,
        "digital",
        "amplitude, smoothing and corners, fractions of the side",
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        _ELASTIC,
        keeps_pixels=False,
    ),
    _corruption(
        c.pixelate,
        "digital",
        "fraction of the side",
        (0.95, 0.9, 0.85, 0.75, 0.65),
        (0.6, 0.5, 0.4, 0.3, 0.25),
        random=False,
        on_pixels=True,
    ),
    _corruption(
        c.jpeg_compression,
        "digital",
        "quality",
        (80, 65, 58, 50, 40),
        (25, 18, 15, 10, 7),
        random=False,
        on_pixels=True,
    ),
)
_EXTRA_CORRUPTIONS = (
    _corruption(
        c.speckle_noise,
        "noise",
        "standard deviation, of the pixel",
        (0.06, 0.1, 0.12, 0.16, 0.2),
        (0.15, 0.2, 0.35, 0.45, 0.6),
    ),
    _corruption(c.gaussian_blur, "blur", "sigma, px", (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), random=False),
    _corruption(
        c.spatter,
        "weather",
        "noise, sigma px, threshold, strength, water or mud",
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    _corruption(
        c.saturate,
        "digital",
        "factor of the saturation, and what is added",
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        random=False,
    ),
)
_TRANSFORMATIONS = (
    _transformation(t.rotation, "geometry", "degrees", (6, 12, 18, 24, 30)),
    _transformation(t.translation, "geometry", "fraction of the side", (0.05, 0.10, 0.15, 0.20, 0.25)),
    _transformation(t.scale, "geometry", "factor", (0.94, 0.88, 0.82, 0.76, 0.70)),
    _transformation(t.shear, "geometry", "degrees", (5, 10, 15, 20, 25)),
    _transformation(t.inversion, "colour", "full negative (severity 5 only)", ()),
    _transformation(t.perspective, "geometry", "share by which the far side is shorter", (0.1, 0.2, 0.3, 0.4, 0.5)),
    _transformation(t.elastic, "geometry", "mean displacement, px at 224 px", (1, 2, 3, 4, 6), random=True),
    _transformation(t.horizontal_flip, "geometry", "mirror image (severity 5 only)", ()),
    _transformation(t.vertical_flip, "geometry", "upside down (severity 5 only)", ()),
    _transformation(t.solarize, "colour", "value above which it is inverted, of 1", (0.9, 0.8, 0.7, 0.6, 0.5)),
    _transformation(t.posterize, "colour", "bits per channel", (5, 4, 3, 2, 1)),
    _transformation(t.grey, "colour", "luma only (severity 5 only)", ()),
    _transformation(t.hue, "colour", "degrees", (20, 40, 70, 110, 180)),
    _transformation(t.saturation, "colour", "factor", (0.8, 0.6, 0.4, 0.2, 0.1)),
    _transformation(t.gamma, "colour", "exponent", (1.3, 1.6, 2.0, 2.5, 3.0)),
    _transformation(t.sharpness, "digital", "factor of the detail", (2, 4, 6, 9, 13)),
    _transformation(
        t.jpeg_chain,
        "digital",
        "qualities, in order",
        ((90, 75), (80, 60), (70, 85, 50), (60, 80, 40), (50, 75, 40, 30)),
        on_pixels=True,
    ),
    _transformation(t.resize_nearest, "digital", "fraction of the side", (0.9, 0.8, 0.7, 0.6, 0.5), on_pixels=True),
    _transformation(t.resize_bilinear, "digital", "fraction of the side", (0.9, 0.8, 0.7, 0.6, 0.5), on_pixels=True),
    _transformation(t.resize_bicubic, "digital", "fraction of the side", (0.9, 0.8, 0.7, 0.6, 0.5), on_pixels=True),
    _transformation(t.resize_area, "digital", "fraction of the side", (0.9, 0.8, 0.7, 0.6, 0.5), on_pixels=True),
    _transformation(t.bayer_mosaic, "sensor", "read noise, of 1", (0, 0.01, 0.02, 0.04, 0.08), random=True),
    _transformation(t.vignetting, "sensor", "light lost in the corner, of 1", (0.2, 0.35, 0.5, 0.65, 0.8)),
    _transformation(
        t.low_light,
        "sensor",
        "exposure, and photons at white",
        ((0.6, 400), (0.45, 200), (0.3, 100), (0.2, 50), (0.12, 25)),
        random=True,
    ),
    _transformation(
        t.rolling_shutter, "sensor", "swing, fraction of the side", (0.02, 0.04, 0.06, 0.08, 0.1), keeps_pixels=False
    ),
)
_NAMED = (*_CORRUPTIONS, *_EXTRA_CORRUPTIONS, *_TRANSFORMATIONS)
# Severity is a fifth of the full strength; in training the strength is continuous, see `generic.draw`.
_GENERIC = tuple(
    Shift(
        f"generic_{family}",
        "generic",
        function,
        "strength, of 1",
        dict.fromkeys(TABLES, _arguments((0.2, 0.4, 0.6, 0.8, 1.0))),
        keeps_pixels=family not in (*g.MOVING, "mixture"),
        version="counters",
    )
    for family, function in (*g.OPERATIONS.items(), ("mixture", g.mixture))
)
_C_BAR = tuple(
    Shift(
        name,
        "c-bar",
        function,
        c_bar.UNITS[function],
        {table: _arguments(STRENGTHS[table][name]) for table in TABLES},
        keeps_pixels=name not in c_bar.MOVING,
        version="counters",
    )
    for name, function in c_bar.CORRUPTIONS.items()
)
SHIFTS: dict[str, Shift] = {s.name: s for s in (*_NAMED, *_GENERIC, *_C_BAR)}
SUITES: dict[str, tuple[str, ...]] = {
    "default": (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "motion_blur",
        "fog",
        "brightness",
        "contrast",
        "jpeg_compression",
        "pixelate",
        "rotation",
        "translation",
        "scale",
        "shear",
        "inversion",
    ),
    "corruptions-15": tuple(s.name for s in _CORRUPTIONS),
    "corruptions-19": tuple(s.name for s in (*_CORRUPTIONS, *_EXTRA_CORRUPTIONS)),
    "transformations": tuple(s.name for s in _TRANSFORMATIONS),
    "sensor": tuple(s.name for s in _TRANSFORMATIONS if s.family == "sensor"),
    # The thirteen that compensation is judged by: nine corruptions, four transformations.
    "u13": (
        "gaussian_noise",
        "impulse_noise",
        "defocus_blur",
        "motion_blur",
        "fog",
        "contrast",
        "brightness",
        "jpeg_compression",
        "pixelate",
        "rotation",
        "scale",
        "shear",
        "inversion",
    ),
    # Random operations without a name, to learn from: what learned from them alone has seen no other shift.
    "generic": tuple(s.name for s in _GENERIC),
    # Unlike what anything learns from, so that it says how far a gain carries: for measuring alone.
    C_BAR: tuple(s.name for s in _C_BAR),
    "all": tuple(s.name for s in _NAMED),
}
# What changes together when a camera meets a new scene.
SCENARIOS: dict[str, tuple[str, ...]] = {
    "night": ("low_light", "gamma", "shot_noise", "vignetting", "contrast"),
    "fog": ("fog", "contrast", "brightness"),
    "vibration": ("motion_blur", "rolling_shutter", "translation"),
    "old-lens": ("defocus_blur", "glass_blur", "vignetting", "saturation", "contrast"),
    "rotated-mount": ("rotation", "translation", "perspective", "shear"),
    "all": tuple(s.name for s in _NAMED),
}
# Worst-of-k: an image counts as right only if it is right in every pose, (degrees, right, down), the latter
# as fractions of the side. Engstrom et al., "Exploring the Landscape of Spatial Robustness", arXiv 1712.02779,
# turn up to 30 degrees and move up to 3 of 32 px.
_ANGLES = tuple(float(a) for a in range(-30, 31, 6))
_MOVES = tuple(m / 32 for m in (-3.0, -1.5, 0.0, 1.5, 3.0))
GRIDS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "rotations": tuple((a, 0.0, 0.0) for a in _ANGLES),
    "translations": tuple((0.0, x, y) for y in _MOVES for x in _MOVES),
    "poses": tuple((a, x, y) for a in _ANGLES for y in _MOVES for x in _MOVES),
}


def table_for(image_size: int) -> str:
    """The severity table that suits images of this side in pixels."""
    return "imagenet-c" if image_size >= IMAGENET_TABLE_SIZE else "cifar-c"


def find_shift(name: str) -> Shift:
    """The shift of this name, or the user's function that `FILE.py:FUNCTION` names.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if is_code(name):
        return _own_shift(name, loaded(name, "shift"))
    if name not in SHIFTS:
        raise unknown("shift", name, SHIFTS, "FILE.py:FUNCTION")
    return SHIFTS[name]


@functools.cache
def _own_shift(name: str, file: UserFile) -> Shift:
    """A user's function `(images, strength, generators) -> images`.

    The strengths of severities 1 to 5 are its attribute `strengths`, or else 0.2, 0.4, 0.6, 0.8 and 1.
    """
    wanted, path = name.rpartition(":")[2], file_of(name)
    function = file.names.get(wanted)
    if not callable(function):
        raise InputError(f"shift: expected a function {wanted!r} in {path}, found none")
    strengths = getattr(function, "strengths", (0.2, 0.4, 0.6, 0.8, 1.0))
    if not isinstance(strengths, tuple | list) or len(strengths) != len(SEVERITIES):
        raise InputError(f"shift: expected 5 strengths of {name}, got {strengths!r}")
    strengths = tuple(strengths)
    # What a user's function moves is not known; so it counts as one that moves.
    return Shift(
        name,
        "own",
        function,
        "as its author says",
        dict.fromkeys(TABLES, tuple((s,) for s in strengths)),
        keeps_pixels=False,
        is_custom=True,
        version=file.version,
    )


def register_shift(
    name: str,
    function: Callable[..., torch.Tensor],
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    *,
    version: str = "",
) -> None:
    """Add a shift of one's own for this process, to be measured and trained on by its name.

    Args:
        name: a new one.
        function: `(images, strength, generators) -> images`; images are float32 `(N, C, S, S)` in [0, 1], there is
            one `torch.Generator` per image, and equal generators must give equal images.
        strengths: of severities 1 to 5.
        version: changes when equal arguments give other pixels than before.

    Raises:
        InputError: the name is taken or unusable, or there are not five strengths.
    """
    if not name or name in (*SHIFTS, *SUITES, *SCENARIOS, "clean") or ":" in name:
        raise InputError(f"name: expected one that is not taken, without a colon, got {name!r}")
    if len(strengths) != len(SEVERITIES):
        raise InputError(f"strengths: expected {len(SEVERITIES)}, one per severity, got {len(strengths)}")
    every: dict[str, tuple[tuple | None, ...]] = dict.fromkeys(TABLES, tuple((s,) for s in strengths))
    unit = "as its author says"
    SHIFTS[name] = Shift(name, "own", function, unit, every, keeps_pixels=False, is_custom=True, version=version)


def stored_folders(names: tuple[str, ...]) -> dict[str, Path]:
    """The folders of every `stored:DIR` among names of shifts, by these names.

    Raises:
        InputError: one names no folder.
    """
    if STORED in names:
        raise InputError(f"shift: expected a folder after {STORED}, got {STORED!r}")
    return {n: user_path(n.removeprefix(STORED)) for n in names if n.startswith(STORED)}


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of shifts to render: each suite replaced by what it holds, each name once; nothing means `default`.

    What is stored is not rendered, so `stored:DIR` is left out; see `stored_folders`.

    Raises:
        InputError: a name is neither a shift, a suite, FILE.py:FUNCTION nor stored:DIR.
    """
    rendered = [name for name in names or ("default",) if not name.startswith(STORED)]
    found = [part for name in rendered for part in SUITES.get(name, (name,))]
    for name in found:
        if name not in SHIFTS and not is_code(name):
            raise unknown("shift", name, (*SHIFTS, *SUITES), "FILE.py:FUNCTION", f"{STORED}DIR")
    return tuple(dict.fromkeys(found))


def scenarios(names: tuple[str, ...]) -> tuple[str, ...]:
    """The shifts of scenarios; a name that is none may be a shift, a suite or FILE.py:FUNCTION, as for `expand`.

    Raises:
        InputError: a name is none of these.
    """
    for name in names:
        if name not in (*SCENARIOS, *SHIFTS, *SUITES) and not is_code(name) and not name.startswith(STORED):
            near = nearest(name, (*SCENARIOS, *SHIFTS, *SUITES))
            raise unknown("scenario", name, SCENARIOS, "or what shifts take", near=near)
    return expand(tuple(part for name in names for part in SCENARIOS.get(name, (name,))))


def refuse_measured_alone(option: str, names: Sequence[str]) -> None:
    """Refuse to learn from what is for measuring alone.

    Args:
        option: that names what is learned from.
        names: of shifts and suites.

    Raises:
        InputError: one is the suite c-bar, or of it.
    """
    for name in names:
        if name == C_BAR or name in SUITES[C_BAR]:
            of_it = "" if name == C_BAR else f" of {C_BAR}"
            raise InputError(
                f"{option}: expected shifts to learn from, got {name}{of_it}, which is for measuring alone: --shifts"
            )


def training_sets(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What names of things to learn from mean.

    A name that is a shift and a scenario, too, means the shift.

    Returns:
        Families of random operations, and shifts.

    Raises:
        InputError: a name is unknown, cannot be rendered, or is for measuring alone.
    """
    parts: list[str] = []
    for name in names:
        if name.startswith(STORED):
            raise InputError(f"train_on: expected what can be rendered, got {name}; it can be measured by --shifts")
        known = name in SHIFTS or name in SUITES or is_code(name)
        if not known and name not in SCENARIOS:
            suites = [suite for suite in SUITES if suite != C_BAR]
            near = nearest(name, (*suites, *(n for n in SHIFTS if n not in SUITES[C_BAR]), *SCENARIOS))
            raise unknown("train_on", name, suites, "a shift, a scenario or FILE.py:FUNCTION", near=near)
        parts += expand((name,)) if known else SCENARIOS[name]
    refuse_measured_alone("train_on", names)
    families = [part.removeprefix("generic_") for part in parts if part in SUITES["generic"]]
    every = g.FAMILIES if "mixture" in families else tuple(dict.fromkeys(families))
    return every, tuple(dict.fromkeys(part for part in parts if part not in SUITES["generic"]))


def with_mixture(learned: Sequence[str]) -> tuple[str, ...]:
    """Names of shifts that were learned from, and the mixture of random operations where any of these is among them.

    What learns from families draws mixtures of them, and a mixture of all holds each.
    """
    families = {f"generic_{family}" for family in g.FAMILIES}
    return (*learned, *(("generic_mixture",) if families & {*learned} else ()))


def generic_conditions(families: Sequence[str]) -> list[tuple[str, int]]:
    """Conditions to measure random operations by: these families one by one, and mixtures if there are all of them.

    Raises:
        InputError: an unknown family.
    """
    for family in families:
        if family not in g.FAMILIES:
            raise unknown("generic", family, g.FAMILIES)
    parts = [*families, *(["mixture"] if set(families) == set(g.FAMILIES) else [])]
    return [(f"generic_{part}", severity) for part in parts for severity in GENERIC_SEVERITIES]


def selection_conditions(conditions: Sequence[tuple[str, int]], families: Sequence[str]) -> list[tuple[str, int]]:
    """What a training is chosen by: the conditions it learns from, and the families that it does not.

    Where it learns from all families, they are what it is chosen by, under other draws.
    """
    withheld = [family for family in g.FAMILIES if family not in families]
    return [*conditions, *(generic_conditions(withheld or families) if families else ())]


def recommendation_conditions(learned: Collection[str]) -> tuple[list[tuple[str, int]], bool]:
    """What a recommendation is chosen by: random operations of the families that no remedy learned from.

    Where remedies learned from all families, it is all of them, whose operations are other draws than those learned
    from. What is measured never chooses.

    Args:
        learned: names of the shifts that any of the remedies learned from, see `SHIFTS`.

    Returns:
        (shift, severity), and whether no remedy learned from any of these families.
    """
    withheld = [family for family in g.FAMILIES if f"generic_{family}" not in learned]
    return generic_conditions(withheld or g.FAMILIES), bool(withheld)


def defined_conditions(names: tuple[str, ...], severities: tuple[int, ...], table: str) -> list[tuple[str, int]]:
    """Every (shift, severity) that is defined, in order: the rows of an evaluation.

    Raises:
        InputError: an unknown shift or table, or a severity outside 1 to 5.
    """
    if table not in TABLES:
        raise unknown("severity_table", table, TABLES)
    for severity in severities:
        if severity not in SEVERITIES:
            raise InputError(f"severity: expected an integer from 1 to 5, got {severity}")
    found = []
    for name in names:
        strengths = find_shift(name).strengths[table]
        found += [(name, s) for s in severities if strengths[s - 1] is not None]
    return found
