"""What a run finds before its first stage: images, their sizes, and what the float network makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from qrobust.classifier import input_gradient
from qrobust.compensation.pace import TIMED, seconds_of
from qrobust.compensation.pace import expected_seconds as compensation_seconds
from qrobust.data.splits import SPLIT_NAMES
from qrobust.deployment.parity import logits_of
from qrobust.deployment.profiling import timing_s
from qrobust.errors import InputError
from qrobust.evaluation.attack_plan import balls, plan
from qrobust.evaluation.predictions import Condition
from qrobust.evaluation.statistics import chance_agreement, wilson_interval
from qrobust.pipeline.evaluate import BATCHES, Asked, images_asked
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.provenance import trained_shifts, training_data
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import GRAPHS
from qrobust.record.start import FloatOnValidation, Start
from qrobust.remedies import CALIBRATOR, has_calibrator, trainings
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render

# Images that each shift is timed on.
RENDERED = 2
# Exporting a calibrator takes as long as so many nodes of a classifier: 33 of a ResNet-8 took half of both together.
CALIBRATOR_NODES = 33
# Seconds that the other Python takes, which loads graphs to measure their memory: most of it imports onnxruntime.
FOOTPRINTS_S = 1.0


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
        float_validation=accuracy_on_validation(run),
    )


def accuracy_on_validation(run: Run) -> FloatOnValidation:
    """What the network that a run was given makes of validation images."""
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


@dataclass(frozen=True)
class Pace:
    """Seconds that what a run does over and over takes, each measured on a few images.

    Attributes:
        float_s, int8_s, calibrator_s: one image through the float network, the INT8 graph, a calibrator.
        gradient_s: the gradient of one image through the fake-quantized model.
        export_s: the fake-quantized model to a graph that is opened.
        nodes: of the fake-quantized model.
    """

    float_s: float
    int8_s: float
    calibrator_s: float
    gradient_s: float
    export_s: float
    nodes: int

    @property
    def all_graphs_s(self) -> float:
        """One image through each graph of a run."""
        return self.float_s + 2 * self.int8_s + self.calibrator_s

    def exporting_s(self, graphs: int, compensated: int, parity_images: int) -> float:
        """Exports of so many graphs without and with a calibrator, and a run's graphs compared with torch."""
        larger = 1 + CALIBRATOR_NODES / self.nodes
        return self.export_s * (graphs + larger * compensated) + 2 * parity_images * self.all_graphs_s

    def timing_s(self, *, latency_budget: bool) -> float:
        """Latencies of a run's graphs in both batches, those by which a calibrator is chosen, and footprints."""
        each = [1e3 * s for s in (self.float_s, self.int8_s, self.int8_s + self.calibrator_s)]
        timed = [*each, *(BATCHES[-1] * ms for ms in each), *(each[1:] if latency_budget else ())]
        return timing_s(timed) + FOOTPRINTS_S

    def evaluating_s(self, asked: Sequence[Asked], rendering_s: Callable[[Sequence[Condition]], float]) -> float:
        """Every graph asked about these images; `rendering_s` is what one of them takes under conditions."""
        return sum(one.images * rendering_s(one.conditions) + one.answers * self.all_graphs_s for one in asked)


def expected_seconds(run: Run, *, compensating: bool) -> dict[str, float]:
    """What the parts of a run take, each from a few steps or images of it; attacks of level `full` are left out.

    Args:
        run: its classifier is quantized, which is measured whole.
        compensating: whether a calibrator is trained, and everything evaluated.
    """
    config, data, quantized = run.config, run.data, run.quantized
    images = to_unit(data.validation.first(TIMED).read(slice(None)))
    began = time.perf_counter()
    deployed = run.deploy(quantized.module)
    export_s = time.perf_counter() - began
    attacked = run.device.classifier(quantized.module)
    with torch.inference_mode():
        float_s, int8_s = (seconds_of(lambda one=one: one(images)) / len(images) for one in (run.model, deployed))  # type: ignore[misc]  # bound now
    gradient_s = seconds_of(lambda: input_gradient(attacked, images, lambda z: z.amax(1))) / len(images)
    pace = Pace(float_s, int8_s, 0.0, gradient_s, export_s, len(quantized.module.graph.nodes))
    compared = len(data.validation.at_most(PARITY_IMAGES))
    found = {"observe": quantized.seconds}
    if config.qat.epochs:
        found["train the classifier"] = config.qat.epochs * len(data.training) * (gradient_s + float_s)
    if not compensating:
        return found | {"export": pace.exporting_s(2, 0, compared)}
    training, remedy, choices = training_data(run), config.calibrator.remedy, config.calibrator
    if not has_calibrator(remedy):  # a step of what is trained is a step behind the smallest of all
        choices = replace(choices, mac_budget=1.0, branches=("photometric",), latency_budget=0.0)
    by_latency = bool(choices.latency_limit(data.image_size))
    fitting, calibrator_s = compensation_seconds(
        quantized.module,
        run.model,
        deployed,
        training,
        len(data.validation),
        choices,
        seed=config.seed,
        device=run.device,
    )
    pace, count = replace(pace, calibrator_s=calibrator_s * has_calibrator(remedy)), trainings(remedy)
    # Other remedies take as many steps through the classifier, and are chosen by as many images.
    what = "the calibrator" if remedy == CALIBRATOR else f"of --remedy {remedy}"
    fitting = {part.replace("the calibrator", what): count * seconds for part, seconds in fitting.items() if count}
    asked = images_asked(run, trained_shifts(run))
    return (
        found
        | fitting
        | {
            # Float and INT8, INT8 again to train and to choose by, the compensated classifier to time and to ship.
            "export": pace.exporting_s(3 + by_latency, 1 + by_latency, compared),
            "evaluate": pace.evaluating_s(asked, _rendering(run, asked)),
            "time the graphs": pace.timing_s(latency_budget=by_latency),
        }
        | _attacking(run, pace)
    )


def _attacking(run: Run, pace: Pace) -> dict[str, float]:
    """The gradients of attacks of level `quick`."""
    attacks, n = run.config.attacks, len(run.data.test)
    if attacks.level != "quick" or not attacks.images:
        return {}
    budgets = balls(attacks.tried_norms, attacks.epsilons, attacks.l2_epsilons, run.data.image_size)
    trials = plan("quick", budgets, GRAPHS, steps=attacks.steps, side=run.data.image_size, seed=run.config.seed)
    gradients = sum(trial.kind == "white-box" for trial in trials) * attacks.steps * min(attacks.images, n)
    return {"attack": gradients * (pace.gradient_s + pace.calibrator_s)}


def _rendering(run: Run, asked: Sequence[Asked]) -> Callable[[Sequence[Condition]], float]:
    """Seconds that one image takes to be rendered under conditions, each shift timed at one severity."""
    images = run.data.validation.first(RENDERED).read(slice(None))
    severities = dict(condition for one in asked for condition in one.conditions)
    taken = {
        name: seconds_of(lambda name=name: render(images, name, severities[name], table=run.table, seed=0))  # type: ignore[misc]  # bound now
        for name in severities
    }
    return lambda conditions: sum(taken[name] for name, _ in conditions) / len(images)


def check_above_chance(run: Run, found: FloatOnValidation, told: str, *, anyway: bool) -> None:
    """Refuse a trained network that tells nothing of these images, whatever is then done to it.

    Args:
        run: whose network it is.
        found: on validation images.
        told: that, in a sentence.
        anyway: warn only, as is done of random weights and of what a user's code set itself.

    Raises:
        InputError: chance explains the accuracy of weights that were given.
    """
    prepared = run.preprocessing
    if not found.tells_nothing:
        return
    said = (
        f"{told}, which explains it. Likely causes: what is subtracted and divided by "
        f"(--normalization), the order of channels (--channel-order, now {prepared.channel_order}), the order of "
        f"classes (--class-names; class 0 is {run.data.class_names[0]!r} now), or how images are resized (--resize, "
        "--image-size)"
    )
    given = "weights" if run.config.model.weights else "pretrained" if run.config.model.pretrained else None
    if run.model_spec.has_weights:
        given = "model"
    if anyway or given is None:
        run.reporter.warn(f"warning: {said}")
    else:
        raise InputError(f"{given}: {said}; --anyway goes on")
