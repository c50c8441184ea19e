"""Stages 2 and 5: every graph on onnxruntime, on the same pixels."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from qrobust.classifier import Classifier, state_hash
from qrobust.comparison.measured import DEPLOYED
from qrobust.compensation.baselines import AntiAdversary
from qrobust.data.foreign import FOREIGN_SETS, foreign_splits
from qrobust.data.splits import Split
from qrobust.deployment.classifiers import ForeignClassifier, OnnxClassifier
from qrobust.deployment.deploy import session_options
from qrobust.deployment.footprint import footprints
from qrobust.deployment.profiling import medians_ms, ratio_intervals, timed_rounds
from qrobust.deployment.session import sums
from qrobust.evaluation.classes import class_results
from qrobust.evaluation.confidence import confidence_results
from qrobust.evaluation.effects import Right, chance, graph_effects
from qrobust.evaluation.evaluate import Evaluation, MakeBar
from qrobust.evaluation.evaluate import evaluate as measure
from qrobust.evaluation.metrics import missed_images
from qrobust.evaluation.other_images import corruption_set, target_row
from qrobust.evaluation.predictions import CLEAN, Cache, Condition
from qrobust.evaluation.summary import (
    are_correct,
    remedy_gains,
    run_rows,
    summarise,
)
from qrobust.evaluation.workers import Workers, check_workers, processes
from qrobust.pipeline.provenance import check_images, check_measured, check_target_images, trained_differently
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import GRAPHS, REMEDIES, TORCH_ONLY, RunFolder
from qrobust.pipeline.stage import stage
from qrobust.record import (
    CompensationResult,
    Confidence,
    CorruptionSet,
    Effects,
    EvaluationResult,
    Latency,
    MissedImage,
    QuantizationResult,
    RemedyGain,
    RemedyResult,
    TargetImages,
    hardware,
    versions,
)
from qrobust.shifts.registry import recommendation_conditions, with_mixture
from qrobust.storage import save_npz

# Test images for a remedy that exists in torch only.
TORCH_IMAGES = 200
# Foreign images of each set, on which confidence should be low.
FOREIGN_IMAGES = 500
# Images in a batch of which times are measured.
BATCHES = (1, 32)
# Validation images by which a remedy is chosen; at most as many as are tested on.
SELECTION_IMAGES = 1000


@dataclass(frozen=True)
class Asked:
    """Images that every graph is asked about, clean and under conditions.

    Attributes:
        images: how many.
        conditions: that each of them is rendered under.
    """

    images: int
    conditions: tuple[Condition, ...] = ()

    @property
    def answers(self) -> int:
        """How many images a graph answers."""
        return self.images * (1 + len(self.conditions))


def images_asked(run: Run, learned: Collection[str]) -> list[Asked]:
    """All that an evaluation asks every graph about, attacks left out.

    Args:
        run: of the run.
        learned: names of the shifts that remedies learn from.
    """
    target, n = run.target_images, len(run.data.test)
    asked = [Asked(n, tuple(run.conditions)), *(Asked(len(s.conditions) * len(s.indices)) for s in run.stored)]
    asked += [Asked(FOREIGN_IMAGES)] * FOREIGN_SETS
    if target:
        asked.append(Asked(len(target.test)))
    selection = min(SELECTION_IMAGES, n, len(run.data.validation))
    if target and not run.config.shifts.train_on:
        return [*asked, Asked(selection), Asked(len(target.validation))] if target.labelled else asked
    chosen_by = tuple(recommendation_conditions(learned)[0])
    return [*asked, Asked(selection, chosen_by)] if run.conditions else asked


def evaluate(run: Run, *, budget: float | None = None, workers: Workers = 1, without: Collection[str] = ()) -> None:
    """Stages 2 and 5: every graph that is there, on onnxruntime, on the same pixels.

    Predictions are kept per condition with the hash of the graph that made them, and what attacks found is kept per
    attack, so that a killed evaluation resumes and a second one asks only graphs that are new.

    Args:
        run: of the run.
        budget: seconds for all conditions, those of corruption data sets too, by which a subset of the images is
            chosen; attacks come on top.
        workers: processes that render and ask, with sessions of one thread each; or other hosts, without a
            budget.
        without: remedies to leave out although they are there.
    """
    config = run.config
    check_images(run)
    check_target_images(run, without)
    names, in_torch = _to_measure(run, without)
    began = time.perf_counter()
    check_workers(workers, budget)  # what is refused is refused before anything is forgotten
    check_measured(run)
    torch.set_num_threads(config.threads)
    if sums(**session_options(run.target)) == "exact-by-request":
        run.reporter.warn(
            f"warning: this CPU has no VNNI; onnxruntime is asked to add as {run.target.name} does, so accuracies "
            "are those of such a device and times are not; if this CPU is the device, quantize with --target x86-avx2"
        )
    with stage(run, "evaluate", began_s=time.perf_counter() - began) as running, processes(workers) as by:
        classifiers = {name: run.onnx_classifier(name) for name in names}
        found = measure(
            classifiers,
            run.data.test,
            run.conditions,
            attacks=config.attacks,
            differentiable={n: run.device.classifier(run.torch_classifier(n)) for n in names if n in GRAPHS},
            corruption_sets=run.stored,
            cache=_cache(run, names),
            workers=by or 1,
            budget=budget,
            seed=config.seed,
            severity_table=run.table,
            progress=run.reporter.bar,
        )
        running.result = _result(run, found, classifiers, workers=by or 1, in_torch=in_torch)
        _keep_missed(run, found, running.result)


def _missed(found: Evaluation) -> tuple[MissedImage, ...]:
    """Images that the graph that ships gets wrong most often."""
    every = list(found.predictions.values())
    shipped = next(name for name in DEPLOYED if name in every[0])
    return missed_images(np.stack([own[shipped].prediction for own in every]), found.labels)


def _keep_missed(run: Run, found: Evaluation, result: EvaluationResult) -> None:
    """These images, for the report; as they are without a shift."""
    chosen = torch.from_numpy(found.indices)[[one.image for one in result.missed_images]]
    images = Split(run.data.test.source, chosen).read(slice(None))
    save_npz(run.require_folder().missed, {"images": images.numpy()})


def _to_measure(run: Run, without: Collection[str]) -> tuple[list[str], bool]:
    """Names of the graphs, and whether the remedy that exists in torch only is measured; what is left out is said."""
    folder = run.require_folder()
    otherwise = trained_differently(run, without)
    for name, why in otherwise.items():
        run.reporter.warn(f"warning: {name} is left out: {why}")
    left_out = {*otherwise, *without}
    in_torch = TORCH_ONLY not in left_out and folder.is_done(TORCH_ONLY)
    names = [name for name in folder.graphs() if {"compensated": "calibrator"}.get(name, name) not in left_out]
    if folder.is_done("compensate") and not folder.is_done("export"):
        run.reporter.warn(
            f"warning: the calibrator is left out: it was trained, but not exported; `qrobust export {folder.path}`"
        )
    return names, in_torch


def _result(
    run: Run, found: Evaluation, classifiers: dict[str, OnnxClassifier], *, workers: Workers, in_torch: bool
) -> EvaluationResult:
    """What the stage keeps: figures of what was measured, target images, times and sizes."""
    folder, figures = run.require_folder(), (found.predictions, found.labels)
    stages = {"compensated": "compensate"} | {name: name for name in REMEDIES}
    learned = {name: with_mixture(_trained_on(folder, stages[name])) for name in classifiers if name in stages}
    trained_on = learned.get("compensated", ())
    qat = folder.need_result(QuantizationResult, "quantize", "quantize").quantization.qat
    by_classifier = with_mixture(qat.shifts) if qat else ()
    seen = {name: (*shifts, *by_classifier) for name, shifts in learned.items()}
    gains = remedy_gains(*figures, seed=found.seed, seen=seen)
    gains += _in_torch(run, found, by_classifier) if in_torch else []
    target_images, cache = target_images_of(run, classifiers, workers), _cache(run, classifiers)
    times = times_of(classifiers, run.data.image_size)
    return EvaluationResult(
        rows=tuple(
            run_rows(*figures, seed=found.seed, of=found.of, seen=trained_on, seen_by_classifier=by_classifier)
        ),
        summary=summarise(
            *figures,
            (*trained_on, *by_classifier),
            seed=found.seed,
            table=found.severity_table,
            classes=len(found.class_names),
            of=found.of,
        ),
        remedies=tuple(gains),
        target_images=target_images,
        corruption_sets=tuple(corruption_set_entries(found)),
        attacks=found.attacks,
        splits=run.data.summary(),
        primary=run.primary.name,
        effects=_effects(run, found, classifiers, workers),
        confidence=confidence_of(
            found, run.data.test, classifiers, cache, workers=workers, progress=run.reporter.bar
        ),
        classes=class_results(*figures, len(found.class_names)),
        missed_images=_missed(found),
        severity_table=found.severity_table,
        latency_ms=times.latency_ms,
        latency_interval=ratio_intervals(times.samples, "int8"),
        footprint=footprints(
            {name: folder.graph(name) for name in classifiers},
            dict.fromkeys(classifiers, (1, run.model.channels, run.data.image_size, run.data.image_size)),
            threads=run.config.threads,
            signed_activations=run.target.signed or None,
        ),
        size_bytes={name: folder.graph(name).stat().st_size for name in classifiers},
        graph_sha256=_digests(run, classifiers),
        hardware=hardware(run.config.threads, sums(**session_options(run.target))),
        versions=versions(),
    )


@dataclass(frozen=True)
class Times:
    """Of classifiers that ran in turn.

    Attributes:
        latency_ms: per classifier.
        samples: per classifier, milliseconds for one image in each round, `(rounds,)`.
    """

    latency_ms: dict[str, Latency]
    samples: dict[str, np.ndarray]


def times_of(classifiers: Mapping[str, OnnxClassifier | ForeignClassifier], image_size: int) -> Times:
    """Times of classifiers in the batches that a record has."""
    one, many = (timed_rounds(classifiers, image_size, batch) for batch in BATCHES)
    first, last = medians_ms(one), medians_ms(many)
    return Times({name: Latency(batch_1=first[name], batch_32=last[name]) for name in classifiers}, one)


def corruption_set_entries(found: Evaluation) -> list[CorruptionSet]:
    """Each corruption data set by itself, on its own images."""
    return [
        corruption_set(
            one.predictions,
            one.labels,
            name=one.name,
            folder=one.folder_name,
            seed=found.seed,
            table=found.severity_table,
            classes=len(found.class_names),
            of=one.of,
        )
        for one in found.corruption_sets
    ]


def confidence_of(
    found: Evaluation,
    split: Split,
    classifiers: Mapping[str, Classifier],
    cache: Cache,
    *,
    workers: Workers,
    progress: MakeBar,
) -> Confidence:
    """What confidence is worth, above a threshold and on foreign images, which are asked about here.

    Args:
        found: of the classifiers on the split's images.
        split: images that they know.
        classifiers: by name.
        cache: of `found`; answers about foreign images are kept beside it.
        workers: as for `evaluate`.
        progress: makes a progress bar.
    """
    foreign = {}
    for kind, images in foreign_splits(split, FOREIGN_IMAGES, seed=found.seed).items():
        kept = replace(cache, predictions=cache.predictions / f"foreign-{kind}")
        told = measure(classifiers, images, (), cache=kept, workers=workers, seed=found.seed, progress=progress)
        foreign[kind] = told.predictions[CLEAN]
    return confidence_results(found.predictions, found.labels, foreign)


def _cache(run: Run, names: Collection[str]) -> Cache:
    """What graphs said is kept in the run's folder, with the hash of their file."""
    folder = run.require_folder()
    return Cache(folder.predictions, folder.attacks, _digests(run, names), (run.config.data.spec,))


def _digests(run: Run, names: Collection[str]) -> dict[str, str]:
    return {name: sha256(run.require_folder().graph(name).read_bytes()).hexdigest() for name in names}


def target_images_of(run: Run, classifiers: Mapping[str, Classifier], workers: Workers) -> TargetImages | None:
    """What the graphs make of the test images of the target: accuracy where they have labels, else what is known."""
    spec, target_images = run.config.shifts.target_images, run.target_images
    if spec is None or target_images is None:
        return None
    found = _on_target(run, classifiers, target_images.test, "scene", workers)
    return target_row(found.predictions[CLEAN], found.labels, images=spec, seed=run.config.seed)


def _on_target(
    run: Run, classifiers: Mapping[str, Classifier], split: Split, kept: str, workers: Workers
) -> Evaluation:
    """What the graphs say of some target images, kept in a folder of that name."""
    cache = _cache(run, classifiers)
    cache = replace(cache, predictions=cache.predictions / kept, depends_on=(run.config.shifts.target_images,))
    progress = _called(run, "measure target images")
    return measure(classifiers, split, (), cache=cache, workers=workers, seed=run.config.seed, progress=progress)


def _effects(run: Run, found: Evaluation, classifiers: dict[str, OnnxClassifier], workers: Workers) -> Effects | None:
    """`effects_of` all graphs of a run."""
    folder = run.require_folder()
    made = [
        name for name in ("compensate", *REMEDIES) if {"compensate": "compensated"}.get(name, name) in classifiers
    ]
    qat = folder.need_result(QuantizationResult, "quantize", "quantize").quantization.qat
    learned = {*(qat.shifts if qat else ()), *(shift for name in made for shift in _trained_on(folder, name))}
    return effects_of(run, found, classifiers, learned, workers)


def effects_of(
    run: Run, found: Evaluation, classifiers: Mapping[str, Classifier], learned: Collection[str], workers: Workers
) -> Effects | None:
    """What each graph does, measured on validation images, too, under random operations.

    They are of families that no remedy learned from, or where there are none, other draws; never what is measured.
    None where nothing but clean images was measured, or target images that remedies learn from have no labels.

    Args:
        run: of the graphs.
        found: of them on test images.
        classifiers: by name.
        learned: names of the shifts that remedies and the classifier learned from.
        workers: as for `evaluate`.
    """
    shifts = run.config.shifts
    target = None if shifts.train_on else run.target_images
    rendered = [condition for condition in found.predictions if condition != CLEAN]
    if (target and not target.labelled) or not (target or rendered):
        return None
    generic, withheld = recommendation_conditions(learned)
    conditions = [] if target else generic
    cache = _cache(run, classifiers)
    chosen = measure(
        classifiers,
        run.data.validation.first(min(SELECTION_IMAGES, len(found.labels))),
        conditions,
        cache=replace(cache, predictions=cache.predictions / "validation"),
        workers=workers,
        seed=run.config.seed,
        severity_table=run.table,
        progress=_called(run, "measure validation images"),
    )
    of_target = [
        _on_target(run, classifiers, split, kept, workers)
        for split, kept in (((target.validation, "scene-validation"), (target.test, "scene")) if target else ())
    ]
    validation, test = (
        {name: _right(name, own, *shifted) for name in classifiers}
        for own, *shifted in zip((chosen, found), *([of_target] if target else ()), strict=True)
    )
    return Effects(
        withheld=withheld or target is not None,
        conditions=len(conditions),
        target_images=target is not None,
        chance=chance(test["int8"].shift_labels, run.primary),
        graphs=graph_effects(validation, test, run.primary, seed=run.config.seed),
    )


def _trained_on(folder: RunFolder, stage: str) -> tuple[str, ...]:
    if stage == "compensate":
        return folder.need_result(CompensationResult, stage, "compensate").trained_on
    return folder.need_result(RemedyResult, stage, "compensate").trained_on


def _right(name: str, own: Evaluation, target: Evaluation | None = None) -> Right:
    """Where a graph is right: on clean images, and over all conditions or on target images."""
    shifted = [condition for condition in own.predictions if condition != CLEAN]
    clean = own.predictions[CLEAN][name].prediction == own.labels
    if target:
        right = target.predictions[CLEAN][name].prediction == target.labels
        return Right(clean.astype(float), own.labels, right.astype(float), target.labels)
    return Right(
        clean.astype(float), own.labels, are_correct(own.predictions, name, shifted, own.labels).mean(0), own.labels
    )


def _in_torch(run: Run, known: Evaluation, by_classifier: Sequence[str]) -> list[RemedyGain]:
    """The row of a remedy that has no graph, on the first images, against the INT8 graph on the same ones."""
    kept = run.require_folder().predictions / TORCH_ONLY
    found = measure(
        {TORCH_ONLY: AntiAdversary(run.device.classifier(run.fake_quantized))},
        replace(run.data.test, indices=torch.from_numpy(known.indices[:TORCH_IMAGES])),
        [condition for condition in known.predictions if condition != CLEAN],
        cache=Cache(
            kept, kept / "attacks.npz", {TORCH_ONLY: state_hash(run.fake_quantized)}, (run.config.data.spec,)
        ),
        seed=known.seed,
        severity_table=known.severity_table,
        progress=_called(run, f"measure {TORCH_ONLY} in torch"),
    )
    n = len(found.labels)
    both = {
        condition: {"int8": known.predictions[condition]["int8"].first(n)} | own
        for condition, own in found.predictions.items()
    }
    return remedy_gains(both, found.labels, seed=known.seed, seen={TORCH_ONLY: by_classifier})


def _called(run: Run, label: str) -> MakeBar:
    """Progress bars with another label."""
    return lambda _, length: run.reporter.bar(label, length)
