"""What a run found before its first stage, in lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qrobust.record.start import FloatOnValidation, Start
from qrobust.report.verdict import bounds, percent

# Above this, what makes a run shorter is said of the parts that take such a share of it.
LONG_S, MATERIAL = 3600, 0.1
SHORTER = {
    "observe": "fewer --calibration-images",
    "train the classifier": "fewer --qat-epochs or --train-images",
    "train the calibrator": "fewer --steps or a smaller --batch-size",
    "choose the calibrator": "fewer --shifts or --severities",
    "export": "--latency-budget 0",
    "evaluate": "fewer --test-images, --shifts or --severities",
    "attack": "fewer --attack-images, or --attacks none",
}


def start_lines(start: Start, class_names: Sequence[str]) -> list[str]:
    """Images per split and class, their sizes, and what the network makes of them.

    Args:
        start: what was found.
        class_names: in index order.
    """
    splits = [f"{name} {_counted(counts, class_names)}" for name, counts in start.images_per_class.items()]
    present = sum(any(counts) for counts in zip(*start.images_per_class.values(), strict=True))
    of = "" if present == len(class_names) else f" (images of {present})"
    sides = " x ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in (start.widths, start.heights))
    return [
        f"data: {len(class_names):,} classes{of}; {'; '.join(splits)}",
        f"sizes of {start.looked_at} of the images: {sides} px",
        accuracy_sentence(start.float_validation),
    ]


def time_lines(expected_s: Mapping[str, float]) -> list[str]:
    """How long a run will take, by its parts, and what makes it shorter where that is above an hour.

    Args:
        expected_s: seconds per part of the work.
    """
    whole = sum(expected_s.values())
    parts = sorted(expected_s, key=lambda part: -expected_s[part])
    told = ", ".join(f"{part} {_duration(expected_s[part])}" for part in parts)
    lines = [f"time: about {_duration(whole)} ({told}), from a few steps and images of each"]
    if whole > LONG_S:
        long = [part for part in parts if expected_s[part] >= MATERIAL * whole and part in SHORTER]
        shorter = ", ".join(SHORTER[part] for part in long)
        lines.append(f"shorter: {shorter}; also --threads")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def accuracy_sentence(found: FloatOnValidation, what: str = "float accuracy") -> str:
    """The accuracy of the network that a run was given."""
    return (
        f"{what} on {found.n:,} validation images: {percent(found.accuracy)} {bounds(found.interval)}; by "
        f"chance {percent(found.chance)}"
    )


def _counted(counts: Sequence[int], class_names: Sequence[str]) -> str:
    """Images of a split, and the classes that have fewest and most of them."""
    held = [(count, name) for count, name in zip(counts, class_names, strict=True) if count]
    (low, fewest), (high, most) = min(held, key=lambda one: one[0]), max(held, key=lambda one: one[0])
    spread = f"{low:,} a class" if low == high else f"{low:,} ({fewest}) to {high:,} ({most}) a class"
    return f"{sum(counts):,}, {spread}"
