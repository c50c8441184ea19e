"""Fit a calibrator to a frozen classifier: choose its size, train it, quantize it, set its gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from qrobust.classifier import Classifier, Compensated, NormalizedModel, count_macs, state_hash
from qrobust.compensation.calibrator import Calibrator, Correction, within_budget
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.cross_fitting import folds_of
from qrobust.compensation.evolution import evolve
from qrobust.compensation.gate import Gate, cross_fitted_scores, gate_steps, opened_parts, set_gate
from qrobust.compensation.training import Phase, train_calibrator
from qrobust.compensation.validation import Validation
from qrobust.data.splits import Split, TrainingData
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.profiling import latencies_ms
from qrobust.device import CPU_ONLY, Device
from qrobust.errors import InputError, RangeError
from qrobust.evaluation.predictions import CLEAN
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.progress import Reporter, progress_callback
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import convert_qat, prepare_qat
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import Target
from qrobust.record import CleanCost, EvolutionStrategy, PhaseFit
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import generic_conditions, selection_conditions
from qrobust.shifts.rendering import render
from qrobust.stopwatch import timing
from qrobust.storage import read_json, write_sealed

# Shares of the training steps: restoring pixels; behind the classifier, in float; on its own 8-bit grid.
RESTORE_SHARE, FLOAT_SHARE = 0.4, 0.4
QAT_RATE = 0.5
# A gate that gives up so much accuracy under shift is told of.
GIVEN_UP = 0.01
# Validation images, clean and shifted ones each, and the memory either may take.
VALIDATION_IMAGES, VALIDATION_BYTES = 6000, 2**28
# A short training is chosen by fewer images under shift: one for so many that it learns from.
LEARNED_FOR_EACH = 10
# Calibration images that a calibrator is observed on before it is timed.
TIMED_IMAGES = 16

Deploy = Callable[[nn.Module], OnnxClassifier]


@dataclass(frozen=True)
class CalibratorData:
    """The images of a calibrator's fit; the splits are disjoint.

    Attributes:
        training: what it learns from.
        validation: what is chosen by; without labels, the float model's predictions stand in for them.
        calibration: what its ranges are observed on, clean and under every training condition.
        target_validation: real images of the new surroundings to choose by, or None; -1 where there is no label.
        primary: what is called accuracy where something is chosen by it, the clean budget too.
    """

    training: TrainingData
    validation: Split
    calibration: Split
    target_validation: Split | None = None
    primary: Primary = ACCURACY

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.calibration.source.image_size

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for luma."""
        return self.calibration.source.channels


@dataclass(frozen=True)
class FrozenClassifier:
    """What a calibrator stands in front of; none of it changes.

    Attributes:
        fake_quantized: the classifier with gradients.
        teacher: the float classifier.
        target: whose integers the calibrator is quantized for.
        deploy: a torch module to the classifier as it runs; what is chosen, is chosen by that.
        made_from: what a remedy trained it from, if one did: both together stay within the clean budget.
    """

    fake_quantized: fx.GraphModule
    teacher: NormalizedModel
    target: Target
    deploy: Deploy
    made_from: fx.GraphModule | None = None


@dataclass(frozen=True)
class Checkpoints:
    """Files that a fit goes on from after a kill.

    Attributes:
        float: of the training in float.
        int8: of the training on the calibrator's own 8-bit grid.
        chosen: the size that was chosen by latency: a training that goes on must not meet another choice.
    """

    float: Path
    int8: Path
    chosen: Path

    def all(self) -> tuple[Path, Path, Path]:
        """Every file."""
        return self.float, self.int8, self.chosen


@dataclass(frozen=True)
class CalibratorFit:
    """What a fit came to.

    Attributes:
        calibrator: frozen to its integers; images to images.
        width, branches: of the calibrator that was chosen.
        latency_ratio: batch-1 time of the compensated classifier over the classifier's, where there was a latency
            budget.
        macs: multiply-accumulates of the calibrator per image.
        gate: how its gate was set.
        evolution: what evolution-strategy fine-tuning did, if it was wanted.
        clean_accuracy, shift_accuracy: of the deployed compensated classifier on validation images, as fractions.
        clean_cost: what it costs on clean validation images, with its bound.
        float_phase, int8_phase: what the two trainings did.
        hash_before, hash_after: of the classifier's parameters and buffers.
    """

    calibrator: fx.GraphModule
    width: int
    branches: tuple[str, ...]
    latency_ratio: float | None
    macs: int
    gate: Gate
    evolution: EvolutionStrategy | None
    clean_accuracy: float
    shift_accuracy: float
    clean_cost: CleanCost
    float_phase: PhaseFit
    int8_phase: PhaseFit
    hash_before: str
    hash_after: str

    @property
    def earlier_s(self) -> float:
        """Seconds of training by processes before the one that ended it."""
        return self.float_phase.earlier_s + self.int8_phase.earlier_s


def fit_calibrator(
    classifier: FrozenClassifier,
    data: CalibratorData,
    config: CalibratorConfig,
    *,
    checkpoints: Checkpoints,
    seed: int = 0,
    device: Device = CPU_ONLY,
    reporter: Reporter | None = None,
) -> CalibratorFit:
    """Train a calibrator in front of a frozen classifier, first in float, then on its own 8-bit grid.

    It turns images into reverse adversarial examples, which the classifier finds easier ("Brain-inspired reverse
    adversarial examples", arXiv 1905.12171).

    Args:
        classifier: what it stands in front of.
        data: images to learn from and to choose by.
        config: size, training and budgets.
        checkpoints: files to go on from.
        seed: of the calibrator's first weights, and of every step.
        device: to train on.
        reporter: where progress is told.

    Raises:
        InputError: no calibrator fits the budgets, a gradient vanishes, or training diverges before it has learned
            anything.
    """
    reporter, before = reporter or Reporter(), state_hash(classifier.fake_quantized)
    deployed = classifier.deploy(classifier.fake_quantized)  # faster than the fake-quantized model, and what counts
    validation = validation_of(data, classifier.teacher, config, seed + 1)
    scores = _scores_to_keep(classifier, deployed, validation)
    least_clean = validation.least_clean(validation.clean_value(scores), config.clean_limit)
    calibrator, ratio = choose_calibrator(
        classifier, data, config, chosen=checkpoints.chosen, seed=seed, reporter=reporter
    )
    macs, size = count_macs(calibrator, data.image_size, data.channels), (calibrator.width, calibrator.branches)

    def trained(module: nn.Module, phase: Phase) -> PhaseFit:
        module.train()
        working = device.holding(module, classifier.fake_quantized, classifier.teacher)
        with working, timing() as watch, reporter.bar(f"train calibrator ({phase.name})", phase.steps) as bar:
            done = train_calibrator(
                module,
                classifier.fake_quantized,
                classifier.teacher,
                data.training,
                validation,
                config,
                phase,
                deployed=deployed,
                progress=progress_callback(bar),
            )
        _say_fit(done, phase, config, reporter, f"{watch} on {device.description}")
        return done

    images = mixed_images(data.calibration, data.training, seed)
    frozen, first, second = _train_both(calibrator, trained, images, config, checkpoints, classifier.target, seed)
    gate, cost = _gate_within_budget(frozen, deployed, validation, scores, config, reporter)
    evolution = None
    if config.evolution_steps:
        frozen, evolution = evolve(
            frozen,
            deployed,
            validation,
            config.evolution_steps,
            least_clean=least_clean,
            deploy=classifier.deploy,
            seed=seed,
            reporter=reporter,
        )
    hashes, kept = (before, state_hash(classifier.fake_quantized)), validation.clean_scores(deployed, frozen)
    measured = validation.clean_value(kept), validation.shifted(deployed, frozen)
    cost = cost or validation.clean_cost(scores, kept, config.clean_limit)
    _say_gate(gate, second, validation.clean_value(scores), measured[1], config, reporter)
    say_clean_cost(cost, reporter)
    return CalibratorFit(frozen, *size, ratio, macs, gate, evolution, *measured, cost, first, second, *hashes)


def _gate_within_budget(
    calibrator: nn.Module,
    deployed: Classifier,
    validation: Validation,
    scores: torch.Tensor,
    config: CalibratorConfig,
    reporter: Reporter,
) -> tuple[Gate, CleanCost | None]:
    """Set the gate, and where images are few, what gates cost that others chose; `scores` are those to keep.

    Evolution goes on to choose by all images, which leaves none to judge by.
    """
    folds, budget = [] if config.evolution_steps else folds_of(validation), config.clean_limit
    with reporter.bar("choose the gate", gate_steps(validation, len(folds))) as bar:

        def progress() -> None:
            bar.update(1)

        opened = opened_parts(calibrator, deployed, validation, progress=progress)
        judged = cross_fitted_scores(
            calibrator,
            deployed,
            validation,
            opened=opened,
            before=scores,
            budget=budget,
            folds=folds,
            progress=progress,
        )
        least_clean = validation.least_clean(validation.clean_value(scores), budget)
        gate = set_gate(calibrator, deployed, validation, least_clean=least_clean, opened=opened, progress=progress)
    return gate, validation.clean_cost(scores, judged, budget, len(folds)) if folds else None


def _scores_to_keep(classifier: FrozenClassifier, deployed: Classifier, validation: Validation) -> torch.Tensor:
    """Scores on clean images that the budget counts from: the classifier's, or of what it was made from if higher."""
    scores = validation.clean_scores(deployed)
    if classifier.made_from is None:
        return scores
    others = validation.clean_scores(classifier.deploy(classifier.made_from))
    return max(scores, others, key=validation.clean_value)


def validation_of(data: CalibratorData, teacher: NormalizedModel, config: CalibratorConfig, seed: int) -> Validation:
    """The images that a remedy is chosen by, rendered."""
    return Validation(
        data.validation,
        selection_conditions(data.training.conditions, data.training.families),
        table=data.training.table,
        seed=seed,
        limit=validation_limit(data.image_size, data.channels),
        shifted_limit=shifted_limit(config, data.image_size, data.channels),
        target_images=data.target_validation,
        teacher=teacher,
        primary=data.primary,
        by_labels=config.use_labels,
    )


def validation_limit(image_size: int, channels: int) -> int:
    """Clean validation images to choose by."""
    return min(VALIDATION_IMAGES, VALIDATION_BYTES // (channels * image_size**2))


def shifted_limit(config: CalibratorConfig, image_size: int, channels: int) -> int:
    """Validation images under shift to choose by."""
    return min(validation_limit(image_size, channels), config.steps * config.batch_size // LEARNED_FOR_EACH)


def _train_both(
    calibrator: Calibrator,
    trained: Callable[[nn.Module, Phase], PhaseFit],
    images: Iterable[torch.Tensor],
    config: CalibratorConfig,
    checkpoints: Checkpoints,
    target: Target,
    seed: int,
) -> tuple[fx.GraphModule, PhaseFit, PhaseFit]:
    """Train in float, freeze, train on the 8-bit grid: the frozen calibrator, and what the two trainings did."""
    restore_steps, float_steps = (round(config.steps * share) for share in (RESTORE_SHARE, FLOAT_SHARE))
    steps, rate = restore_steps + float_steps, config.learning_rate
    first = trained(calibrator, Phase("float", steps, restore_steps, rate, seed, checkpoints.float))
    try:
        observed, frozen = _frozen(calibrator, images, target)
    except RangeError as error:
        for path in checkpoints.all():
            path.unlink(missing_ok=True)
        raise InputError(
            f"learning_rate: training left the calibrator without a usable range ({error}); expected a rate smaller "
            f"than {rate:g}"
        ) from error
    trainable = prepare_qat(observed.graph, frozen, learn_ranges=False)
    second = trained(trainable, Phase("int8", config.steps - steps, 0, rate * QAT_RATE, seed + 1, checkpoints.int8))
    return convert_qat(trainable), first, second


def _say_fit(fit: PhaseFit, phase: Phase, config: CalibratorConfig, reporter: Reporter, pace: str) -> None:
    reporter.detail(f"train calibrator ({phase.name}): {pace}")
    if fit.diverged:
        reporter.warn(f"warning: training ({phase.name}) diverged; the best state before that is kept")
    elif (
        config.use_labels
        and fit.clean_accuracy + fit.shift_accuracy < fit.start_clean_accuracy + fit.start_shift_accuracy
    ):
        reporter.warn(
            f"warning: training ({phase.name}) ended below where it began on validation images (sum of clean and "
            f"shifted); a learning_rate smaller than {phase.learning_rate:g} or more steps than {config.steps} may "
            "help"
        )
    reporter.detail(
        f"validation ({phase.name}): "
        f"shifts {100 * fit.start_shift_accuracy:.1f} -> {100 * fit.shift_accuracy:.1f} %, "
        f"clean {100 * fit.start_clean_accuracy:.1f} -> {100 * fit.clean_accuracy:.1f} %"
    )


def _say_gate(
    gate: Gate, trained: PhaseFit, clean: float, shifted: float, config: CalibratorConfig, reporter: Reporter
) -> None:
    if not gate.kept:
        reporter.warn(
            f"warning: no gate keeps clean accuracy within {config.clean_limit:g} points on validation images; "
            "the most shut was taken"
        )
    given_up, cost = trained.shift_accuracy - shifted, clean - trained.clean_accuracy
    if given_up > GIVEN_UP:
        reporter.say(
            f"  to stay within --clean-budget {config.clean_limit:g}, {100 * given_up:.1f} points of the gain under "
            f"shift were given up on validation images (without the limit: {100 * cost:.1f} points of clean accuracy)"
        )


def say_clean_cost(cost: CleanCost, reporter: Reporter) -> None:
    """Tell what a remedy costs on clean images, and what it may cost in truth."""
    if cost.allowed_pp > cost.budget_pp:
        reporter.say(
            f"  --clean-budget {cost.budget_pp:g} is less than one of {cost.n:,} validation images: one may be lost "
            f"({cost.allowed_pp:.2f} points)"
        )
    how = f" (in {cost.folds} folds, each judging what the others chose)" if cost.folds else ""
    more = f"; about {cost.images_to_tell:,} validation images would tell" if cost.images_to_tell else ""
    reporter.say(
        f"  on {cost.n:,} clean validation images{how} it costs {cost.cost_pp:.1f} points, with 95 % confidence at "
        f"most {cost.bound_pp:.1f}{more}"
    )


def _frozen(
    calibrator: Calibrator, images: Iterable[torch.Tensor], target: Target
) -> tuple[Observed, fx.GraphModule]:
    recipe = Recipe()
    observed = observe(calibrator.eval(), images, recipe, leaves=(Correction,))
    return observed, build(observed, target, recipe)


def candidates(
    teacher: NormalizedModel, training: TrainingData, config: CalibratorConfig
) -> list[tuple[int, tuple[str, ...]]]:
    """Widths and branches of the calibrators that the budget of multiply-accumulates allows, best first.

    Raises:
        InputError: the budget is below the smallest calibrator.
    """
    real, source = training.target_images, training.images.source
    # Without labels, anything local would learn to paint what the classifier expects to see.
    unlabelled = real is not None and not (config.use_labels and bool((real.labels >= 0).all()))
    branches = config.branches or (("photometric",) if unlabelled else ())
    macs = count_macs(teacher, source.image_size, source.channels)
    return within_budget(source.image_size, config.mac_budget, macs, branches, source.channels)


def new_calibrator(image_size: int, width: int, branches: tuple[str, ...], channels: int, seed: int) -> Calibrator:
    """An identity calibrator, seeded."""
    torch.manual_seed(seed)
    return Calibrator(image_size, width, branches, channels)


def choose_calibrator(
    classifier: FrozenClassifier,
    data: CalibratorData,
    config: CalibratorConfig,
    *,
    chosen: Path,
    seed: int,
    reporter: Reporter,
) -> tuple[Calibrator, float | None]:
    """The best calibrator within the budgets, untrained; with a latency budget each is exported and timed.

    Args:
        classifier: what it stands in front of; the teacher's multiply-accumulates count.
        data: image size, and a few calibration images.
        config: the budgets.
        chosen: file that keeps what was chosen by latency.
        seed: of the calibrator's first weights.
        reporter: where each candidate's time is told.

    Returns:
        The calibrator, and where there is a latency budget, the compensated classifier's time over the classifier's.

    Raises:
        InputError: even the smallest is slower than was asked for; the message says how slow.
    """
    choices = candidates(classifier.teacher, data.training, config)
    most = config.latency_limit(data.image_size)

    def fresh(width: int, branches: tuple[str, ...]) -> Calibrator:
        return new_calibrator(data.image_size, width, branches, data.channels, seed)

    if not most:
        return fresh(*choices[0]), None
    if chosen.exists():
        kept = read_json(chosen)
        return fresh(kept["width"], tuple(kept["branches"])), kept["latency_ratio"]
    ratio, alone = float("inf"), {"alone": classifier.deploy(classifier.fake_quantized)}
    some = to_unit(data.calibration.read(slice(0, TIMED_IMAGES)))
    for choice in choices:
        _, frozen = _frozen(_as_if_trained(fresh(*choice)), [some], classifier.target)
        both = classifier.deploy(Compensated(frozen, classifier.fake_quantized))
        measured = latencies_ms(alone | {"compensated": both}, data.image_size, 1)
        ratio = measured["compensated"] / measured["alone"]
        reporter.detail(f"calibrator of width {choice[0]} ({', '.join(choice[1])}): {ratio:.2f}x")
        if ratio <= most:
            break
    else:
        slow = (
            f"the smallest calibrator takes {ratio:.2f} times the INT8 graph's time here, expected at most {most:g}"
        )
        if config.latency_budget is not None:
            raise InputError(f"latency_budget: {slow}")
        reporter.warn(f"{slow}; it is taken, and --latency-budget 0 takes the largest")
    chosen.parent.mkdir(exist_ok=True)
    write_sealed(chosen, {"width": choice[0], "branches": choice[1], "latency_ratio": ratio})
    return fresh(*choice), ratio


def _as_if_trained(calibrator: Calibrator) -> Calibrator:
    """With proposals that differ from image to image: those of an identity have no range to quantize."""
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return calibrator


def mixed_images(split: Split, training: TrainingData, seed: int) -> Iterator[torch.Tensor]:
    """Calibration images, clean and under every training condition and family in turn, to observe ranges on."""
    every = [CLEAN, *training.conditions, *generic_conditions(training.families)]
    size = max(1, min(32, len(split) // len(every)))
    for index, condition in enumerate(every):
        images = split.read(torch.arange(index * size, (index + 1) * size) % len(split))
        yield to_unit(images if condition == CLEAN else render(images, *condition, table=training.table, seed=seed))
    if training.target_images is not None:
        yield to_unit(training.target_images.read(slice(0, 32)))
