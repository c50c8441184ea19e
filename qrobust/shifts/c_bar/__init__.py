"""The suite `c-bar`: corruptions made to be unlike those of ImageNet-C, for measuring alone.

After the idea of Mintun, Kirillov and Xie, "On Interaction Between Augmentations and Corruptions in Natural
Corruption Robustness", arXiv 2102.11273: what helps under one set of corruptions may be what happens to resemble it,
so robustness is to be measured on another. Written anew from what the names say; the strengths are our own, see
`strengths`.

Same contract as `corruptions`: images `(N, C, H, W)` float32 in [0, 1] with one or three channels on any device,
one strength in physical units, one stream of random numbers per image. The result has the same shape and is clamped
to [0, 1] by the renderer. At strength 0 a picture is what it was.
"""

from collections.abc import Callable

import torch

from qrobust.shifts.c_bar.noise import (
    blue_noise,
    brownish_noise,
    perlin_noise,
    plasma_noise,
    voronoi_noise,
)
from qrobust.shifts.c_bar.patterns import (
    checkerboard_cutout,
    concentric_waves,
    inverse_sparkles,
    plane_waves,
    sparkles,
)
from qrobust.shifts.c_bar.refraction import caustic_refraction, pinch_and_twirl, ripple

# Each with the unit of its strength.
UNITS: dict[Callable[..., torch.Tensor], str] = {
    plane_waves: "amplitude, of 1",
    concentric_waves: "amplitude, of 1",
    checkerboard_cutout: "opacity, of 1",
    sparkles: "length of a ray, of the side",
    inverse_sparkles: "length of a ray, of the side",
    blue_noise: "standard deviation, of 1",
    brownish_noise: "standard deviation, of 1",
    plasma_noise: "largest amplitude, of 1",
    voronoi_noise: "largest amplitude, of 1",
    perlin_noise: "largest amplitude, of 1",
    caustic_refraction: "displacement, of the side",
    ripple: "largest displacement, of the side",
    pinch_and_twirl: "turn, rad",
}
CORRUPTIONS = {function.__name__: function for function in UNITS}
MOVING = ("caustic_refraction", "ripple", "pinch_and_twirl")

__all__ = ["CORRUPTIONS", "MOVING", "UNITS", *CORRUPTIONS]
