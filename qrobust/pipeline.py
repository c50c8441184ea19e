"""The stages, in order. Each reads the run's folder, does one thing, and leaves its result there.

A stage writes `stages/NAME.json` last, so that a stage either is done or has left nothing that a later
one would take for done.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

import qrobust
from qrobust.classifier import Classifier, Compensated, count_macs
from qrobust.compensation.calibrator import Correction
from qrobust.compensation.training import Fit, Validation, set_gate, state_hash, train_calibrator
from qrobust.config import RunConfig
from qrobust.data import Split
from qrobust.deployment.audit import audit, check_gate, parity
from qrobust.deployment.graph import export as export_graph
from qrobust.deployment.runtime import OnnxClassifier, latencies_ms
from qrobust.errors import GateError, InputError, QRobustError
from qrobust.evaluation import STATISTICS, attack_rows, run_rows, summarise
from qrobust.models import parse_normalization
from qrobust.predictions import (
    CLEAN,
    Predictions,
    Renderers,
    kept_or_predicted,
    prediction_key,
    renderers,
    within_budget,
)
from qrobust.quantization.graph import folded
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import QatFit, refreeze, thaw
from qrobust.quantization.qat import train as train_twin
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.saturation import saturation_risk
from qrobust.quantization.sensitivity import Fidelity, layer_effects, layer_noise
from qrobust.report.html import html_report
from qrobust.report.markdown import markdown_report, skipped_sentence
from qrobust.report.robustbench import unaggregated_csv
from qrobust.results import SCHEMA, Record, hardware, save_npz, versions, write_json, write_text
from qrobust.shifts.rendering import render, to_uint8, to_unit
from qrobust.workbench import GRAPHS, SENSITIVITY_IMAGES, Workbench, discard_unfinished

# Shares of the training steps: restoring pixels; behind the classifier, in float; on its own 8-bit grid.
RESTORE_SHARE, FLOAT_SHARE = 0.4, 0.4
QAT_RATE = 0.5
# Clean validation accuracy that a calibrator may cost, as a fraction: the gate is set by it.
CLEAN_COST = 0.0075
# Shifted validation images in all, and the memory they may take.
VALIDATION_IMAGES, VALIDATION_BYTES = 6000, 2**28
PARITY_IMAGES = 1000
NOISE_IMAGES, NOISE_PIXELS, QAT_VALIDATION_IMAGES = 32, 2**19, 2000
# At most so many validation images, and pixels of them, to estimate saturation on.
SATURATION_IMAGES, SATURATION_PIXELS = 256, 2**20
LATENCY_BATCHES = (1, 32)
STAGES = ("quantize", "compensate", "export", "evaluate")
COMPENSATION_KEYS = ("width", "trained_on", "training", "gate_offset", "validation", "classifier_hash")


@contextmanager
def _stage(bench: Workbench, name: str) -> Iterator[dict[str, Any]]:
    """Time a stage; on success store what it put into the yielded dict.

    From its start on, neither the stage nor any that builds on it counts as done.
    """
    bench.reporter.say(f"{name} ...")
    bench.place().forget(*STAGES[STAGES.index(name) :])
    torch.set_num_threads(bench.config.threads)
    started = time.perf_counter()
    result: dict[str, Any] = {}
    yield result
    result["duration_s"] = round(time.perf_counter() - started, 3)
    write_json(bench.place().config, bench.config.as_json())
    bench.place().finish(name, result)
    bench.reporter.detail(f"{name} done in {result['duration_s']:.1f} s")


def prepare_inputs(bench: Workbench, *, compensating: bool) -> None:
    """Open everything a run reads, so that bad input is refused before anything is written.

    Args:
        bench: of the run.
        compensating: whether a calibrator will be trained, which must then fit its budget.

    Raises:
        InputError: any of it is not usable.
    """
    _ = bench.target, bench.model_spec, bench.cells, bench.training_cells
    if bench.data.skipped:
        bench.reporter.warn(skipped_sentence(bench.data.skipped))
    for split in (bench.data.calibration, bench.data.validation, bench.data.test):
        with bench.reporter.bar("read images", len(split)) as bar:
            for images, _labels in split.batches(500):
                bar.update(len(images))
    _ = bench.model, bench.quantized
    if compensating:
        bench.new_calibrator()


def quantize(bench: Workbench) -> None:
    """Stage 1: float.onnx and int8.onnx, audited, and in parity with torch on validation images.

    A folder in which this fails is removed: there is nothing in it that another stage could use.
    """
    try:
        _quantize(bench)
    except QRobustError:
        discard_unfinished(bench.place())
        raise


def _quantize(bench: Workbench) -> None:
    with _stage(bench, "quantize") as result:
        quantized = bench.quantized
        twin, fit = quantized.twin, None
        if bench.config.qat_epochs:
            twin, fit = _quantization_aware_training(bench)
        floating = folded(bench.model, bench.example)
        in_float = [n for n, bits in quantized.recipe.for_layers(quantized.observed.layers).items() if bits is None]
        _export(bench, "float", floating, result)
        _export(bench, "int8", twin, result, in_float=len(in_float))
        bench.save_model()
        bench.save_twin(twin)
        bench.place().drop_checkpoints()
        size = bench.data.image_size
        noise = layer_noise(
            quantized.observed.graph, twin, quantized.observed.images[: len(bench.judges(NOISE_IMAGES, NOISE_PIXELS))]
        )
        result["quantization"] = {
            "target": bench.config.target,
            "recipe": asdict(quantized.recipe),
            "trials": [asdict(t) for t in quantized.trials],
            "kept_in_float": in_float,
            "keep_float_auto": _bought(bench, quantized.gained, result["audit"]["int8"]),
            "layer_noise": [asdict(n) for n in noise],
            "layer_effects": [asdict(e) for e in quantized.effects],
            "qat": asdict(fit) if fit else None,
            "saturation": _saturation(bench, twin),
        }
        result["macs"] = {"classifier": count_macs(bench.model, size)}
        result["twin_hash"] = state_hash(twin)
        result["splits"] = bench.data.summary()
        result["skipped_images"] = list(bench.data.skipped)
        result["class_names"] = list(bench.data.class_names)
        result["image_size"] = size


def _bought(
    bench: Workbench, gained: tuple[Fidelity, Fidelity] | None, audited: dict[str, Any]
) -> dict[str, Any] | None:
    """What the layers that `--keep-float auto:N` left in float buy (before training), and what they cost."""
    if gained is None:
        return None
    without, kept = gained
    share = audited["integer_mac_share"]
    bench.reporter.say(
        f"kept in float: divergence from float {without.divergence:.4f} -> {kept.divergence:.4f}, agreement "
        f"{100 * without.agreement:.1f} -> {100 * kept.agreement:.1f} % (n = {kept.n}), for "
        f"{100 * (1 - share):.1f} % of "
        f"the multiply-accumulates in float"
    )
    return {"without": asdict(without), "kept": asdict(kept), "float_mac_share": 1 - share}


def _saturation(bench: Workbench, twin: fx.GraphModule) -> dict[str, Any] | None:
    """What an x86 CPU without VNNI would make of the twin; None where activations are signed."""
    if bench.target.signed:
        return None
    judged = bench.judges(SATURATION_IMAGES, SATURATION_PIXELS)
    found = saturation_risk(twin, ((to_unit(images), labels) for images, labels in judged.batches(16)))
    if not found["proven"] and bench.config.target == "x86-avx2":
        raise GateError("saturation: weights of 7 bits overflow 16-bit pair sums, which is a fault of qrobust")
    bench.reporter.detail(
        "without VNNI: nothing can saturate" if found["proven"] else
        f"without VNNI: {100 * found['accuracy_without_vnni']:.1f} % instead of {100 * found['accuracy']:.1f} % "
        f"expected (n = {found['n']})"
    )  # fmt: skip
    return found


def _quantization_aware_training(bench: Workbench) -> tuple[fx.GraphModule, QatFit]:
    """Train the twin; a run that was killed goes on from its checkpoint."""
    folder, config, quantized = bench.place(), bench.config, bench.quantized
    folder.checkpoints.mkdir(exist_ok=True)
    trainable = thaw(quantized.observed.graph, quantized.twin, learn_ranges=config.qat_ranges == "learned")
    trainable = trainable.to(memory_format=torch.channels_last)
    steps = max(1, round(config.qat_epochs * len(bench.data.training) / config.batch_size))
    with bench.reporter.bar("train the twin", steps) as bar:
        done = 0

        def progress(step: int, _total: int, note: str) -> None:
            nonlocal done
            bar.update(step - done, note)
            done = step

        fit = train_twin(
            trainable, folded(bench.model, bench.example), bench.data.training,
            bench.judges(QAT_VALIDATION_IMAGES), steps=steps, batch_size=config.batch_size,
            learning_rate=config.qat_learning_rate, distillation=config.qat_distillation,
            cells=bench.training_cells if config.qat_shifts else [], table=bench.table, seed=config.seed,
            checkpoint=folder.checkpoints / f"qat-{_choices_key(config, 'qat')}.pt", progress=progress,
        )  # fmt: skip
    if fit.diverged:
        bench.reporter.warn("warning: quantization-aware training diverged; the best state before that is kept")
    bench.reporter.detail(
        f"validation: {100 * fit.start_accuracy:.2f} -> {100 * fit.accuracy:.2f} %, divergence from float "
        f"{fit.start_divergence:.4f} -> {fit.divergence:.4f}"
    )
    return refreeze(trainable), fit


def _choices_key(config: RunConfig, kind: str) -> str:
    """Changes with every choice that training depends on."""
    choices = {k: v for k, v in sorted(config.as_json().items()) if k != "threads"}
    return hashlib.sha256(repr((choices, kind)).encode()).hexdigest()[:12]


def sensitivity(bench: Workbench) -> list[dict[str, Any]]:
    """What each layer alone costs, measured on validation images and added to the quantize stage's result."""
    folder = bench.place()
    stage = folder.need_stage("quantize", "quantize")
    quantized, judge = bench.quantized, bench.judges(SENSITIVITY_IMAGES)
    layers = len(quantized.observed.layers)
    with bench.reporter.bar("judge layers", layers) as bar:
        effects = layer_effects(quantized.observed.graph, bench.twin, judge, lambda name: bar.update(1, name))
    stage["quantization"]["layer_effects"] = [asdict(e) for e in effects]
    folder.finish("quantize", stage)
    return [
        noise | next((asdict(e) for e in effects if e.name == noise["name"]), {})
        for noise in stage["quantization"]["layer_noise"]
    ]


def _export(bench: Workbench, name: str, model: torch.nn.Module, result: dict[str, Any], in_float: int = 0) -> None:
    """Write a graph and pass it through the gates: checker, audit (`in_float` layers excepted), parity."""
    path = bench.place().graph(name)
    part = path.with_name(f".{name}.onnx")
    try:
        export_graph(model, part, bench.data.image_size, _metadata(bench, name), storage=bench.config.storage)
        audited = audit(part, signed_activations=bench.target.signed or None)
        split = bench.judges(PARITY_IMAGES)
        images = to_unit(split.read(slice(None)))
        session = OnnxClassifier(part, bench.config.threads, signed_activations=bench.target.signed or None)
        measured = parity(model, session, images, split.labels)
        check_gate(name, audited, measured, integer=name != "float", in_float=in_float)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    result.setdefault("audit", {})[name] = audited
    result.setdefault("parity", {})[name] = measured
    bench.reporter.detail(
        f"{name}.onnx: {audited['integer_ops']} of {audited['quantizable_ops']} convolutions and matrix "
        f"products integer, agreement with torch {100 * measured['agreement']:.2f} %"
    )


def _metadata(bench: Workbench, name: str) -> dict[str, object]:
    spec = bench.config.normalization or bench.model_spec.normalization
    mean, std = parse_normalization(spec)
    return {
        "qrobust.graph": name,
        "qrobust.version": qrobust.__version__,
        "class_names": list(bench.data.class_names),
        "preprocessing": {
            "input": "RGB in [0, 1], (N, 3, S, S)", "image_size": bench.data.image_size,
            "resize": "shorter side by 256/224, bilinear; centre crop", "normalization_inside": [mean, std],
        },
        "provenance": {
            "model": bench.config.model, "data": bench.config.data, "target": bench.config.target,
            "seed": bench.config.seed, "torch": torch.__version__,
        },
    }  # fmt: skip


def compensate(bench: Workbench) -> None:
    """Stage 3: train the calibrator, first in float, then on its own 8-bit grid; freeze it."""
    folder, config = bench.place(), bench.config
    folder.need_stage("quantize", "quantize")
    folder.checkpoints.mkdir(exist_ok=True)
    with _stage(bench, "compensate") as result:
        before = state_hash(bench.twin)
        validation = Validation(
            bench.data.validation, bench.training_cells, table=bench.table, seed=config.seed + 1,
            limit=min(VALIDATION_IMAGES, VALIDATION_BYTES // (3 * bench.data.image_size**2)),
        )  # fmt: skip
        clean, _ = validation.measure(bench.twin)
        calibrator = bench.new_calibrator()
        result["macs"] = {"calibrator": count_macs(calibrator, bench.data.image_size)}
        result["width"] = calibrator.width
        restore_steps, float_steps = (round(config.steps * s) for s in (RESTORE_SHARE, FLOAT_SHARE))
        steps = (restore_steps + float_steps, restore_steps)
        floating = _train(bench, calibrator, validation, steps, config.learning_rate, "float")
        recipe = Recipe()
        observed = observe(calibrator.eval(), _calibrator_images(bench), recipe, leaves=(Correction,))
        frozen = build(observed, bench.target, recipe)
        trainable = thaw(observed.graph, frozen, learn_ranges=False)
        rate = config.learning_rate * QAT_RATE
        integer = _train(bench, trainable, validation, (config.steps - steps[0], 0), rate, "int8")
        offset = set_gate(trainable, bench.twin, validation, least_clean=clean - CLEAN_COST)
        frozen = refreeze(trainable)
        result["gate_offset"] = offset
        result["validation"] = dict(
            zip(
                ("clean_accuracy", "shift_accuracy"), validation.measure(Compensated(frozen, bench.twin)), strict=True
            )
        )
        bench.save_calibrator(frozen)
        result["training"] = {"float": floating.__dict__, "int8": integer.__dict__}
        result["trained_on"] = sorted({name for name, _ in bench.training_cells})
        result["classifier_hash"] = {"before": before, "after": state_hash(bench.twin)}
        folder.drop_checkpoints()


def _train(
    bench: Workbench,
    calibrator: torch.nn.Module,
    validation: Validation,
    steps: tuple[int, int],
    learning_rate: float,
    kind: str,
) -> Fit:
    config = bench.config
    calibrator.train()
    with bench.reporter.bar(f"train calibrator ({kind})", steps[0]) as bar:
        done = 0

        def progress(step: int, _total: int, note: str) -> None:
            nonlocal done
            bar.update(step - done, note)
            done = step

        fit = train_calibrator(
            calibrator, bench.twin, bench.model, bench.data.training, validation, bench.training_cells,
            table=bench.table, steps=steps[0],
            restore_steps=steps[1], batch_size=config.batch_size, learning_rate=learning_rate,
            use_labels=config.use_labels, association_weight=config.association_weight,
            reverse_weight=config.reverse_weight, seed=config.seed + (kind == "int8"),
            checkpoint=bench.place().checkpoints / f"{kind}-{_choices_key(config, kind)}.pt", progress=progress,
        )  # fmt: skip
    if fit.diverged:
        bench.reporter.warn(f"warning: training ({kind}) diverged; the best state before that is kept")
    bench.reporter.detail(
        f"validation ({kind}): shifts {100 * fit.start_shift_accuracy:.1f} -> {100 * fit.shift_accuracy:.1f} %, "
        f"clean {100 * fit.start_clean_accuracy:.1f} -> {100 * fit.clean_accuracy:.1f} %"
    )
    return fit


def _calibrator_images(bench: Workbench) -> Iterator[torch.Tensor]:
    """Calibration images, clean and under every training cell in turn, to observe the calibrator on."""
    every = [CLEAN, *bench.training_cells]
    split = bench.data.calibration
    size = max(1, min(32, len(split) // len(every)))
    for index, cell in enumerate(every):
        images = split.read(torch.arange(index * size, (index + 1) * size) % len(split))
        yield to_unit(images if cell == CLEAN else render(images, *cell, table=bench.table, seed=bench.config.seed))


def export(bench: Workbench) -> None:
    """Stage 4: compensated.onnx, calibrator and classifier as one graph, through the same gates."""
    folder = bench.place()
    folder.need_stage("compensate", "compensate")
    with _stage(bench, "export") as result:
        in_float = len(folder.need_stage("quantize", "quantize")["quantization"]["kept_in_float"])
        _export(bench, "compensated", bench.torch_classifier("compensated"), result, in_float=in_float)
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


def evaluate(bench: Workbench, *, budget: float | None = None, workers: int = 1) -> None:
    """Stages 2 and 5: every graph that is there, on onnxruntime, on the same pixels.

    Predictions are kept per cell with the hash of the graph that made them, so that a killed
    evaluation resumes and a second one asks only graphs that are new.

    Args:
        bench: of the run.
        budget: seconds for all cells, by which a subset of the test images is chosen; attacks come on top.
        workers: processes that render.
    """
    folder, config = bench.place(), bench.config
    folder.need_stage("quantize", "quantize")
    names = [n for n in GRAPHS if n != "compensated" or folder.stage("export")]
    folder.predictions.mkdir(exist_ok=True)
    with _stage(bench, "evaluate") as result:
        sessions = {name: bench.session(name) for name in names}
        cells, split, predictions = [CLEAN, *bench.cells], bench.data.test, {}
        with renderers(workers) as by:
            if budget is not None:
                split = within_budget(
                    folder.predictions, split, cells, sessions, seconds=budget, table=bench.table, seed=config.seed,
                    by=by,
                )  # fmt: skip
            with bench.reporter.bar("measure on onnxruntime", len(cells) * len(split)) as bar:
                for cell in cells:
                    predictions[cell] = _cell_predictions(bench, split, cell, sessions, by, lambda n: bar.update(n))
        labels, of = split.labels.numpy(), len(bench.data.test)
        trained_on = (folder.stage("compensate") or {}).get("trained_on", [])
        rows = run_rows(predictions, labels, seed=config.seed, of=of)
        result["rows"] = [r | {"seen_by_calibrator": r["shift"] in trained_on} for r in rows]
        result["summary"] = summarise(
            predictions, labels, tuple(trained_on), seed=config.seed, table=bench.table,
            classes=len(bench.data.class_names), of=of,
        )  # fmt: skip
        result["attacks"] = _attacks(bench, sessions)
        result["severity_table"] = bench.table
        result["hardware"] = hardware(config.threads)
        latency = {f"batch_{b}": latencies_ms(sessions, bench.data.image_size, b) for b in LATENCY_BATCHES}
        result["latency_ms"] = {n: {b: latency[b][n] for b in latency} for n in names}
        result["size_bytes"] = {n: folder.graph(n).stat().st_size for n in names}


def _cell_predictions(
    bench: Workbench,
    split: Split,
    cell: tuple[str, int],
    sessions: dict[str, Any],
    by: Renderers | None,
    progress: Callable[[int], None],
) -> dict[str, Predictions]:
    folder = bench.place()
    about = (split.fingerprint(), bench.table, bench.config.seed, bench.config.data, bench.data.image_size)
    keys = {name: prediction_key(folder.graph(name).read_bytes(), cell, about) for name in sessions}
    return kept_or_predicted(
        folder.predictions, cell, sessions, split, keys=keys, table=bench.table, seed=bench.config.seed, by=by,
        progress=progress,
    )  # fmt: skip


def _attacks(bench: Workbench, sessions: dict[str, Any]) -> dict[str, object]:
    config = bench.config
    n = min(config.attack_images, len(bench.data.test))
    if not n or not config.epsilons:
        return {"rows": [], "flags": []}
    pairs: dict[str, tuple[Classifier, Classifier]] = {
        name: (bench.torch_classifier(name), session) for name, session in sessions.items()
    }
    with bench.reporter.bar("attack", n * len(pairs) * len(config.epsilons)) as bar:
        return attack_rows(
            pairs, bench.data.test, n=n, epsilons=config.epsilons, steps=config.attack_steps,
            seed=config.seed, progress=lambda k: bar.update(k),
        )  # fmt: skip


def build_record(bench: Workbench) -> Record:
    """Gather what the stages left into one record; see docs/record.md."""
    folder = bench.place()
    quantized = folder.need_stage("quantize", "quantize")
    evaluated = folder.need_stage("evaluate", "evaluate")
    compensated, exported = folder.stage("compensate"), folder.stage("export")
    stages = {"quantize": quantized, "compensate": compensated, "export": exported, "evaluate": evaluated}
    macs = dict(quantized["macs"])
    if compensated:
        macs["calibrator"] = compensated["macs"]["calibrator"]
        macs["calibrator_share"] = macs["calibrator"] / macs["classifier"]
    summary = evaluated["summary"] | {
        "latency_ms": evaluated["latency_ms"], "size_bytes": evaluated["size_bytes"], "macs": macs,
    }  # fmt: skip
    exported = exported or {"audit": {}, "parity": {}}
    return {
        "schema": SCHEMA,
        "qrobust": qrobust.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": bench.config.as_json(),
        "n_test": evaluated["summary"]["n_test"],
        "summary": summary,
        "rows": evaluated["rows"],
        "statistics": STATISTICS,
        "severity_table": evaluated["severity_table"],
        "attacks": evaluated["attacks"],
        "quantization": quantized["quantization"],
        "audit": quantized["audit"] | exported["audit"],
        "parity": quantized["parity"] | exported["parity"],
        "compensation": None if compensated is None else {k: compensated[k] for k in COMPENSATION_KEYS},
        "splits": quantized["splits"],
        "skipped_images": quantized["skipped_images"],
        "class_names": quantized["class_names"],
        "image_size": quantized["image_size"],
        "seeds": {"run": bench.config.seed},
        "versions": versions(),
        "hardware": evaluated["hardware"],
        "stages": {name: {"duration_s": s["duration_s"]} for name, s in stages.items() if s},
    }  # fmt: skip


def write_report(bench: Workbench) -> Record:
    """Stage 6: record.json, report.html, report.md and results.csv."""
    folder = bench.place()
    record = build_record(bench)
    pictures = None
    if folder.pictures.exists():
        with np.load(folder.pictures, allow_pickle=False) as stored:
            pictures = {key: stored[key] for key in stored.files}
    write_text(folder.html, html_report(record, pictures))
    write_text(folder.markdown, markdown_report(record))
    write_text(folder.path / "results.csv", unaggregated_csv(record))
    write_json(folder.record, record)
    return record


def run(bench: Workbench, *, resume: bool) -> Record:
    """All stages; with `resume`, those that are not done."""
    for name, stage in zip(STAGES, (quantize, compensate, export, evaluate), strict=True):
        if resume and bench.place().stage(name):
            bench.reporter.say(f"{name}: done before, kept")
            continue
        stage(bench)
    return write_report(bench)


def check_same_config(bench: Workbench, given: dict[str, Any]) -> None:
    """Refuse to resume a run with other choices than it was begun with.

    Raises:
        InputError: names the first choice that differs.
    """
    kept = bench.config.as_json()
    for key, value in given.items():
        if key != "threads" and kept.get(key) != value:
            raise InputError(f"resume: the run was begun with {key}={kept.get(key)!r}, got {value!r}")
