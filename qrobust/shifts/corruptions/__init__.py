"""Common corruptions of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv 1903.12261, as batched tensor code: the 15 and the 4 extra ones.

Every function takes images `(N, 3, H, W)` float32 in [0, 1], its strength in physical units and the
`Generators` of these images, and returns images of the same shape, clamped to [0, 1] by the renderer. Those
that work on 8-bit pixels (`impulse_noise`, `pixelate`, `jpeg_compression`, `zoom_blur`) take uint8. The result
for an image depends on that image and its random numbers alone.
"""

from qrobust.shifts.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from qrobust.shifts.corruptions.digital import (
    contrast,
    elastic_transform,
    jpeg_compression,
    per_image,
    pixelate,
    saturate,
)
from qrobust.shifts.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    poisson,
    shot_noise,
    speckle_noise,
)
from qrobust.shifts.corruptions.spatter import spatter
from qrobust.shifts.corruptions.weather import (
    brightness,
    fog,
    frost,
    plasma_fractal,
    snow,
)

__all__ = [
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "per_image",
    "pixelate",
    "plasma_fractal",
    "poisson",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
]
