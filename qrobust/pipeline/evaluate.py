"""Stages 2 and 5: every graph on onnxruntime, on the same pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from qrobust.classifier import state_hash
from qrobust.compensation.baselines import AntiAdversary
from qrobust.data.splits import Split
from qrobust.deployment.profiling import latencies_ms
from qrobust.deployment.session import sums
from qrobust.errors import InputError
from qrobust.evaluation.attack_plan import Graph
from qrobust.evaluation.attack_summary import attacked
from qrobust.evaluation.corruption_sets import SelectedConditions, stored_predictions
from qrobust.evaluation.other_images import corruption_set, target_row
from qrobust.evaluation.predictions import (
    CLEAN,
    SUBSET,
    Condition,
    ConditionPredictions,
    Predictions,
    kept_or_predicted,
    prediction_key,
    within_budget,
)
from qrobust.evaluation.summary import (
    remedy_gains,
    run_rows,
    summarise,
)
from qrobust.evaluation.workers import Processes, check_workers, processes
from qrobust.pipeline.provenance import check_images, check_target_images, trained_differently
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import GRAPHS, TORCH_ONLY
from qrobust.pipeline.stage import stage
from qrobust.record import Attacks, CorruptionSet, RemedyGain, TargetImages, hardware, versions
from qrobust.storage import read_json, write_json

LATENCY_BATCHES = (1, 32)
# Test images for a method that exists in torch only.
TORCH_IMAGES = 200


def evaluate(run: Run, *, budget: float | None = None, workers: int = 1, without: Collection[str] = ()) -> None:
    """Stages 2 and 5: every graph that is there, on onnxruntime, on the same pixels.

    Predictions are kept per cell with the hash of the graph that made them, and what attacks found is kept per
    attack, so that a killed evaluation resumes and a second one asks only graphs that are new.

    Args:
        run: of the run.
        budget: seconds for all cells, stored ones too, by which a subset of the images is chosen; attacks come on
            top.
        workers: processes that render and ask, with sessions of one thread each.
        without: methods to leave out although they are there.
    """
    folder, config = run.require_folder(), run.config
    check_images(run)
    check_target_images(run, without)
    otherwise = trained_differently(run, without)
    for name, why in otherwise.items():
        run.reporter.warn(f"warning: {name} is left out: {why}")
    left_out = {*otherwise, *without}
    in_torch = TORCH_ONLY not in left_out and folder.stage(TORCH_ONLY) is not None
    names = [name for name in folder.graphs() if {"compensated": "calibrator"}.get(name, name) not in left_out]
    if folder.stage("compensate") and not folder.stage("export"):
        run.reporter.warn(
            f"warning: the calibrator is left out: it was trained, but not exported; `qrobust export {folder.path}`"
        )
    folder.predictions.mkdir(exist_ok=True)
    began = time.perf_counter()
    check_workers(workers)  # what is refused is refused before anything is forgotten
    if not (run.conditions or run.stored or run.target_images):
        wanted = ", ".join(config.shifts)
        raise InputError(f"severities: expected one that is defined for {wanted}, got {config.severities}")
    torch.set_num_threads(config.threads)
    if sums(**run.session_options) == "exact-by-request":
        run.reporter.warn(
            f"warning: this CPU has no VNNI; onnxruntime is asked to add as {config.target} does, so accuracies are "
            "those of such a device and times are not; if this CPU is the device, quantize with --target x86-avx2"
        )
    sessions = {name: run.onnx_classifier(name) for name in names}
    conditions, split, stored = [CLEAN, *run.conditions], run.data.test, run.stored
    with processes(workers) as by:
        if budget is not None:
            split = _subset(run, split, conditions, sessions, budget, by)
            stored = [found.limited(len(split), config.seed) for found in stored]
        _measure(run, split, conditions, stored, sessions, by, time.perf_counter() - began, in_torch)


def _measure(
    run: Run,
    split: Split,
    conditions: list[Condition],
    stored: list[SelectedConditions],
    sessions: dict[str, Any],
    by: Processes | None,
    began_s: float,
    in_torch: bool,
) -> None:
    """The stage, begun so many seconds ago; with the method that exists in torch only, or without."""
    folder, config, names = run.require_folder(), run.config, list(sessions)
    predictions: ConditionPredictions = {}
    with stage(run, "evaluate", began_s=began_s) as result:
        with run.reporter.bar("measure on onnxruntime", len(conditions) * len(split)) as bar:
            for condition in conditions:
                predictions[condition] = _condition_predictions(
                    run, split, condition, sessions, by, lambda n: bar.update(n)
                )
        result["target_images"] = _target_images(run, sessions, by)
        result["corruption_sets"] = _stored(run, stored, sessions, by)
        labels, of = split.labels.numpy(), len(run.data.test)
        trained_on = folder.need_stage("compensate", "compensate")["trained_on"] if "compensated" in names else []
        result["rows"] = run_rows(predictions, labels, seed=config.seed, of=of, seen=trained_on)
        result["summary"] = summarise(
            predictions,
            labels,
            tuple(trained_on),
            seed=config.seed,
            table=run.table,
            classes=len(run.data.class_names),
            of=of,
        )
        result["remedies"] = remedy_gains(predictions, labels, seed=config.seed)
        result["remedies"] += _in_torch(run, split, predictions) if in_torch else []
        result["attacks"] = _attacks(run, {n: s for n, s in sessions.items() if n in GRAPHS})
        result["splits"] = run.data.summary()
        result["severity_table"] = run.table
        result["hardware"] = hardware(config.threads, sums(**run.session_options))
        result["versions"] = versions()
        latency = {f"batch_{b}": latencies_ms(sessions, run.data.image_size, b) for b in LATENCY_BATCHES}
        result["latency_ms"] = {n: {b: latency[b][n] for b in latency} for n in names}
        result["size_bytes"] = {n: folder.graph(n).stat().st_size for n in names}


def _subset(
    run: Run, split: Split, conditions: list[Condition], sessions: dict[str, Any], budget: float, by: Processes | None
) -> Split:
    path = run.require_folder().predictions / SUBSET
    chosen, kept = within_budget(
        read_json(path) if path.exists() else {},
        split,
        conditions,
        sessions,
        seconds=budget,
        table=run.table,
        seed=run.config.seed,
        also=sum(len(found.conditions) for found in run.stored),
        by=by,
    )
    write_json(path, kept)
    return chosen


def _condition_predictions(
    run: Run,
    split: Split,
    condition: tuple[str, int],
    sessions: dict[str, Any],
    by: Processes | None,
    progress: Callable[[int], None],
    folder: Path | None = None,
    source: str | None = None,
) -> dict[str, Predictions]:
    place = run.require_folder()
    about = (
        split.identity(),
        run.table,
        run.config.seed,
        source or run.config.data,
        run.data.image_size,
    )
    keys = {name: prediction_key(place.graph(name).read_bytes(), condition, about) for name in sessions}
    return kept_or_predicted(
        folder or place.predictions,
        condition,
        sessions,
        split,
        keys=keys,
        table=run.table,
        seed=run.config.seed,
        by=by,
        progress=progress,
    )


def _target_images(run: Run, sessions: dict[str, Any], by: Processes | None) -> TargetImages | None:
    """What the graphs make of the test images of a new scene: accuracy where they have labels, else what is known."""
    if run.target_images is None:
        return None
    split, folder = run.target_images.test, run.require_folder().predictions / "scene"
    folder.mkdir(exist_ok=True)
    with run.reporter.bar("measure the scene", len(split)) as bar:
        found = _condition_predictions(
            run, split, CLEAN, sessions, by, lambda n: bar.update(n), folder, run.config.scene_images
        )
    images = str(run.config.scene_images)
    return target_row(found, split.labels.numpy(), images=images, seed=run.config.seed)


def _in_torch(run: Run, split: Split, predictions: ConditionPredictions) -> list[RemedyGain]:
    """The row of a method that has no graph, on the first images, against the INT8 graph on the same ones."""
    some, asked = split.first(TORCH_IMAGES), {TORCH_ONLY: AntiAdversary(run.fake_quantized)}
    fake_quantized, about = state_hash(run.fake_quantized).encode(), (some.identity(), run.table, run.config.seed)
    kept = run.require_folder().predictions / TORCH_ONLY
    kept.mkdir(exist_ok=True)
    both: ConditionPredictions = {}
    with run.reporter.bar(f"measure {TORCH_ONLY} in torch", len(some) * len(predictions)) as bar:
        for condition, known in predictions.items():
            found = kept_or_predicted(
                kept,
                condition,
                asked,
                some,
                keys={TORCH_ONLY: prediction_key(fake_quantized, condition, about)},
                table=run.table,
                seed=run.config.seed,
                progress=lambda n: bar.update(n),
            )
            both[condition] = {"int8": known["int8"].first(len(some))} | found
    return remedy_gains(both, some.labels.numpy(), seed=run.config.seed)


def _stored(
    run: Run, stored: list[SelectedConditions], sessions: dict[str, Any], by: Processes | None
) -> list[CorruptionSet]:
    """Each stored set by itself, on its own images."""
    folder, config, result = run.require_folder(), run.config, []
    graphs = {name: folder.graph(name).read_bytes() for name in sessions}
    for found in stored:
        with run.reporter.bar(f"measure {found.name}", len(found.conditions) * len(found.indices)) as bar:
            predictions = stored_predictions(
                found,
                sessions,
                graphs,
                folder.predictions,
                about=(run.data.image_size,),
                seed=config.seed,
                by=by,
                progress=bar.update,
            )
        result.append(
            corruption_set(
                predictions,
                found.labels,
                name=found.name,
                folder=found.folder_name,
                seed=config.seed,
                table=run.table,
                classes=len(run.data.class_names),
                of=found.of,
            )
        )
    return result


def _attacks(run: Run, sessions: dict[str, Any]) -> Attacks:
    """Attack the first test images; what was found is kept per trial in `attacks.npz`."""
    config, folder = run.config, run.require_folder()
    graphs = {
        name: Graph(run.torch_classifier(name), session, sha256(folder.graph(name).read_bytes()).hexdigest())
        for name, session in sessions.items()
    }
    return attacked(
        folder.attacks,
        graphs,
        run.data.test,
        config.attack_choices,
        seed=config.seed,
        about=(config.data,),
        bar=run.reporter.bar,
    )
