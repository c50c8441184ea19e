"""Are our attacks as strong as the best library's? Same network, images, budget, steps and queries.

    pip install foolbox==3.3.4 adversarial-robustness-toolbox==1.20.1
    python benchmarks/attacks.py --data imagefolder:~/data/cifar10 --training ~/runs/resnet20

PGD against Foolbox, APGD (both losses) and Square against the Adversarial Robustness Toolbox (ART), one restart
each, in L-infinity and L2, on the float network of `--training` (made by train_baselines.py). Both sides are judged
by the same code: an image counts as fooled only within the budget (plus 1e-5 for float32) and within [0, 1].
Images that are misclassified to begin with count as fooled on both sides. ART's Square divides by zero in L2 (numpy
warns), which may weaken it, so being stronger in that row says little. A minute per ten images on one busy core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import foolbox
import numpy as np
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
from art.estimators.classification import PyTorchClassifier
from figures import git_commit
from torch import nn

from qrobust.attacks.base import Attack
from qrobust.attacks.losses import dlr
from qrobust.attacks.norms import Ball, L2Ball, LinfBall
from qrobust.attacks.pgd import apgd, pgd
from qrobust.attacks.queries import is_right
from qrobust.attacks.square import square
from qrobust.data.loading import open_data
from qrobust.evaluation.statistics import wilson_interval
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.record import hardware, to_json, versions

RESULTS = Path(__file__).parent / "results"
# Where an undefended network is neither untouched nor at zero; without gradients that takes a larger budget.
GRADIENT_BALLS: tuple[Ball, ...] = (LinfBall(0.5 / 255), LinfBall(1 / 255), L2Ball(0.05), L2Ball(0.1))
SCORE_BALLS: tuple[Ball, ...] = (LinfBall(2 / 255), L2Ball(0.3))
LIBRARIES = ("foolbox", "adversarial-robustness-toolbox")
BATCH = 100
SLACK = 1e-5  # float32 arithmetic of either side
Other = Callable[[torch.Tensor, torch.Tensor, Ball], torch.Tensor]


def foolbox_pgd(model: nn.Module, steps: int) -> Other:
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def run(images: torch.Tensor, labels: torch.Tensor, ball: Ball) -> torch.Tensor:
        make = foolbox.attacks.LinfPGD if isinstance(ball, LinfBall) else foolbox.attacks.L2PGD
        attack = make(rel_stepsize=2.5 / steps, steps=steps, random_start=True)
        found = [
            attack(wrapped, x, y, epsilons=ball.epsilon)[1]
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return torch.cat(found)

    return run


def art_attack(
    model: nn.Module, make: Callable[[PyTorchClassifier, float, Ball], Any], shape: tuple[int, ...]
) -> Other:
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu")

    def run(images: torch.Tensor, labels: torch.Tensor, ball: Ball) -> torch.Tensor:
        norm = np.inf if isinstance(ball, LinfBall) else 2
        return torch.from_numpy(make(estimator, norm, ball).generate(images.numpy(), labels.numpy())).float()

    return run


def contests(
    model: nn.Module, shape: tuple[int, ...], pgd_steps: int, apgd_steps: int, queries: int
) -> dict[str, tuple[str, Attack, Other]]:
    """Name to (library, our attack, theirs)."""

    def their_apgd(loss: str) -> Other:
        return art_attack(
            model,
            lambda e, norm, ball: AutoProjectedGradientDescent(
                e,
                norm=norm,
                eps=ball.epsilon,
                eps_step=2 * ball.epsilon,
                max_iter=apgd_steps,
                nb_random_init=1,
                batch_size=BATCH,
                loss_type=loss,
                verbose=False,
            ),
            shape,
        )

    their_square = art_attack(
        model,
        lambda e, norm, ball: SquareAttack(
            e,
            norm=norm,
            eps=ball.epsilon,
            max_iter=queries,
            p_init=0.8,
            nb_restarts=1,
            batch_size=BATCH,
            verbose=False,
        ),
        shape,
    )
    ours = partial(apgd, steps=apgd_steps, batch_size=BATCH)
    return {
        "pgd": ("foolbox", partial(pgd, steps=pgd_steps, batch_size=BATCH), foolbox_pgd(model, pgd_steps)),
        "apgd_ce": ("art", ours, their_apgd("cross_entropy")),
        "apgd_dlr": ("art", partial(ours, loss=dlr), their_apgd("difference_logits_ratio")),
        "square": ("art", partial(square, queries=queries, batch_size=BATCH), their_square),
    }


def judge(
    model: nn.Module, adversarial: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, ball: Ball
) -> torch.Tensor:
    """Images that stand: still right, or fooled by leaving the budget or the box."""
    legal = ball.length(adversarial - images) <= ball.epsilon + SLACK
    legal &= (adversarial >= -SLACK).flatten(1).all(1) & (adversarial <= 1 + SLACK).flatten(1).all(1)
    clean = is_right(model, images, labels)
    return clean & (is_right(model, adversarial.clamp(0, 1), labels) | ~legal)


@click.command()
@click.option("--data", "spec", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option(
    "--training", type=click.Path(path_type=Path), required=True, help="Folder that train_baselines.py made."
)
@click.option("--images", "n", default=200, show_default=True, help="Test images.")
@click.option("--pgd-steps", default=20, show_default=True)
@click.option("--apgd-steps", default=30, show_default=True)
@click.option("--queries", default=500, show_default=True, help="Of Square, per image.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "attacks.json", show_default="results/")
def main(
    spec: str, training: Path, n: int, pgd_steps: int, apgd_steps: int, queries: int, seed: int, out: Path
) -> None:
    """Run every contest; leave results/attacks.json."""
    torch.set_num_threads(1)
    data = open_data(spec, seed=seed)
    recipe = json.loads((training / "training.json").read_text())
    model = load_model(
        find_model(recipe["model"]),
        classes=len(data.class_names),
        image_size=32,
        weights=training / "weights.pt",
        pretrained=False,
        normalization="cifar10",
        seed=seed,
    )
    model.eval().requires_grad_(False)
    images, labels = data.test.read(slice(0, n)).float() / 255, data.test.labels[:n]
    rows: list[dict[str, Any]] = []
    for name, (library, ours, theirs) in contests(
        model, tuple(images.shape[1:]), pgd_steps, apgd_steps, queries
    ).items():
        for ball in SCORE_BALLS if name == "square" else GRADIENT_BALLS:
            torch.manual_seed(seed)
            np.random.seed(seed)  # ART draws from numpy's global state
            started = time.monotonic()
            other = judge(model, theirs(images, labels, ball), images, labels, ball)
            their_seconds = time.monotonic() - started
            started = time.monotonic()
            adversarial = ours(model, images, labels, ball=ball, generator=torch.Generator().manual_seed(seed))
            own_seconds = time.monotonic() - started
            own = judge(model, adversarial, images, labels, ball)
            rows.append(
                {
                    "attack": name,
                    "library": library,
                    "norm": "Linf" if isinstance(ball, LinfBall) else "L2",
                    "epsilon": ball.epsilon,
                    "n": len(labels),
                    "robust_accuracy": {
                        "qrobust": int(own.sum()) / len(labels),
                        "library": int(other.sum()) / len(labels),
                    },
                    "interval": {
                        "qrobust": list(wilson_interval(int(own.sum()), len(labels))),
                        "library": list(wilson_interval(int(other.sum()), len(labels))),
                    },
                    "above_library_pp": 100 * (int(own.sum()) - int(other.sum())) / len(labels),
                    "only_ours_fools": int((other & ~own).sum()),
                    "only_theirs_fools": int((own & ~other).sum()),
                    "seconds": {"qrobust": round(own_seconds, 1), "library": round(their_seconds, 1)},
                }
            )
            click.echo(json.dumps(rows[-1]))
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/attacks.py --data imagefolder:DIR --training {training.name} --images {n} "
        f"--pgd-steps {pgd_steps} --apgd-steps {apgd_steps} --queries {queries} --seed {seed}",
        "commit": git_commit(),
        "seed": seed,
        "versions": versions() | {p: version(p) for p in LIBRARIES},
        "hardware": to_json(hardware(1)),
        "splits": to_json(data.summary()),
        "training": {"test_accuracy": recipe["test_accuracy"], "recipe": recipe["recipe"]},
        "clean_accuracy": int(is_right(model, images, labels).sum()) / len(labels),
        "most_above_library_pp": max(row["above_library_pp"] for row in rows),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
