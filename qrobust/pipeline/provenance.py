"""What compensation learns from, for the record, and that none of it is measured on later."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qrobust.data.splits import Split, TrainingData
from qrobust.data.target_images import folder_of
from qrobust.errors import InputError
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import REMEDIES
from qrobust.record import CompensationResult, Measures, RemedyResult, TrainingProvenance
from qrobust.remedies import RETRAINED
from qrobust.shifts.registry import defined_conditions, training_sets

# What must be equal between remedies for their gains to be compared, where both know it.
COMPARABLE = (
    "batch_size",
    "clean_budget",
    "images",
    "labels",
    "severities",
    "severity_table",
    "steps",
    "target_images",
)


def training_images(run: Run) -> Split:
    """Images that compensation may learn from.

    Raises:
        InputError: fewer than `few_shot` are there.
    """
    few, training = run.config.calibrator.few_shot, run.data.training
    if few and few > len(training):
        raise InputError(f"few_shot: expected at most the {len(training)} training images, got {few}")
    return training.first(few) if few else training


def training_families(run: Run) -> tuple[str, ...]:
    """Families of random operations that everything that learns may learn from."""
    return training_sets(run.config.shifts.train_on)[0]


def training_conditions(run: Run) -> list[tuple[str, int]]:
    """Every (shift, severity) that everything that learns may learn from.

    Raises:
        InputError: a shift has none of the severities.
    """
    shifts = run.config.shifts
    names = training_sets(shifts.train_on)[1]
    found = defined_conditions(names, shifts.severities, run.table)
    if names and not found:
        severities = ", ".join(map(str, shifts.severities))
        raise InputError(f"severities: expected one defined for {', '.join(names)}, got {severities}")
    return found


def training_data(run: Run) -> TrainingData:
    """What compensation learns from."""
    real = run.target_images.training if run.target_images else None
    return rendered_data(run, training_images(run), real)


def rendered_data(run: Run, images: Split, target_images: Split | None = None) -> TrainingData:
    """These images under the shifts that the run trains on."""
    families, share = training_families(run), 1 - run.config.shifts.scenario_share
    return TrainingData(images, training_conditions(run), run.table, target_images, families, share)


def training_provenance(run: Run, *, trained: bool = True) -> TrainingProvenance:
    """What a remedy learns from: choices of a run may change after it was made.

    Args:
        run: of the run.
        trained: whether the remedy makes training steps, and so has a use for labels.
    """
    c, shifts, target_images = run.config.calibrator, run.config.shifts, run.target_images
    return TrainingProvenance(
        images=len(training_images(run)),
        labels=trained and c.use_labels,
        severities=tuple(sorted({severity for _, severity in training_conditions(run)})),
        severity_table=run.table,
        scenarios=shifts.scenarios,
        target_images=shifts.target_images,
        target_images_only=shifts.target_images is not None and not shifts.train_on,
        generic_share=1 - shifts.scenario_share if training_families(run) and training_conditions(run) else None,
        target_splits=target_images.summary() if target_images else None,
        steps=c.steps if trained else None,
        batch_size=c.batch_size if trained else None,
    )


def trained_on_names(run: Run) -> tuple[str, ...]:
    """The shifts that compensation learns from, sorted, and the folder of target images."""
    spec = run.config.shifts.target_images
    return (*trained_shifts(run), *([spec] if spec else []))


def trained_shifts(run: Run) -> tuple[str, ...]:
    """The shifts that everything that learns may learn from, sorted; random operations by family."""
    families = [f"generic_{family}" for family in training_families(run)]
    return tuple(sorted({*families, *(name for name, _ in training_conditions(run))}))


def validation_measures(
    *, labels: bool, target_labelled: bool | None, shifted: bool, teacher: str = "float"
) -> Measures:
    """What is called accuracy on validation images, clean and under shift: without labels it is something else.

    Args:
        labels: whether labels are used.
        target_labelled: whether target images have labels; None where there are none.
        shifted: whether images are rendered under shifts, too.
        teacher: what says what images are where labels do not.
    """
    named = "accuracy" if labels else f"agreement with {teacher}"
    if target_labelled is None or (target_labelled and labels):
        return Measures(clean=named, shift=named)
    expecting = "the float model" if teacher == "float" else teacher
    fit = f"fit to what {expecting} expects"  # see Validation
    return Measures(clean=named, shift=f"mean of {named} and {fit}" if shifted else fit)


def check_measured(run: Run) -> None:
    """Refuse a run that would measure nothing.

    Raises:
        InputError: no shift that is to be measured has any of the severities.
    """
    shifts = run.config.shifts
    if not (run.conditions or run.stored or run.target_images):
        severities = ", ".join(map(str, shifts.severities))
        raise InputError(f"severities: expected one defined for {', '.join(shifts.names)}, got {severities}")


def check_images(run: Run) -> None:
    """Refuse images other than those that the run was quantized with: its splits would be mixed up.

    What is tested on may change where it lies apart from the rest.

    Raises:
        InputError: names the split.
    """
    kept = run.kept_splits
    for name in ("calibration", "training", "validation"):
        now = getattr(run.data, name).summary()
        if now != kept[name]:
            raise InputError(
                f"data: expected the images of {run.config.data.spec} that the run was quantized with, got others "
                f"(its {name} split held {kept[name].n}, now {now.n}): what was learned from would be measured "
                "on; "
                "quantize again"
            )


def check_target_images(run: Run, without: Collection[str] = ()) -> None:
    """Refuse target images other than those that remedies learned from: its splits would be mixed up.

    Raises:
        InputError: names the remedy.
    """
    spec = run.config.shifts.target_images
    for name, seen in learned(run, without).items():
        known, images = seen.provenance.target_splits, seen.provenance.target_images
        if not (known and images and spec and run.target_images) or folder_of(images) != folder_of(spec):
            continue
        now = run.target_images.summary()
        if now != known:
            again = "qrobust compensate" + ("" if name == "calibrator" else f" --remedy {name}")
            raise InputError(
                f"target_images: expected the images of {spec} that {name} learned from, got others "
                f"({known['training'].n} to learn from then, now {now['training'].n}): what was learned from "
                f"would be measured on; run `{again}` again"
            )


@dataclass(frozen=True)
class Learned:
    """What a remedy that is there learned from.

    Attributes:
        shifts: their names, sorted.
        provenance: all else.
    """

    shifts: tuple[str, ...]
    provenance: TrainingProvenance

    def compared(self) -> dict[str, object]:
        """What must be equal for gains to be compared, as far as it is known."""
        found = {"shifts": self.shifts} | {key: getattr(self.provenance, key) for key in COMPARABLE}
        return {key: value for key, value in found.items() if key == "target_images" or value not in (None, ())}


def learned(run: Run, without: Collection[str] = ()) -> dict[str, Learned]:
    """What each remedy that is there learned from, the calibrator first; nothing of what learns nothing."""
    folder = run.require_folder()
    stages: dict[str, CompensationResult | RemedyResult | None] = {
        "calibrator": folder.result(CompensationResult, "compensate")
    }
    stages |= {name: folder.result(RemedyResult, name) for name in REMEDIES}
    return {
        name: Learned(
            tuple(sorted(n for n in found.trained_on if not n.startswith("imagefolder:"))), found.provenance
        )
        for name, found in stages.items()
        if found and found.provenance and name not in without
    }


def trained_differently(run: Run, without: Collection[str] = ()) -> dict[str, str]:
    """Remedies that cannot be compared with the first of those that learned, and what differs between them.

    Labels are of no use to re-estimated batch norms, nor target images to fine-tuning, whose steps need labels:
    that is how these remedies are.
    """
    every, found = learned(run, without), {}
    for first, expected in list(every.items())[:1]:
        wanted = expected.compared()
        for name, seen in every.items():
            got = seen.compared()
            keys = set(got) & set(wanted)
            keys -= {"labels"} if "bn-reestimate" in (first, name) else set()
            keys -= {"target_images"} if {first, name} & set(RETRAINED) else set()
            differing = [key for key in sorted(keys) if got[key] != wanted[key]]
            if differing:
                said = "; ".join(
                    f"{key.replace('_', ' ')}: {_listed(got[key])} instead of {_listed(wanted[key])}"
                    for key in differing
                )
                found[name] = f"trained with different settings than {first} ({said})"
    return found


def _listed(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
