"""Batch norms that adapt to each batch at test time, beside what qrobust exports, on streams of test images.

    python benchmarks/streams.py --runs OUT

`OUT` is where compensation.py left its runs. One stream for each of the thirteen shifts, all its images under that
shift, and one mixed stream in which every image comes under a shift of its own; in batches of 1 and of 128. What is
exported answers image by image, so neither matters to it, and its predictions are those that the run keeps. Adapted
batch norms (Schneider et al., arXiv 2006.16971, with a prior of 16 images, as published) cannot be folded: that
classifier runs in float, in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from compensation import MODELS, finished, mean_of
from figures import git_commit
from torch import nn

from qrobust.compensation.baselines import adapt_batch_norm
from qrobust.evaluation.kept import Condition, read_predictions
from qrobust.evaluation.predictions import BATCH
from qrobust.pipeline.run import Run
from qrobust.progress import Reporter
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
JOB, SIZES, PRIOR = "u13", (1, 128), 16


def right(model: nn.Module, pixels: torch.Tensor, labels: np.ndarray, size: int) -> np.ndarray:
    """Which images `(N, 3, S, S)` uint8 are named rightly, in batches of that size, in order."""
    with torch.no_grad():
        found = [model(to_unit(part)).argmax(1).numpy() for part in pixels.split(size)]
    return np.concatenate(found) == labels


def shifted(opened_run: Run, conditions: list[Condition], images: int) -> Iterator[torch.Tensor]:
    """The first test images under each shift, with the pixels that the run was measured on."""
    seed = opened_run.config.seed
    for condition in conditions:
        parts = opened_run.data.test.first(images).batches(BATCH)
        yield torch.cat([render(part, *condition, table=opened_run.table, seed=seed) for part, _ in parts])


def measure(run: Path, images: int, threads: int) -> dict[str, Any]:
    """Accuracies of one network, as fractions with intervals in points, by classifier, stream and batch size."""
    opened_run = Run.open(run, Reporter(), threads=threads)
    torch.set_num_threads(threads)
    conditions = list(opened_run.conditions)
    labels, kept = read_predictions(run / "predictions", conditions)
    labels = labels[:images]
    # Each image of the mixed stream is under one shift, by seed, all shifts alike.
    under = np.random.default_rng(opened_run.config.seed).permutation(np.arange(len(labels)) % len(conditions))
    position = np.arange(len(labels))
    adapted = adapt_batch_norm(opened_run.model, PRIOR)
    single: dict[int, list[np.ndarray]] = {size: [] for size in SIZES}
    pixels = []
    with click.progressbar(
        shifted(opened_run, conditions, images), length=len(conditions), label=run.parent.name
    ) as bar:
        for found in bar:
            pixels.append(found)
            for size in SIZES:
                single[size].append(right(adapted, found, labels, size))
    stream = torch.stack([pixels[which][at] for at, which in enumerate(under)])
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        mixed = right(adapted, stream, labels, size)
        rows.append({"method": "adapted", "batch": size, "single": mean_of(single[size]), "mixed": mean_of([mixed])})
    for name in next(iter(kept.values())):
        each = np.stack([kept[condition][name].prediction[:images] == labels for condition in conditions])
        one_by_one = {"single": mean_of(list(each)), "mixed": mean_of([each[under, position]])}
        rows.append({"method": name, "batch": None, **one_by_one})
    by_shift = {
        condition[0]: {f"adapted {size}": float(single[size][at].mean()) for size in SIZES}
        | {name: float((kept[condition][name].prediction[:images] == labels).mean()) for name in kept[condition]}
        for at, condition in enumerate(conditions)
    }
    return {"rows": rows, "by_shift": by_shift, "n": len(labels), "run_commit": (run / "commit").read_text()}


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, exists=True), required=True, help="OUT of compensation.py.")
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--images", default=1000, show_default=True, help="The first test images.")
@click.option("--threads", default=2, show_default=True)
def main(runs: Path, models: str, images: int, threads: int) -> None:
    """Measure the streams of every finished run."""
    found = {model: measure(run, images, threads) for model, run in finished(runs, models, JOB).items()}
    write_json(
        RESULTS / "streams.json",
        {
            "networks": found,
            "prior": PRIOR,
            "hardware": to_json(hardware(threads)),
            "versions": versions(),
            "seed": 0,
            "commit": git_commit(),
            "command": f"python benchmarks/streams.py --runs OUT --models {models} --images {images}",
        },
    )


if __name__ == "__main__":
    main()
