"""A calibrator in front of a quantized ONNX file: no float network, the file's own nodes and constants stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import fx, nn

import qrobust
from qrobust.classifier import Compensated, Normalization, Signalling, count_macs
from qrobust.compensation.fit import candidates
from qrobust.compensation.pace import expected_seconds
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import ForeignClassifier, OnnxClassifier
from qrobust.deployment.deploy import open_on_target, session_options
from qrobust.deployment.export import export as export_graph
from qrobust.deployment.front import (
    WARPING,
    FileInput,
    bit_equal,
    opset_in_front,
    put_in_front,
    same_parts,
)
from qrobust.deployment.imported import check_integers, ended, origin_of
from qrobust.deployment.parity import check_export, parity
from qrobust.deployment.session import sums
from qrobust.errors import ExportCheckError, InputError
from qrobust.evaluation.evaluate import Evaluation
from qrobust.evaluation.predictions import BATCH
from qrobust.evaluation.recommendation import recommend
from qrobust.evaluation.summary import remedy_gains
from qrobust.evaluation.workers import processes
from qrobust.models.onnx_import.integers import Dequantize, FakeQuantize, Quantize
from qrobust.models.onnx_import.network import Origin
from qrobust.models.registry import ModelSpec, find_model
from qrobust.pipeline.compensate import compensate
from qrobust.pipeline.evaluate import effects_of, target_images_of
from qrobust.pipeline.evaluate_onnx import Choices, Opened, measure_opened, write_evaluation
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.inputs import read_images, refuse_probabilities, try_own_shifts
from qrobust.pipeline.output_folder import promote
from qrobust.pipeline.provenance import check_measured, training_data
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import RunFolder, discard_unfinished
from qrobust.pipeline.stage import invalidate, stage
from qrobust.pipeline.start import accuracy_on_validation, check_above_chance
from qrobust.quantization.tracing import trace
from qrobust.record import (
    Compensation,
    CompensationResult,
    EvaluationRecord,
    ExportResult,
    FileCompensation,
    ImportedFile,
    ImportResult,
    Macs,
    Parity,
    Remedy,
    SplitSummary,
    WeightChange,
    taken,
)
from qrobust.report.start import accuracy_sentence, time_lines
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import TRIED_IMAGES, expand, with_mixture
from qrobust.storage import replacement, scratch

LEAVES = (Normalization, Quantize, Dequantize, FakeQuantize)
WITHOUT_WARPING = ("residual", "photometric")


class FileRun(Run):
    """A run whose INT8 classifier is a file, which is its own teacher."""

    teacher_name: ClassVar[str] = "the file"

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The file.

        Raises:
            InputError: it is not an ONNX file that is quantized.
        """
        if not self.config.model.spec.endswith(".onnx"):
            raise InputError(f"model: expected FILE.onnx, got {self.config.model.spec}")
        return find_model(self.config.model.spec, quantized=True)

    @cached_property
    def origin(self) -> Origin:
        """What was read of the file."""
        found = origin_of(self.model.network)
        assert found is not None
        return found

    @property
    def given(self) -> FileInput:
        """What the file takes."""
        prepared = self.preprocessing
        assert prepared.mean is not None
        assert prepared.std is not None
        return FileInput(prepared.mean, prepared.std, prepared.channel_order, prepared.size)

    def as_the_file_ends(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as the file gives them, which may be probabilities."""
        return ended(logits, next(iter(self.origin.ending.kinds.values()), ""))

    @cached_property
    def fake_quantized(self) -> fx.GraphModule:
        """The file's integers in torch, with gradients."""
        return trace(self.model, LEAVES).eval().requires_grad_(False)

    @property
    def kept_splits(self) -> Mapping[str, SplitSummary]:
        """Which images each split held when the folder was made."""
        return self.require_folder().need_result(ImportResult, "import", "compensate").splits

    @cached_property
    def measured(self) -> Parity:
        """These integers against the file, on validation images.

        Raises:
            InputError: they differ; see `check_integers`.
        """
        split = self.data.validation.at_most(PARITY_IMAGES)
        images = self.model.normalization(to_unit(split.read(slice(None))))
        return check_integers(
            self.model.network, images, split.labels, self.config.threads, **session_options(self.target)
        )

    def onnx_classifier(self, name: str) -> OnnxClassifier:
        """A graph of the folder; the teacher is the file."""
        return super().onnx_classifier("int8" if name == "float" else name)

    def deploy(self, model: nn.Module) -> OnnxClassifier:
        """A torch module as onnxruntime runs it: behind a calibrator stands the file itself."""
        if model is self.fake_quantized and (made := self.folder) and made.graph("int8").exists():
            return self.onnx_classifier("int8")
        if not (model is self.fake_quantized or isinstance(model, Compensated)):
            return super().deploy(model)
        with scratch() as folder:
            path = folder / "graph.onnx"
            self.write(path, model.calibrator if isinstance(model, Compensated) else None)
            return open_on_target(path, self.target, self.config.threads)

    def write(self, path: Path, calibrator: nn.Module | None, name: str = "") -> None:
        """The file's graph with images in [0, 1] as its input, and a calibrator in front.

        Args:
            path: of what is written.
            calibrator: frozen; or None.
            name: of the graph, in its metadata; without one it has none.
        """
        front = None
        with scratch() as folder:
            if calibrator is not None:
                told = calibrator
                if self.config.calibrator.correction_output and name:
                    told = Signalling(Compensated(calibrator, nn.Identity()))
                front = folder / "calibrator.onnx"
                export_graph(told, front, self.data.image_size, channels=self.model.channels)
            put_in_front(
                self.origin.file.path,
                self.given,
                path,
                calibrator=front,
                metadata=self._metadata(name) if name else None,
            )

    def _metadata(self, name: str) -> dict[str, object]:
        return {
            "qrobust.graph": name,
            "qrobust.version": qrobust.__version__,
            "class_names": list(self.data.class_names),
            "preprocessing": self.preprocessing.as_metadata(),
            "provenance": {
                "model": self.config.model.spec,
                "data": self.config.data.spec,
                "seed": self.config.seed,
                "torch": torch.__version__,
            },
        }


def prepare_file(run: FileRun, *, anyway: bool = False) -> None:
    """Open everything that is read, so that bad input is refused before anything is written.

    Args:
        run: of the file.
        anyway: go on with a file that does no better than chance.

    Raises:
        InputError: any of it is not usable, or the file's integers in torch do not say what the file says.
    """
    torch.set_num_threads(run.config.threads)
    _ = run.device
    expand(run.config.shifts.names)
    _ = run.target, run.model_spec, run.model
    _ = run.conditions, run.target_images, run.stored, run.primary
    check_measured(run)
    read_images(run)
    some = run.data.calibration.read(slice(0, TRIED_IMAGES))
    try_own_shifts(run, some)
    if not run.origin.ending.kinds:
        with torch.inference_mode():
            refuse_probabilities(run.model(to_unit(some)))
    _refuse_other_bytes(run)
    found, file = run.measured, run.origin.file
    run.reporter.say(f"preprocessing: {run.preprocessing}")
    run.reporter.say(
        f"model: {file.path} (opset {file.opset}, {file.layout}, {', '.join(file.integer)}); its integers in torch "
        f"say what onnxruntime says on {100 * found.agreement_beyond_ties:.1f} % of {found.n:,} validation images"
    )
    start = accuracy_on_validation(run)
    told = accuracy_sentence(start, "accuracy of the file's integers")
    run.reporter.say(told)
    check_above_chance(run, start, told, anyway=anyway)
    run.config = replace(run.config, calibrator=replace(run.config.calibrator, branches=_branches(run)))
    expected, _ = expected_seconds(
        run.fake_quantized,
        run.model,
        run.deploy(run.fake_quantized),
        training_data(run),
        len(run.data.validation),
        run.config.calibrator,
        seed=run.config.seed,
        device=run.device,
    )
    for line in time_lines(expected):
        run.reporter.say(line)


def _refuse_other_bytes(run: FileRun) -> None:
    """A file of bytes takes pixels as they are.

    Raises:
        InputError: something else is to be made of them.
    """
    numbers = (*run.given.mean, *(255 * std for std in run.given.std))
    plain = (0.0,) * len(run.given.mean) + (1.0,) * len(run.given.std)
    if run.origin.file.pixels == torch.uint8 and any(abs(a - b) > 1e-6 for a, b in zip(numbers, plain, strict=True)):
        raise InputError(
            f"normalization: expected none given, {run.origin.file.path} takes bytes as they are, got "
            f"{run.config.preprocessing.normalization}"
        )


def _branches(run: FileRun) -> tuple[str, ...]:
    """The calibrator's, without what the file's opset cannot do.

    Raises:
        InputError: just that was asked for, or no calibrator fits the budget.
    """
    config, training = run.config.calibrator, training_data(run)
    opset, fitting = opset_in_front(run.origin.file.path), candidates(run.model, training, config)
    if opset >= WARPING or not any("geometric" in branches for _, branches in fitting):
        return config.branches
    if config.branches:
        raise InputError(
            f"branches: expected none that moves the image, which needs opset {WARPING} and the file has {opset}, "
            f"got {','.join(config.branches)}"
        )
    run.reporter.say(f"  opset {opset} has no GridSample (from {WARPING} on): the calibrator moves no pixels")
    try:
        candidates(run.model, training, replace(config, branches=WITHOUT_WARPING))
    except InputError:  # of a small budget
        candidates(run.model, training, replace(config, branches=WITHOUT_WARPING[1:]))
        return WITHOUT_WARPING[1:]
    return WITHOUT_WARPING


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
    stages = {"import": import_file, "compensate": compensate, "export": export_file}
    for name, make in stages.items():
        if resume and folder.is_done(name):
            run.reporter.say(f"{name}: done before, kept")
        else:
            make(run)
        folder = run.require_folder()
    return evaluate_file(run, workers=workers)


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
    """The last stage: int8.onnx and compensated.onnx on the run's test images, and the report."""
    run.reporter.say("evaluate ...")
    folder, config, source = run.require_folder(), run.config, run.data.test.source
    paths = {name: folder.graph(name) for name in ("int8", "compensated")}
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
    made = folder.need_result(CompensationResult, "compensate", "compensate")
    exported = folder.need_result(ExportResult, "export", "compensate")
    whole = count_macs(run.model, run.data.image_size, run.model.channels)
    with processes(workers) as by:
        target = target_images_of(run, classifiers, by or 1)
        effects = effects_of(run, found, classifiers, made.trained_on, by or 1)
    remedy = _remedy(made, record, found)
    recommendation = None
    if effects and remedy:
        accepting = run.config.evaluation.accept_undecided
        recommendation = recommend(effects, [remedy], accept_undecided=accepting, confidence=record.confidence)
    return FileCompensation(
        file=imported.file,
        calibrator=taken(Compensation, made),
        provenance=made.provenance,
        macs=Macs(classifier=whole, calibrator=made.macs.calibrator, calibrator_share=made.macs.calibrator / whole),
        audit=exported.audit,
        parity=exported.parity["compensated"],
        remedy=remedy,
        target_images=target,
        effects=effects,
        recommendation=recommendation,
    )


def _remedy(made: CompensationResult, record: EvaluationRecord, found: Evaluation) -> Remedy | None:
    """The calibrator as a remedy of a run is told of, without what a float graph would say of it.

    None where nothing but clean images was rendered.
    """
    seen = {"compensated": with_mixture(made.trained_on)}
    gains = remedy_gains(found.predictions, found.labels, seed=found.seed, seen=seen)
    if not gains:
        return None
    latency = record.latency_ms or {}
    return taken(
        Remedy,
        gains[0],
        runtime="onnxruntime",
        macs=made.macs.calibrator,
        trained_on=made.trained_on,
        provenance=made.provenance,
        training_s=made.duration_s,
        diverged=made.training.diverged,
        rising=made.training.rising,
        classifier_hash=made.classifier_hash,
        latency_ratio=latency["compensated"].over(latency["int8"]) if latency else None,
        size_bytes=record.models["compensated"].size_bytes,
        weight_change=WeightChange(relative_change=0.0, integers_changed=0.0),
        validation=made.validation,
    )
