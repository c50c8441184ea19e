"""From options to a run's configuration: which field an option sets, what it is without, and what it may be."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

# Options whose field has another name; those of all others are called alike.
FIELDS = {"scenario": "scenarios"}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@functools.cache
def _fields() -> dict[str, Field[Any]]:
    from qrobust.choices import option_of
    from qrobust.pipeline.config import SECTIONS, RunConfig

    every = [*fields(RunConfig), *(entry for section in SECTIONS.values() for entry in fields(section))]
    return {option_of(entry): entry for entry in every}  # of a section and an option with one name, the option


def field_of(option: str) -> Field[Any] | None:
    """What an option sets in a run's configuration, by its parameter's name; None for one that is no choice of it."""
    return _fields().get(FIELDS.get(option, option))


def choices(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they stand in a run's configuration; those not given are left out.

    Raises:
        InputError: options that exclude each other.
    """
    from qrobust.errors import InputError
    from qrobust.shifts.registry import refuse_measured_alone, scenarios

    given = {k: v for k, v in options.items() if v is not None}
    names, folder = given.pop("scenario", None), given.pop("target_images", None)
    if names is not None and (other := next((k for k in ("shifts", "train_on") if k in given), None)):
        raise InputError(f"scenario: expected either --scenario or --{other.replace('_', '-')}, got both")
    if any(name.startswith("imagefolder:") for name in names or ()):
        raise InputError(
            f"scenario: expected names, got {','.join(names or ())}; real images of the surroundings are "
            "--target-images DIR"
        )
    images = None if folder is None else f"imagefolder:{folder.removeprefix('imagefolder:')}"
    if names is not None:
        shifts = scenarios(names)
        if "train_on" in options:
            refuse_measured_alone("scenario", names)
        given |= {"scenarios": names, "shifts": shifts}
        if "train_on" in options:  # a command that only measures leaves alone what is learned from
            given |= {"train_on": ("generic", *shifts)}
    elif "train_on" in given:
        given["scenarios"] = ()
    # What is chosen to learn from takes the place of all that a run had of it.
    return given | ({"target_images": images} if images or "train_on" in given else {})
