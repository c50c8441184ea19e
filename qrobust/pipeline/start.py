"""What a run finds before its first stage: images, their sizes, and what the float network makes of them."""

from __future__ import annotations

import torch

from qrobust.data.splits import SPLIT_NAMES
from qrobust.deployment.parity import logits_of
from qrobust.errors import InputError
from qrobust.evaluation.statistics import chance_agreement, wilson_interval
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.run import Run
from qrobust.record.start import FloatOnValidation, Start
from qrobust.report.start import float_sentence
from qrobust.shifts.filters import to_unit


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
    if anyway or not (run.config.model.weights or run.config.model.pretrained):
        run.reporter.warn(f"warning: {said}")
    else:
        raise InputError(f"model: {said}; --anyway goes on")
