"""What a calibrator must be better than, each with a graph of its own that passes the same gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from qrobust.errors import InputError
from qrobust.pipeline.compensate import (
    QAT_RATE,
    RESTORE_SHARE,
    checkpoints_of,
    fit_calibrator,
    mixed_images,
)
from qrobust.pipeline.export import export_checked
from qrobust.pipeline.provenance import (
    check_images,
    check_unseen,
    trained_on_names,
    training_provenance,
)
from qrobust.pipeline.quantize import train_in_stage
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES, TORCH_ONLY
from qrobust.pipeline.stage import is_current, stage
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.recipe import Recipe
from qrobust.shifts.filters import to_unit
from qrobust.storage import write_sealed

# Training images whose batch-norm statistics are taken, in batches of so many.
REESTIMATION_IMAGES, REESTIMATION_BATCH = 4096, 128


def make_baseline(run: Run, method: str) -> None:
    """Make, export and gate the graph of a method; what it may learn from is what a calibrator may.

    Args:
        run: of the run.
        method: one of `BASELINES`, or `anti-adversary`, which only asks the next evaluation to measure it.

    Raises:
        InputError: no such method, or one that does not fit the model.
    """
    if method not in (*BASELINES, TORCH_ONLY):
        known = ", ".join(("calibrator", "none", *BASELINES, TORCH_ONLY))
        raise InputError(f"method: expected one of {known}, got {method!r}")
    if method == "finetune" and not run.training_conditions:
        raise InputError("method: finetune learns from shifts, got only a scene's real images")
    if method.endswith("bn-reestimate"):
        estimated_norms(run.model)  # refuse before anything is forgotten
    check_images(run)
    check_unseen(run)
    folder = run.require_folder()
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, method) as result:
        if method == TORCH_ONLY:
            return
        model = MAKERS[method](run, result)
        result.setdefault("macs", {"calibrator": 0})
        spent = result.pop("spent", ())
        export_checked(run, method, model, result)
        folder.drop_checkpoints(spent)


def _only_reestimated(run: Run, result: dict[str, Any]) -> fx.GraphModule:
    result["trained_on"] = trained_on_names(run)
    result["lessons"] = training_provenance(run, trained=False) | {"drawn": _reestimated_on(run) * REESTIMATION_BATCH}
    return _reestimated(run)


def _reestimated_on(run: Run) -> int:
    """Batches whose statistics are taken."""
    return -(-min(REESTIMATION_IMAGES, len(run.training_images)) // REESTIMATION_BATCH)


def _reestimated(run: Run) -> fx.GraphModule:
    """The fake-quantized model of the float model with the batch-norm statistics of training images, a quarter of them clean."""
    if run.config.qat_epochs:
        run.reporter.warn(
            "warning: batch norms are re-estimated in float: what the fake-quantized model learned since is left out"
        )
    count = _reestimated_on(run)

    def batches() -> Iterator[torch.Tensor]:
        with run.reporter.bar("re-estimate batch norms", count) as bar:
            for step in range(count):
                batch = mixed_batch(
                    run.training_images,
                    run.training_conditions,
                    sampling(run.training_conditions),
                    table=run.table,
                    batch_size=REESTIMATION_BATCH,
                    step=step,
                    seed=run.config.seed,
                    target_images=run.target_images.training if run.target_images else None,
                )
                yield to_unit(batch.shifted)
                bar.update(1)

    recipe = Recipe.from_json(run.require_folder().need_stage("quantize", "quantize")["quantization"]["recipe"])
    observed = observe(reestimate_batch_norm(run.model, batches()), mixed_images(run), recipe)
    return build(observed, run.target, recipe, seed=run.config.seed)


def _reestimated_and_calibrated(run: Run, result: dict[str, Any]) -> nn.Module:
    fake_quantized = _reestimated(run)
    if is_current(run, "compensate") and run.config.latency_budget:
        # As large as the calibrator alone, so that the two differ in the classifier, not by what was timed when.
        alone = run.require_folder().need_stage("compensate", "compensate")
        chosen = {key: alone[key] for key in ("width", "branches", "latency_ratio")}
        write_sealed(checkpoints_of(run, fake_quantized)["chosen"], chosen)
    result["spent"] = list(checkpoints_of(run, fake_quantized).values())
    return Compensated(fit_calibrator(run, fake_quantized, result), fake_quantized)


def _finetuned(run: Run, result: dict[str, Any]) -> nn.Module:
    """The fake-quantized model itself, trained on the shifts: steps and rate are those of a calibrator through the classifier."""
    config = run.config
    fake_quantized, fitted = train_in_stage(
        run,
        run.fake_quantized,
        run.training_images,
        run.selection_split,
        steps=round(config.steps * (1 - RESTORE_SHARE)),
        learning_rate=config.learning_rate * QAT_RATE,
        distillation=config.qat_distillation if config.use_labels else 1.0,
        conditions=run.training_conditions,
        kind="finetune",
    )
    if fitted.diverged and not fitted.best_step:
        raise InputError(
            f"learning_rate: fine-tuning diverged at step {fitted.steps}, before anything was learned; expected a "
            f"rate smaller than {config.learning_rate:g}"
        )
    result["spent"] = list(run.require_folder().checkpoints.glob("finetune-*"))
    result["training"], result["earlier_s"] = fitted.__dict__, fitted.earlier_s
    result["trained_on"] = sorted({name for name, _ in run.training_conditions})
    result["lessons"] = training_provenance(run) | {"scene_images": None, "scene_splits": None}
    return fake_quantized


def _preprocessed(module: nn.Module) -> Callable[[Run, dict[str, Any]], nn.Module]:
    def make(run: Run, result: dict[str, Any]) -> nn.Module:
        result["trained_on"], result["lessons"] = [], None
        result["macs"] = {"calibrator": count_macs(module, run.data.image_size, run.model.channels)}
        return Compensated(module, run.fake_quantized)

    return make


MAKERS: dict[str, Callable[[Run, dict[str, Any]], nn.Module]] = {
    "bn-reestimate": _only_reestimated,
    "calibrator+bn-reestimate": _reestimated_and_calibrated,
    "finetune": _finetuned,
    "auto-contrast": _preprocessed(AutoContrast()),
    "denoise": _preprocessed(Denoise()),
}
