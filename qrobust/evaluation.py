"""Measure classifiers on the same rendered pixels, and turn predictions into rows with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qrobust.attacks.balls import LinfBall
from qrobust.attacks.gradient import pgd
from qrobust.classifier import Classifier
from qrobust.data import Split
from qrobust.errors import InputError
from qrobust.metrics import agreement, expected_calibration_error, flips
from qrobust.shifts.rendering import render, to_uint8, to_unit
from qrobust.shifts.severities import find_shift
from qrobust.statistics import paired_bootstrap, wilson_interval

BATCH = 100
CLEAN = ("clean", 0)


@dataclass(frozen=True)
class Predictions:
    """What one classifier said of `n` images, in the order of the split."""

    prediction: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray


def predict(
    classifiers: dict[str, Classifier],
    split: Split,
    cell: tuple[str, int],
    *,
    table: str,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Predictions]:
    """Render a cell once and ask every classifier.

    Args:
        classifiers: by name.
        split: images to measure on.
        cell: (shift, severity), or `("clean", 0)`.
        table: severity table.
        seed: of the rendering.
        progress: called with the number of images done.

    Raises:
        InputError: a classifier's output is not `(N, K)` finite numbers.
    """
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in classifiers}
    for images, _ in split.batches(BATCH):
        pixels = images if cell == CLEAN else render(images, *cell, table=table, seed=seed)
        inputs = to_unit(pixels)
        for name, classifier in classifiers.items():
            with torch.no_grad():
                output = classifier(inputs)
            if output.ndim != 2 or len(output) != len(images) or not torch.isfinite(output).all():
                raise InputError(f"classifier {name}: expected finite logits (N, K), got {tuple(output.shape)}")
            logits[name].append(output)
        progress(len(images))
    return {name: _summarise(torch.cat(parts)) for name, parts in logits.items()}


def _summarise(logits: torch.Tensor) -> Predictions:
    top = logits.topk(2, dim=1)
    return Predictions(
        prediction=top.indices[:, 0].numpy().astype(np.int32),
        margin=(top.values[:, 0] - top.values[:, 1]).numpy(),
        confidence=logits.softmax(1).amax(1).numpy(),
    )


def row(
    cell: tuple[str, int], predictions: dict[str, Predictions], labels: np.ndarray, *, seed: int
) -> dict[str, object]:
    """One row of the record: accuracy, interval and differences for one cell.

    Expects at least `float` and `int8`; with `compensated` the gain is added.
    """
    correct = {name: p.prediction == labels for name, p in predictions.items()}
    n = len(labels)
    result: dict[str, object] = {
        "shift": cell[0],
        "severity": cell[1],
        "family": find_shift(cell[0]).family if cell != CLEAN else "clean",
        "n": n,
        "accuracy": {k: float(c.mean()) for k, c in correct.items()},
        "interval": {k: list(wilson_interval(int(c.sum()), n)) for k, c in correct.items()},
        "ece": {k: expected_calibration_error(p.confidence, correct[k]) for k, p in predictions.items()},
    }
    result |= difference("drop", correct["float"], correct["int8"], seed)
    result["agreement"] = agreement(predictions["float"].prediction, predictions["int8"].prediction)
    result["flips"] = flips(predictions["float"].prediction, predictions["int8"].prediction, labels)
    if "compensated" in correct:
        result |= difference("gain", correct["compensated"], correct["int8"], seed)
    return result


def difference(name: str, a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, object]:
    """Mean of `a - b` in percentage points, with its paired bootstrap interval."""
    per_image = 100.0 * (a.astype(np.float64) - b.astype(np.float64))
    return {f"{name}_pp": float(per_image.mean()), f"{name}_interval_pp": list(paired_bootstrap(per_image, seed))}


def summarise(
    predictions: dict[tuple[str, int], dict[str, Predictions]],
    labels: np.ndarray,
    seen: tuple[str, ...],
    *,
    seed: int,
) -> dict[str, object]:
    """The headline: means over all cells but clean, each cell weighing the same.

    Args:
        predictions: per cell, per classifier; `CLEAN` among them.
        labels: `(n,)`.
        seen: shifts that a calibrator was trained on.
        seed: of the bootstrap.
    """
    names = list(predictions[CLEAN])
    shifted = [cell for cell in predictions if cell != CLEAN]

    def per_image(name: str, chosen: list[tuple[str, int]]) -> np.ndarray:
        return np.mean([predictions[c][name].prediction == labels for c in chosen], axis=0)

    clean = {name: per_image(name, [CLEAN]) for name in names}
    shift = {name: per_image(name, shifted) for name in names}
    result: dict[str, object] = {
        "n_test": len(labels),
        "n_cells": len(shifted),
        "clean_accuracy": {k: float(v.mean()) for k, v in clean.items()},
        "clean_interval": {k: list(wilson_interval(int(v.sum()), len(labels))) for k, v in clean.items()},
        "shift_accuracy": {k: float(v.mean()) for k, v in shift.items()},
    }
    result |= difference("quantization_drop", clean["float"], clean["int8"], seed)
    result |= difference("shift_quantization_drop", shift["float"], shift["int8"], seed)
    result |= difference(
        "difference_in_differences", shift["float"] - shift["int8"], clean["float"] - clean["int8"], seed
    )
    result["agreement"] = agreement(predictions[CLEAN]["float"].prediction, predictions[CLEAN]["int8"].prediction)
    if "compensated" in names:
        result |= difference("compensation_gain", shift["compensated"], shift["int8"], seed)
        result |= difference("clean_cost", clean["int8"], clean["compensated"], seed)
        for key, chosen in (
            ("seen", [c for c in shifted if c[0] in seen]),
            ("unseen", [c for c in shifted if c[0] not in seen]),
        ):
            if chosen:
                gain = difference(f"{key}_gain", per_image("compensated", chosen), per_image("int8", chosen), seed)
                result |= gain | {f"n_{key}_cells": len(chosen)}
    return result


def attack_rows(
    pairs: dict[str, tuple[Classifier, Classifier]],
    split: Split,
    *,
    n: int,
    epsilons: tuple[float, ...],
    steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, object]:
    """PGD through each differentiable classifier, scored on its session after rounding to uint8.

    A risk figure, not a defence claim. It is flagged UNRELIABLE where a larger budget breaks fewer
    images, or random noise of the same budget breaks more than the gradient does.

    Args:
        pairs: name to (differentiable classifier, session of the same graph).
        split: images; the first `n` are attacked.
        n: how many.
        epsilons: L-infinity budgets on the [0, 1] scale, multiples of 1/255.
        steps: gradient steps.
        seed: of starts and noise.
        progress: called with the number of images done.
    """
    images, labels = split.read(slice(0, n)), split.labels[:n]
    clean = to_unit(images)
    rows: list[dict[str, object]] = []
    flags: list[str] = []
    for name, (differentiable, session) in pairs.items():
        last = float((session(clean).argmax(1) == labels).float().mean())
        for epsilon in sorted(epsilons):
            generator = torch.Generator().manual_seed(seed)
            ball = LinfBall(epsilon)
            noisy = to_unit(to_uint8(clean + epsilon * ball.steepest(ball.start(clean, generator))))
            still = torch.ones(len(labels), dtype=torch.bool)
            for start in range(0, len(labels), BATCH):
                part = slice(start, start + BATCH)
                adversarial = pgd(
                    differentiable, clean[part], labels[part], ball=ball, steps=steps,
                    step_size=2.5 * epsilon / steps, generator=generator,
                )  # fmt: skip
                pixels = to_unit(to_uint8(adversarial))
                still[part] = session(pixels).argmax(1) == labels[part]
                progress(len(pixels))
            robust = int(still.sum()) / len(labels)
            noise = int((session(noisy).argmax(1) == labels).sum()) / len(labels)
            rows.append({
                "classifier": name, "attack": f"pgd-{steps}", "norm": "Linf", "epsilon": epsilon,
                "n": len(labels), "robust_accuracy": robust,
                "interval": list(wilson_interval(int(still.sum()), len(labels))), "random_noise_accuracy": noise,
            })  # fmt: skip
            if robust > last + 0.002:
                flags.append(f"UNRELIABLE: {name} resists epsilon {255 * epsilon:g}/255 better than less")
            if robust > noise + 0.002:
                flags.append(f"UNRELIABLE: {name} falls to random noise more than to PGD at {255 * epsilon:g}/255")
            last = robust
    return {"rows": rows, "flags": flags}
