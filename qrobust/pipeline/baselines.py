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
from qrobust.errors import InputError, unknown
from qrobust.pipeline.compensate import (
    QAT_RATE,
    RESTORE_SHARE,
    checkpoints_of,
    fit_calibrator,
    mixed_images,
)
from qrobust.pipeline.export import export_gated
from qrobust.pipeline.provenance import (
    check_images,
    check_unseen,
    lesson_names,
    lessons_told,
)
from qrobust.pipeline.quantize import train_twin_in_stage
from qrobust.pipeline.run import Workbench
from qrobust.pipeline.run_folder import ALTERNATIVES, TORCH_ONLY
from qrobust.pipeline.stage import kept, stage
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.recipe import Recipe
from qrobust.shifts.filters import to_unit
from qrobust.storage import write_json

# Training images whose batch-norm statistics are taken, in batches of so many.
REESTIMATION_IMAGES, REESTIMATION_BATCH = 4096, 128


def make_alternative(bench: Workbench, method: str) -> None:
    """Make, export and gate the graph of a method; what it may learn from is what a calibrator may.

    Args:
        bench: of the run.
        method: one of `ALTERNATIVES`, or `anti-adversary`, which only asks the next evaluation to measure it.

    Raises:
        InputError: no such method, or one that does not fit the model.
    """
    if method not in (*ALTERNATIVES, TORCH_ONLY):
        raise unknown("method", method, ("calibrator", "none", *ALTERNATIVES, TORCH_ONLY))
    if method == "finetune" and not bench.training_cells:
        raise InputError("method: finetune learns from shifts, got only real images of a scenario")
    if method.endswith("bn-reestimate"):
        estimated_norms(bench.model)  # refuse before anything is forgotten
    check_images(bench)
    check_unseen(bench)
    folder = bench.place()
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(bench, method) as result:
        if method == TORCH_ONLY:
            return
        model = MAKERS[method](bench, result)
        result.setdefault("macs", {"calibrator": 0})
        spent = result.pop("spent", ())
        export_gated(bench, method, model, result)
        folder.drop_checkpoints(spent)


def _only_reestimated(bench: Workbench, result: dict[str, Any]) -> fx.GraphModule:
    result["trained_on"] = lesson_names(bench)
    result["lessons"] = lessons_told(bench, trained=False) | {"drawn": _reestimated_on(bench) * REESTIMATION_BATCH}
    return _reestimated(bench)


def _reestimated_on(bench: Workbench) -> int:
    """Batches whose statistics are taken."""
    return -(-min(REESTIMATION_IMAGES, len(bench.lessons)) // REESTIMATION_BATCH)


def _reestimated(bench: Workbench) -> fx.GraphModule:
    """The twin of the float model with the batch-norm statistics of training images, a quarter of them clean."""
    if bench.config.qat_epochs:
        bench.reporter.warn("warning: batch norms are re-estimated in float: what the twin learned since is left out")
    count = _reestimated_on(bench)

    def batches() -> Iterator[torch.Tensor]:
        with bench.reporter.bar("re-estimate batch norms", count) as bar:
            for step in range(count):
                batch = mixed_batch(
                    bench.lessons,
                    bench.training_cells,
                    sampling(bench.training_cells),
                    table=bench.table,
                    batch_size=REESTIMATION_BATCH,
                    step=step,
                    seed=bench.config.seed,
                    scene=bench.scene.training if bench.scene else None,
                )
                yield to_unit(batch.shifted)
                bar.update(1)

    recipe = Recipe.from_json(bench.place().need_stage("quantize", "quantize")["quantization"]["recipe"])
    observed = observe(reestimate_batch_norm(bench.model, batches()), mixed_images(bench), recipe)
    return build(observed, bench.target, recipe, seed=bench.config.seed)


def _reestimated_and_calibrated(bench: Workbench, result: dict[str, Any]) -> nn.Module:
    twin = _reestimated(bench)
    if kept(bench, "compensate") and bench.config.latency_budget:
        # As large as the calibrator alone, so that the two differ in the classifier, not by what was timed when.
        alone = bench.place().need_stage("compensate", "compensate")
        chosen = {key: alone[key] for key in ("width", "branches", "latency_ratio")}
        write_json(checkpoints_of(bench, twin)["chosen"], chosen)
    result["spent"] = list(checkpoints_of(bench, twin).values())
    return Compensated(fit_calibrator(bench, twin, result), twin)


def _finetuned(bench: Workbench, result: dict[str, Any]) -> nn.Module:
    """The twin itself, trained on the shifts: steps and rate are those of a calibrator through the classifier."""
    config = bench.config
    twin, fitted = train_twin_in_stage(
        bench,
        bench.twin,
        bench.lessons,
        bench.chosen_by,
        steps=round(config.steps * (1 - RESTORE_SHARE)),
        learning_rate=config.learning_rate * QAT_RATE,
        distillation=config.qat_distillation if config.use_labels else 1.0,
        cells=bench.training_cells,
        kind="finetune",
    )
    if fitted.diverged and not fitted.best_step:
        raise InputError(
            f"learning_rate: fine-tuning diverged at step {fitted.steps}, before anything was learned; expected a "
            f"rate smaller than {config.learning_rate:g}"
        )
    result["spent"] = list(bench.place().checkpoints.glob("finetune-*"))
    result["training"], result["earlier_s"] = fitted.__dict__, fitted.earlier_s
    result["trained_on"] = sorted({name for name, _ in bench.training_cells})
    result["lessons"] = lessons_told(bench) | {"scene_images": None, "scene_splits": None}
    return twin


def _preprocessed(module: nn.Module) -> Callable[[Workbench, dict[str, Any]], nn.Module]:
    def make(bench: Workbench, result: dict[str, Any]) -> nn.Module:
        result["trained_on"], result["lessons"] = [], None
        result["macs"] = {"calibrator": count_macs(module, bench.data.image_size, bench.model.channels)}
        return Compensated(module, bench.twin)

    return make


MAKERS: dict[str, Callable[[Workbench, dict[str, Any]], nn.Module]] = {
    "bn-reestimate": _only_reestimated,
    "calibrator+bn-reestimate": _reestimated_and_calibrated,
    "finetune": _finetuned,
    "auto-contrast": _preprocessed(AutoContrast()),
    "denoise": _preprocessed(Denoise()),
}
