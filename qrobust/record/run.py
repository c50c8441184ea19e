"""The record of a run, and that of an evaluation of ONNX files: what `record.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing
from qrobust.record.attacks import Attacks
from qrobust.record.classes import Classes
from qrobust.record.compensation import Compensation, Remedy, SplitSummary
from qrobust.record.confidence import Confidence
from qrobust.record.data import Duplicates, LeftOut
from qrobust.record.imported import FileCompensation
from qrobust.record.measurements import (
    ConditionComparison,
    ConditionResult,
    EvaluationSummary,
    Footprint,
    Latency,
    MissedImage,
    Summary,
)
from qrobust.record.other_images import CorruptionSet, TargetImages
from qrobust.record.provenance import Hardware, ModelFile, Seeds, StageTime
from qrobust.record.quantization import Audit, Parity, Quantization
from qrobust.record.recommendation import Effects, Recommendation
from qrobust.record.start import Start
from qrobust.record.typed_json import JsonFile, OneOf, from_json, was
from qrobust.record.units import Positive
from qrobust.storage import read_json

SCHEMA = "qrobust.run/2"
EVALUATION_SCHEMA = "qrobust.evaluation/2"
# Of records that are still read.
EARLIER_SCHEMAS = {SCHEMA: "qrobust.run/1", EVALUATION_SCHEMA: "qrobust.evaluation/1"}


@dataclass(frozen=True, kw_only=True)
class Record(JsonFile):
    """The record of a run, schema `qrobust.run/2`.

    Attributes:
        schema: name and version of this form.
        qrobust: version of qrobust.
        created: when, UTC, ISO 8601.
        command: the command line.
        config: every choice of the run, as in `config.json`.
        model: name of the network, as it was given.
        weights: file of its weights, as it was given, or null.
        data: the data, as it was given.
        n_test: test images measured.
        summary: the headline.
        rows: one per condition, the clean one (`"shift": "clean"`, severity 0) first.
        remedies: one per way to win robustness back, highest gain first, `anti-adversary` last.
        target_images: real images of the place of use (`--target-images DIR`), or null.
        statistics: which intervals and tests, and how multiple comparisons are corrected for.
        severity_table: `cifar-c` or `imagenet-c`.
        corruption_sets: one per corruption data set among the shifts.
        attacks: what attacks leave.
        quantization: how the network was quantized.
        audit: per graph, what onnxruntime runs on integers.
        parity: per graph, torch against onnxruntime.
        compensation: the calibrator, or null.
        splits: per split, which images it holds.
        skipped_images: files that could not be decoded, with `--skip-bad-images`.
        left_out: files and folders of the data that were not used, by reason.
        duplicates: images that are in two splits, by pair of splits.
        class_names: in index order.
        image_size: side in px, as the network reads images.
        channels: 3 (RGB) or 1 (luma).
        graph_sha256: per graph, of the file that was measured; null where an earlier version left it out.
        preprocessing: how images became the network's input; null in records of earlier versions.
        start: what was found before the first stage; null in records of earlier versions.
        seeds: what randomness was drawn from.
        versions: of Python and packages, and `commit` of a checkout that qrobust ran from.
        hardware: where it was measured.
        stages: per stage, what it took.
        classes: recall per class, balanced accuracy and confusions; null where predictions were not kept.
        primary: the measure that decides: `accuracy`, `balanced` or `recall:CLASS`.
        confidence: what confidence is worth, above a threshold and on foreign images; null where not measured.
        effects: what every graph does against the one that it would take the place of; null where not measured.
        recommendation: what to ship; null where not measured.
        missed_images: those that the graph that ships (the calibrator's if there is one, else `int8`) gets wrong in
            most conditions, at most 12; none in records of earlier versions.
    """

    schema: Annotated[str, OneOf(SCHEMA)] = SCHEMA
    qrobust: str
    created: str
    command: str
    config: dict[str, Any]
    model: str
    weights: str | None
    data: str
    n_test: Positive
    summary: Summary
    rows: tuple[ConditionResult, ...]
    remedies: tuple[Remedy, ...] = field(metadata=was("methods"))
    target_images: TargetImages | None = field(metadata=was("scene"))
    statistics: str
    severity_table: str
    corruption_sets: tuple[CorruptionSet, ...] = field(metadata=was("stored"))
    attacks: Attacks
    quantization: Quantization
    audit: dict[str, Audit]
    parity: dict[str, Parity]
    compensation: Compensation | None
    splits: dict[str, SplitSummary]
    skipped_images: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    class_names: tuple[str, ...]
    image_size: Positive
    channels: Positive
    graph_sha256: dict[str, str] | None = None
    seeds: Seeds
    versions: dict[str, str]
    hardware: Hardware
    stages: dict[str, StageTime]
    preprocessing: Preprocessing | None = None
    start: Start | None = None
    classes: Classes | None = None
    primary: str = "accuracy"
    confidence: Confidence | None = None
    effects: Effects | None = None
    recommendation: Recommendation | None = None
    missed_images: tuple[MissedImage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(JsonFile):
    """The record of an evaluation of ONNX files, schema `qrobust.evaluation/2`; classifiers are named after files.

    Attributes:
        schema: name and version of this form.
        qrobust: version of qrobust.
        created: when, UTC, ISO 8601.
        command: the command line.
        config: every choice of the evaluation, as in `config.json`.
        data: the data, as it was given.
        models: per classifier, its file.
        summary: the headline.
        rows: one per condition, the clean one first; Holm's correction is over all rows and classifiers.
        corruption_sets: one per corruption data set among the shifts.
        attacks: what attacks leave; none of kind `white-box`, and risks are against the first classifier.
        statistics: which intervals and tests, and how multiple comparisons are corrected for.
        severity_table: `cifar-c` or `imagenet-c`.
        class_names: in index order.
        image_size: side in px, as the classifiers read images.
        channels: 3 (RGB) or 1 (luma).
        skipped_images: files that could not be decoded, with `--skip-bad-images`.
        left_out: files and folders of the data that were not used, by reason.
        fingerprint: of the images' order.
        listing: changes when images of the data come or go; null where an earlier version left it out.
        versions: of Python and packages, and `commit` of a checkout that qrobust ran from.
        hardware: where it was measured.
        preprocessing: how images became the graphs' input, `mean` and `std` being null; null in earlier records.
        code: of each `FILE.py:NAME` among the shifts, the SHA-256 of the files that ran.
        classes: recall per class, balanced accuracy and confusions; null in records of earlier versions.
        primary: the measure that decides: `accuracy`, `balanced` or `recall:CLASS`.
        confidence: what confidence is worth, above a threshold and on foreign images; null where not measured.
        latency_ms: per classifier, in milliseconds per batch; null in records of earlier versions.
        footprint: per classifier, memory and load time; null in records of earlier versions.
        compensation: the calibrator that `qrobust compensate FILE.onnx` put in front of a file; else null.
    """

    schema: Annotated[str, OneOf(EVALUATION_SCHEMA)] = EVALUATION_SCHEMA
    qrobust: str
    created: str
    command: str
    config: dict[str, Any]
    data: str
    models: dict[str, ModelFile]
    summary: EvaluationSummary
    rows: tuple[ConditionComparison, ...]
    corruption_sets: tuple[CorruptionSet, ...] = field(metadata=was("stored"))
    attacks: Attacks
    statistics: str
    severity_table: str
    class_names: tuple[str, ...]
    image_size: Positive
    channels: Positive
    skipped_images: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    fingerprint: str
    listing: str | None = None
    versions: dict[str, str]
    hardware: Hardware
    code: dict[str, dict[str, str]] | None = None
    preprocessing: Preprocessing | None = None
    classes: Classes | None = None
    primary: str = "accuracy"
    confidence: Confidence | None = None
    latency_ms: dict[str, Latency] | None = None
    footprint: dict[str, Footprint] | None = None
    compensation: FileCompensation | None = None


def read_record(path: str | Path) -> Record:
    """The record of a run, of this schema or of `qrobust.run/1`.

    Raises:
        InputError: the file is missing or damaged, or a value is missing or wrong; one line names its key.
    """
    data = read_json(Path(path))
    return from_json(Record, _upgraded(data, SCHEMA, ("model", "weights", "data"), path), path)


def read_evaluation(path: Path) -> EvaluationRecord:
    """The record of an evaluation of ONNX files, of this schema or of `qrobust.evaluation/1`.

    Raises:
        InputError: as for `read_record`.
    """
    return from_json(EvaluationRecord, _upgraded(read_json(path), EVALUATION_SCHEMA, ("data",), path), path)


def _upgraded(
    data: Mapping[str, object], schema: str, from_config: tuple[str, ...], path: str | Path
) -> Mapping[str, object]:
    """Data of the present schema; of what changed since the first, names are the reader's (see `was`)."""
    found, earlier = data.get("schema"), EARLIER_SCHEMAS[schema]
    if found == schema:
        return data
    if found != earlier:
        raise InputError(f"{path}: schema: expected {schema} or {earlier}, got {found!r}")
    config = data.get("config")
    chosen = {key: config[key] for key in from_config if key in config} if isinstance(config, dict) else {}
    return {**chosen, **data, "schema": schema}
