"""Evaluate ONNX classifiers as they are: no run, no torch model, only files and images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import qrobust
from qrobust.data.loading import open_test
from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.deployment.onnx_graph import files_of, is_quantized
from qrobust.deployment.session import sums
from qrobust.errors import InputError, QRobustError
from qrobust.evaluation.attack_config import AttackChoices
from qrobust.evaluation.attack_plan import Graph
from qrobust.evaluation.attack_summary import attacked
from qrobust.evaluation.corruption_sets import open_sets, stored_predictions
from qrobust.evaluation.other_images import corruption_set
from qrobust.evaluation.predictions import (
    BATCH,
    CLEAN,
    SUBSET,
    Condition,
    kept_or_predicted,
    prediction_key,
    within_budget,
)
from qrobust.evaluation.summary import (
    comparison_rows,
    drops,
    overview,
)
from qrobust.evaluation.workers import check_workers, processes
from qrobust.pipeline.config import DEFAULT_SEVERITIES, MOST_SEED
from qrobust.pipeline.run_folder import begin_folder, check_folder
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
from qrobust.report.markdown import evaluation_report, skipped_sentence
from qrobust.report.robustbench import csv_files
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import (
    TRIED_IMAGES,
    conditions,
    expand,
    find_shift,
    table_for,
)
from qrobust.shifts.rendering import render
from qrobust.storage import discard_backup, has_backup, read_json, restore_backup, write_json, write_text


@dataclass(frozen=True)
class Choices:
    """What decides the result of an evaluation; see `qrobust evaluate --help`."""

    models: tuple[str, ...]
    data: str
    input_range: str | None = None
    data_root: str | None = None
    class_names: str | None = None
    skip_bad_images: bool = False
    image_size: int | None = None
    test_images: int | None = None
    budget: float | None = None
    shifts: tuple[str, ...] = ()
    severities: tuple[int, ...] = DEFAULT_SEVERITIES
    severity_table: str = "auto"
    attacks: str = "none"
    norms: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = AttackChoices.epsilons
    l2_epsilons: tuple[float, ...] = ()
    attack_images: int = AttackChoices.images
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 8), ("seed", 0), ("budget", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        if self.seed > MOST_SEED:
            raise InputError(f"seed: expected at most {MOST_SEED}, got {self.seed}")
        mistakes = self.attack_choices.mistakes()
        if mistakes:
            raise InputError("; ".join(mistakes))

    @property
    def attack_choices(self) -> AttackChoices:
        """What is tried against the graphs."""
        return AttackChoices(self.attacks, self.norms, self.epsilons, self.l2_epsilons, self.attack_images)

    def as_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def evaluate_files(
    choices: Choices,
    out: Path,
    reporter: Reporter,
    *,
    threads: int,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> EvaluationRecord:
    """Measure ONNX classifiers on the same pixels; the first is what the others are compared with.

    Everything is opened and checked before the folder is touched. Predictions are kept per cell, so that an
    evaluation that was killed goes on with `resume`.

    Args:
        choices: what to measure.
        out: folder for record.json, results.csv, report.md and predictions.
        reporter: where progress is told.
        threads: of each session.
        workers: processes that render and ask, with sessions of one thread each.
        overwrite: replace the evaluation that the folder holds.
        resume: go on with the evaluation that the folder holds, which must have been begun with the same choices.

    Raises:
        InputError: anything is not usable.
    """
    if threads < 1:
        raise InputError(f"threads: expected at least 1, got {threads}")
    going_on = resume and (out / "config.json").is_file()
    config = {"schema": EVALUATION_SCHEMA} | choices.as_json()
    if going_on:
        kept = read_json(out / "config.json")
        for key, value in config.items():
            if key != "schema" and kept.get(key) != value:
                raise InputError(f"resume: the evaluation was begun with {key}={kept.get(key)!r}, got {value!r}")
    else:
        check_folder(
            out,
            overwrite=overwrite,
            kind="evaluation",
            made=lambda found: found.get("schema") in (EVALUATION_SCHEMA, EARLIER_SCHEMAS[EVALUATION_SCHEMA]),
        )
    check_workers(workers)
    paths = dict(zip(_names(choices.models), map(Path, choices.models), strict=True))
    classifiers = {name: ForeignClassifier(path, threads, choices.input_range) for name, path in paths.items()}
    split = open_test(
        choices.data,
        seed=choices.seed,
        image_size=_image_size(classifiers, choices.image_size),
        channels=_channels(classifiers),
        test_images=choices.test_images,
        class_names_file=Path(choices.class_names) if choices.class_names else None,
        root=Path(choices.data_root) if choices.data_root else None,
        skip_bad_images=choices.skip_bad_images,
    )
    source = split.source
    if source.skipped:
        reporter.warn(skipped_sentence(source.skipped))
    table = table_for(source.image_size) if choices.severity_table == "auto" else choices.severity_table
    wanted: list[Condition] = [CLEAN, *conditions(expand(choices.shifts), choices.severities, table)]
    stored = open_sets(
        choices.shifts,
        severities=choices.severities,
        image_size=source.image_size,
        channels=source.channels,
        class_names=source.class_names,
        test_images=choices.test_images,
        seed=choices.seed,
    )
    for doubt in filter(None, (s.doubt for s in stored)):
        reporter.warn(doubt)
    if len(wanted) == 1 and not stored:
        raise InputError(
            f"severities: expected one defined for {', '.join(choices.shifts)}, got {choices.severities}"
        )
    torch.set_num_threads(threads)
    added = sums()
    if added == "saturating" and (quantized := [name for name, path in paths.items() if is_quantized(path)]):
        reporter.warn(
            f"warning: this CPU has no VNNI, its integer sums saturate: what is told of {', '.join(quantized)} is of "
            "such CPUs; on others it may be more accurate"
        )
    for name, classifier in classifiers.items():
        classifier.examine(to_unit(split.read(slice(0, BATCH))), len(source.class_names))
        if classifier.probabilities:
            reporter.say(f"{name} returns probabilities: their logarithms are taken for logits")
    some = split.read(slice(0, TRIED_IMAGES))
    for name, severity in wanted[1:]:
        if find_shift(name).is_custom:
            render(some, name, severity, table=table, seed=choices.seed)
    with reporter.bar("read images", len(split)) as bar:
        for images, _ in split.batches(BATCH):
            bar.update(len(images))
    folder, of, predictions, entries = out / "predictions", len(split), {}, []
    with _folder_for(out, config, going_on=going_on), processes(workers) as by:
        if choices.budget is not None:
            subset = read_json(folder / SUBSET) if (folder / SUBSET).exists() else {}
            split, subset = within_budget(
                subset,
                split,
                wanted,
                classifiers,
                seconds=choices.budget,
                table=table,
                seed=choices.seed,
                also=sum(len(found.conditions) for found in stored),
                by=by,
            )
            stored = [found.limited(len(split), choices.seed) for found in stored]
            write_json(folder / SUBSET, subset)
        about = (split.identity(), table, choices.seed, choices.data, source.image_size, choices.input_range, added)
        graphs = {name: _content(path) for name, path in paths.items()}
        with reporter.bar("measure on onnxruntime", len(wanted) * len(split)) as bar:
            for condition in wanted:
                keys = {name: prediction_key(graph, condition, about) for name, graph in graphs.items()}
                predictions[condition] = kept_or_predicted(
                    folder,
                    condition,
                    classifiers,
                    split,
                    keys=keys,
                    table=table,
                    seed=choices.seed,
                    by=by,
                    progress=lambda n: bar.update(n),
                )
        for found in stored:
            with reporter.bar(f"measure {found.name}", len(found.conditions) * len(found.indices)) as bar:
                answers = stored_predictions(
                    found,
                    classifiers,
                    graphs,
                    folder,
                    about=(source.image_size, choices.input_range, added),
                    seed=choices.seed,
                    by=by,
                    progress=bar.update,
                )
            entries.append(
                corruption_set(
                    answers,
                    found.labels,
                    name=found.name,
                    folder=found.folder_name,
                    seed=choices.seed,
                    table=table,
                    classes=len(source.class_names),
                    of=found.of,
                )
            )
        attacks = attacked(
            out / "attacks.npz",
            {name: Graph(None, c, hashlib.sha256(graphs[name]).hexdigest()) for name, c in classifiers.items()},
            split,
            choices.attack_choices,
            seed=choices.seed,
            about=(choices.data, choices.input_range, added),
            bar=reporter.bar,
        )
    labels = split.labels.numpy()
    reference, *others = classifiers
    headline = overview(predictions, labels, seed=choices.seed, table=table, classes=len(source.class_names), of=of)
    versus = {name: drops(predictions, reference, name, labels, seed=choices.seed) for name in others}
    record = EvaluationRecord(
        qrobust=qrobust.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        config=config,
        data=choices.data,
        models={name: _about_file(paths[name], c) for name, c in classifiers.items()},
        summary=taken(EvaluationSummary, headline, versus=versus),
        rows=tuple(comparison_rows(predictions, labels, seed=choices.seed, of=of)),
        corruption_sets=tuple(entries),
        attacks=attacks,
        statistics=STATISTICS,
        severity_table=table,
        class_names=source.class_names,
        image_size=source.image_size,
        channels=source.channels,
        skipped_images=tuple(source.skipped),
        fingerprint=split.fingerprint(),
        versions=versions(),
        hardware=hardware(threads, added),
    )
    for name, text in csv_files(record).items():
        write_text(out / name, text)
    write_text(out / "report.md", evaluation_report(record))
    write_json(out / "record.json", record.to_json())
    return record


def _names(models: Sequence[str]) -> list[str]:
    """The files' names without suffix; equal ones are numbered."""
    stems = [Path(m).stem for m in models]
    return [s if stems.count(s) == 1 else f"{s}-{stems[: i + 1].count(s)}" for i, s in enumerate(stems)]


def _image_size(classifiers: dict[str, ForeignClassifier], given: int | None) -> int | None:
    """The one side that all graphs take, or None where none fixes it and none is given."""
    fixed = {name: c.image_size for name, c in classifiers.items() if c.image_size}
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
def _folder_for(out: Path, config: dict[str, Any], *, going_on: bool) -> Iterator[None]:
    """A folder with nothing but its configuration, or the one of an evaluation that goes on.

    Where what follows ends in an error of ours, what `out` held before is there again, and of a new evaluation
    only what is worth going on with.
    """
    if not going_on:
        begin_folder(out, config)
    try:
        (out / "predictions").mkdir(exist_ok=True)
        yield
    except (QRobustError, OSError):
        if not going_on and (has_backup(out) or not any(out.glob("predictions/**/*.npz"))):
            restore_backup(out)
        raise
    discard_backup(out)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _content(path: Path) -> bytes:
    """Changes with a graph and with the weights that it keeps in other files."""
    own, *others = files_of(path)
    return own.read_bytes() + b"".join(map(_sha256, others))


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
        output="probabilities" if classifier.probabilities else "logits",
    )
