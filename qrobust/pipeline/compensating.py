"""Stages 3 and 4: train the calibrator, export the pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

import qrobust
from qrobust.classifier import Classifier, Compensated, count_macs
from qrobust.compensation.calibrator import CALIBRATOR_VERSION, Calibrator, Correction
from qrobust.compensation.gate import MOST_TRIED, set_gate
from qrobust.compensation.training import Fit, state_hash, train_calibrator
from qrobust.compensation.validation import Validation
from qrobust.deployment.runtime import latencies_ms
from qrobust.errors import InputError, RangeError
from qrobust.pipeline.lessons import check_images, check_unseen, lesson_names, lessons_told, validation_measures
from qrobust.pipeline.polishing import polish
from qrobust.pipeline.stage import choices_key, export_gated, session_of, stage, told, undo
from qrobust.predictions import CLEAN
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import refreeze, thaw
from qrobust.quantization.recipe import Recipe
from qrobust.results import read_json, save_npz, write_sealed
from qrobust.shifts.rendering import render, to_uint8, to_unit
from qrobust.workbench import Workbench

# Shares of the training steps: restoring pixels; behind the classifier, in float; on its own 8-bit grid.
RESTORE_SHARE, FLOAT_SHARE = 0.4, 0.4
QAT_RATE = 0.5
# What is chosen by these is chosen after training.
AFTER_TRAINING = ("clean_budget", "polish")
# A gate that gives up so much accuracy under shift is told of.
GIVEN_UP = 0.01
# Validation images, clean and shifted ones each, and the memory either may take.
VALIDATION_IMAGES, VALIDATION_BYTES = 6000, 2**28


def compensate(bench: Workbench) -> None:
    """Stage 3: train the calibrator in front of the INT8 classifier and freeze it."""
    folder = bench.place()
    check_images(bench)
    check_unseen(bench)
    # Refused before the calibrator that is there is forgotten.
    _ = bench.lessons, bench.training_cells, bench.scene, choose_calibrator(bench, bench.twin)
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(bench, "compensate") as result:
        if checkpoints_of(bench, bench.twin)["int8"].parent == folder.finished:
            bench.reporter.say("  trained before with these choices: only what comes after training is done")
        calibrator = fit_calibrator(bench, bench.twin, result)
        undo(bench, "compensate")
        bench.save_calibrator(calibrator)
        folder.keep_finished(checkpoints_of(bench, bench.twin).values())


def checkpoints_of(bench: Workbench, twin: torch.nn.Module) -> dict[str, Path]:
    """Where the training of a calibrator in front of this twin keeps what it goes on from, by phase."""
    folder, about = bench.place(), state_hash(twin) + qrobust.__version__
    found = {}
    for kind in ("float", "int8", "chosen"):
        name = f"{kind}-{choices_key(bench, kind + about, AFTER_TRAINING)}.{'json' if kind == 'chosen' else 'pt'}"
        done = folder.finished / name
        found[kind] = done if done.exists() else folder.checkpoints / name
    return found


def fit_calibrator(bench: Workbench, twin: fx.GraphModule, result: dict[str, Any]) -> fx.GraphModule:
    """Train a calibrator in front of a frozen twin, first in float, then on its own 8-bit grid.

    Args:
        bench: of the run.
        twin: the classifier.
        result: of the stage, which is told what came out.

    Returns:
        The calibrator, frozen to its integers.
    """
    config, before = bench.config, state_hash(twin)
    scene = bench.scene.validation if bench.scene else None
    if scene and not config.use_labels:
        scene = scene.relabelled(torch.full((len(scene),), -1))
    validation = Validation(
        bench.chosen_by, bench.training_cells, table=bench.table, seed=config.seed + 1,
        limit=min(VALIDATION_IMAGES, VALIDATION_BYTES // bench.example.numel()),
        scene=scene, teacher=bench.model,
    )  # fmt: skip
    judged = session_of(bench, twin)  # faster than the twin, and what counts
    clean, _ = validation.measure(judged)
    calibrator, result["latency_ratio"] = choose_calibrator(bench, twin)
    result["macs"] = {"calibrator": count_macs(calibrator, bench.data.image_size, bench.model.channels)}
    result["width"], result["branches"] = calibrator.width, calibrator.branches
    result["calibrator_version"] = CALIBRATOR_VERSION
    restore_steps, float_steps = (round(config.steps * s) for s in (RESTORE_SHARE, FLOAT_SHARE))
    steps = (restore_steps + float_steps, restore_steps)
    floating = _train(bench, calibrator, (twin, judged), validation, steps, config.learning_rate, "float")
    try:
        observed, frozen = _frozen(bench, calibrator, mixed_images(bench))
    except RangeError as error:
        bench.place().drop_checkpoints(checkpoints_of(bench, twin).values())
        raise InputError(
            f"learning_rate: training left the calibrator without a usable range ({error}); expected a rate smaller "
            f"than {config.learning_rate:g}"
        ) from error
    trainable = thaw(observed.graph, frozen, learn_ranges=False)
    rate = config.learning_rate * QAT_RATE
    integer = _train(bench, trainable, (twin, judged), validation, (config.steps - steps[0], 0), rate, "int8")
    frozen = refreeze(trainable)
    least_clean = clean - config.clean_budget / 100
    with bench.reporter.bar("choose the gate", MOST_TRIED) as bar:
        gate = set_gate(frozen, judged, validation, least_clean=least_clean, progress=lambda: bar.update(1))
    result["gate_gain"], result["gate_offset"] = gate.gain, gate.offset
    if not gate.kept:
        bench.reporter.warn(
            f"warning: no gate keeps clean accuracy within {config.clean_budget:g} points on validation images; "
            "the most shut was taken"
        )
    result["polish"] = None
    if config.polish:
        frozen, result["polish"] = polish(bench, frozen, judged, validation, config.polish, least_clean=least_clean)
    measured = validation.measure(judged, frozen)
    result["validation"] = dict(zip(("clean_accuracy", "shift_accuracy"), measured, strict=True))
    result["validation"]["measures"] = validation_measures(bench)
    given_up, cost = integer.shift_accuracy - measured[1], clean - integer.clean_accuracy
    if given_up > GIVEN_UP:
        bench.reporter.say(
            f"  on validation images the gate gave up {100 * given_up:.1f} points under shift to cost at most "
            f"{config.clean_budget:g} on clean ones, where the calibrator as trained would cost {100 * cost:.1f}: "
            "--clean-budget sets that"
        )
    result["earlier_s"] = floating.earlier_s + integer.earlier_s
    result["training"] = {"float": floating.__dict__, "int8": integer.__dict__}
    result["trained_on"] = lesson_names(bench)
    result["training_images"] = len(bench.lessons)
    result["lessons"] = lessons_told(bench) | {"clean_budget": config.clean_budget}
    result["classifier_hash"] = {"before": before, "after": state_hash(twin)}
    return frozen


def _frozen(
    bench: Workbench, calibrator: Calibrator, images: Iterable[torch.Tensor]
) -> tuple[Observed, fx.GraphModule]:
    recipe = Recipe()
    observed = observe(calibrator.eval(), images, recipe, leaves=(Correction,))
    return observed, build(observed, bench.target, recipe)


def choose_calibrator(bench: Workbench, twin: fx.GraphModule) -> tuple[Calibrator, float | None]:
    """The best calibrator within the budgets, untrained; with a latency budget each is exported and timed.

    What was timed is kept with the checkpoints: a training that goes on must not meet another choice.

    Args:
        bench: of the run.
        twin: the classifier.

    Returns:
        The calibrator, and where there is a latency budget, how many times the classifier's time the pair takes.

    Raises:
        InputError: even the smallest is too slow; the message says how slow.
    """
    choices = bench.calibrators_within_budget()
    most = bench.config.latency_budget
    if not most:
        return bench.new_calibrator(*choices[0]), None
    chosen = checkpoints_of(bench, twin)["chosen"]
    if chosen.exists():
        kept = read_json(chosen)
        return bench.new_calibrator(kept["width"], tuple(kept["branches"])), kept["latency_ratio"]
    ratio, size = float("inf"), bench.data.image_size
    some = to_unit(bench.data.calibration.read(slice(0, 16)))
    sessions = {"alone": session_of(bench, twin)}
    for choice in choices:
        _, frozen = _frozen(bench, _as_if_trained(bench.new_calibrator(*choice)), [some])
        measured = latencies_ms(sessions | {"pair": session_of(bench, Compensated(frozen, twin))}, size, 1)
        ratio = measured["pair"] / measured["alone"]
        bench.reporter.detail(f"calibrator of width {choice[0]} ({', '.join(choice[1])}): {ratio:.2f}x")
        if ratio <= most:
            chosen.parent.mkdir(exist_ok=True)
            write_sealed(chosen, {"width": choice[0], "branches": choice[1], "latency_ratio": ratio})
            return bench.new_calibrator(*choice), ratio
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
    bench: Workbench,
    calibrator: torch.nn.Module,
    classifier: tuple[torch.nn.Module, Classifier],
    validation: Validation,
    steps: tuple[int, int],
    learning_rate: float,
    kind: str,
) -> Fit:
    config, (twin, judged) = bench.config, classifier
    calibrator.train()
    with bench.reporter.bar(f"train calibrator ({kind})", steps[0]) as bar:
        fit = train_calibrator(
            calibrator, twin, bench.model, bench.lessons, validation, bench.training_cells,
            table=bench.table, steps=steps[0],
            restore_steps=steps[1], batch_size=config.batch_size, learning_rate=learning_rate,
            use_labels=config.use_labels, association_weight=config.association_weight,
            reverse_weight=config.reverse_weight, seed=config.seed + (kind == "int8"),
            checkpoint=checkpoints_of(bench, twin)[kind],
            scene=bench.scene.training if bench.scene else None, favour=config.favour,
            judged=judged, progress=told(bar),
        )  # fmt: skip
    if fit.diverged:
        bench.reporter.warn(f"warning: training ({kind}) diverged; the best state before that is kept")
    elif fit.clean_accuracy + fit.shift_accuracy < fit.start_clean_accuracy + fit.start_shift_accuracy:
        bench.reporter.warn(
            f"warning: training ({kind}) ended below where it began on validation images (sum of clean and shifted); "
            f"a learning_rate smaller than {learning_rate:g} or more steps than {config.steps} may help"
        )
    bench.reporter.detail(
        f"validation ({kind}): shifts {100 * fit.start_shift_accuracy:.1f} -> {100 * fit.shift_accuracy:.1f} %, "
        f"clean {100 * fit.start_clean_accuracy:.1f} -> {100 * fit.clean_accuracy:.1f} %"
    )
    return fit


def mixed_images(bench: Workbench) -> Iterator[torch.Tensor]:
    """Calibration images, clean and under every training cell in turn, to observe ranges on."""
    every = [CLEAN, *bench.training_cells]
    split = bench.data.calibration
    size = max(1, min(32, len(split) // len(every)))
    for index, cell in enumerate(every):
        images = split.read(torch.arange(index * size, (index + 1) * size) % len(split))
        yield to_unit(images if cell == CLEAN else render(images, *cell, table=bench.table, seed=bench.config.seed))
    if bench.scene:
        yield to_unit(bench.scene.training.read(slice(0, 32)))


def export(bench: Workbench) -> None:
    """Stage 4: compensated.onnx, calibrator and classifier as one graph, through the same gates."""
    folder = bench.place()
    folder.need_stage("compensate", "compensate")
    with stage(bench, "export") as result:
        export_gated(bench, "compensated", bench.torch_classifier("compensated"), result)
        _pictures(bench)


def _pictures(bench: Workbench) -> None:
    """Test images under the strongest shifts, and what the calibrator makes of them, for the report."""
    strongest: dict[str, int] = {}
    for name, severity in bench.cells:
        strongest[name] = max(severity, strongest.get(name, 0))
    labels = bench.data.test.labels
    other = (labels != labels[0]).nonzero()[:1, 0]
    images = bench.data.test.read(torch.cat([torch.tensor([0]), other]))
    arrays: dict[str, np.ndarray] = {"clean": images.numpy()}
    for name, severity in strongest.items():
        shifted = render(images, name, severity, table=bench.table, seed=bench.config.seed)
        with torch.inference_mode():
            calibrated = to_uint8(bench.calibrator(to_unit(shifted)))
        arrays[f"{name}.{severity}.before"] = shifted.numpy()
        arrays[f"{name}.{severity}.after"] = calibrated.numpy()
    save_npz(bench.place().pictures, arrays)
