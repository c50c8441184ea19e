"""What is made of a quantized ONNX file without its float network: a calibrator in front, or other scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qrobust.classifier import Compensated, count_macs
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.deployment.deploy import open_on_target
from qrobust.deployment.front import bit_equal, opset_in_front, same_parts
from qrobust.deployment.parity import check_export, parity
from qrobust.deployment.session import sums
from qrobust.errors import ExportCheckError, InputError
from qrobust.evaluation.evaluate import Evaluation
from qrobust.evaluation.predictions import BATCH
from qrobust.evaluation.recommendation import recommend
from qrobust.evaluation.summary import remedy_gains
from qrobust.evaluation.workers import processes
from qrobust.pipeline.compensate import compensate
from qrobust.pipeline.evaluate import effects_of, target_images_of
from qrobust.pipeline.evaluate_onnx import Choices, Opened, measure_opened, write_evaluation
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.file_run import FileRun
from qrobust.pipeline.output_folder import promote
from qrobust.pipeline.rescale_onnx import BOTH, SCALES, calibrate_rescaled, rescale_file
from qrobust.pipeline.run_folder import RunFolder, discard_unfinished
from qrobust.pipeline.stage import invalidate, stage
from qrobust.record import (
    CalibratedFileResult,
    CalibratorTraining,
    Compensation,
    CompensationResult,
    EvaluationRecord,
    ExportedGraphs,
    ExportResult,
    FileCompensation,
    ImportedFile,
    ImportResult,
    Macs,
    Remedy,
    RescaledFile,
    RescaledFileResult,
    WeightChange,
    taken,
)
from qrobust.remedies import CALIBRATOR
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import with_mixture
from qrobust.storage import replacement


def compensate_file(run: FileRun, *, resume: bool = False, workers: int = 1) -> EvaluationRecord:
    """All stages of a file, in a folder that was made; with `resume`, those that are not done.

    Args:
        run: of the file.
        resume: keep what is done.
        workers: processes that render and ask.
    """
    folder = run.require_folder()
    done = folder.result(ImportResult, "import")
    if done and done.file.sha256 != run.origin.file.sha256:
        raise InputError(f"model: expected the file that {folder.path} was made of, {done.file.file} is another")
    if done and done.remedy != run.remedy:
        raise InputError(f"remedy: expected {done.remedy}, with which {folder.path} was begun, got {run.remedy}")
    stages = {"import": import_file} | {
        CALIBRATOR: {"compensate": compensate, "export": export_file},
        SCALES: {SCALES: rescale_file},
        BOTH: {SCALES: rescale_file, BOTH: calibrate_rescaled},
    }[run.remedy]
    for name, make in stages.items():
        if resume and folder.is_done(name):
            run.reporter.say(f"{name}: done before, kept")
        else:
            make(run)
        folder = run.require_folder()
    return evaluate_file(run, workers=workers)


def made_graph(run: FileRun) -> str:
    """The name of the graph with the remedy."""
    return "compensated" if run.remedy == CALIBRATOR else run.remedy


def import_file(run: FileRun) -> None:
    """Stage 1: int8.onnx, the file with images in [0, 1] as its input."""
    try:
        _import(run)
    except BaseException:
        discard_unfinished(run.require_folder())
        raise
    run.folder = RunFolder(promote(run.require_folder().path))


def _import(run: FileRun) -> None:
    file = run.origin.file
    with stage(run, "import") as running:
        opset, path = opset_in_front(file.path), run.require_folder().graph("int8")
        run.write(path, None, "int8")
        converted = opset if opset != file.opset else None
        equal = _check_same(run, path, converted)
        if converted:
            run.reporter.say(
                f"  the file's opset {file.opset} allows nothing in front of it: converted to {opset}, its logits "
                f"are equal to the bit on {equal:,} images"
            )
        running.result = ImportResult(
            file=ImportedFile(
                file=run.config.model.spec,
                sha256=file.sha256,
                opset=file.opset,
                converted_to=converted,
                bit_equal_images=equal if converted else None,
                integer=file.integer,
                layout=file.layout,
                pixels=str(file.pixels).removeprefix("torch."),
                parity=run.measured,
            ),
            splits=run.data.summary(),
            remedy=run.remedy,
        )


def _check_same(run: FileRun, path: Path, converted: int | None) -> int:
    """Hold the graph against the file; returns the images on which they gave the same logits.

    Raises:
        ExportCheckError: a node or constant is another, or logits differ.
    """
    source = run.origin.file.path
    if converted is None and not same_parts(source, path):
        raise ExportCheckError(f"export: {path.name} does not hold {source} as it is, which is a fault of qrobust")
    images = to_unit(run.data.validation.at_most(PARITY_IMAGES).read(slice(None)))
    if not bit_equal(source, path, run.given, images, run.config.threads):
        raise ExportCheckError(
            f"export: {source} gives other logits with images in [0, 1] in front"
            f"{f', converted to opset {converted}' if converted else ''} (n = {len(images)})"
        )
    return len(images)


def export_file(run: FileRun) -> None:
    """Stage 3: compensated.onnx, through the checks of a run's graphs, and with the file's parts in it."""
    path, source = run.require_folder().graph("compensated"), run.origin.file.path
    model = Compensated(run.calibrator, run.fake_quantized)
    with stage(run, "export") as running:
        with replacement(path) as part:
            run.write(part, run.calibrator, "compensated")
            if opset_in_front(source) == run.origin.file.opset and not same_parts(source, part):
                raise ExportCheckError(f"export: {path.name} does not hold {source} as it is: a fault of qrobust")
            split = run.data.validation.at_most(PARITY_IMAGES)
            images = to_unit(split.read(slice(None)))
            deployed = open_on_target(part, run.target, run.config.threads)
            measured = parity(lambda x: run.as_the_file_ends(model(x)), deployed, images, split.labels)
            audited = audit(part, signed_activations=run.target.signed or None)
            check_export("compensated", audited, measured)
            invalidate(run, "export")
        running.result = ExportResult(audit={"compensated": audited}, parity={"compensated": measured})


def evaluate_file(run: FileRun, *, workers: int = 1) -> EvaluationRecord:
    """The last stage: int8.onnx and the graph with the remedy on the run's test images, and the report."""
    run.reporter.say("evaluate ...")
    folder, config, source = run.require_folder(), run.config, run.data.test.source
    paths = {name: folder.graph(name) for name in ("int8", made_graph(run))}
    classifiers = {name: ForeignClassifier(path, config.threads) for name, path in paths.items()}
    for classifier in classifiers.values():
        classifier.examine(to_unit(run.data.test.read(slice(0, BATCH))), len(source.class_names))
    opened = Opened(paths, paths, classifiers, run.data.test, run.table, run.conditions, run.stored, sums())
    choices = _choices(run, paths)
    (folder.path / "predictions").mkdir(exist_ok=True)
    record, found = measure_opened(
        choices,
        run.config_with_code.as_json(),
        opened,
        folder.path,
        run.reporter,
        threads=config.threads,
        workers=workers,
    )
    record = replace(record, compensation=_compensation(run, record, found, classifiers, workers))
    write_evaluation(record, folder.path)
    return record


def _choices(run: FileRun, paths: dict[str, Path]) -> Choices:
    config = run.config
    return Choices(
        models=tuple(map(str, paths.values())),
        data=config.data.spec,
        test_images=config.data.test_images,
        shifts=config.shifts.names,
        severities=config.shifts.severities,
        severity_table=config.shifts.severity_table,
        seed=config.seed,
        primary=run.primary.name,
    )


def _compensation(
    run: FileRun,
    record: EvaluationRecord,
    found: Evaluation,
    classifiers: Mapping[str, ForeignClassifier],
    workers: int,
) -> FileCompensation:
    """What was made of the file, what it gains, and whether to ship it."""
    folder = run.require_folder()
    imported = folder.need_result(ImportResult, "import", "compensate")
    made, exported, macs, scales = _made(run)
    with processes(workers) as by:
        target = target_images_of(run, classifiers, by or 1)
        effects = effects_of(run, found, classifiers, made.trained_on, by or 1)
    graph = made_graph(run)
    untouched = WeightChange(relative_change=0.0, integers_changed=0.0)
    remedy = _remedy(made, graph, record, found, (scales and scales.weight_change) or untouched)
    recommendation = None
    if effects and remedy:
        accepting = run.config.evaluation.accept_undecided
        recommendation = recommend(effects, [remedy], accept_undecided=accepting, confidence=record.confidence)
    return FileCompensation(
        file=imported.file,
        calibrator=taken(Compensation, made) if isinstance(made, CompensationResult) else None,
        scales=taken(RescaledFile, scales) if scales else None,
        provenance=made.provenance,
        macs=macs,
        audit=exported.audit,
        parity=exported.parity[graph],
        remedy=remedy,
        target_images=target,
        effects=effects,
        recommendation=recommendation,
    )


def _made(
    run: FileRun,
) -> tuple[CompensationResult | RescaledFileResult, ExportedGraphs, Macs, RescaledFileResult | None]:
    """What the remedy's last stage left, its graph, multiply-accumulates, and what the stage of scales left."""
    folder, whole = run.require_folder(), count_macs(run.model, run.data.image_size, run.model.channels)
    scales = None if run.remedy == CALIBRATOR else folder.need_result(RescaledFileResult, SCALES, "compensate")
    if run.remedy == SCALES:
        assert scales is not None
        return scales, scales, Macs(classifier=whole), scales
    done: CompensationResult
    exported: ExportedGraphs
    if run.remedy == BOTH:
        done = exported = folder.need_result(CalibratedFileResult, BOTH, "compensate")
    else:
        done = folder.need_result(CompensationResult, "compensate", "compensate")
        exported = folder.need_result(ExportResult, "export", "compensate")
    added = done.macs.calibrator
    return done, exported, Macs(classifier=whole, calibrator=added, calibrator_share=added / whole), scales


def _remedy(
    made: CompensationResult | RescaledFileResult,
    graph: str,
    record: EvaluationRecord,
    found: Evaluation,
    change: WeightChange,
) -> Remedy | None:
    """What was made as a remedy of a run is told of, without what a float graph would say of it.

    None where nothing but clean images was rendered.
    """
    seen = {graph: with_mixture(made.trained_on)}
    gains = remedy_gains(found.predictions, found.labels, seed=found.seed, seen=seen)
    if not gains:
        return None
    latency, training = record.latency_ms or {}, made.training
    return taken(
        Remedy,
        gains[0],
        runtime="onnxruntime",
        macs=made.macs.calibrator,
        trained_on=made.trained_on,
        provenance=made.provenance,
        training_s=made.duration_s,
        diverged=bool(training and training.diverged),
        rising=isinstance(training, CalibratorTraining) and training.rising,
        classifier_hash=made.classifier_hash,
        latency_ratio=latency[graph].over(latency["int8"]) if latency else None,
        size_bytes=record.models[graph].size_bytes,
        weight_change=change,
        validation=made.validation,
    )
