"""Evaluate ONNX classifiers as they are: no run, no torch model, only files and images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.corruption_sets import open_sets
from qrobust.evaluation.evaluate import Evaluation, evaluate
from qrobust.evaluation.predictions import BATCH, CLEAN, Cache, Condition
from qrobust.evaluation.summary import (
    STATISTICS,
    comparison_rows,
    drops,
    overview,
)
from qrobust.evaluation.workers import check_workers
from qrobust.pipeline.config import DEFAULT_SEVERITIES, MOST_SEED
from qrobust.pipeline.evaluate import corruption_set_entries
from qrobust.pipeline.run_folder import begin_folder, check_folder
from qrobust.progress import Reporter
from qrobust.record import (
    EVALUATION_SCHEMA,
    Record,
    hardware,
    versions,
)
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
    epsilons: tuple[float, ...] = AttackConfig.epsilons
    l2_epsilons: tuple[float, ...] = ()
    attack_images: int = AttackConfig.images
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 8), ("seed", 0), ("budget", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        if self.seed > MOST_SEED:
            raise InputError(f"seed: expected at most {MOST_SEED}, got {self.seed}")
        _ = self.attack_choices

    @property
    def attack_choices(self) -> AttackConfig:
        """What is tried against the graphs."""
        return AttackConfig(self.attacks, self.norms, self.epsilons, self.l2_epsilons, self.attack_images)

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
) -> Record:
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
            if kept.get(key) != value:
                raise InputError(f"resume: the evaluation was begun with {key}={kept.get(key)!r}, got {value!r}")
    else:
        check_folder(
            out, overwrite=overwrite, kind="evaluation", made=lambda found: found.get("schema") == EVALUATION_SCHEMA
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
    wanted: list[Condition] = [CLEAN, *defined_conditions(expand(choices.shifts), choices.severities, table)]
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
    with _folder_for(out, config, going_on=going_on):
        found = evaluate(
            classifiers,
            split,
            wanted[1:],
            attacks=choices.attack_choices,
            corruption_sets=stored,
            cache=Cache(
                out / "predictions",
                out / "attacks.npz",
                {name: hashlib.sha256(_content(path)).hexdigest() for name, path in paths.items()},
                (choices.data, choices.input_range, added),
            ),
            workers=workers,
            budget=choices.budget,
            seed=choices.seed,
            severity_table=table,
            progress=reporter.bar,
        )
    record = {
        "schema": EVALUATION_SCHEMA,
        "qrobust": qrobust.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": config,
        "models": {name: _about_file(paths[name], c) for name, c in classifiers.items()},
        "summary": _summary(found),
        "rows": comparison_rows(found.predictions, found.labels, seed=found.seed, of=found.of),
        "stored": corruption_set_entries(found),
        "attacks": found.attacks,
        "statistics": STATISTICS,
        "severity_table": table,
        "class_names": list(source.class_names),
        "image_size": source.image_size,
        "channels": source.channels,
        "skipped_images": list(source.skipped),
        "fingerprint": replace(split, indices=torch.from_numpy(found.indices)).fingerprint(),
        "versions": versions(),
        "hardware": hardware(threads) | {"sums": added},
    }
    for name, text in csv_files(record).items():
        write_text(out / name, text)
    write_text(out / "report.md", evaluation_report(record))
    write_json(out / "record.json", record)
    return record


def _summary(found: Evaluation) -> dict[str, object]:
    """The headline of each classifier, and what the others lose against the first."""
    reference, *others = found.predictions[CLEAN]
    summary = overview(
        found.predictions,
        found.labels,
        seed=found.seed,
        table=found.severity_table,
        classes=len(found.class_names),
        of=found.of,
    )
    versus = {name: drops(found.predictions, reference, name, found.labels, seed=found.seed) for name in others}
    return summary | {"versus": versus}


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


def _about_file(path: Path, classifier: ForeignClassifier) -> dict[str, object]:
    own, *others = files_of(path)
    return {
        "file": str(path),
        "sha256": _sha256(own).hex(),
        "external_data": {f.name: _sha256(f).hex() for f in others},
        "size_bytes": sum(file.stat().st_size for file in (own, *others)),
        "layout": classifier.layout,
        "batch": classifier.batch,
        "pixels": classifier.dtype.__name__,
        "output": "probabilities" if classifier.probabilities else "logits",
    }
