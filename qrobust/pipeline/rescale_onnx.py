"""The remedy `scales` of a quantized ONNX file: its nodes and integer weights, with other scales and biases."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import fx, nn

from qrobust.classifier import Compensated
from qrobust.compensation.file_scales import FileScales
from qrobust.compensation.retraining import Retrained, retrain
from qrobust.deployment.audit import audit
from qrobust.deployment.deploy import open_on_target
from qrobust.deployment.front import opset_in_front, same_parts
from qrobust.deployment.parity import check_export, parity
from qrobust.deployment.rescaled import write_with_constants
from qrobust.errors import ExportCheckError, InputError
from qrobust.pipeline.baselines import training_result
from qrobust.pipeline.compensate import (
    AFTER_TRAINING,
    calibrator_data,
    checkpoints_of,
    fit_in_run,
    fit_result,
    frozen_classifier,
)
from qrobust.pipeline.export import PARITY_IMAGES
from qrobust.pipeline.file_run import FileRun, constants_of
from qrobust.pipeline.provenance import check_images, training_images
from qrobust.pipeline.run import stored_tensors
from qrobust.pipeline.stage import choices_key, invalidate, stage
from qrobust.record import CalibratedFileResult, ExportedGraphs, RescaledFileResult, taken
from qrobust.remedies import CALIBRATOR
from qrobust.shifts.filters import to_unit
from qrobust.storage import atomic_write, replacement

SCALES, BOTH = "scales", f"scales+{CALIBRATOR}"


def learned_scales(run: FileRun) -> FileScales:
    """The file's integers in torch with what learns of them.

    Raises:
        InputError: of this file nothing can, or there is nothing to learn from but images without labels.
    """
    if not run.config.shifts.train_on:
        raise InputError("remedy: scales learns from shifts, got target images alone")
    return FileScales(run.fake_quantized, run.layers, run.file)


def rescale_file(run: FileRun) -> None:
    """Stage 2 of this remedy: scales.onnx, and the file itself with the same numbers in `file_with_scales`."""
    check_images(run)
    folder = run.require_folder()
    folder.checkpoints.mkdir(exist_ok=True)
    with stage(run, SCALES) as running:
        learned = learned_scales(run)
        done = _trained(run, learned)
        constants = constants_of(done.averaged.model)
        exported = _exported(run, SCALES, done.averaged.model, None)
        write_with_constants(run.origin.file.path, constants, file_with_scales(run))
        with atomic_write(folder.integers(SCALES)) as part:
            save_file({name: value.contiguous() for name, value in constants.items()}, part)
        running.earlier_s = done.training.earlier_s
        running.result = taken(
            RescaledFileResult,
            training_result(run, done),
            exported,
            scales=len(learned.growths),
            biases=len(learned.biases),
            training_images=len(training_images(run)),
        )
        folder.drop_checkpoints(folder.checkpoints.glob(f"{SCALES}-*"))


def file_with_scales(run: FileRun) -> Path:
    """The file itself, with its own input, and the numbers of `scales.onnx`."""
    return run.require_folder().file(f"{SCALES}.file.onnx")


def _trained(run: FileRun, learned: FileScales) -> Retrained:
    return retrain(
        SCALES,
        learned.model,
        frozen_classifier(run, run.fake_quantized),
        calibrator_data(run),
        run.config.calibrator,
        run.config.qat,
        checkpoint=run.require_folder().checkpoints / f"{SCALES}-{choices_key(run, SCALES, AFTER_TRAINING)}.pt",
        convert=lambda: run.with_constants(learned.constants()),
        teacher=run.model,
        seed=run.config.seed,
        device=run.device,
        reporter=run.reporter,
    )


def calibrate_rescaled(run: FileRun) -> None:
    """Stage 3 of both remedies: a calibrator in front of the file with the scales that were learned."""
    folder = run.require_folder()
    folder.checkpoints.mkdir(exist_ok=True)
    classifier = run.with_constants(stored_tensors(folder.integers(SCALES), "compensate FILE.onnx"))
    with stage(run, BOTH) as running:
        fit = fit_in_run(run, classifier, calibrator_data(run), run.fake_quantized)
        exported = _exported(run, BOTH, classifier, fit.calibrator)
        running.earlier_s = fit.earlier_s
        running.result = taken(CalibratedFileResult, fit_result(run, fit), exported)
        folder.drop_checkpoints(checkpoints_of(run, classifier).all())


def _exported(run: FileRun, name: str, classifier: fx.GraphModule, calibrator: nn.Module | None) -> ExportedGraphs:
    """A graph with other scales, through the checks of a run's graphs, and with nothing changed but these constants.

    Args:
        run: of the file.
        name: of the graph.
        classifier: of `FileRun.with_constants`.
        calibrator: that stands in front; or None.

    Raises:
        ExportCheckError: more is changed, or a check fails.
    """
    path, source, constants = run.require_folder().graph(name), run.origin.file.path, constants_of(classifier)
    model = classifier if calibrator is None else Compensated(calibrator, classifier)
    with replacement(path) as part:
        run.write(part, calibrator, name, constants)
        if opset_in_front(source) == run.origin.file.opset and not same_parts(source, part, constants):
            raise ExportCheckError(
                f"export: {path.name} differs from {source} in more than scales and biases: a fault of qrobust"
            )
        split = run.data.validation.at_most(PARITY_IMAGES)
        deployed = open_on_target(part, run.target, run.config.threads)
        measured = parity(
            lambda x: run.as_the_file_ends(model(x)), deployed, to_unit(split.read(slice(None))), split.labels
        )
        audited = audit(part, signed_activations=run.target.signed or None)
        check_export(name, audited, measured)
        invalidate(run, name)
    return ExportedGraphs(audit={name: audited}, parity={name: measured})
