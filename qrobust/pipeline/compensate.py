"""Stage 2: fit the calibrator of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import fx, nn

import qrobust
from qrobust.classifier import state_hash
from qrobust.compensation.calibrator import CALIBRATOR_VERSION
from qrobust.compensation.fit import (
    CalibratorData,
    CalibratorFit,
    Checkpoints,
    FrozenClassifier,
    choose_calibrator,
    fit_calibrator,
)
from qrobust.data.splits import Split
from qrobust.pipeline.provenance import (
    check_images,
    trained_on_names,
    training_data,
    training_images,
    training_provenance,
    validation_measures,
)
from qrobust.pipeline.run import BATCH, Run
from qrobust.pipeline.stage import choices_key, invalidate, stage
from qrobust.record import (
    CalibratorMacs,
    CalibratorTraining,
    ClassifierHash,
    CleanCost,
    CompensationResult,
    Validation,
)
from qrobust.shifts.filters import to_unit

# What is chosen by these is chosen after training.
AFTER_TRAINING = ("clean_budget", "evolution_steps")


def compensate(run: Run) -> None:
    """Stage 2: train the calibrator in front of the INT8 classifier and freeze it."""
    folder = run.require_folder()
    check_images(run)
    _ = run.conditions  # an unknown shift is refused before anything is trained
    checkpoints, data = checkpoints_of(run, run.fake_quantized), calibrator_data(run)
    # Refused before the calibrator that is there is deleted.
    choose_calibrator(
        frozen_classifier(run, run.fake_quantized),
        data,
        run.config.calibrator,
        chosen=checkpoints.chosen,
        seed=run.config.seed,
        reporter=run.reporter,
    )
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, "compensate") as running:
        if checkpoints.int8.parent == folder.finished:
            run.reporter.say("  trained before with these choices: only what comes after training is done")
        fit = fit_in_run(run, run.fake_quantized, data)
        running.result, running.earlier_s = fit_result(run, fit), fit.earlier_s
        invalidate(run, "compensate")
        run.save_calibrator(fit.calibrator)
        folder.keep_finished(checkpoints_of(run, run.fake_quantized).all())


def selection_split(run: Run) -> Split:
    """Validation images that compensation is chosen by; without labels, the float model says what they are."""
    split = run.data.validation
    if run.config.calibrator.use_labels:
        return split
    classifier = run.onnx_classifier("float")
    return split.relabelled(torch.cat([classifier(to_unit(images)).argmax(1) for images, _ in split.batches(BATCH)]))


def calibrator_data(run: Run) -> CalibratorData:
    """The images of a calibrator's fit."""
    real = run.target_images.validation if run.target_images else None
    if real and not run.config.calibrator.use_labels:
        real = real.relabelled(torch.full((len(real),), -1))
    return CalibratorData(training_data(run), selection_split(run), run.data.calibration, real, run.primary)


def checkpoints_of(run: Run, classifier: nn.Module) -> Checkpoints:
    """Where the fit of a calibrator in front of this classifier keeps what it goes on from."""
    folder, about = run.require_folder(), state_hash(classifier) + qrobust.__version__

    def place(kind: str, suffix: str) -> Path:
        name = f"{kind}-{choices_key(run, kind + about, AFTER_TRAINING)}.{suffix}"
        done = folder.finished / name
        return done if done.exists() else folder.checkpoints / name

    return Checkpoints(place("float", "pt"), place("int8", "pt"), place("chosen", "json"))


def fit_in_run(
    run: Run, classifier: fx.GraphModule, data: CalibratorData, made_from: fx.GraphModule | None = None
) -> CalibratorFit:
    """A calibrator in front of a fake-quantized model, by the choices of the run; see `FrozenClassifier`."""
    return fit_calibrator(
        replace(frozen_classifier(run, classifier), made_from=made_from),
        data,
        run.config.calibrator,
        checkpoints=checkpoints_of(run, classifier),
        seed=run.config.seed,
        device=run.device,
        reporter=run.reporter,
    )


def frozen_classifier(run: Run, classifier: fx.GraphModule) -> FrozenClassifier:
    """A fake-quantized model of the run as what a calibrator stands in front of."""
    return FrozenClassifier(classifier, run.model, run.target, run.deploy)


def validation_result(
    run: Run,
    clean_accuracy: float,
    shift_accuracy: float,
    clean_cost: CleanCost,
    target_labelled: bool | None = None,
) -> Validation:
    """What a stage keeps of the validation of a remedy; see `validation_measures` for the last argument."""
    measures = validation_measures(
        labels=run.config.calibrator.use_labels,
        target_labelled=target_labelled,
        shifted=training_data(run).renders,
        teacher=run.teacher_name,
    )
    return Validation(
        clean_accuracy=clean_accuracy, shift_accuracy=shift_accuracy, measures=measures, clean_cost=clean_cost
    )


def fit_result(run: Run, fit: CalibratorFit) -> CompensationResult:
    """What a stage keeps of a fit."""
    return CompensationResult(
        latency_ratio=fit.latency_ratio,
        macs=CalibratorMacs(calibrator=fit.macs),
        width=fit.width,
        branches=fit.branches,
        calibrator_version=CALIBRATOR_VERSION,
        gate_gain=fit.gate.gain,
        gate_offset=fit.gate.offset,
        evolution_strategy=fit.evolution,
        validation=validation_result(
            run,
            fit.clean_accuracy,
            fit.shift_accuracy,
            fit.clean_cost,
            run.target_images.labelled if run.target_images else None,
        ),
        training=CalibratorTraining(float=fit.float_phase, int8=fit.int8_phase),
        trained_on=trained_on_names(run),
        training_images=len(training_images(run)),
        provenance=replace(training_provenance(run), clean_budget=run.config.calibrator.clean_limit),
        classifier_hash=ClassifierHash(before=fit.hash_before, after=fit.hash_after),
    )
