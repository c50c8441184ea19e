"""From options as they were typed to entries of a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from qrobust.cli.types import FractionType


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def split_commas(name: str, text: str | None, kind: Callable[[str], Any], expected: str) -> tuple | None:
    """A comma-separated option as a tuple.

    Args:
        name: of the option, in a RunConfig.
        text: as it was given, if it was.
        kind: makes a value of a part, or raises.
        expected: what the parts must be.
    """
    from qrobust.errors import InputError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        if not all(parts):
            raise ValueError("an empty part")
        return tuple(map(kind, parts))
    except (ValueError, click.BadParameter) as error:
        raise InputError(f"{name}: expected comma-separated {expected}, got {text!r}") from error


# What --scene imagefolder:DIR sets, as it is without.
NO_TARGET_IMAGES = {"scenarios": (), "target_images": None, "target_images_alone": True}


def choices(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they stand in a RunConfig; those not given are left out."""
    from qrobust.errors import InputError
    from qrobust.pipeline.config import RENAMED
    from qrobust.shifts.registry import scenarios

    fraction = FractionType()
    words: tuple[Callable[[str], Any], str] = (str, "words")
    fractions = (lambda t: fraction.convert(t, None, None)), "numbers or fractions such as 8/255"
    kinds: dict[str, tuple[Callable[[str], Any], str]] = {
        "shifts": words,
        "scene": words,
        "hold_out": words,
        "layer_bits": words,
        "keep_float": words,
        "branches": words,
        "norms": words,
        "severities": (int, "integers"),
        "epsilons": fractions,
        "l2_epsilons": fractions,
    }
    parsed = {k: split_commas(k, v, *kinds[k]) if k in kinds else v for k, v in options.items()}
    found = {k: v for k, v in parsed.items() if v is not None}
    if found.get("hold_out") == ("none",):
        found["hold_out"] = ()
    if "scene" in found:
        if "shifts" in found:
            raise InputError("scene: expected either --scene or --shifts, got both")
        real = [name for name in found["scene"] if name.startswith("imagefolder:")]
        shifts = tuple(name for name in found.pop("scene") if name not in real)
        if len(real) > 1:
            raise InputError(f"scene: expected at most one imagefolder:DIR, got {', '.join(real)}")
        found |= NO_TARGET_IMAGES | {"scenarios": shifts}
        if real:
            found |= {"target_images": real[0], "target_images_alone": not shifts}
        if shifts:
            found["shifts"] = scenarios(shifts)
    elif "shifts" in found:
        found |= NO_TARGET_IMAGES  # of a run that had some
    return {RENAMED.get(name, name): value for name, value in found.items()}
