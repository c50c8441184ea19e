"""Open and check everything that a run of a quantized file reads, before anything is written."""

from __future__ import annotations

from dataclasses import replace

import torch

from qrobust.compensation.fit import candidates
from qrobust.compensation.pace import expected_seconds
from qrobust.deployment.front import WARPING, opset_in_front
from qrobust.errors import InputError
from qrobust.pipeline.file_run import FileRun
from qrobust.pipeline.inputs import open_inputs, refuse_probabilities
from qrobust.pipeline.provenance import training_data
from qrobust.pipeline.rescale_onnx import SCALES, learned_scales
from qrobust.pipeline.start import accuracy_on_validation, check_above_chance
from qrobust.remedies import CALIBRATOR
from qrobust.report.start import accuracy_sentence, time_lines

WITHOUT_WARPING = ("residual", "photometric")


def prepare_file(run: FileRun, *, anyway: bool = False) -> None:
    """Open everything that is read, so that bad input is refused before anything is written.

    Args:
        run: of the file.
        anyway: go on with a file that does no better than chance.

    Raises:
        InputError: any of it is not usable, or the file's integers in torch do not say what the file says.
    """
    some = open_inputs(run)
    if not run.origin.ending.kinds:
        with torch.inference_mode():
            refuse_probabilities(run.model(some))
    _refuse_other_bytes(run)
    found, file = run.measured, run.origin.file
    run.reporter.say(f"preprocessing: {run.preprocessing}")
    run.reporter.say(
        f"model: {file.path} (opset {file.opset}, {file.layout}, {', '.join(file.integer)}); its integers in torch "
        f"say what onnxruntime says on {100 * found.agreement_beyond_ties:.1f} % of {found.n:,} images"
    )
    start = accuracy_on_validation(run)
    told = accuracy_sentence(start, "accuracy of the file's integers")
    run.reporter.say(told)
    check_above_chance(run, start, told, anyway=anyway)
    if run.remedy != SCALES:
        _prepare_calibrator(run)
    if run.remedy != CALIBRATOR:
        learned = learned_scales(run)
        run.reporter.say(f"  {len(learned.growths)} stored scales and {len(learned.biases)} biases learn")


def _prepare_calibrator(run: FileRun) -> None:
    """Choose what a calibrator may do, and say how long it will take."""
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
