"""Stage 2: fit the calibrator of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

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
    check_unseen,
    trained_on_names,
    training_conditions,
    training_data,
    training_images,
    training_provenance,
    validation_measures,
)
from qrobust.pipeline.run import BATCH, Run
from qrobust.pipeline.stage import choices_key, invalidate, stage
from qrobust.record import CleanCost
from qrobust.shifts.filters import to_unit

# What is chosen by these is chosen after training.
AFTER_TRAINING = ("clean_budget", "evolution_steps")


def compensate(run: Run) -> None:
    """Stage 2: train the calibrator in front of the INT8 classifier and freeze it."""
    folder = run.require_folder()
    check_images(run)
    check_unseen(run)
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
    with stage(run, "compensate") as result:
        if checkpoints.int8.parent == folder.finished:
            run.reporter.say("  trained before with these choices: only what comes after training is done")
        fit = fit_in_run(run, run.fake_quantized, data)
        result |= fit_result(run, fit, fit.float_phase.start_shift_accuracy)
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


def fit_in_run(run: Run, classifier: fx.GraphModule, data: CalibratorData) -> CalibratorFit:
    """A calibrator in front of a fake-quantized model, by the choices of the run."""
    return fit_calibrator(
        frozen_classifier(run, classifier),
        data,
        run.config.calibrator,
        checkpoints=checkpoints_of(run, classifier),
        seed=run.config.seed,
        reporter=run.reporter,
    )


def frozen_classifier(run: Run, classifier: fx.GraphModule) -> FrozenClassifier:
    """A fake-quantized model of the run as what a calibrator stands in front of."""
    return FrozenClassifier(classifier, run.model, run.target, run.deploy)


def validation_result(
    run: Run,
    clean_accuracy: float,
    shift_accuracy: float,
    int8_shift_accuracy: float | None,
    cost: CleanCost,
    target_labelled: bool | None = None,
) -> dict[str, Any]:
    """What a stage keeps of the validation of a remedy, as JSON; see `validation_measures` for the last argument."""
    return {
        "clean_cost": asdict(cost),
        "clean_accuracy": clean_accuracy,
        "shift_accuracy": shift_accuracy,
        "int8_shift_accuracy": int8_shift_accuracy,
        "measures": validation_measures(
            labels=run.config.calibrator.use_labels,
            target_labelled=target_labelled,
            shifted=bool(training_conditions(run)),
        ),
    }


def fit_result(run: Run, fit: CalibratorFit, int8_shift_accuracy: float | None) -> dict[str, Any]:
    """What a stage keeps of a fit, as JSON.

    Args:
        run: of the run.
        fit: of a calibrator.
        int8_shift_accuracy: of INT8 alone on the validation images; None: not known.
    """
    return {
        "latency_ratio": fit.latency_ratio,
        "macs": {"calibrator": fit.macs},
        "width": fit.width,
        "branches": fit.branches,
        "calibrator_version": CALIBRATOR_VERSION,
        "gate_gain": fit.gate.gain,
        "gate_offset": fit.gate.offset,
        "polish": fit.evolution and fit.evolution._asdict(),
        "validation": validation_result(
            run,
            fit.clean_accuracy,
            fit.shift_accuracy,
            int8_shift_accuracy,
            fit.clean_cost,
            run.target_images.labelled if run.target_images else None,
        ),
        "earlier_s": fit.earlier_s,
        "training": {"float": fit.float_phase.__dict__, "int8": fit.int8_phase.__dict__},
        "trained_on": trained_on_names(run),
        "training_images": len(training_images(run)),
        "lessons": training_provenance(run) | {"clean_budget": run.config.calibrator.clean_budget},
        "classifier_hash": {"before": fit.hash_before, "after": fit.hash_after},
    }
