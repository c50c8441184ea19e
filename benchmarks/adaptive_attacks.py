"""Is a repaired classifier easier to attack than INT8 alone, by who knows the repair and what it decides by?

    python benchmarks/adaptive_attacks.py --run runs/main
    python benchmarks/adaptive_attacks.py --run runs/main --remedy second-look

RUN is a finished `qrobust run`, or `compensate`, with `export` where that made a calibrator. PGD with random starts
tries several ways for either graph, and an image stands if it withstands all of them. INT8: through its own
fake-quantized model, once more from other starts, through the float network and through the repaired classifier.
Repaired: through itself, through INT8, and through itself with the gradient of its decision replaced (BPDA, Athalye
et al., arXiv 1802.00420): what is computed forward is the real classifier. What is followed backward is, with a
calibrator, one whose gate is open, or shut, for every image, since a sharp gate passes no gradient on; with a second
look, one that decides softly between an image and its negative, so that the decision itself can be pushed, or one
that always believes the negative. Pixels are uint8, within the budget; onnxruntime scores the exported graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit
from torch import nn

from qrobust.attacks.base import craft
from qrobust.attacks.norms import LinfBall
from qrobust.attacks.pgd import pgd
from qrobust.classifier import Classifier, Compensated
from qrobust.compensation.second_look import SecondLook, familiarity
from qrobust.evaluation.statistics import paired_bootstrap, wilson_interval
from qrobust.pipeline.run import Run
from qrobust.progress import Reporter
from qrobust.record import hardware, to_json, versions
from qrobust.record.stages import RemedyResult
from qrobust.remedies import SECOND_LOOKS
from qrobust.shifts.filters import to_unit
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "adaptive_attacks.json"
EPSILONS, STEPS, RESTARTS, SEED, BATCH = (1, 2), 10, 5, 0, 250
# Of a gate's logit: as open and as shut as it gets.
GATES = {"gate open": 20.0, "gate shut": -20.0}
COMPENSATED, SECOND_LOOK = "compensated", SECOND_LOOKS[0]


def with_gate(classifier: Compensated, logit: float) -> Classifier:
    """The classifier whose gate's gradient is that of one which says the same of every image."""
    forced = copy.deepcopy(classifier)
    correction = forced.calibrator.get_submodule("correction")

    def force(_: nn.Module, inputs: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        *proposed, gate = inputs
        assert gate is not None
        return (*proposed, torch.full_like(gate, logit))

    correction.register_forward_pre_hook(force)

    return followed(classifier, forced)


def followed(real: Classifier, backward: Classifier) -> Classifier:
    """What one classifier says, with the gradient of another."""

    def both(images: torch.Tensor) -> torch.Tensor:
        proxy = backward(images)
        with torch.no_grad():
            said = real(images)
        return proxy + (said - proxy).detach()

    return both


def softly(looks: SecondLook) -> Classifier:
    """A second look that mixes what it hears of an image and of its negative, by how much better it knows that."""

    def mixed(images: torch.Tensor) -> torch.Tensor:
        as_it_is, negative = looks.classifier(images), looks.classifier(1 - images)
        share = torch.sigmoid(familiarity(negative) - familiarity(as_it_is) - looks.threshold)[:, None]
        return share * negative + (1 - share) * as_it_is

    return followed(looks, mixed)


def of_negative(looks: SecondLook) -> Classifier:
    """A second look with the gradient of one that always believes the negative."""
    return followed(looks, lambda images: looks.classifier(1 - images))


def ways(run: Run, remedy: str) -> dict[str, dict[str, tuple[Classifier, int]]]:
    """For each graph, what is attacked in its place, and from which seed."""
    floating, int8 = run.torch_classifier("float"), run.torch_classifier("int8")
    repaired: nn.Module
    if remedy == SECOND_LOOK:
        told = run.require_folder().need_result(RemedyResult, SECOND_LOOK, f"compensate --remedy {SECOND_LOOK}")
        assert told.threshold is not None
        repaired = looks = SecondLook(int8, told.threshold)
        deciding: dict[str, Classifier] = {"a soft decision": softly(looks), "its negative": of_negative(looks)}
    else:
        repaired = compensated = run.torch_classifier(COMPENSATED)
        assert isinstance(compensated, Compensated)
        deciding = {name: with_gate(compensated, logit) for name, logit in GATES.items()}
    return {
        "int8": {
            "itself": (int8, SEED),
            "itself, other starts": (int8, SEED + 1),
            "float": (floating, SEED),
            remedy: (repaired, SEED),
        },
        remedy: {
            "itself": (repaired, SEED),
            "int8": (int8, SEED),
            **{name: (source, SEED) for name, source in deciding.items()},
        },
    }


def right(graph: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Which images a graph gets right `(n,)`."""
    said = [graph(to_unit(some)).argmax(1) for some in pixels.split(BATCH)]
    found: np.ndarray = (torch.cat(said) == labels).numpy()
    return found


def share(found: np.ndarray) -> dict[str, Any]:
    """Accuracy with its interval."""
    return {"accuracy": float(found.mean()), "interval": wilson_interval(int(found.sum()), len(found))}


def measure(run: Run, remedy: str, images: int, restarts: int) -> dict[str, Any]:
    """What every way leaves of every graph, and what all of them leave."""
    test = run.data.test.first(images)
    pixels, labels = test.read(slice(None)), test.labels
    graphs = {name: run.onnx_classifier(name) for name in ("int8", remedy)}
    clean = {name: right(graph, pixels, labels) for name, graph in graphs.items()}
    attack, budgets = partial(pgd, steps=STEPS, restarts=restarts), {}
    for epsilon in EPSILONS:
        left, stand = dict[str, dict[str, Any]](), {name: found.copy() for name, found in clean.items()}
        for name, sources in ways(run, remedy).items():
            left[name] = {}
            for way, (source, seed) in sources.items():
                shown = craft(attack, source, pixels, labels, ball=LinfBall(epsilon / 255), seed=seed)
                found = right(graphs[name], shown, labels)
                left[name][way], stand[name] = share(found), stand[name] & found
                click.echo(f"{epsilon}/255, {name} by {way}: {100 * found.mean():.1f} %", err=True)
        difference = stand[remedy].astype(float) - stand["int8"].astype(float)
        low, high = paired_bootstrap(difference, SEED)
        budgets[str(epsilon)] = {
            "ways": left,
            "stand": {name: share(found) for name, found in stand.items()},
            "difference_pp": 100 * float(difference.mean()),
            "difference_interval_pp": [100 * low, 100 * high],
        }
    return {"n": len(labels), "clean": {name: share(found) for name, found in clean.items()}, "budgets": budgets}


@click.command()
@click.option("--run", "folder", type=click.Path(path_type=Path, exists=True), required=True, help="A finished run.")
@click.option("--remedy", type=click.Choice([COMPENSATED, SECOND_LOOK]), default=COMPENSATED, show_default=True)
@click.option("--images", default=1000, show_default=True, help="The first test images.")
@click.option("--restarts", default=RESTARTS, show_default=True)
def main(folder: Path, remedy: str, images: int, restarts: int) -> None:
    """Measure, and write results/adaptive_attacks.json."""
    torch.set_num_threads(1)
    about = {
        "command": f"python benchmarks/adaptive_attacks.py --run RUN --remedy {remedy} --images {images} "
        f"--restarts {restarts}",
        "steps": STEPS,
        "restarts": restarts,
        "seed": SEED,
        "commit": git_commit(),
        "versions": versions(),
        "hardware": to_json(hardware(1)),
    }
    found = measure(Run.open(folder, Reporter()), remedy, images, restarts)
    write_json(RESULTS, (read_json(RESULTS) if RESULTS.exists() else {}) | {remedy: found | about})


if __name__ == "__main__":
    main()
