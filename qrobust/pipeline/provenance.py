"""What compensation learns from, for the record, and that none of it is measured on later."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qrobust.data.scene_images import folder_of
from qrobust.errors import InputError
from qrobust.pipeline.run import Workbench
from qrobust.pipeline.run_folder import ALTERNATIVES
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


def lessons_told(bench: Workbench, *, trained: bool = True) -> dict[str, Any]:
    """What a method learns from: choices of a run may change after it was made.

    Args:
        bench: of the run.
        trained: whether the method makes training steps, and so has a use for labels.
    """
    c, scene = bench.config, bench.scene
    return ({"steps": c.steps, "batch_size": c.batch_size} if trained else {}) | {
        "images": len(bench.lessons),
        "labels": trained and c.use_labels,
        "scene_names": list(c.scene_names),
        "severities": sorted({severity for _, severity in bench.training_cells}),
        "severity_table": bench.table,
        "scene_images": c.scene_images,
        "scene_alone": c.scene_images is not None and c.scene_alone,
        "scene_splits": scene.summary() if scene else None,
    }


def lesson_names(bench: Workbench) -> list[str]:
    """The shifts that compensation learns from, sorted, and the folder of a scene's real images."""
    scene = [bench.config.scene_images] if bench.config.scene_images else []
    return sorted({name for name, _ in bench.training_cells}) + scene


def validation_measures(bench: Workbench) -> dict[str, str]:
    """What is called accuracy on validation images, clean and under shift: without labels it is something else."""
    named = "accuracy" if bench.config.use_labels else "agreement with float"
    if bench.scene is None or (bench.scene.labelled and bench.config.use_labels):
        return {"clean": named, "shift": named}
    fit = "fit to what the float model expects"  # see Validation
    return {"clean": named, "shift": f"mean of {named} and {fit}" if bench.training_cells else fit}


def check_unseen(bench: Workbench) -> None:
    """Refuse to hold out shifts that the classifier itself was trained on.

    Raises:
        InputError: names them.
    """
    qat = bench.place().need_stage("quantize", "quantize")["quantization"]["qat"] or {}
    held_out = expand(bench.config.hold_out) if bench.config.hold_out else ()
    if seen := [name for name in held_out if name in qat.get("shifts", ())]:
        raise InputError(
            f"hold_out: expected shifts that the classifier never saw, --qat-shifts trained it on {', '.join(seen)}"
        )


def check_images(bench: Workbench) -> None:
    """Refuse images other than those that the run was quantized with: its splits would be mixed up.

    What is tested on may change where it lies apart from the rest.

    Raises:
        InputError: names the split.
    """
    kept = bench.place().need_stage("quantize", "quantize")["splits"]
    for name in ("calibration", "training", "validation"):
        now = getattr(bench.data, name).summary()
        if any(now[key] != value for key, value in kept[name].items()):
            raise InputError(
                f"data: expected the images of {bench.config.data} that the run was quantized with, got others (its "
                f"{name} split held {kept[name]['n']}, now {now['n']}): what was learned from would be measured on; "
                "quantize again"
            )


def check_scene(bench: Workbench, without: Collection[str] = ()) -> None:
    """Refuse a scene's images other than those that methods learned from: its splits would be mixed up.

    Raises:
        InputError: names the method.
    """
    for name, lessons in learned(bench, without).items():
        known, spec = lessons.get("scene_splits"), bench.config.scene_images
        if not (known and spec and bench.scene) or folder_of(lessons["scene_images"]) != folder_of(spec):
            continue
        now = bench.scene.summary()
        if now != known:
            again = "qrobust compensate" + ("" if name == "calibrator" else f" --remedy {name}")
            raise InputError(
                f"scene_images: expected the images of {bench.config.scene_images} that {name} learned from, got "
                f"others ({known['training']['n']} to learn from then, now {now['training']['n']}): what was learned "
                f"from would be measured on; run `{again}` again"
            )


def learned(bench: Workbench, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What each method that is there learned from, the calibrator first; nothing of what learns nothing."""
    folder = bench.place()
    made = {"calibrator": "compensate"} | {name: name for name in ALTERNATIVES}
    stages = {name: found for name, stage in made.items() if (found := folder.stage(stage))}
    return {
        name: found["lessons"]
        | {"shifts": sorted(n for n in found["trained_on"] if not n.startswith("imagefolder:"))}
        for name, found in stages.items()
        if found.get("lessons") and name not in without
    }


def learned_otherwise(bench: Workbench, without: Collection[str] = ()) -> dict[str, str]:
    """Methods that cannot be compared with the first of those that learned, and what differs between their lessons.

    Labels are of no use to re-estimated batch norms, nor a scene's images to fine-tuning, whose steps need labels:
    that is how these methods are.
    """
    every, found = learned(bench, without), {}
    for first, expected in list(every.items())[:1]:
        for name, lessons in every.items():
            keys = COMPARABLE & set(lessons) & set(expected)
            keys -= {"labels"} if "bn-reestimate" in (first, name) else set()
            keys -= {"scene_images"} if "finetune" in (first, name) else set()
            differing = [key for key in sorted(keys) if lessons[key] != expected[key]]
            if differing:
                told = "; ".join(f"{key.replace('_', ' ')} {lessons[key]}, not {expected[key]}" for key in differing)
                found[name] = f"it learned otherwise than {first} ({told})"
    return found
