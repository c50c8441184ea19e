"""Every remedy but the calibrator alone, each with a graph of its own that passes the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx, nn

from qrobust.classifier import Compensated, count_macs
from qrobust.compensation.baselines import (
    AutoContrast,
    Denoise,
    estimated_norms,
    reestimate_batch_norm,
)
from qrobust.compensation.batches import mixed_batch, sampling
from qrobust.compensation.first_stage import prepare_first_stage
from qrobust.compensation.fit import mixed_images, say_clean_cost, validation_limit
from qrobust.compensation.retraining import Retrained, retrain, weight_change
from qrobust.compensation.scales import prepare_scales
from qrobust.compensation.second_look import SecondLook, fit_second_look
from qrobust.compensation.validation import Validation
from qrobust.errors import InputError, unknown
from qrobust.pipeline.compensate import (
    AFTER_TRAINING,
    calibrator_data,
    checkpoints_of,
    fit_in_run,
    fit_result,
    frozen_classifier,
    selection_split,
    validation_result,
)
from qrobust.pipeline.export import export_checked, exported
from qrobust.pipeline.provenance import (
    check_images,
    trained_on_names,
    trained_shifts,
    training_data,
    training_images,
    training_provenance,
)
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import REMEDIES, TORCH_ONLY
from qrobust.pipeline.stage import choices_key, is_current, stage
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import prepare_qat
from qrobust.record import (
    CalibratorMacs,
    CompensationResult,
    QatTraining,
    RemedyResult,
    RemedyTraining,
    WeightChange,
    taken,
)
from qrobust.remedies import BEHIND_CALIBRATOR, CALIBRATOR, COMBINED, RETRAINED, SECOND_LOOKS
from qrobust.shifts.filters import to_unit
from qrobust.storage import write_sealed

# Training images whose batch-norm statistics are taken, in batches of so many.
REESTIMATION_IMAGES, REESTIMATION_BATCH = 4096, 128


def make_baseline(run: Run, remedy: str) -> None:
    """Make and export the graph of a remedy, through its checks; what it may learn from is what a calibrator may.

    Args:
        run: of the run.
        remedy: one of `REMEDIES`, or `anti-adversary`, which only asks the next evaluation to measure it.

    Raises:
        InputError: there is no such remedy, or it does not fit the model.
    """
    if remedy not in (*REMEDIES, TORCH_ONLY):
        raise unknown("remedy", remedy, ("calibrator", "none", "auto", *REMEDIES, TORCH_ONLY))
    if remedy in (*RETRAINED, *COMBINED) and not run.config.shifts.train_on:
        raise InputError(f"remedy: {remedy} learns from shifts, got target images alone")
    if remedy.endswith("bn-reestimate"):
        estimated_norms(run.model)  # refuse before anything is forgotten
    check_images(run)
    folder = run.require_folder()
    if remedy == BEHIND_CALIBRATOR and not is_current(run, "compensate"):
        raise InputError(f"remedy: {remedy} needs the run's calibrator; make it by `qrobust compensate RUN` first")
    if remedy in COMBINED and not is_current(run, classifier := remedy.removesuffix(f"+{CALIBRATOR}")):
        make_baseline(run, classifier)
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, remedy) as running:
        if remedy == TORCH_ONLY:
            return
        made = MAKERS[remedy](run)
        running.earlier_s = made.earlier_s
        running.result = taken(RemedyResult, made.training, exported(export_checked(run, remedy, made.model)))
        folder.drop_checkpoints(made.spent)


@dataclass(frozen=True)
class Made:
    """A remedy's classifier.

    Attributes:
        model: to export.
        training: how it was made.
        spent: checkpoints that are not needed once it is exported.
        earlier_s: seconds of its training by processes that were killed.
    """

    model: nn.Module
    training: RemedyTraining
    spent: tuple[Path, ...] = ()
    earlier_s: float = 0.0


def _only_reestimated(run: Run) -> Made:
    images = _reestimated_on(run) * REESTIMATION_BATCH
    provenance = replace(training_provenance(run, trained=False), batch_norm_images=images)
    return Made(_reestimated(run), RemedyTraining(trained_on=trained_on_names(run), provenance=provenance))


def _reestimated_on(run: Run) -> int:
    """Batches whose statistics are taken."""
    return -(-min(REESTIMATION_IMAGES, len(training_images(run))) // REESTIMATION_BATCH)


def _reestimated(run: Run) -> fx.GraphModule:
    """The classifier quantized with the batch-norm statistics of training images, a quarter of them clean."""
    if run.config.qat.epochs:
        run.reporter.warn(
            "warning: batch norms are re-estimated in float: what the fake-quantized model learned since is left out"
        )
    count, data = _reestimated_on(run), training_data(run)
    weights = sampling(data.conditions)

    def batches() -> Iterator[torch.Tensor]:
        with run.reporter.bar("re-estimate batch norms", count) as bar:
            for step in range(count):
                batch = mixed_batch(data, weights, batch_size=REESTIMATION_BATCH, step=step, seed=run.config.seed)
                yield to_unit(batch.shifted)
                bar.update(1)

    recipe = run.recipe
    observed = observe(
        reestimate_batch_norm(run.model, batches(), device=run.device),
        mixed_images(run.data.calibration, data, run.config.seed),
        recipe,
        device=run.device,
    )
    return build(observed, run.target, recipe, seed=run.config.seed, device=run.device)


def _reestimated_and_calibrated(run: Run) -> Made:
    return _calibrated(run, _reestimated(run))


def _calibrated(run: Run, fake_quantized: fx.GraphModule, made_from: fx.GraphModule | None = None) -> Made:
    """A calibrator in front of another classifier than the run's own."""
    if is_current(run, "compensate") and run.config.calibrator.latency_limit(run.data.image_size):
        # As large as the calibrator alone, so that the two differ in the classifier, not by what was timed when.
        alone = run.require_folder().need_result(CompensationResult, "compensate", "compensate")
        chosen = {"width": alone.width, "branches": list(alone.branches), "latency_ratio": alone.latency_ratio}
        write_sealed(checkpoints_of(run, fake_quantized).chosen, chosen)
    fit = fit_in_run(run, fake_quantized, calibrator_data(run), made_from)
    spent = checkpoints_of(run, fake_quantized).all()
    change = weight_change(run.fake_quantized, fake_quantized)
    training = taken(RemedyTraining, fit_result(run, fit), weight_change=change)
    return Made(Compensated(fit.calibrator, fake_quantized), training, spent, fit.earlier_s)


def _retrained_and_calibrated(name: str) -> Callable[[Run], Made]:
    return lambda run: _calibrated(run, run.retrained(name), run.fake_quantized)


def _trainable(run: Run, name: str) -> fx.GraphModule:
    """The classifier of a run, trainable where a remedy changes it."""
    if name == "scales":
        return prepare_scales(run.fake_quantized)
    prepared = run.quantized.observed.graph
    if name == "first-stage":
        return prepare_first_stage(prepared, run.fake_quantized, run.quantized.observed.images[:1])
    return prepare_qat(prepared, run.fake_quantized, learn_ranges=run.config.qat.ranges == "learned")


def training_result(run: Run, done: Retrained) -> RemedyTraining:
    """What a stage keeps of a training of the classifier itself."""
    learned = replace(training_provenance(run), target_images=None, target_splits=None)
    return RemedyTraining(
        training=taken(QatTraining, done.training),
        trained_on=trained_shifts(run),
        provenance=replace(learned, clean_budget=run.config.calibrator.clean_limit),
        validation=validation_result(
            run, done.averaged.clean_accuracy, done.averaged.shift_accuracy, done.clean_cost
        ),
        weight_change=done.change,
        kept_share=done.averaged.share,
    )


def _retrained(name: str) -> Callable[[Run], Made]:
    """The classifier itself, trained on the shifts: as many steps as a calibrator trains through it."""

    def make(run: Run) -> Made:
        folder = run.require_folder()
        done = retrain(
            name,
            _trainable(run, name),
            frozen_classifier(run, run.fake_quantized),
            calibrator_data(run),
            run.config.calibrator,
            run.config.qat,
            checkpoint=folder.checkpoints / f"{name}-{choices_key(run, name, AFTER_TRAINING)}.pt",
            seed=run.config.seed,
            device=run.device,
            reporter=run.reporter,
        )
        run.save_retrained(done.averaged.model, name)
        training = training_result(run, done)
        spent = tuple(folder.checkpoints.glob(f"{name}-*"))
        return Made(done.averaged.model, training, spent, done.training.earlier_s)

    return make


def _preprocessed(module: nn.Module) -> Callable[[Run], Made]:
    def make(run: Run) -> Made:
        macs = CalibratorMacs(calibrator=count_macs(module, run.data.image_size, run.model.channels))
        training = RemedyTraining(macs=macs, trained_on=(), provenance=None)
        return Made(Compensated(module, run.fake_quantized), training)

    return make


def _second_look(name: str) -> Callable[[Run], Made]:
    """The classifier, or it behind the run's calibrator, asked about negatives as well; the threshold is chosen."""

    def make(run: Run) -> Made:
        folder, size, channels = run.require_folder(), run.data.image_size, run.model.channels
        model = run.torch_classifier("compensated" if name == BEHIND_CALIBRATOR else "int8")
        validation = Validation(
            selection_split(run),
            [],
            table=run.table,
            seed=run.config.seed,
            limit=validation_limit(size, channels),
            primary=run.primary,
        )
        threshold, cost = fit_second_look(run.deploy(model), validation, run.config.calibrator.clean_limit)
        say_clean_cost(cost, run.reporter)
        added = CalibratorMacs(calibrator=count_macs(model, size, channels))
        training = RemedyTraining(trained_on=(), provenance=None)
        if name == BEHIND_CALIBRATOR:
            calibrator = folder.need_result(CompensationResult, "compensate", "compensate")
            training = replace(taken(RemedyTraining, calibrator), validation=None)  # that is of the calibrator alone
            added = CalibratorMacs(calibrator=added.calibrator + calibrator.macs.calibrator)
        untouched = WeightChange(relative_change=0.0, integers_changed=0.0)
        training = replace(training, macs=added, threshold=threshold, weight_change=untouched)
        return Made(SecondLook(model, threshold), training)

    return make


MAKERS: dict[str, Callable[[Run], Made]] = {
    **{name: _retrained(name) for name in RETRAINED},
    **{f"{name}+{CALIBRATOR}": _retrained_and_calibrated(name) for name in RETRAINED},
    **{name: _second_look(name) for name in SECOND_LOOKS},
    "bn-reestimate": _only_reestimated,
    "calibrator+bn-reestimate": _reestimated_and_calibrated,
    "auto-contrast": _preprocessed(AutoContrast()),
    "denoise": _preprocessed(Denoise()),
}
