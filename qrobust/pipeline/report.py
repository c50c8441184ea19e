"""Stage 6: from what the stages left to one record and its reports; needs no torch."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import qrobust
from qrobust.deployment.onnx_graph import load
from qrobust.evaluation.classes import class_results
from qrobust.evaluation.kept import condition_file, read_predictions
from qrobust.evaluation.recommendation import recommend
from qrobust.evaluation.statistics import wilson_interval
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.run_folder import REMEDIES, TORCH_ONLY, RunFolder
from qrobust.record import (
    STATISTICS,
    CalibratorTraining,
    Classes,
    Compensation,
    CompensationResult,
    EvaluationResult,
    ExportedGraphs,
    ExportResult,
    Macs,
    QuantizationResult,
    Recommendation,
    Record,
    Remedy,
    RemedyGain,
    RemedyResult,
    Seeds,
    StageTime,
    Summary,
    WeightChange,
    taken,
    versions,
)
from qrobust.report.classes import class_csv_files
from qrobust.report.html import html_report
from qrobust.report.markdown import markdown_report
from qrobust.report.model_card import model_card
from qrobust.report.robustbench import csv_files
from qrobust.storage import read_npz, write_json, write_text

# A calibrator's: it stands in front, and the classifier's hash is that of before.
UNTOUCHED = WeightChange(relative_change=0.0, integers_changed=0.0)


def build_record(folder: RunFolder, config: RunConfig) -> Record:
    """Gather what the stages left into one record; see docs/record.md.

    Args:
        folder: of the run, with finished `quantize` and `evaluate` stages.
        config: of the run.

    Raises:
        InputError: a stage is missing, or what it left is damaged.
    """
    quantized = folder.need_result(QuantizationResult, "quantize", "quantize")
    evaluated = folder.need_result(EvaluationResult, "evaluate", "evaluate")
    measured = "compensated" in evaluated.summary.clean_accuracy  # else it is there, but was left out
    compensated = folder.result(CompensationResult, "compensate") if measured else None
    exported = folder.result(ExportResult, "export") if measured else None
    others = [found for name in REMEDIES if (found := folder.result(RemedyResult, name))]
    graphs: list[ExportedGraphs] = [quantized, *([exported] if exported else []), *others]
    stages = {"quantize": quantized, "compensate": compensated, "export": exported, "evaluate": evaluated}
    remedies = tuple(_with_costs(gain, evaluated, folder) for gain in evaluated.remedies)
    macs = quantized.macs
    if compensated:
        added = compensated.macs.calibrator
        macs = Macs(classifier=macs.classifier, calibrator=added, calibrator_share=added / macs.classifier)
    return taken(
        Record,
        quantized,
        evaluated,
        qrobust=qrobust.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        config=config.as_json(),
        model=config.model.spec,
        weights=config.model.weights,
        data=config.data.spec,
        n_test=evaluated.summary.n_test,
        summary=taken(
            Summary,
            evaluated.summary,
            latency_ms=evaluated.latency_ms,
            latency_interval=evaluated.latency_interval,
            size_bytes=evaluated.size_bytes,
            footprint=evaluated.footprint,
            macs=macs,
        ),
        remedies=remedies,
        statistics=STATISTICS,
        audit={name: audit for made in graphs for name, audit in made.audit.items()},
        parity={name: parity for made in graphs for name, parity in made.parity.items()},
        compensation=taken(Compensation, compensated) if compensated else None,
        splits=evaluated.splits or quantized.splits,
        channels=quantized.channels or _channels(folder),
        seeds=Seeds(run=config.seed),
        versions=evaluated.versions or versions(),
        stages={name: StageTime(duration_s=stage.duration_s) for name, stage in stages.items() if stage},
        recommendation=_recommended(evaluated, remedies, config),
        classes=evaluated.classes or _classes(folder, evaluated, len(quantized.class_names)),
    )


def _recommended(
    evaluated: EvaluationResult, remedies: tuple[Remedy, ...], config: RunConfig
) -> Recommendation | None:
    """What to ship; None where no validation images were measured to choose by."""
    if evaluated.effects is None:
        return None
    return recommend(
        evaluated.effects,
        remedies,
        accept_undecided=config.evaluation.accept_undecided,
        confidence=evaluated.confidence,
        timed=evaluated.hardware.sums != "exact-by-request",
    )


def _classes(folder: RunFolder, evaluated: EvaluationResult, classes: int) -> Classes | None:
    """What graphs do to each class, from predictions that an earlier version kept; None where they are gone."""
    conditions = [(row.shift, row.severity) for row in evaluated.rows]
    if not all(condition_file(folder.predictions, condition).exists() for condition in conditions):
        return None
    labels, found = read_predictions(folder.predictions, conditions)
    measured = evaluated.summary.clean_accuracy
    return class_results(
        {condition: {name: own[name] for name in measured} for condition, own in found.items()}, labels, classes
    )


def _channels(folder: RunFolder) -> int:
    """Of the images that the float graph reads, for folders whose stages do not say."""
    shape = load(folder.graph("float")).graph.input[0].type.tensor_type.shape
    return int(shape.dim[1].dim_value)


def _with_costs(gain: RemedyGain, evaluated: EvaluationResult, folder: RunFolder) -> Remedy:
    """What a remedy gains, and beside it what it takes to run it and what it learned from."""
    name = gain.remedy
    if name == TORCH_ONLY:
        return taken(Remedy, gain, runtime="torch", trained_on=(), provenance=None, training_s=0.0, diverged=False)
    made: CompensationResult | RemedyResult = (
        folder.need_result(CompensationResult, "compensate", "compensate")
        if name == "compensated"
        else folder.need_result(RemedyResult, name, "compensate")
    )
    latency = evaluated.latency_ms
    return taken(
        Remedy,
        gain,
        runtime="onnxruntime",
        macs=made.macs.calibrator,
        trained_on=made.trained_on,
        provenance=made.provenance,
        training_s=made.duration_s,
        diverged=made.training is not None and made.training.diverged,
        rising=isinstance(made.training, CalibratorTraining) and made.training.rising,
        classifier_hash=made.classifier_hash,
        latency_ratio=latency[name].over(latency["int8"]),
        float_latency_ratio=latency["float"].over(latency[name]),
        size_bytes=evaluated.size_bytes[name],
        weight_change=made.weight_change if isinstance(made, RemedyResult) else UNTOUCHED,
        validation=made.validation,
    )


def write_report(folder: RunFolder, config: RunConfig) -> Record:
    """Stage 6: record.json, report.html, report.md, results.csv, and a model card beside every graph.

    Raises:
        InputError: a stage is missing, or what it left is damaged.
    """
    record = build_record(folder, config)
    pictures = None
    if record.compensation and folder.pictures.exists():
        pictures = read_npz(folder.pictures, "pictures", ("clean",))
    missed = read_npz(folder.missed, "missed", ("images",))["images"] if folder.missed.exists() else None
    write_text(folder.html, html_report(record, pictures, missed, str(folder.path)))
    write_text(folder.markdown, markdown_report(record))
    for name, text in (csv_files(record) | class_csv_files(record, wilson_interval)).items():
        write_text(folder.file(name), text)
    for name in record.summary.clean_accuracy:
        write_text(folder.card(name), model_card(record, name))
    write_json(folder.record, record.to_json())
    return record
