"""Open and check everything that a run reads, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from qrobust.compensation.fit import candidates
from qrobust.data.duplicates import digest, find_duplicates
from qrobust.data.splits import SPLIT_NAMES, Split
from qrobust.deployment.imported import check_import, origin_of
from qrobust.errors import InputError
from qrobust.pipeline.provenance import check_measured, training_conditions, training_data
from qrobust.pipeline.run import Run
from qrobust.pipeline.start import check_above_chance, expected_seconds, look
from qrobust.remedies import has_calibrator
from qrobust.report.data import duplicates_sentence, left_out_sentence, splits_sentence
from qrobust.report.markdown import skipped_sentence
from qrobust.report.start import accuracy_sentence, start_lines, time_lines
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import TRIED_IMAGES, expand, find_shift
from qrobust.shifts.rendering import render

# Rows of probabilities sum to 1 but for float32 rounding, which a thousand classes bring to 1e-4.
SUM_TOLERANCE = 1e-3


def prepare_inputs(run: Run, *, compensating: bool, anyway: bool = False) -> None:
    """Open everything a run reads, so that bad input is refused before anything is written.

    Args:
        run: of the run.
        compensating: whether a calibrator will be trained, which must then fit its budget.
        anyway: go on with a network that does no better than chance.

    Raises:
        InputError: any of it is not usable.
    """
    some = open_inputs(run)
    _check_import(run, some)
    with torch.inference_mode():
        refuse_probabilities(run.model(some))
    run.start = look(run)
    for line in (f"preprocessing: {run.preprocessing}", *start_lines(run.start, run.data.class_names)):
        run.reporter.say(line)
    found = run.start.float_validation
    check_above_chance(run, found, accuracy_sentence(found), anyway=anyway)
    _ = run.quantized
    if compensating and has_calibrator(run.config.calibrator.remedy):
        candidates(run.model, training_data(run), run.config.calibrator)
    if compensating or run.config.qat.epochs:
        run.start = replace(run.start, expected_s=expected_seconds(run, compensating=compensating))
        for line in time_lines(run.start.expected_s or {}):
            run.reporter.say(line)


def open_inputs(run: Run) -> torch.Tensor:
    """Open what any run reads: the network, the images, the shifts.

    Returns:
        The first calibration images `(N, C, S, S)` in [0, 1].

    Raises:
        InputError: any of it is not usable.
    """
    torch.set_num_threads(run.config.threads)
    _ = run.device
    expand(run.config.shifts.names)  # for a name that is unknown, no network is built
    training_conditions(run)
    if run.config.qat.shifts and not run.config.shifts.train_on:
        raise InputError("qat_shifts: expected shifts that can be rendered, got target images alone")
    _ = run.target, run.model_spec, run.model
    _ = run.conditions, run.target_images, run.stored, run.primary
    check_measured(run)
    _read_images(run)
    some = run.data.calibration.read(slice(0, TRIED_IMAGES))
    _try_own_shifts(run, some)
    return to_unit(some)


def _read_images(run: Run) -> None:
    """Read all images but those to train on; tell what is not used, and which are in two splits."""
    data = run.data
    if data.skipped:
        run.reporter.warn(skipped_sentence(data.skipped))
    if data.left_out:
        run.reporter.warn(left_out_sentence(data.left_out))
    if told := splits_sentence(data.taken_from):
        run.reporter.say(told)
    pixels: dict[str, list[bytes]] = {}
    for name in ("calibration", "validation", "test"):
        split: Split = getattr(data, name)
        pixels[name] = []
        with run.reporter.bar("read images", len(split)) as bar:
            for images, _labels in split.batches(500):
                pixels[name] += map(digest, images)
                bar.update(len(images))
    run.duplicates = find_duplicates({name: getattr(data, name) for name in SPLIT_NAMES}, pixels)
    if run.duplicates:
        run.reporter.warn(f"warning: {duplicates_sentence(run.duplicates)}")


def _try_own_shifts(run: Run, images: torch.Tensor) -> None:
    """Render a few images `(N, C, S, S)` uint8 under the user's own shifts, so that one that fails does so now."""
    for name, severity in dict.fromkeys((*run.conditions, *training_conditions(run))):
        if find_shift(name).is_custom:
            render(images, name, severity, table=run.table, seed=run.config.seed)


def _check_import(run: Run, images: torch.Tensor) -> None:
    """Hold a network that was read of an ONNX file against the file, on images of the data."""
    network = run.model.network
    origin = origin_of(network)
    if origin is None:
        return
    difference = check_import(network, run.model.normalization(images), run.config.threads)
    ending = f"; without the {' and the '.join(sorted(set(origin.ending.kinds.values())))} at its end"
    run.reporter.say(
        f"model: {origin.file.path} (opset {origin.file.opset}, {origin.file.layout}) as a torch network; differs "
        f"from the file by {difference:.1g} of its largest output at most (n = {len(images)})"
        f"{ending if origin.ending.kinds else ''}"
    )


def refuse_probabilities(logits: torch.Tensor) -> None:
    """A second softmax would flatten what confidence, calibration error and margins are computed from.

    Raises:
        InputError: every row `(N, K)` is one of probabilities.
    """
    if bool((logits >= 0).all() and (logits <= 1).all() and ((logits.sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        raise InputError(
            "model: expected logits, got probabilities (rows that lie in [0, 1] and sum to 1): leave the softmax out"
        )


def check_same_config(run: Run, given: Mapping[str, object]) -> None:
    """Refuse to resume a run with other choices than it was begun with.

    Raises:
        InputError: names the first choice that differs.
    """
    kept = run.config.as_json()
    for key, value in given.items():
        if key not in ("threads", "device", "accept_undecided") and kept.get(key) != value:
            raise InputError(f"{key}: expected {kept.get(key)!r}, with which the run was begun, got {value!r}")
