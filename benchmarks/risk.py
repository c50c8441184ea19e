"""Is a calibrator a new way in? Stronger attacks than an evaluation's, on more images, through each graph.

    python benchmarks/risk.py --runs OUT --models resnet20
    python benchmarks/risk.py --run RUN --called NAME

`OUT` is where compensation.py left its runs; RUN is any run with a calibrator, which is written beside these. PGD
with five random starts through the float network, the INT8 graph's fake-quantized model, and the calibrator and the
fake-quantized model together, each shown to all three graphs on onnxruntime: with the difference of INT8 and the pair
on the same images, image by image. A run that was killed goes on.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
from compensation import ADAPTIVE, MODELS, finished
from figures import git_commit

from qrobust.evaluation.attack_outcomes import Outcomes, kept_or_tried
from qrobust.evaluation.attack_plan import Graph, balls, plan
from qrobust.evaluation.attack_summary import figures
from qrobust.evaluation.statistics import paired_bootstrap
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import GRAPHS
from qrobust.progress import Reporter
from qrobust.record import hardware, to_json, versions
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "risk.json"
# Of `full`: what looks at gradients. What only asks finds less where there are any, at many times the cost.
ATTACKS = ("pgd-10x5",)


def left(outcomes: Outcomes, name: str, epsilon: float) -> np.ndarray:
    """Which images a graph still names rightly after everything tried within a ball, clean ones among it."""
    tried = [
        right
        for label, right in outcomes.of(classifier=name)
        if label.kind != "gradient" and label.epsilon <= epsilon
    ]
    return np.logical_and.reduce(tried)


def measure(run: Path, images: int, threads: int) -> dict[str, Any]:
    """The figures of one network's run."""
    opened_run = Run.open(run, Reporter(), threads=threads)
    folder, config = opened_run.require_folder(), opened_run.config
    graphs = {
        name: Graph(
            opened_run.torch_classifier(name),
            opened_run.onnx_classifier(name),
            sha256(folder.graph(name).read_bytes()).hexdigest(),
        )
        for name in GRAPHS
    }
    choices, some = config.attacks, opened_run.data.test.first(images)
    budgets = balls(("linf",), choices.epsilons, (), opened_run.data.image_size)
    planned = plan(
        "full", budgets, list(graphs), steps=choices.steps, side=opened_run.data.image_size, seed=config.seed
    )
    trials = [t for t in planned if t.kind in ("clean", "gradient", "noise") or t.attack in ATTACKS]
    with click.progressbar(length=len(some) * len(trials), label=run.parent.name, file=sys.stderr) as bar:
        outcomes = kept_or_tried(
            run.parent / "risk.npz",
            graphs,
            some,
            trials,
            about=(some.identity(), config.data.spec, config.seed),
            progress=lambda done, _: bar.update(done),
        )
    differences = []
    for epsilon in sorted(ball.epsilon for _, ball in budgets):
        each = left(outcomes, "compensated", epsilon).astype(float) - left(outcomes, "int8", epsilon)
        low, high = paired_bootstrap(each, config.seed)
        differences.append(
            {"epsilon": epsilon, "pp": 100 * float(each.mean()), "interval_pp": [100 * low, 100 * high]}
        )
    found = figures(outcomes, level="full", classes=len(opened_run.data.class_names))
    commit = run / "commit"
    made = {"run_commit": commit.read_text()} if commit.exists() else {}
    return to_json(found) | {"pair_minus_int8": differences} | made


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, exists=True), help="OUT of compensation.py.")
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--run", type=click.Path(path_type=Path, exists=True), help="A run with a calibrator.")
@click.option("--called", default="", help="What --run is called in the results.")
@click.option("--images", default=1000, show_default=True, help="The first test images.")
@click.option("--threads", default=2, show_default=True)
def main(runs: Path | None, models: str, run: Path | None, called: str, images: int, threads: int) -> None:
    """Attack every finished run, or one, and write results/risk.json."""
    if (runs is None) == (run is None) or (run is not None) != bool(called):
        raise click.UsageError("expected --runs, or --run and --called")
    attacked, arguments = {called: run} if run else {}, f"--run RUN --called {called!r}"
    if runs:
        attacked, arguments = finished(runs, models, ADAPTIVE), f"--runs OUT --models {models}"
    known = read_json(RESULTS)["networks"] if RESULTS.exists() else {}
    about = {
        "hardware": to_json(hardware(threads)),
        "versions": versions(),
        "commit": git_commit(),
        "command": f"python benchmarks/risk.py {arguments} --images {images}",
    }
    for name, folder in attacked.items():
        known[name] = measure(folder, images, threads) | about
        write_json(RESULTS, {"networks": known})


if __name__ == "__main__":
    main()
