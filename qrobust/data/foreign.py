"""Images of no class that a classifier knows: noise, and others that scikit-learn ships."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from qrobust.data.sources import array_images, digits_images, photographs
from qrobust.data.splits import Split

# How many sets `foreign_splits` makes.
FOREIGN_SETS = 2
# Smallest crop of a photograph, as a share of its shorter side.
LEAST_CROP = 0.25
DIGITS = {str(digit) for digit in range(10)}


def foreign_splits(split: Split, count: int, *, seed: int) -> dict[str, Split]:
    """Foreign images as a classifier of these would read them, without labels (-1).

    `noise` is uniform. Images of other classes are handwritten digits, or where classes are called 0 to 9, and so may
    be digits, crops of two photographs: a Chinese temple and a flower.

    Args:
        split: images that the classifier knows.
        count: how many of each set.
        seed: of noise, choice and crops.
    """
    side, rng = split.source.image_size, np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    if set(split.source.class_names) == DIGITS:
        return {"noise": _known_to(split, noise), "photographs": _known_to(split, _crops(count, side, rng))}
    return {"noise": _known_to(split, noise), "digits": _known_to(split, _digits(count, side, rng))}


def _known_to(split: Split, pixels: np.ndarray) -> Split:
    """Pixels `(N, S, S, 3)` read as those of a split are."""
    source = array_images(pixels, np.zeros(len(pixels), dtype=np.int64), ["foreign"], "foreign images")
    source.prepare(split.source.prepared.for_images_of(pixels.shape[1]))
    found = Split(source, torch.arange(len(pixels)))
    return found.relabelled(torch.full((len(pixels),), -1))


def _digits(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    source = digits_images()
    chosen = rng.choice(len(source), count, replace=count > len(source))
    return np.stack([_resized(source.decode(int(index)), side) for index in chosen])


def _crops(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Square crops of any place and size."""
    crops = []
    for index in range(count):
        picture = photographs()[index % len(photographs())]
        shorter = min(picture.shape[:2])
        size = int(rng.integers(int(LEAST_CROP * shorter), shorter + 1))
        top, left = (int(rng.integers(0, length - size + 1)) for length in picture.shape[:2])
        crops.append(_resized(picture[top : top + size, left : left + size], side))
    return np.stack(crops)


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
