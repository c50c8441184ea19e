"""What compensation learns from, for the record, and that none of it is measured on later."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qrobust.data.scene_images import folder_of
from qrobust.errors import InputError
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import BASELINES
from qrobust.shifts.registry import expand

# What must be equal between methods for their gains to be compared, where both know it.
COMPARABLE = {
    "shifts",
    "severities",
    "severity_table",
    "images",
    "labels",
    "scene_images",
    "steps",
    "batch_size",
    "clean_budget",
}


def training_provenance(run: Run, *, trained: bool = True) -> dict[str, Any]:
    """What a method learns from: choices of a run may change after it was made.

    Args:
        run: of the run.
        trained: whether the method makes training steps, and so has a use for labels.
    """
    c, target_images = run.config, run.target_images
    return ({"steps": c.steps, "batch_size": c.batch_size} if trained else {}) | {
        "images": len(run.training_images),
        "labels": trained and c.use_labels,
        "scene_names": list(c.scene_names),
        "severities": sorted({severity for _, severity in run.training_conditions}),
        "severity_table": run.table,
        "scene_images": c.scene_images,
        "scene_alone": c.scene_images is not None and c.scene_alone,
        "scene_splits": target_images.summary() if target_images else None,
    }


def trained_on_names(run: Run) -> list[str]:
    """The shifts that compensation learns from, sorted, and the folder of a scene's real images."""
    target_images = [run.config.scene_images] if run.config.scene_images else []
    return sorted({name for name, _ in run.training_conditions}) + target_images


def validation_measures(run: Run) -> dict[str, str]:
    """What is called accuracy on validation images, clean and under shift: without labels it is something else."""
    named = "accuracy" if run.config.use_labels else "agreement with float"
    if run.target_images is None or (run.target_images.labelled and run.config.use_labels):
        return {"clean": named, "shift": named}
    fit = "fit to what the float model expects"  # see Validation
    return {"clean": named, "shift": f"mean of {named} and {fit}" if run.training_conditions else fit}


def check_unseen(run: Run) -> None:
    """Refuse to hold out shifts that the classifier itself was trained on.

    Raises:
        InputError: names them.
    """
    qat = run.require_folder().need_stage("quantize", "quantize")["quantization"]["qat"] or {}
    held_out = expand(run.config.hold_out) if run.config.hold_out else ()
    if seen := [name for name in held_out if name in qat.get("shifts", ())]:
        raise InputError(
            f"hold_out: expected shifts that the classifier never saw, --qat-shifts trained it on {', '.join(seen)}"
        )


def check_images(run: Run) -> None:
    """Refuse images other than those that the run was quantized with: its splits would be mixed up.

    What is tested on may change where it lies apart from the rest.

    Raises:
        InputError: names the split.
    """
    kept = run.require_folder().need_stage("quantize", "quantize")["splits"]
    for name in ("calibration", "training", "validation"):
        now = getattr(run.data, name).summary()
        if any(now[key] != value for key, value in kept[name].items()):
            raise InputError(
                f"data: expected the images of {run.config.data} that the run was quantized with, got others (its "
                f"{name} split held {kept[name]['n']}, now {now['n']}): what was learned from would be measured on; "
                "quantize again"
            )


def check_target_images(run: Run, without: Collection[str] = ()) -> None:
    """Refuse a scene's images other than those that methods learned from: its splits would be mixed up.

    Raises:
        InputError: names the method.
    """
    for name, training_images in learned(run, without).items():
        known, spec = training_images.get("scene_splits"), run.config.scene_images
        if not (known and spec and run.target_images) or folder_of(training_images["scene_images"]) != folder_of(
            spec
        ):
            continue
        now = run.target_images.summary()
        if now != known:
            again = "qrobust compensate" + ("" if name == "calibrator" else f" --method {name}")
            raise InputError(
                f"scene: expected the images of {run.config.scene_images} that {name} learned from, got others "
                f"({known['training']['n']} to learn from then, now {now['training']['n']}): what was learned from "
                f"would be measured on; run `{again}` again"
            )


def learned(run: Run, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What each method that is there learned from, the calibrator first; nothing of what learns nothing."""
    folder = run.require_folder()
    made = {"calibrator": "compensate"} | {name: name for name in BASELINES}
    stages = {name: found for name, stage in made.items() if (found := folder.stage(stage))}
    return {
        name: found["lessons"]
        | {"shifts": sorted(n for n in found["trained_on"] if not n.startswith("imagefolder:"))}
        for name, found in stages.items()
        if found.get("lessons") and name not in without
    }


def trained_differently(run: Run, without: Collection[str] = ()) -> dict[str, str]:
    """Methods that cannot be compared with the first of those that learned, and what differs between their lessons.

    Labels are of no use to re-estimated batch norms, nor a scene's images to fine-tuning, whose steps need labels:
    that is how these methods are.
    """
    every, found = learned(run, without), {}
    for first, expected in list(every.items())[:1]:
        for name, training_images in every.items():
            keys = COMPARABLE & set(training_images) & set(expected)
            keys -= {"labels"} if "bn-reestimate" in (first, name) else set()
            keys -= {"scene_images"} if "finetune" in (first, name) else set()
            differing = [key for key in sorted(keys) if training_images[key] != expected[key]]
            if differing:
                told = "; ".join(
                    f"{key.replace('_', ' ')} {training_images[key]}, not {expected[key]}" for key in differing
                )
                found[name] = f"it learned otherwise than {first} ({told})"
    return found
