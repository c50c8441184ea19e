"""What a run finds before its first stage: images, their sizes, and what the float network makes of them."""

from __future__ import annotations

import torch

from qrobust.classifier import input_gradient
from qrobust.compensation.pace import TIMED, seconds_of
from qrobust.compensation.pace import expected_seconds as compensation_seconds
from qrobust.data.splits import SPLIT_NAMES
from qrobust.deployment.parity import logits_of
from qrobust.errors import InputError
from qrobust.evaluation.attack_plan import balls, plan
from qrobust.evaluation.statistics import chance_agreement, wilson_interval
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.provenance import training_data
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import GRAPHS
from qrobust.record.start import FloatOnValidation, Start
from qrobust.report.start import float_sentence
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render

# Images that each shift is timed on.
RENDERED = 2


def look(run: Run) -> Start:
    """Count, look at sizes, and ask the float network about validation images; all of the run's own preprocessing."""
    data, classes = run.data, len(run.data.class_names)
    counts = {name: getattr(data, name).labels.bincount(minlength=classes).tolist() for name in SPLIT_NAMES}
    sources = {id(split.source): split.source for split in (data.training, data.validation, data.test)}
    heights, widths = zip(*(side for source in sources.values() for side in source.sizes), strict=True)
    return Start(
        images_per_class={name: tuple(found) for name, found in counts.items()},
        looked_at=len(heights),
        widths=(min(widths), max(widths)),
        heights=(min(heights), max(heights)),
        float_validation=_float_on_validation(run),
    )


def _float_on_validation(run: Run) -> FloatOnValidation:
    split = run.data.validation.at_most(PARITY_IMAGES)
    with torch.inference_mode():
        predicted = torch.cat([logits_of(run.model, to_unit(images)).argmax(1) for images, _ in split.batches(100)])
    right, n = int((predicted == split.labels).sum()), len(split)
    return FloatOnValidation(
        n=n,
        accuracy=right / n,
        interval=wilson_interval(right, n),
        chance=chance_agreement(predicted.numpy(), split.labels.numpy()),
    )


def expected_seconds(run: Run, *, compensating: bool) -> dict[str, float]:
    """What the parts of a run take, each from a few steps or images of it; attacks of level `full` are left out.

    Args:
        run: its classifier is quantized, which is measured whole.
        compensating: whether a calibrator is trained, and everything evaluated.
    """
    config, data, quantized = run.config, run.data, run.quantized
    images = to_unit(data.validation.first(TIMED).read(slice(None)))
    with torch.inference_mode():
        float_s = seconds_of(lambda: run.model(images)) / len(images)
    attacked = run.device.classifier(quantized.module)
    gradient_s = seconds_of(lambda: input_gradient(attacked, images, lambda z: z.amax(1))) / len(images)
    found = {"observe": quantized.seconds}
    if config.qat.epochs:
        found["train the classifier"] = config.qat.epochs * len(data.training) * (gradient_s + float_s)
    if not compensating:
        return found
    deployed = run.deploy(quantized.module)
    fitting, calibrator_s = compensation_seconds(
        quantized.module,
        run.model,
        deployed,
        training_data(run),
        len(data.validation),
        config.calibrator,
        seed=config.seed,
        device=run.device,
    )
    per_image = float_s + 2 * seconds_of(lambda: deployed(images)) / len(images) + calibrator_s
    n, attacks = len(data.test), config.attacks
    stored = sum(len(found.conditions) * len(found.indices) for found in run.stored)
    found |= fitting | {"evaluate": n * _rendering(run) + ((1 + len(run.conditions)) * n + stored) * per_image}
    if attacks.level == "quick" and attacks.images:
        budgets = balls(attacks.tried_norms, attacks.epsilons, attacks.l2_epsilons, data.image_size)
        trials = plan("quick", budgets, GRAPHS, steps=attacks.steps, side=data.image_size, seed=config.seed)
        gradients = sum(trial.kind == "white-box" for trial in trials) * attacks.steps * min(attacks.images, n)
        found["attack"] = gradients * (gradient_s + calibrator_s)
    return found


def _rendering(run: Run) -> float:
    """Seconds that one image takes to be rendered under every condition, each shift timed at one severity."""
    images = run.data.validation.first(RENDERED).read(slice(None))
    severities = dict(run.conditions)
    taken = {
        name: seconds_of(lambda name=name: render(images, name, severities[name], table=run.table, seed=0))  # type: ignore[misc]  # bound now
        for name in severities
    }
    return sum(taken[name] for name, _ in run.conditions) / len(images)


def check_above_chance(run: Run, start: Start, *, anyway: bool) -> None:
    """Refuse a trained network that tells nothing of these images, whatever is then done to it.

    Args:
        run: whose network it is.
        start: what was found.
        anyway: warn only, as is done of random weights and of what a user's code set itself.

    Raises:
        InputError: chance explains the accuracy of weights that were given.
    """
    found, prepared = start.float_validation, run.preprocessing
    if not found.tells_nothing:
        return
    said = (
        f"{float_sentence(found)}, which explains it. Likely causes: what is subtracted and divided by "
        f"(--normalization), the order of channels (--channel-order, now {prepared.channel_order}), the order of "
        f"classes (--class-names; class 0 is {run.data.class_names[0]!r} now), or how images are resized (--resize, "
        "--image-size)"
    )
    given = "weights" if run.config.model.weights else "pretrained" if run.config.model.pretrained else None
    if anyway or given is None:
        run.reporter.warn(f"warning: {said}")
    else:
        raise InputError(f"{given}: {said}; --anyway goes on")
