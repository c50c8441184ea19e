"""Our corruptions against the reference implementation: the same distortions, in less time?

    pip install --target SITE imagecorruptions-imaug==1.1.5
    PYTHONPATH=SITE python benchmarks/corruptions.py --images DIR --faithful --speed
    python benchmarks/corruptions.py --images DIR --workers --inference

`--images` is a folder with at least 200 photographs, at any depth. Every part that is asked for replaces its own
section of `benchmarks/results/corruptions.json` and leaves the others.
"""

from __future__ import annotations

import ast
import inspect
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit

from qrobust.data.files import IMAGE_SUFFIXES
from qrobust.data.sources import (
    array_images,
    decode_file,
)
from qrobust.data.splits import Split
from qrobust.evaluation.predictions import predict
from qrobust.evaluation.workers import processes
from qrobust.preprocessing import Preprocessing
from qrobust.record import hardware, to_json
from qrobust.shifts import corruptions
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.registry import SHIFTS, SUITES
from qrobust.shifts.rendering import generators_for, render

RESULTS = Path(__file__).parent / "results" / "corruptions.json"
NAMES, COMMON = SUITES["corruptions-19"], SUITES["corruptions-15"]
SEVERITIES = (1, 2, 3, 4, 5)
PIXELS, SPREAD = 2.0, 0.05  # levels of 255; relative
# Draws per image where one is too few to know the spread of the distortion to a fraction of 5 %: there it is made of
# the draws more than of the images.
DRAWS = {"impulse_noise": 32, "fog": 16, "spatter": 16}
TABLES = {224: "imagenet-c", 32: "cifar-c"}
EXCEPTIONS = {
    "frost": "Our frost is synthesised, the reference blends photographs, which are not ours to ship.",
    "elastic_transform": (
        "The reference replaced the published constants and dropped the affine map; ours are the published ones. "
        "`elastic_transform_as_reference` compares our code at the reference's constants."
    ),
}


def photographs(folder: Path, count: int, size: int) -> torch.Tensor:
    """uint8 `(count, 3, size, size)`, centre crops of the first photographs in alphabetical order."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:count]
    if len(paths) < count:
        raise click.UsageError(f"--images: expected at least {count} photographs in {folder}, found {len(paths)}")
    fitting = Preprocessing(size=size)
    return torch.stack([torch.from_numpy(fitting.apply(decode_file(p))).permute(2, 0, 1) for p in paths])


def reference(pixels: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """One image `(H, W, 3)` corrupted by the reference implementation."""
    from imagecorruptions import corrupt

    np.random.seed(seed)  # the reference draws from numpy's global generator
    own_seed = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    return corrupt(pixels, corruption_name=name, severity=severity, **own_seed)


def as_reference(images: torch.Tensor, severity: int, seed: int) -> torch.Tensor:
    """Our elastic transform at the reference's constants: no affine map, other amplitudes."""
    amplitude = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1] * 0.005
    generators = generators_for(images, f"elastic/{severity}/{seed}")
    return to_uint8(corruptions.elastic_transform(to_unit(images), amplitude, 0.01, 0, generators=generators))


def faithful(folder: Path, names: tuple[str, ...], count: int, size: int, repeats: int) -> dict[str, Any]:
    """Per corruption: pixel difference if it is deterministic, else mean and spread of the distortion."""
    images = photographs(folder, count, size)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    found: dict[str, Any] = {}
    for name in names:
        plain = name.removesuffix("_as_reference")
        rows = []
        for severity in SEVERITIES:
            runs = repeats * DRAWS.get(plain, 1) if SHIFTS[plain].random else 1
            ours, theirs, differences = [], [], []
            for run in range(runs):
                shifted = (
                    as_reference(images, severity, run)
                    if name != plain
                    else render(images, name, severity, table="imagenet-c", seed=run)
                )
                mine = shifted.permute(0, 2, 3, 1).contiguous().numpy()
                other = np.stack([reference(a, plain, severity, run * count + i) for i, a in enumerate(arrays)])
                difference = [
                    np.abs(a.astype(int) - b).mean(axis=(1, 2, 3))
                    for a, b in ((mine, arrays), (other, arrays), (mine, other))
                ]
                ours.append(difference[0])
                theirs.append(difference[1])
                differences.append(difference[2])
            a, b = np.concatenate(ours), np.concatenate(theirs)
            rows.append(
                {
                    "severity": severity,
                    "distortion": {"ours": float(a.mean()), "reference": float(b.mean())},
                    "spread": {"ours": float(a.std()), "reference": float(b.std())},
                    "pixel_difference": float(np.mean(differences)),
                }
            )
        found[name] = verdict(name, SHIFTS[plain].random, rows) | {"commit": git_commit()}
        click.echo(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'rows'})}", err=True)
    return {"n": count, "size": size, "repeats": repeats, "table": "imagenet-c", "corruptions": found}


def verdict(name: str, random: bool, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst severity against the limit for its kind."""
    result: dict[str, Any] = {"random": random}
    if random:
        changes = {k: [abs(r[k]["ours"] / r[k]["reference"] - 1) for r in rows] for k in ("distortion", "spread")}
        result |= {f"worst_{k}_change": max(v) for k, v in changes.items()}
        result["agrees"] = max(result["worst_distortion_change"], result["worst_spread_change"]) <= SPREAD
    else:
        result["worst_pixel_difference"] = max(r["pixel_difference"] for r in rows)
        result["agrees"] = result["worst_pixel_difference"] <= PIXELS
    if not result["agrees"]:
        result["exception"] = EXCEPTIONS.get(name)
    return result | {"rows": rows}


def give_reference(table: str) -> None:
    """Put our constants of a table in the place of the reference's, `c = [...][severity - 1]`.

    Those of elastic transform mean something else there, and stay.
    """
    import imagecorruptions
    from imagecorruptions import corruptions as theirs

    tree = ast.parse(inspect.getsource(theirs))
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name not in set(NAMES) - {"elastic_transform"}:
            continue
        strengths: Any = SHIFTS[function.name].strengths[table]
        if function.name == "zoom_blur":
            strengths = [f"np.arange(1, {1 + (layers - 0.5) * step}, {step})" for step, layers in strengths]
        else:
            strengths = [repr(s if len(s) > 1 else s[0]) for s in strengths]
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "c":
                node.value = ast.parse(f"[{', '.join(strengths)}][severity - 1]", mode="eval").body
    exec(compile(ast.fix_missing_locations(tree), theirs.__file__, "exec"), theirs.__dict__)
    imagecorruptions.corruption_dict.update({name: getattr(theirs, name) for name in NAMES})


def timings(ours: bool, folder: Path, size: int, count: int) -> dict[str, float]:
    """Milliseconds per image and severity, by corruption, on one thread."""
    torch.set_num_threads(1)
    images = photographs(folder, count, size)
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    if not ours:
        import cv2

        cv2.setNumThreads(1)
        if TABLES[size] != "imagenet-c":  # the only one that it has
            give_reference(TABLES[size])
        warnings.simplefilter("ignore")  # the reference divides by zero where no drop falls

    def work(name: str) -> None:
        for severity in SEVERITIES:
            if ours:
                render(images, name, severity, table=TABLES[size], seed=0)
            else:
                for array in arrays:
                    reference(array, name, severity, 0)

    found = {}
    for name in NAMES:
        work(name)  # compiles what is compiled, and fills tables and pictures that are kept
        start = time.process_time()  # which a busy machine disturbs less than the clock on the wall
        work(name)
        found[name] = 1000 * (time.process_time() - start) / (count * len(SEVERITIES))
    return found


def speed(folder: Path, size: int, count: int, rounds: int) -> dict[str, Any]:
    """Reference and ours in turn, medians of rounds.

    Each in a process of its own, as they are used: in one process, each would find memory that the other has
    already asked the system for.
    """
    both: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for _ in range(rounds):
        for ours in (False, True):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                both[ours].append(pool.submit(timings, ours, folder, size, count).result())
    rows = {}
    for name in NAMES:
        theirs, mine = ([run[name] for run in runs] for runs in both)
        rows[name] = {"reference_ms": statistics.median(theirs), "ours_ms": statistics.median(mine)}
        rows[name]["ratio"] = rows[name]["reference_ms"] / rows[name]["ours_ms"]
        click.echo(f"{size} px {name}: {json.dumps(rows[name])}", err=True)
    sums = {k: sum(rows[n][k] for n in COMMON) / len(COMMON) for k in ("reference_ms", "ours_ms")}
    mean = sums | {"ratio": sums["reference_ms"] / sums["ours_ms"]}
    click.echo(f"{size} px: {json.dumps(mean)}", err=True)
    return {"n": count, "rounds": rounds, "table": TABLES[size], "mean_of_15": mean, "corruptions": rows}


def workers(folder: Path, size: int, count: int, rounds: int) -> dict[str, Any]:
    """Time on the wall of all 15 corruptions at severity 3, by one process and by two, in turn."""
    images = photographs(folder, count, size).repeat(5, 1, 1, 1).permute(0, 2, 3, 1).contiguous().numpy()
    source = array_images(images, np.zeros(len(images), int), None, "photographs")
    source.prepare(Preprocessing(size=size))
    split = Split(source, torch.arange(len(images)))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with processes(2) as two:
        for _ in range(rounds + 1):  # in the first, processes start and fill what they keep
            for count_of, taken in seconds.items():
                start = time.perf_counter()
                for name in COMMON:  # and no classifier is asked
                    predict({}, split, (name, 3), table=TABLES[size], seed=0, by=two if count_of == 2 else None)
                taken.append(time.perf_counter() - start)
    ratios = [one / two for one, two in zip(seconds[1][1:], seconds[2][1:], strict=True)]
    return {
        "n": 5 * count,
        "size": size,
        "rounds": rounds,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "seconds": {k: statistics.median(v[1:]) for k, v in seconds.items()},
    }


def inference(folder: Path, size: int, count: int) -> dict[str, Any]:
    """Rendering against INT8 inference of ResNet18, random weights: milliseconds per image on one thread."""
    from qrobust.deployment.classifiers import OnnxClassifier
    from qrobust.deployment.export import export
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model
    from qrobust.quantization.ptq import quantize
    from qrobust.quantization.target import X86_VNNI

    images = photographs(folder, count, size)
    model = load_model(
        find_model("torchvision:resnet18"),
        classes=1000,
        image_size=size,
        weights=None,
        pretrained=False,
        normalization=None,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "int8.onnx"
        export(quantize(model, X86_VNNI, iter([to_unit(images)])), path, size)
        classifier = OnnxClassifier(path, 1)

    def milliseconds(work: Callable[..., Any], *arguments: Any) -> float:
        work(*arguments)
        start = time.process_time()
        work(*arguments)
        return 1000 * (time.process_time() - start) / count

    def corrupt(name: str) -> None:
        for severity in SEVERITIES:
            render(images, name, severity, table=TABLES[size], seed=0)

    rendering = {name: milliseconds(corrupt, name) / len(SEVERITIES) for name in COMMON}
    found = {
        "rendering_ms": statistics.mean(rendering.values()),
        "inference_ms": milliseconds(classifier, to_unit(images)),
    }
    slower = [name for name, ms in rendering.items() if ms > found["inference_ms"]]
    return {"n": count, "size": size, "network": "torchvision:resnet18, random weights", **found, "slower": slower}


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--faithful", "check", is_flag=True, help="Compare distortions on 200 images of 224 px.")
@click.option("--speed", "measure", is_flag=True, help="Compare times at 224 px and 32 px.")
@click.option("--workers", "scale", is_flag=True, help="Two worker processes against one.")
@click.option("--inference", "compare", is_flag=True, help="Rendering against INT8 inference of ResNet18 at 224 px.")
@click.option("--only", help="With --faithful: these corruptions, separated by commas; others stay as recorded.")
@click.option("--repeats", default=1, show_default=True, help="Draws per image of random corruptions.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of the comparison of times.")
def main(
    images: Path, check: bool, measure: bool, scale: bool, compare: bool, only: str | None, repeats: int, rounds: int
) -> None:
    """Measure what is asked for and keep it."""
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Any]] = {}
    if check:
        names = tuple(only.split(",")) if only else (*NAMES, "elastic_transform_as_reference")
        parts["faithful"] = lambda: faithful(images, names, 200, 224, repeats)
    if measure:
        parts["speed"] = lambda: {"224": speed(images, 224, 16, rounds), "32": speed(images, 32, 100, rounds)}
    if scale:
        parts["workers"] = lambda: workers(images, 224, 200, rounds)
    if compare:
        parts["inference"] = lambda: inference(images, 224, 16)
    packages = ("torch", "torchvision", "pillow", "numpy") + ("imagecorruptions-imaug",) * (check or measure)
    for name, part in parts.items():
        found = part()
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if name == "faithful" and only:
            before = {k: {"commit": record[name]["commit"]} | v for k, v in record[name]["corruptions"].items()}
            found["corruptions"] = before | found["corruptions"]
        record[name] = found | {
            "commit": git_commit(),
            "command": f"corruptions.py --images DIR --{name} --repeats {repeats} --rounds {rounds}",
            "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
            "hardware": to_json(hardware(1)),
        }
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
