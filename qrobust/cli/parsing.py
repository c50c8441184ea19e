"""From options to a run's configuration: which field an option sets, what it is without, and what it may be."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

# Options whose field has another name; those of all others are called alike.
FIELDS = {"scenario": "scene_names", "target_images": "scene_images"}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@dataclass(frozen=True)
class Field:
    """A field of a run's configuration.

    Attributes:
        owner: the dataclass that has it.
        name: in that dataclass.
        default: its value where nothing is given; MISSING where something must be.
        choices: what it may be, where it is one of a few names (a `Literal`), or a tuple of such.
    """

    owner: type
    name: str
    default: Any
    choices: tuple[str, ...]


def fields_of(kind: type, path: str = "") -> dict[str, Field]:
    """The fields of a dataclass and of those that it consists of, by their path, such as `section.field`."""
    hints = get_type_hints(kind)
    found: dict[str, Field] = {}
    for field in fields(kind):
        hint, name = hints[field.name], f"{path}{field.name}"
        if is_dataclass(hint):
            assert isinstance(hint, type)
            found |= fields_of(hint, f"{name}.")
        else:
            literal = next((h for h in (hint, *get_args(hint)) if get_origin(h) is Literal), None)
            found[name] = Field(kind, field.name, field.default, get_args(literal))
    return found


@functools.cache
def _run_fields() -> dict[str, Field]:
    from qrobust.pipeline.config import RunConfig

    return fields_of(RunConfig)


def field_of(option: str) -> Field | None:
    """What an option sets, by its parameter's name; None for one that is no choice of a run."""
    return _run_fields().get(FIELDS.get(option, option))


def choices(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they stand in a run's configuration; those not given are left out.

    Raises:
        InputError: options that exclude each other.
    """
    from qrobust.errors import InputError
    from qrobust.shifts.registry import scenes

    given = {k: v for k, v in options.items() if v is not None}
    names, folder = given.pop("scenario", None), given.pop("target_images", None)
    if names is not None and "shifts" in given:
        raise InputError("scenario: expected either --scenario or --shifts, got both")
    if any(name.startswith("imagefolder:") for name in names or ()):
        raise InputError(
            f"scenario: expected names, got {','.join(names or ())}; real images of the surroundings are "
            "--target-images DIR"
        )
    if names is None and folder is None and "shifts" not in given:
        return given
    # Any of the three takes the place of what a run had of all of them.
    rendered = bool(names) or "shifts" in given
    given[FIELDS["scenario"]] = names or ()
    given[FIELDS["target_images"]] = None if folder is None else f"imagefolder:{folder.removeprefix('imagefolder:')}"
    given["scene_alone"] = folder is None or not rendered
    if names:
        given["shifts"] = scenes(names)
    return given
