"""Configuration sections: frozen dataclasses whose fields state their bounds and refuse nonsense on construction.

One declaration serves Python callers, `config.json` and the command line: default, bounds, choices, option name.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from qrobust.errors import InputError, unknown

NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def choice(
    default: Any,
    *,
    option: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] | None = None,
) -> Any:
    """A field of a section.

    Args:
        default: its value where none is given.
        option: what the command line and `config.json` call it, where that is not the field's name.
        at_least, above, at_most: bounds of a number, or of every number of a tuple.
        one_of: the words that are allowed.
    """
    bounds = {"option": option, "at_least": at_least, "above": above, "at_most": at_most, "one_of": one_of}
    return field(default=default, metadata={key: value for key, value in bounds.items() if value is not None})


def option_of(entry: Field[Any]) -> str:
    """What the command line and `config.json` call a field."""
    return entry.metadata.get("option", entry.name)


def _type(section: Section, name: str) -> Any:
    return typing.get_type_hints(type(section))[name]


def _of_type(value: object, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_of_type(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_of_type(part, typing.get_args(kind)[0]) for part in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(kind) or kind)


def _said(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_said(part) for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_said(typing.get_args(kind)[0])}"
    return NAMES.get(kind, str(kind))


def _violated(value: float, bounds: Mapping[str, Any]) -> str:
    """The bound that a number is beyond, or nothing."""
    if value != value or (
        value in (math.inf, -math.inf) and "at_most" not in bounds
    ):  # math.isnan: floats' range only
        return "a finite number"
    if "at_least" in bounds and value < bounds["at_least"]:
        return f"at least {bounds['at_least']}"
    if "above" in bounds and value <= bounds["above"]:
        return f"above {bounds['above']}"
    return f"at most {bounds['at_most']}" if "at_most" in bounds and value > bounds["at_most"] else ""


@dataclass(frozen=True)
class Section:
    """Base of every configuration section.

    Raises:
        InputError: on construction; names every field that is out of its bounds, with what was expected and given.
    """

    def __post_init__(self) -> None:
        mistakes = list(self.mistakes())
        if mistakes:
            raise InputError("; ".join(mistakes))

    def mistakes(self) -> Iterator[str]:
        """A sentence for each choice that makes no sense; a section with further rules adds its own."""
        for entry in fields(self):
            value, bounds, kind = getattr(self, entry.name), entry.metadata, _type(self, entry.name)
            if not _of_type(value, kind):
                given = list(value) if isinstance(value, tuple) else value
                yield f"{option_of(entry)}: expected {_said(kind)}, got {given!r}"
                continue
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, str) and not part.strip() and entry.default != part:
                    yield f"{option_of(entry)}: expected a value, got an empty string"
                    break
                if "one_of" in bounds and part is not None and part not in bounds["one_of"]:
                    yield str(unknown(option_of(entry), part, bounds["one_of"]))
                elif isinstance(part, int | float) and (expected := _violated(part, bounds)):
                    yield f"{option_of(entry)}: expected {expected}, got {part}"

    def well_typed(self) -> bool:
        """Whether rules that compare fields can be applied."""
        return all(_of_type(getattr(self, entry.name), _type(self, entry.name)) for entry in fields(self))
