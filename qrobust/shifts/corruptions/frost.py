"""Frost on a window pane, synthesised: the published benchmark's photographs are not ours to ship.

Ice grows as ferns: needles from random seeds, each with side needles at 60 degrees that shorten towards
its tip. Over them lies a haze without any scale. Each picture has the mean colour and the spread of one of
the benchmark's photographs, which are what decides how much frost hurts.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from qrobust.shifts.filters import smooth

# Mean red, green and blue, and their standard deviation, of 255; how many ferns, and how long, px.
_LOOKS = (
    ((78, 149, 166), 19, 250, 90),
    ((201, 205, 214), 22, 900, 70),
    ((201, 205, 214), 22, 900, 70),
    ((138, 153, 165), 29, 1400, 26),
    ((112, 123, 135), 43, 700, 36),
)
PICTURES = len(_LOOKS)
PICTURE_SIDE = 512


def _ferns(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Brightness `(PICTURE_SIDE, PICTURE_SIDE)` of overlapping ferns of ice."""
    canvas = Image.new("L", (PICTURE_SIDE, PICTURE_SIDE), 0)
    draw = ImageDraw.Draw(canvas)

    def needle(x: float, y: float, angle: float, reach: float, light: int) -> None:
        draw.line([x, y, x + reach * math.cos(angle), y + reach * math.sin(angle)], fill=light, width=1)

    for _ in range(count):
        x, y = rng.uniform(0, PICTURE_SIDE, 2)
        angle, reach, light = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1) * length, int(rng.integers(60, 255))
        needle(x, y, angle, reach, light)
        for along in np.arange(0.1, 1, 3 / reach):
            for turn in (-math.pi / 3, math.pi / 3):
                start = (x + along * reach * math.cos(angle), y + along * reach * math.sin(angle))
                needle(*start, angle + turn, (1 - along) * reach * 0.4, light)
    return np.asarray(canvas, dtype=np.float32)


def _haze(rng: np.random.Generator) -> np.ndarray:
    """A random field `(PICTURE_SIDE, PICTURE_SIDE)` whose amplitude falls as the inverse of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(PICTURE_SIDE)[:, None], np.fft.rfftfreq(PICTURE_SIDE)[None])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((*frequency.shape, 2)) @ (1, 1j) / frequency
    return np.fft.irfft2(spectrum, s=(PICTURE_SIDE, PICTURE_SIDE)).astype(np.float32)


@functools.cache
def _whole_picture(index: int) -> torch.Tensor:
    colour, spread, count, length = _LOOKS[index]
    rng = np.random.default_rng(index)
    ferns, haze = (torch.from_numpy(f)[None, None] for f in (_ferns(count, length, rng), _haze(rng)))
    ferns = smooth(ferns, 0.7)
    light = ferns / ferns.std() + haze / haze.std()
    light = (light - light.mean()) / light.std() * spread
    return (torch.tensor(colour)[:, None, None] + light[0]).clamp(0, 255) / 255


@functools.lru_cache(maxsize=4 * PICTURES)
def frost_picture(index: int, size: float, least: int) -> torch.Tensor:
    """One of the `PICTURES` pictures of frost.

    Args:
        index: which, from 0.
        size: factor of its size, at most 1.
        least: side in px that it must cover; a smaller picture is enlarged to 1.1 times that.

    Returns:
        float32 `(3, S, S)` in [0, 1].
    """
    picture = _whole_picture(index)
    wanted = round(PICTURE_SIDE * size)
    if wanted < least:
        wanted = math.ceil(1.1 * least)
    if wanted == PICTURE_SIDE:
        return picture
    resized = F.interpolate(picture[None], size=(wanted, wanted), mode="bilinear", align_corners=False)
    return resized[0].clamp(0, 1)
