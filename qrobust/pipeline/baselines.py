"""Every remedy but the calibrator alone, each with a graph of its own that passes the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from qrobust.compensation.fit import mixed_images
from qrobust.compensation.retraining import retrain, weight_change
from qrobust.compensation.scales import prepare_scales
from qrobust.errors import InputError, unknown
from qrobust.pipeline.compensate import (
    AFTER_TRAINING,
    calibrator_data,
    checkpoints_of,
    fit_in_run,
    fit_result,
    frozen_classifier,
    validation_result,
)
from qrobust.pipeline.export import as_result, export_checked
from qrobust.pipeline.provenance import (
    check_images,
    check_unseen,
    trained_on_names,
    training_conditions,
    training_data,
    training_images,
    training_provenance,
)
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import REMEDIES, TORCH_ONLY
from qrobust.pipeline.stage import choices_key, is_current, stage
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import prepare_qat
from qrobust.quantization.recipe import Recipe
from qrobust.record import RemedyResult
from qrobust.remedies import CALIBRATOR, COMBINED, RETRAINED
from qrobust.shifts.filters import to_unit
from qrobust.storage import write_sealed

# Training images whose batch-norm statistics are taken, in batches of so many.
REESTIMATION_IMAGES, REESTIMATION_BATCH = 4096, 128


def make_baseline(run: Run, method: str) -> None:
    """Make, export and gate the graph of a method; what it may learn from is what a calibrator may.

    Args:
        run: of the run.
        method: one of `REMEDIES`, or `anti-adversary`, which only asks the next evaluation to measure it.

    Raises:
        InputError: no such method, or one that does not fit the model.
    """
    if method not in (*REMEDIES, TORCH_ONLY):
        raise unknown("remedy", method, ("calibrator", "none", "auto", *REMEDIES, TORCH_ONLY))
    if method in (*RETRAINED, *COMBINED) and not training_conditions(run):
        raise InputError(f"remedy: {method} learns from shifts, got target images alone")
    if method.endswith("bn-reestimate"):
        estimated_norms(run.model)  # refuse before anything is forgotten
    check_images(run)
    check_unseen(run)
    folder = run.require_folder()
    if method in COMBINED and not is_current(run, classifier := method.removesuffix(f"+{CALIBRATOR}")):
        make_baseline(run, classifier)
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, method) as result:
        if method == TORCH_ONLY:
            return
        made = MAKERS[method](run)
        result |= {"macs": {"calibrator": 0}} | made.result | as_result(export_checked(run, method, made.model))
        folder.drop_checkpoints(made.spent)


@dataclass(frozen=True)
class Made:
    """A remedy's classifier.

    Attributes:
        model: to export.
        result: what the stage keeps of it, as JSON.
        spent: checkpoints that are not needed once it is exported.
    """

    model: nn.Module
    result: dict[str, Any]
    spent: tuple[Path, ...] = ()


def _only_reestimated(run: Run) -> Made:
    drawn = _reestimated_on(run) * REESTIMATION_BATCH
    provenance = training_provenance(run, trained=False) | {"drawn": drawn}
    return Made(_reestimated(run), {"trained_on": trained_on_names(run), "lessons": provenance})


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

    recipe = Recipe.from_json(run.require_folder().need_stage("quantize", "quantize")["quantization"]["recipe"])
    observed = observe(
        reestimate_batch_norm(run.model, batches()), mixed_images(run.data.calibration, data, run.config.seed), recipe
    )
    return build(observed, run.target, recipe, seed=run.config.seed)


def _reestimated_and_calibrated(run: Run) -> Made:
    return _calibrated(run, _reestimated(run), None)


def _calibrated(run: Run, fake_quantized: fx.GraphModule, int8_shift_accuracy: float | None) -> Made:
    """A calibrator in front of another classifier than the run's own."""
    if is_current(run, "compensate") and run.config.calibrator.latency_budget:
        # As large as the calibrator alone, so that the two differ in the classifier, not by what was timed when.
        alone = run.require_folder().need_stage("compensate", "compensate")
        chosen = {key: alone[key] for key in ("width", "branches", "latency_ratio")}
        write_sealed(checkpoints_of(run, fake_quantized).chosen, chosen)
    fit = fit_in_run(run, fake_quantized, calibrator_data(run))
    spent = checkpoints_of(run, fake_quantized).all()
    result = fit_result(run, fit, int8_shift_accuracy)
    result["weight_change"] = weight_change(run.fake_quantized, fake_quantized)
    return Made(Compensated(fit.calibrator, fake_quantized), result, spent)


def _retrained_and_calibrated(name: str) -> Callable[[Run], Made]:
    def make(run: Run) -> Made:
        below = run.require_folder().need_result(RemedyResult, name, "compensate").validation
        return _calibrated(run, run.retrained(name), below.int8_shift_accuracy if below else None)

    return make


def _thawed(run: Run, name: str) -> fx.GraphModule:
    """The classifier of a run, trainable where a remedy changes it."""
    if name == "scales":
        return prepare_scales(run.fake_quantized)
    prepared = run.quantized.observed.graph
    if name == "first-stage":
        return prepare_first_stage(prepared, run.fake_quantized, run.quantized.observed.images[:1])
    return prepare_qat(prepared, run.fake_quantized, learn_ranges=run.config.qat.ranges == "learned")


def _retrained(name: str) -> Callable[[Run], Made]:
    """The classifier itself, trained on the shifts: as many steps as a calibrator trains through it."""

    def make(run: Run) -> Made:
        folder = run.require_folder()
        done = retrain(
            name,
            _thawed(run, name),
            frozen_classifier(run, run.fake_quantized),
            calibrator_data(run),
            run.config.calibrator,
            run.config.qat,
            checkpoint=folder.checkpoints / f"{name}-{choices_key(run, name, AFTER_TRAINING)}.pt",
            seed=run.config.seed,
            reporter=run.reporter,
        )
        run.save_retrained(done.averaged.model, name)
        result = {
            "training": done.training.__dict__,
            "earlier_s": done.training.earlier_s,
            "trained_on": sorted({shift for shift, _ in training_conditions(run)}),
            "lessons": training_provenance(run)
            | {"scene_images": None, "scene_splits": None, "clean_budget": run.config.calibrator.clean_budget},
            "validation": validation_result(
                run,
                done.averaged.clean_accuracy,
                done.averaged.shift_accuracy,
                done.start_shift_accuracy,
                done.clean_cost,
            ),
            "weight_change": done.change,
            "kept_share": done.averaged.share,
        }
        return Made(done.averaged.model, result, tuple(folder.checkpoints.glob(f"{name}-*")))

    return make


def _preprocessed(module: nn.Module) -> Callable[[Run], Made]:
    def make(run: Run) -> Made:
        macs = {"calibrator": count_macs(module, run.data.image_size, run.model.channels)}
        return Made(Compensated(module, run.fake_quantized), {"trained_on": [], "lessons": None, "macs": macs})

    return make


MAKERS: dict[str, Callable[[Run], Made]] = {
    **{name: _retrained(name) for name in RETRAINED},
    **{f"{name}+{CALIBRATOR}": _retrained_and_calibrated(name) for name in RETRAINED},
    "bn-reestimate": _only_reestimated,
    "calibrator+bn-reestimate": _reestimated_and_calibrated,
    "auto-contrast": _preprocessed(AutoContrast()),
    "denoise": _preprocessed(Denoise()),
}
