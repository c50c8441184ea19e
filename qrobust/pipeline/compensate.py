"""Stages 3 and 4: train the calibrator, export the pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx

import qrobust
from qrobust.classifier import Classifier, Compensated, count_macs, state_hash
from qrobust.compensation.calibrator import CALIBRATOR_VERSION, Calibrator, Correction
from qrobust.compensation.gate import MOST_TRIED, set_gate
from qrobust.compensation.training import Fit, train_calibrator
from qrobust.compensation.validation import Validation
from qrobust.deployment.profiling import latencies_ms
from qrobust.errors import InputError, RangeError
from qrobust.evaluation.predictions import CLEAN
from qrobust.pipeline.export import session_of
from qrobust.pipeline.polishing import polish
from qrobust.pipeline.provenance import (
    check_images,
    check_unseen,
    trained_on_names,
    training_provenance,
    validation_measures,
)
from qrobust.pipeline.run import Run
from qrobust.pipeline.stage import choices_key, invalidate, stage
from qrobust.progress import progress_callback
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import convert_qat, prepare_qat
from qrobust.quantization.recipe import Recipe
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render
from qrobust.storage import read_json, write_sealed

# Shares of the training steps: restoring pixels; behind the classifier, in float; on its own 8-bit grid.
RESTORE_SHARE, FLOAT_SHARE = 0.4, 0.4
QAT_RATE = 0.5
# What is chosen by these is chosen after training.
AFTER_TRAINING = ("clean_budget", "polish")
# A gate that gives up so much accuracy under shift is told of.
GIVEN_UP = 0.01
# Validation images, clean and shifted ones each, and the memory either may take.
VALIDATION_IMAGES, VALIDATION_BYTES = 6000, 2**28


def compensate(run: Run) -> None:
    """Stage 3: train the calibrator in front of the INT8 classifier and freeze it."""
    folder = run.require_folder()
    check_images(run)
    check_unseen(run)
    # Refused before the calibrator that is there is forgotten.
    _ = run.training_images, run.training_conditions, run.target_images, choose_calibrator(run, run.fake_quantized)
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, "compensate") as result:
        if checkpoints_of(run, run.fake_quantized)["int8"].parent == folder.finished:
            run.reporter.say("  trained before with these choices: only what comes after training is done")
        calibrator = fit_calibrator(run, run.fake_quantized, result)
        invalidate(run, "compensate")
        run.save_calibrator(calibrator)
        folder.keep_finished(checkpoints_of(run, run.fake_quantized).values())


def checkpoints_of(run: Run, fake_quantized: torch.nn.Module) -> dict[str, Path]:
    """Where the training of a calibrator in front of this fake-quantized model keeps what it goes on from, by phase."""
    folder, about = run.require_folder(), state_hash(fake_quantized) + qrobust.__version__
    found = {}
    for kind in ("float", "int8", "chosen"):
        name = f"{kind}-{choices_key(run, kind + about, AFTER_TRAINING)}.{'json' if kind == 'chosen' else 'pt'}"
        done = folder.finished / name
        found[kind] = done if done.exists() else folder.checkpoints / name
    return found


def fit_calibrator(run: Run, fake_quantized: fx.GraphModule, result: dict[str, Any]) -> fx.GraphModule:
    """Train a calibrator in front of a frozen fake-quantized model, first in float, then on its own 8-bit grid.

    Args:
        run: of the run.
        fake_quantized: the classifier.
        result: of the stage, which is told what came out.

    Returns:
        The calibrator, frozen to its integers.
    """
    config, before = run.config, state_hash(fake_quantized)
    target_images = run.target_images.validation if run.target_images else None
    if target_images and not config.use_labels:
        target_images = target_images.relabelled(torch.full((len(target_images),), -1))
    validation = Validation(
        run.selection_split,
        run.training_conditions,
        table=run.table,
        seed=config.seed + 1,
        limit=min(VALIDATION_IMAGES, VALIDATION_BYTES // run.example.numel()),
        target_images=target_images,
        teacher=run.model,
    )
    deployed = session_of(run, fake_quantized)  # faster than the fake-quantized model, and what counts
    clean, _ = validation.measure(deployed)
    calibrator, result["latency_ratio"] = choose_calibrator(run, fake_quantized)
    result["macs"] = {"calibrator": count_macs(calibrator, run.data.image_size, run.model.channels)}
    result["width"], result["branches"] = calibrator.width, calibrator.branches
    result["calibrator_version"] = CALIBRATOR_VERSION
    restore_steps, float_steps = (round(config.steps * s) for s in (RESTORE_SHARE, FLOAT_SHARE))
    steps = (restore_steps + float_steps, restore_steps)
    floating = _train(run, calibrator, (fake_quantized, deployed), validation, steps, config.learning_rate, "float")
    try:
        observed, frozen = _frozen(run, calibrator, mixed_images(run))
    except RangeError as error:
        run.require_folder().drop_checkpoints(checkpoints_of(run, fake_quantized).values())
        raise InputError(
            f"learning_rate: training left the calibrator without a usable range ({error}); expected a rate smaller "
            f"than {config.learning_rate:g}"
        ) from error
    trainable = prepare_qat(observed.graph, frozen, learn_ranges=False)
    rate = config.learning_rate * QAT_RATE
    integer = _train(
        run, trainable, (fake_quantized, deployed), validation, (config.steps - steps[0], 0), rate, "int8"
    )
    frozen = convert_qat(trainable)
    least_clean = clean - config.clean_budget / 100
    with run.reporter.bar("choose the gate", MOST_TRIED) as bar:
        gate = set_gate(frozen, deployed, validation, least_clean=least_clean, progress=lambda: bar.update(1))
    result["gate_gain"], result["gate_offset"] = gate.gain, gate.offset
    if not gate.kept:
        run.reporter.warn(
            f"warning: no gate keeps clean accuracy within {config.clean_budget:g} points on validation images; "
            "the most shut was taken"
        )
    result["polish"] = None
    if config.polish:
        frozen, result["polish"] = polish(run, frozen, deployed, validation, config.polish, least_clean=least_clean)
    measured = validation.measure(deployed, frozen)
    result["validation"] = dict(zip(("clean_accuracy", "shift_accuracy"), measured, strict=True))
    result["validation"]["measures"] = validation_measures(run)
    given_up, cost = integer.shift_accuracy - measured[1], clean - integer.clean_accuracy
    if given_up > GIVEN_UP:
        run.reporter.say(
            f"  on validation images the gate gave up {100 * given_up:.1f} points under shift to cost at most "
            f"{config.clean_budget:g} on clean ones, where the calibrator as trained would cost {100 * cost:.1f}: "
            "--clean-budget sets that"
        )
    result["earlier_s"] = floating.earlier_s + integer.earlier_s
    result["training"] = {"float": floating.__dict__, "int8": integer.__dict__}
    result["trained_on"] = trained_on_names(run)
    result["training_images"] = len(run.training_images)
    result["lessons"] = training_provenance(run) | {"clean_budget": config.clean_budget}
    result["classifier_hash"] = {"before": before, "after": state_hash(fake_quantized)}
    return frozen


def _frozen(run: Run, calibrator: Calibrator, images: Iterable[torch.Tensor]) -> tuple[Observed, fx.GraphModule]:
    recipe = Recipe()
    observed = observe(calibrator.eval(), images, recipe, leaves=(Correction,))
    return observed, build(observed, run.target, recipe)


def choose_calibrator(run: Run, fake_quantized: fx.GraphModule) -> tuple[Calibrator, float | None]:
    """The best calibrator within the budgets, untrained; with a latency budget each is exported and timed.

    What was timed is kept with the checkpoints: a training that goes on must not meet another choice.

    Args:
        run: of the run.
        fake_quantized: the classifier.

    Returns:
        The calibrator, and where there is a latency budget, how many times the classifier's time the pair takes.

    Raises:
        InputError: even the smallest is too slow; the message says how slow.
    """
    choices = run.calibrators_within_budget()
    most = run.config.latency_budget
    if not most:
        return run.new_calibrator(*choices[0]), None
    chosen = checkpoints_of(run, fake_quantized)["chosen"]
    if chosen.exists():
        kept = read_json(chosen)
        return run.new_calibrator(kept["width"], tuple(kept["branches"])), kept["latency_ratio"]
    ratio, size = float("inf"), run.data.image_size
    some = to_unit(run.data.calibration.read(slice(0, 16)))
    sessions = {"alone": session_of(run, fake_quantized)}
    for choice in choices:
        _, frozen = _frozen(run, _as_if_trained(run.new_calibrator(*choice)), [some])
        measured = latencies_ms(sessions | {"pair": session_of(run, Compensated(frozen, fake_quantized))}, size, 1)
        ratio = measured["pair"] / measured["alone"]
        run.reporter.detail(f"calibrator of width {choice[0]} ({', '.join(choice[1])}): {ratio:.2f}x")
        if ratio <= most:
            chosen.parent.mkdir(exist_ok=True)
            write_sealed(chosen, {"width": choice[0], "branches": choice[1], "latency_ratio": ratio})
            return run.new_calibrator(*choice), ratio
    raise InputError(
        f"latency_budget: the smallest calibrator takes {ratio:.2f} times the INT8 graph's time here, "
        f"expected at most {most:g}"
    )


def _as_if_trained(calibrator: Calibrator) -> Calibrator:
    """With proposals that differ from image to image: those of an identity have no range to quantize."""
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return calibrator


def _train(
    run: Run,
    calibrator: torch.nn.Module,
    classifier: tuple[torch.nn.Module, Classifier],
    validation: Validation,
    steps: tuple[int, int],
    learning_rate: float,
    kind: str,
) -> Fit:
    config, (fake_quantized, deployed) = run.config, classifier
    calibrator.train()
    with run.reporter.bar(f"train calibrator ({kind})", steps[0]) as bar:
        fit = train_calibrator(
            calibrator,
            fake_quantized,
            run.model,
            run.training_images,
            validation,
            run.training_conditions,
            table=run.table,
            steps=steps[0],
            restore_steps=steps[1],
            batch_size=config.batch_size,
            learning_rate=learning_rate,
            use_labels=config.use_labels,
            association_weight=config.association_weight,
            reverse_weight=config.reverse_weight,
            seed=config.seed + (kind == "int8"),
            checkpoint=checkpoints_of(run, fake_quantized)[kind],
            target_images=run.target_images.training if run.target_images else None,
            favour=config.favour,
            deployed=deployed,
            progress=progress_callback(bar),
        )
    if fit.diverged:
        run.reporter.warn(f"warning: training ({kind}) diverged; the best state before that is kept")
    elif fit.clean_accuracy + fit.shift_accuracy < fit.start_clean_accuracy + fit.start_shift_accuracy:
        run.reporter.warn(
            f"warning: training ({kind}) ended below where it began on validation images (sum of clean and shifted); "
            f"a learning_rate smaller than {learning_rate:g} or more steps than {config.steps} may help"
        )
    run.reporter.detail(
        f"validation ({kind}): shifts {100 * fit.start_shift_accuracy:.1f} -> {100 * fit.shift_accuracy:.1f} %, "
        f"clean {100 * fit.start_clean_accuracy:.1f} -> {100 * fit.clean_accuracy:.1f} %"
    )
    return fit


def mixed_images(run: Run) -> Iterator[torch.Tensor]:
    """Calibration images, clean and under every training cell in turn, to observe ranges on."""
    every = [CLEAN, *run.training_conditions]
    split = run.data.calibration
    size = max(1, min(32, len(split) // len(every)))
    for index, condition in enumerate(every):
        images = split.read(torch.arange(index * size, (index + 1) * size) % len(split))
        yield to_unit(
            images if condition == CLEAN else render(images, *condition, table=run.table, seed=run.config.seed)
        )
    if run.target_images:
        yield to_unit(run.target_images.training.read(slice(0, 32)))
