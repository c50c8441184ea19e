"""Between frozen dataclasses and JSON: one reader and one writer for all parts of a record.

The reader is strict: a number is a number, within the range of its unit, and what is missing or wrong is refused by
one line that names the key. Of the libraries that do this, pydantic alone is as strict and names the key; it weighs
10 MB.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from qrobust.errors import InputError

T = TypeVar("T")
# Rounding may carry a mean of fractions past 1.
TOLERANCE = 1e-6
# Of what is kept as it is, such as a configuration.
MOST_NESTED = 20


@dataclass(frozen=True)
class Unit:
    """What a number counts, for `Annotated`.

    Attributes:
        name: of the unit, such as "ms"; "" where the key says it.
        least: smallest value allowed, or None.
        most: largest value allowed, or None.
    """

    name: str = ""
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return (self.least is None or value >= self.least - TOLERANCE) and (
            self.most is None or value <= self.most + TOLERANCE
        )

    def __str__(self) -> str:
        if self.least is None:
            limits = ""
        elif self.most is None:
            limits = f"at least {self.least:g}"
        else:
            limits = f"{self.least:g} to {self.most:g}"
        return ", ".join(part for part in (self.name, limits) if part)


class OneOf:
    """Words of which a text is one, for `Annotated`."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}" if self.words[1:] else self.words[0]


def was(name: str) -> dict[str, str]:
    """Metadata of a field that schema 1 called otherwise; a reader takes either name."""
    return {"was": name}


def to_json(value: Any) -> Any:
    """Plain data for `json.dumps`: dataclasses become objects, tuples lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


class JsonFile:
    """A dataclass that is the whole of a JSON file."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return dict(to_json(self))


def from_json(kind: type[T], data: object, source: object) -> T:
    """The inverse of `to_json`. Keys that the dataclass does not know are passed over.

    Args:
        kind: a dataclass.
        data: what `json.loads` gave.
        source: the file, for messages.

    Raises:
        InputError: a value is missing or wrong; one line names the file and the key.
    """
    try:
        found: T = _read(kind, data, ())
        return found
    except _WrongError as error:
        raise InputError(f"{source}: {error}") from None


class _WrongError(Exception):
    """A value that is missing or wrong, and where it is."""

    def __init__(self, path: tuple[str, ...], expected: str, value: object = MISSING) -> None:
        got = "nothing" if value is MISSING else _shown(value)
        keys = ".".join(key if key.isprintable() else repr(key) for key in path)
        super().__init__(f"{keys or 'the whole'}: expected {expected}, got {got}")


def _shown(value: object) -> str:
    for kind, words in ((dict, "an object"), (list, "a list"), (NoneType, "null"), (bool, str(value).lower())):
        if isinstance(value, kind):
            return words
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a longer number"
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def typed_fields(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    """The fields of a dataclass with their types, `Annotated` kept."""
    types = get_type_hints(kind, include_extras=True)
    return tuple((field, types[field.name]) for field in fields(kind))


def _read(kind: Any, data: Any, path: tuple[str, ...]) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, data, path)  # type: ignore[arg-type]  # a class, not an instance
    if origin is Annotated and isinstance(arguments[1], OneOf):
        if not isinstance(data, str) or data not in arguments[1].words:
            raise _WrongError(path, str(arguments[1]), data)
        return data
    if origin is Annotated:
        return _read_number(arguments[0], arguments[1], data, path)
    if origin in (Union, UnionType):
        return None if data is None and NoneType in arguments else _read(_choose(arguments, data), data, path)
    if origin is dict:
        if not isinstance(data, dict):
            raise _WrongError(path, "an object", data)
        return {key: _read(arguments[1], item, (*path, key)) for key, item in data.items()}
    if origin is tuple:
        return _read_list(arguments, data, path)
    if kind is Any:
        _check_nested(data, path)
        return data
    if kind in (int, float):
        return _read_number(kind, Unit(), data, path)
    if not isinstance(data, kind):
        raise _WrongError(path, {str: "text", bool: "true or false"}[kind], data)
    return data


def _read_fields(kind: type, data: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(data, dict):
        raise _WrongError(path, "an object", data)
    found = {}
    for field, its_type in typed_fields(kind):
        names = (field.name, field.metadata.get("was"))
        name = next((n for n in names if n in data), None)
        if name is not None:
            found[field.name] = _read(its_type, data[name], (*path, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _WrongError((*path, field.name), _described(its_type))
    return kind(**found)


def _read_number(kind: Any, unit: Unit, data: Any, path: tuple[str, ...]) -> Any:
    wanted = f"{'an integer' if kind is int else 'a number'}"
    if isinstance(data, bool) or not isinstance(data, int if kind is int else (int, float)):
        raise _WrongError(path, wanted, data)
    try:
        value = kind(data)
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise _WrongError(path, f"{wanted} that is finite", data)
    if not unit.holds(value):
        raise _WrongError(path, f"{wanted} ({unit})", data)
    return value


def _read_list(arguments: tuple[Any, ...], data: Any, path: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _WrongError(path, "a list", data)
    kinds = (arguments[0],) * len(data) if arguments[1:] == (Ellipsis,) else arguments
    if len(kinds) != len(data):
        raise _WrongError(path, f"a list of {len(kinds)}, not of {len(data)}", data)
    return tuple(_read(kind, item, (*path, str(n))) for n, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _choose(arguments: tuple[Any, ...], data: Any) -> Any:
    """Of several dataclasses the first that has all its keys there, of plain types that of the data; of one, that."""
    kinds = [kind for kind in arguments if kind is not NoneType]
    for kind in kinds[:-1]:
        if not is_dataclass(kind):
            if type(data) is kind:
                return kind
        elif isinstance(data, dict) and all(f.name in data for f in fields(kind) if f.default is MISSING):
            return kind
    return kinds[-1]


def _check_nested(data: Any, path: tuple[str, ...]) -> None:
    if len(path) > MOST_NESTED:
        raise _WrongError(path[:1], f"at most {MOST_NESTED} levels", data)
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        _check_nested(item, (*path, str(key)))


def _described(kind: Any) -> str:
    """A type in words, for what is missing."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else _described(a) for a in arguments)
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return words.get(arguments[0] if origin is Annotated else kind, "a list" if origin is tuple else "an object")


def taken(kind: type[T], *sources: object, **more: object) -> T:
    """A dataclass of what others hold: each field from `more`, else from the last source that has it.

    Args:
        kind: the dataclass to make.
        sources: instances of dataclasses that share fields with it.
        more: further values.
    """
    given = {f.name: getattr(s, f.name) for s in sources for f in fields(s)}  # type: ignore[arg-type]  # dataclasses
    return kind(**{f.name: (given | more)[f.name] for f in fields(kind) if f.name in given | more})  # type: ignore[arg-type]  # likewise
