"""Evaluate ONNX classifiers as they are: no run, no torch model, only files and images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

import qrobust
from qrobust.data.loading import open_test
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import SCORES, WHOLE, ForeignClassifier
from qrobust.deployment.footprint import footprints
from qrobust.deployment.onnx_graph import files_of, is_quantized
from qrobust.deployment.plain_graph import Interface, plain_graph
from qrobust.deployment.session import sums
from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.classes import class_results
from qrobust.evaluation.config import EvaluationConfig
from qrobust.evaluation.corruption_sets import SelectedConditions, open_sets
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.predictions import BATCH, CLEAN, Cache, Condition
from qrobust.evaluation.primary import find_primary
from qrobust.evaluation.statistics import wilson_interval
from qrobust.evaluation.summary import (
    comparison_rows,
    drops,
    overview,
)
from qrobust.evaluation.workers import Cluster, Workers, check_workers, processes
from qrobust.pipeline.config import DEFAULT_SEVERITIES, MOST_SEED, MOST_THREADS
from qrobust.pipeline.evaluate import confidence_of, corruption_set_entries, times_of
from qrobust.pipeline.output_folder import NEW, begun, claimed, configuration, discard, plain, promote
from qrobust.pipeline.run_folder import begin_folder, check_folder, other_unfinished
from qrobust.preprocessing import LEAST_SIZE, MOST_SIDE, Preprocessing, PreprocessingConfig, choose_size, resolve
from qrobust.progress import Reporter
from qrobust.record import (
    EARLIER_SCHEMAS,
    EVALUATION_SCHEMA,
    STATISTICS,
    EvaluationRecord,
    EvaluationSummary,
    ModelFile,
    hardware,
    taken,
    versions,
)
from qrobust.report.classes import class_csv_files
from qrobust.report.data import left_out_sentence
from qrobust.report.evaluation_html import evaluation_html
from qrobust.report.markdown import evaluation_report, skipped_sentence
from qrobust.report.robustbench import csv_files
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import (
    TRIED_IMAGES,
    defined_conditions,
    expand,
    find_shift,
    table_for,
)
from qrobust.shifts.rendering import render
from qrobust.storage import read_json, scratch, write_json, write_text
from qrobust.user_code import code_of, trust

T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """What decides the result of an evaluation; see `qrobust evaluate --help`."""

    models: tuple[str, ...]
    data: str
    input_range: str | None = None
    output: str | None = None
    layout: str | None = None
    feed: tuple[str, ...] = ()
    data_root: str | None = None
    class_names: str | None = None
    skip_bad_images: bool = False
    image_size: int | None = None
    resize: str | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    fill: int | None = None
    channel_order: str | None = None
    test_images: int | None = None
    budget: float | None = None
    shifts: tuple[str, ...] = ()
    severities: tuple[int, ...] = DEFAULT_SEVERITIES
    severity_table: str = "auto"
    attacks: str = "none"
    norms: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = AttackConfig.epsilons
    l2_epsilons: tuple[float, ...] = ()
    attack_images: int = AttackConfig.images
    seed: int = 0
    primary: str = EvaluationConfig.primary

    def __post_init__(self) -> None:
        _ = self.preprocessing
        for name, least, most in (("seed", 0, MOST_SEED), ("budget", 1, 10**8)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                bound = f"at most {most}" if value > most else f"at least {least}"
                raise InputError(f"{name}: expected {bound}, got {value}")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if any(isinstance(v, str) and not v.strip() for v in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"{entry.name}: expected a value, got an empty string")
        _ = self.interface, self.attack_choices, EvaluationConfig(primary=self.primary)

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """What is said of the graphs' input."""
        return taken(PreprocessingConfig, self)

    @property
    def interface(self) -> Interface:
        """How files are used that have more than an image in and logits out."""
        return taken(Interface, self)

    @property
    def attack_choices(self) -> AttackConfig:
        """What is tried against the graphs."""
        return AttackConfig(self.attacks, self.norms, self.epsilons, self.l2_epsilons, self.attack_images)

    def as_json(self) -> dict[str, object]:
        """Plain data for a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def evaluate_files(
    choices: Choices,
    out: Path,
    reporter: Reporter,
    *,
    threads: int,
    workers: Workers = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> EvaluationRecord:
    """Measure ONNX classifiers on the same pixels; the first is what the others are compared with.

    Everything is opened and checked before the folder is touched. Predictions are kept per condition, so that an
    evaluation that was killed goes on with `resume`.

    Args:
        choices: what to measure.
        out: folder for record.json, results.csv, report.html, report.md and predictions.
        reporter: where progress is told.
        threads: of each session.
        workers: processes that render and ask, with sessions of one thread each; or other hosts, without a budget.
        overwrite: replace the evaluation that the folder holds.
        resume: go on with the evaluation that the folder holds, which must have been begun with the same choices.

    Raises:
        InputError: anything is not usable.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads: expected 1 to {MOST_THREADS}, got {threads}")
    out = plain(out)
    if not (resume and configuration(out)):
        _check_folder(out, overwrite=overwrite)
    with claimed(out, replacing=overwrite), scratch() as folder:
        return _evaluate(
            choices, out, folder, reporter, threads=threads, workers=workers, overwrite=overwrite, resume=resume
        )


def _check_folder(out: Path, *, overwrite: bool) -> None:
    check_folder(
        out,
        overwrite=overwrite,
        kind="evaluation",
        made=lambda found: found.get("schema") in (EVALUATION_SCHEMA, EARLIER_SCHEMAS[EVALUATION_SCHEMA]),
    )


def _evaluate(
    choices: Choices,
    out: Path,
    folder: Path,
    reporter: Reporter,
    *,
    threads: int,
    workers: Workers,
    overwrite: bool,
    resume: bool,
) -> EvaluationRecord:
    """`evaluate_files` in a claimed folder, with another one for files that have to be rewritten."""
    earlier = begun(out) if resume else None
    config: dict[str, object] = {"schema": EVALUATION_SCHEMA, **choices.as_json()}
    if earlier:
        _check_same(config, read_json(earlier / "config.json"), other_unfinished(earlier))
    else:
        _check_folder(out, overwrite=overwrite)
    check_workers(workers, choices.budget)
    trust(choices.shifts)
    opened = _open(choices, threads, folder, reporter)
    if isinstance(workers, Cluster):
        _refuse_rewritten(opened)
    torch.set_num_threads(threads)
    _try_out(opened, choices, reporter)
    with _place_for(out, config, earlier) as place:
        record, _ = measure_opened(choices, config, opened, place, reporter, threads=threads, workers=workers)
    write_evaluation(record, place)
    promote(place)
    return record


def measure_opened(
    choices: Choices,
    config: dict[str, object],
    opened: Opened,
    place: Path,
    reporter: Reporter,
    *,
    threads: int,
    workers: Workers = 1,
) -> tuple[EvaluationRecord, Evaluation]:
    """Measure what was opened; predictions are kept in `place`, so that one that was killed goes on."""
    cache = Cache(
        place / "predictions",
        place / "attacks.npz",
        {name: _digest(path) for name, path in opened.paths.items()},
        (choices.data, choices.input_range, choices.channel_order, repr(choices.interface), opened.sums),
    )
    with processes(workers) as by:
        found = evaluate(
            opened.classifiers,
            opened.split,
            opened.conditions,
            attacks=choices.attack_choices,
            corruption_sets=opened.stored,
            cache=cache,
            workers=by or 1,
            budget=choices.budget,
            seed=choices.seed,
            severity_table=opened.table,
            progress=reporter.bar,
        )
        confidence = confidence_of(
            found, opened.split, opened.classifiers, cache, workers=by or 1, progress=reporter.bar
        )
    record = replace(
        _record(choices, config, opened, found, threads),
        confidence=confidence,
        latency_ms=times_of(opened.classifiers, opened.split.source.image_size).latency_ms,
        footprint=footprints(opened.files, _shapes(opened), threads=threads),
    )
    return _without_confidence(record, [n for n, c in opened.classifiers.items() if c.output == SCORES]), found


def write_evaluation(record: EvaluationRecord, place: Path) -> None:
    """The record last, after its reports."""
    for name, text in (csv_files(record) | class_csv_files(record, wilson_interval)).items():
        write_text(place / name, text)
    write_text(place / "report.md", evaluation_report(record))
    write_text(place / "report.html", evaluation_html(record))
    write_json(place / "record.json", record.to_json())


@dataclass(frozen=True)
class Opened:
    """What is measured: files by name, as they are run and as classifiers, images, conditions, how this CPU adds."""

    paths: dict[str, Path]
    files: dict[str, Path]
    classifiers: dict[str, ForeignClassifier]
    split: Split
    table: str
    conditions: list[Condition]
    stored: list[SelectedConditions]
    sums: str


def _shapes(opened: Opened) -> dict[str, tuple[int, ...]]:
    size = opened.split.source.image_size
    return {name: classifier.input_shape(size) for name, classifier in opened.classifiers.items()}


def _refuse_rewritten(opened: Opened) -> None:
    """Other hosts do not see the temporary folder in which graphs lie that had to be written anew.

    Raises:
        InputError: there is one.
    """
    for name, file in opened.files.items():
        if file != opened.paths[name]:
            raise InputError(
                f"runner: expected local for {opened.paths[name]}, of which a graph with one input and one output is "
                "written in a temporary folder of this host first"
            )


def _check_same(config: Mapping[str, object], kept: Mapping[str, object], other: str) -> None:
    for key, value in config.items():
        if key != "schema" and kept.get(key, value) != value:
            raise InputError(f"resume: the evaluation was begun with {key}={kept.get(key)!r}, got {value!r}{other}")


def _open(choices: Choices, threads: int, folder: Path, reporter: Reporter) -> Opened:
    paths = dict(zip(_names(choices.models), map(Path, choices.models), strict=True))
    order = choices.channel_order or "rgb"
    files = dict[str, Path]()
    for name, path in paths.items():
        files[name], said = plain_graph(path, folder, choices.interface)
        for sentence in said:
            reporter.say(sentence)
    classifiers = {name: ForeignClassifier(path, threads, choices.input_range, order) for name, path in files.items()}
    split = open_test(
        choices.data,
        seed=choices.seed,
        test_images=choices.test_images,
        class_names_file=Path(choices.class_names) if choices.class_names else None,
        root=Path(choices.data_root) if choices.data_root else None,
        skip_bad_images=choices.skip_bad_images,
    )
    source = split.source
    source.prepare(_preprocessing(classifiers, choices.preprocessing, source.native_size()))
    table = table_for(source.image_size) if choices.severity_table == "auto" else choices.severity_table
    conditions = defined_conditions(expand(choices.shifts), choices.severities, table)
    stored = open_sets(
        choices.shifts,
        severities=choices.severities,
        preprocessing=source.prepared,
        class_names=source.class_names,
        test_images=choices.test_images,
        seed=choices.seed,
    )
    if not conditions and not stored:
        raise InputError(
            f"severities: expected one defined for {', '.join(choices.shifts)}, got {choices.severities}"
        )
    return Opened(paths, files, classifiers, split, table, conditions, stored, sums())


def _try_out(opened: Opened, choices: Choices, reporter: Reporter) -> None:
    """Warn of what may surprise; ask each classifier once, try own shifts and read all images.

    Raises:
        InputError: one of them fails.
    """
    split, source = opened.split, opened.split.source
    find_primary(choices.primary, source.class_names, split.labels.numpy())
    reporter.say(f"preprocessing: {source.prepared}")
    if source.skipped:
        reporter.warn(skipped_sentence(source.skipped))
    if source.left_out:
        reporter.warn(left_out_sentence(source.left_out))
    if split.taken_from:
        reporter.say(f"Test images are from: {split.taken_from}")
    for doubt in filter(None, (s.doubt for s in opened.stored)):
        reporter.warn(doubt)
    quantized = [name for name, path in opened.paths.items() if is_quantized(path)]
    if opened.sums == "saturating" and quantized:
        reporter.warn(
            f"warning: this CPU has no VNNI, its integer sums saturate: what is told of {', '.join(quantized)} is of "
            "such CPUs; on others it may be more accurate"
        )
    for name, classifier in opened.classifiers.items():
        classifier.examine(to_unit(split.read(slice(0, BATCH))), len(source.class_names))
        if classifier.output in WHOLE:
            reporter.say(f"{name} returns {classifier.output}: their logarithms are taken for logits")
        if classifier.output == SCORES:
            reporter.say(f"{name} returns scores in [0, 1] that do not sum to 1: of its confidence nothing is told")
    some = split.read(slice(0, TRIED_IMAGES))
    for name, severity in opened.conditions:
        if find_shift(name).is_custom:
            render(some, name, severity, table=opened.table, seed=choices.seed)
    with reporter.bar("read images", len(split)) as bar:
        for images, _ in split.batches(BATCH):
            bar.update(len(images))


def _record(
    choices: Choices, config: dict[str, object], opened: Opened, found: Evaluation, threads: int
) -> EvaluationRecord:
    source = opened.split.source
    return EvaluationRecord(
        qrobust=qrobust.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        config=config,
        code=code_of(choices.shifts, {}),
        data=choices.data,
        models={name: _about_file(opened.paths[name], c) for name, c in opened.classifiers.items()},
        summary=_summary(found),
        rows=tuple(comparison_rows(found.predictions, found.labels, seed=found.seed, of=found.of)),
        corruption_sets=tuple(corruption_set_entries(found)),
        attacks=found.attacks,
        statistics=STATISTICS,
        severity_table=found.severity_table,
        class_names=found.class_names,
        image_size=source.image_size,
        channels=source.channels,
        preprocessing=source.prepared,
        skipped_images=tuple(source.skipped),
        left_out=source.left_out,
        fingerprint=replace(opened.split, indices=torch.from_numpy(found.indices)).fingerprint(),
        listing=source.listing[:16],
        versions=versions(),
        hardware=hardware(threads, opened.sums),
        primary=find_primary(choices.primary, found.class_names, found.labels).name,
        classes=class_results(found.predictions, found.labels, len(found.class_names)),
    )


def _without_confidence(record: EvaluationRecord, names: Collection[str]) -> EvaluationRecord:
    """Leave out what is told of the confidence of classifiers that have none."""

    def rest(told: dict[str, T]) -> dict[str, T]:
        return {name: value for name, value in told.items() if name not in names}

    rows = tuple(
        replace(
            row,
            ece=rest(row.ece),
            confidence=rest(row.confidence),
            confidence_shift=None if row.confidence_shift is None else rest(row.confidence_shift),
        )
        for row in record.rows
    )
    known = record.confidence
    return replace(
        record,
        rows=rows,
        confidence=None if known is None else replace(known, classifiers=rest(known.classifiers)),
    )


def _summary(found: Evaluation) -> EvaluationSummary:
    """The headline of each classifier, and what the others lose against the first."""
    reference, *others = found.predictions[CLEAN]
    headline = overview(
        found.predictions,
        found.labels,
        seed=found.seed,
        table=found.severity_table,
        classes=len(found.class_names),
        of=found.of,
    )
    versus = {name: drops(found.predictions, reference, name, found.labels, seed=found.seed) for name in others}
    return taken(EvaluationSummary, headline, versus=versus)


def _names(models: Sequence[str]) -> list[str]:
    """The files' names without suffix; equal ones are numbered."""
    stems = [Path(m).stem for m in models]
    return [s if stems.count(s) == 1 else f"{s}-{stems[: i + 1].count(s)}" for i, s in enumerate(stems)]


def _preprocessing(
    classifiers: dict[str, ForeignClassifier], chosen: PreprocessingConfig, native_size: int | None
) -> Preprocessing:
    """How images become the graphs' input: as the user says, else as the graphs of a run say themselves.

    Raises:
        InputError: the size is not known, or graphs say different things.
    """
    fixed, channels = _image_size(classifiers, chosen.image_size), _channels(classifiers)
    declared = {name: c.declared for name, c in classifiers.items() if c.declared}
    if declared and replace(chosen, image_size=None, channel_order=None) == PreprocessingConfig():
        first = next(iter(declared.values()))
        if other := next((name for name, found in declared.items() if found.pixels != first.pixels), ""):
            raise InputError(
                f"resize: expected one way to prepare images, {next(iter(declared))} says {first}, {other} says "
                f"{declared[other]}; say how with --resize and --interpolation"
            )
        if first.size == (fixed or first.size):
            own = replace(first, mean=None, std=None, channel_order=chosen.channel_order or "rgb")
            return own.for_images_of(native_size)
    chosen = replace(chosen, image_size=fixed or native_size)
    nothing = PreprocessingConfig()
    size = choose_size(chosen, nothing, native_size, "the graphs")
    return resolve(chosen, nothing, size, native_size=native_size, channels=channels)


def _image_size(classifiers: dict[str, ForeignClassifier], given: int | None) -> int | None:
    """The one side that all graphs take, or None where none fixes it and none is given."""
    fixed = {name: c.image_size for name, c in classifiers.items() if c.image_size}
    for name, size in fixed.items():
        if not LEAST_SIZE <= size <= MOST_SIDE:
            raise InputError(f"onnx: {name} takes images of {size} px, expected {LEAST_SIZE} to {MOST_SIDE}")
    if len(set(fixed.values()) | ({given} if given else set())) > 1:
        wanted = ", ".join(f"{name} {size}" for name, size in fixed.items())
        raise InputError(f"image_size: the graphs take images of {wanted} px, expected one size, got {given}")
    return next(iter(fixed.values()), given)


def _channels(classifiers: dict[str, ForeignClassifier]) -> int:
    """The one number of channels that all graphs take."""
    found = {name: c.channels for name, c in classifiers.items()}
    if len(set(found.values())) > 1:
        wanted = ", ".join(f"{name} {channels}" for name, channels in found.items())
        raise InputError(f"model: expected graphs for images of one number of channels, got {wanted}")
    return next(iter(found.values()))


@contextmanager
def _place_for(out: Path, config: Mapping[str, object], earlier: Path | None) -> Iterator[Path]:
    """A place in the claimed folder with nothing but a configuration, or where an earlier evaluation began.

    What `out` holds stays until the new one is done. Where what follows fails, of a new evaluation only what is worth
    going on with is kept: of one that is to replace another, where it was stopped, not where it failed.
    """
    place = earlier or begin_folder(out, config)
    try:
        (place / "predictions").mkdir(exist_ok=True)
        yield place
    except BaseException as error:
        failed_to_replace = place.name == NEW and isinstance(error, Exception)
        if not earlier and (failed_to_replace or not any(place.glob("predictions/**/*.npz"))):
            discard(place)
        raise


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(path: Path) -> str:
    """Changes with a graph and with the weights that it keeps in other files."""
    own, *others = files_of(path)
    with own.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    for other in others:
        found.update(_sha256(other))
    return found.hexdigest()


def _about_file(path: Path, classifier: ForeignClassifier) -> ModelFile:
    own, *others = files_of(path)
    return ModelFile(
        file=str(path),
        sha256=_sha256(own).hex(),
        external_data={f.name: _sha256(f).hex() for f in others},
        size_bytes=sum(file.stat().st_size for file in (own, *others)),
        layout=classifier.layout,
        batch=classifier.batch,
        pixels=classifier.dtype.__name__,
        output=classifier.output,
    )
