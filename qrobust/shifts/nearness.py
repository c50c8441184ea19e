"""Which shifts lie near the random operations that are learned from by default, and which far.

Made by `benchmarks/near_far.py` before anything was trained, and held to its results by a test: the distance of a
shift, over its severities, to the nearest of 10,000 random operations, in the features of a reference network and
relative to what the shift does itself. What learned from random operations alone has seen no shift by name, but has
seen something like those that are near; a gain on the far ones says more of what nobody foresaw.
"""

# From this distance on a shift is far: that of a family of random operations that was left out, to the others.
THRESHOLD = 0.498
DISTANCES: dict[str, float] = {
    "gaussian_noise": 0.088,
    "shot_noise": 0.102,
    "impulse_noise": 0.176,
    "defocus_blur": 0.080,
    "glass_blur": 0.379,
    "motion_blur": 0.156,
    "zoom_blur": 0.172,
    "snow": 0.620,
    "frost": 0.311,
    "fog": 0.247,
    "brightness": 0.498,
    "contrast": 0.206,
    "elastic_transform": 0.265,
    "pixelate": 0.113,
    "jpeg_compression": 0.565,
    "speckle_noise": 0.120,
    "gaussian_blur": 0.032,
    "spatter": 0.550,
    "saturate": 0.663,
    "rotation": 0.371,
    "translation": 0.231,
    "scale": 0.268,
    "shear": 0.412,
    "inversion": 0.463,
    "perspective": 0.282,
    "elastic": 0.285,
    "horizontal_flip": 0.739,
    "vertical_flip": 0.505,
    "solarize": 0.521,
    "posterize": 0.351,
    "grey": 0.780,
    "hue": 0.557,
    "saturation": 0.773,
    "gamma": 0.229,
    "sharpness": 0.474,
    "jpeg_chain": 0.564,
    "resize_nearest": 0.058,
    "resize_bilinear": 0.019,
    "resize_bicubic": 0.163,
    "resize_area": 0.093,
    "bayer_mosaic": 0.462,
    "vignetting": 0.459,
    "low_light": 0.380,
    "rolling_shutter": 0.477,
    "plane_waves": 0.678,
    "concentric_waves": 0.623,
    "checkerboard_cutout": 0.652,
    "sparkles": 0.626,
    "inverse_sparkles": 0.679,
    "blue_noise": 0.130,
    "brownish_noise": 0.401,
    "plasma_noise": 0.543,
    "voronoi_noise": 0.564,
    "perlin_noise": 0.269,
    "caustic_refraction": 0.484,
    "ripple": 0.544,
    "pinch_and_twirl": 0.450,
}


def is_far(name: str) -> bool:
    """Whether a shift is known to lie far from all random operations; a user's own and random operations are not."""
    return DISTANCES.get(name, 0.0) >= THRESHOLD
