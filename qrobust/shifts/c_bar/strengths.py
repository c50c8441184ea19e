"""How strong the corruptions of c-bar are at severities 1 to 5.

Made by `benchmarks/c_bar.py`, whose results a test holds these to: at each severity a reference network errs as often
under each of them as it does on average under the 19 corruptions of ImageNet-C, on images that nothing is tested on.
"""

STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar-c": {
        "plane_waves": (0.0547, 0.0867, 0.106, 0.13, 0.177),
        "concentric_waves": (0.0407, 0.0569, 0.0717, 0.0852, 0.107),
        "checkerboard_cutout": (0.172, 0.25, 0.308, 0.365, 0.467),
        "sparkles": (0.0402, 0.0683, 0.0989, 0.133, 0.211),
        "inverse_sparkles": (0.0499, 0.0786, 0.11, 0.144, 0.231),
        "blue_noise": (0.0172, 0.0264, 0.0321, 0.0381, 0.047),
        "brownish_noise": (0.0462, 0.0719, 0.0872, 0.109, 0.143),
        "plasma_noise": (0.443, 0.683, 0.882, 1.08, 1.49),
        "voronoi_noise": (0.076, 0.11, 0.144, 0.174, 0.218),
        "perlin_noise": (0.256, 0.362, 0.44, 0.534, 0.666),
        "caustic_refraction": (0.0112, 0.0153, 0.0189, 0.0221, 0.0275),
        "ripple": (0.0273, 0.0386, 0.049, 0.0602, 0.1),
        "pinch_and_twirl": (0.65, 0.849, 0.976, 1.12, 1.37),
    },
    "imagenet-c": {
        "plane_waves": (0.0944, 0.168, 0.213, 0.281, 0.346),
        "concentric_waves": (0.0635, 0.0814, 0.109, 0.162, 0.193),
        "checkerboard_cutout": (0.36, 0.53, 0.632, 0.727, 0.799),
        "sparkles": (0.101, 0.158, 0.226, 0.347, 0.464),
        "inverse_sparkles": (0.122, 0.288, 0.435, 0.563, 0.763),
        "blue_noise": (0.105, 0.165, 0.223, 0.283, 0.348),
        "brownish_noise": (0.08, 0.0975, 0.132, 0.191, 0.239),
        "plasma_noise": (0.696, 0.869, 1.29, 1.78, 2.27),
        "voronoi_noise": (0.127, 0.176, 0.28, 0.367, 0.437),
        "perlin_noise": (0.481, 0.759, 1.01, 1.25, 1.51),
        "caustic_refraction": (0.00859, 0.0135, 0.0201, 0.0237, 0.03),
        "ripple": (0.0121, 0.0169, 0.0208, 0.0263, 0.034),
        "pinch_and_twirl": (0.584, 0.877, 1.17, 1.54, 1.81),
    },
}
