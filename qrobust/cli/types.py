"""Types of options: each turns a text into a value, or says what it expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qrobust.cli.parsing import field_of
from qrobust.errors import unknown

UNITS = {"s": 1, "m": 60, "h": 3600}


class Parsed(click.ParamType):
    """What a function makes of a text.

    Args:
        name: of the type.
        parse: makes a value of a text, or raises ValueError.
        expected: what the text must be, for the error.
    """

    def __init__(self, name: str, parse: Callable[[str], Any], expected: str) -> None:
        self.name, self.parse, self.expected = name, parse, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"expected {self.expected}, got {value!r}", param, ctx)


class OneOf(click.ParamType):
    """One of the choices that a field of a run's configuration allows; they are looked up when they are needed.

    Args:
        option: by its parameter's name.
    """

    name = "choice"

    def __init__(self, option: str) -> None:
        self.option = option

    @property
    def choices(self) -> tuple[str, ...]:
        """What may be chosen."""
        field = field_of(self.option)
        assert field is not None, f"{self.option} sets no field"
        return tuple(field.metadata["one_of"])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "|".join(self.choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            _, _, message = str(unknown(self.option, str(value), self.choices)).partition(": ")
            self.fail(message, param, ctx)
        return str(value)


def _fraction(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _seconds(text: str) -> float:
    unit = UNITS.get(text[-1:])
    seconds = float(text[:-1]) * unit if unit else float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def list_of(kind: Parsed, plural: str) -> Parsed:
    """A tuple of what stands between commas, where there must be something."""

    def parse(text: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise ValueError(text)
        return tuple(map(kind.parse, parts))

    return Parsed(f"{kind.name} list", parse, f"comma-separated {plural}")


def _class_share(text: str) -> tuple[str, float]:
    name, separator, share = text.rpartition("=")
    if not (name and separator):
        raise ValueError(text)
    return name, _fraction(share)


def word(*words: str) -> Parsed:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return Parsed("word", parse, " or ".join(words))


def _comparison(text: str) -> str:
    if text not in ("ladder", "all"):
        raise ValueError(text)
    return text


COMPARISON = Parsed("comparison", _comparison, "ladder or all")
INTEGER = Parsed("integer", int, "an integer")
NUMBER = Parsed("number", float, "a number")
FRACTION = Parsed("fraction", _fraction, "a number or a fraction such as 8/255")
CLASS_SHARE = Parsed("class share", _class_share, "a class and a share, such as cat=0.9")
DURATION = Parsed("duration", _seconds, "a time such as 90s, 10m or 1h")
INTEGERS = list_of(INTEGER, "integers")
FRACTIONS = list_of(FRACTION, "numbers or fractions such as 8/255")
NAMES = list_of(Parsed("name", str, "a name"), "names")
NAMES_OR_NONE = Parsed(
    NAMES.name, lambda text: () if text == "none" else NAMES.parse(text), f"{NAMES.expected}, or none"
)


class FolderType(click.Path):
    """A folder; of a path with `..` what it leads to now, before a folder in it is made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from qrobust.pipeline.output_folder import plain

        if not str(value):
            self.fail("expected a folder, got ''", param, ctx)
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)
        return plain(path)
