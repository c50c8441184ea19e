"""Configuration files: TOML with a table for each section, and `[check]` for the bounds of `qrobust check`.

Keys are the fields of the sections in `qrobust.pipeline.config`, whose docstrings explain them in the file of
`qrobust init`. A key that is left out has its default.
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from qrobust.choices import Section, option_of
from qrobust.comparison.bounds import BOUNDS, RECALL
from qrobust.errors import InputError, nearest
from qrobust.paths import check_file, user_path
from qrobust.pipeline.config import SECTIONS, RunConfig
from qrobust.record.documentation import explained
from qrobust.user_code import is_code

CHECK = "check"


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: it cannot be read, or is no TOML; the message has the line.
    """
    file = check_file(user_path(path), "config")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"config: cannot read {file} as TOML ({error})") from error


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence about a key that nothing reads, with the nearest that there is."""
    names = list(known)
    by_last = {name.rpartition(".")[2]: name for name in names}
    near = nearest(key, names, count=1)
    near = near or [by_last[last] for last in nearest(key.rpartition(".")[2], by_last, count=1)]
    return f"{key}: no such key{f'; did you mean {near[0]!r}?' if near else ''}"


def read_limits(path: str | Path) -> dict[str, float | dict[str, float]]:
    """The bounds in the table `[check]`, keys as options without dashes; those of `min_recall` are a table by class.

    Raises:
        InputError: the file cannot be read, has no such table, or names every key that is unknown or no number.
    """
    table = read_toml(path).get(CHECK)
    if not isinstance(table, dict):
        raise InputError(f"config: expected a table [{CHECK}] with bounds in {path}, got none")
    limits, mistakes = dict[str, float | dict[str, float]](), []
    for written, value in table.items():
        key = written.replace("-", "_")
        if key == RECALL and isinstance(value, dict):
            limits[key] = {name: share for name, share in value.items() if _is_number(share)}
            wrong = {name: share for name, share in value.items() if not _is_number(share)}
            mistakes += [f"{CHECK}.{key}.{name}: expected a number, got {share!r}" for name, share in wrong.items()]
        elif key == RECALL:
            mistakes.append(f"{CHECK}.{key}: expected a table of shares by class, got {value!r}")
        elif key not in BOUNDS:
            mistakes.append(unknown_key(f"{CHECK}.{written}", [*BOUNDS, RECALL]))
        elif not _is_number(value):
            mistakes.append(f"{CHECK}.{key}: expected a number, got {value!r}")
        else:
            limits[key] = value
    if mistakes:
        raise InputError(f"config: {path}: {'; '.join(mistakes)}")
    return limits


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Of a run, beside the tables.
PLAIN = ("seed", "threads", "device")


def read_choices(path: str | Path | None, settings: Sequence[str] = ()) -> dict[str, object]:
    """Choices of a run by option name, as in `config.json`: those of a file, then settings `a.b=c`.

    Args:
        path: a TOML file; None: settings alone.
        settings: each a key, as `quantization.bits`, and a value in TOML's form or as plain text.

    Raises:
        InputError: names every mistake at once: keys that nothing reads, with the nearest, and senseless values.
    """
    given = [(key, value) for key, value in _entries({} if path is None else read_toml(path)) if key[0] != CHECK]
    return run_choices([*given, *(_setting(text) for text in settings)])


def run_choices(given: Iterable[tuple[tuple[str, ...], object]]) -> dict[str, object]:
    """Choices of a run by option name, as in `config.json`, from keys such as `("quantization", "bits")` and values.

    Raises:
        InputError: as for `read_choices`.
    """
    known: dict[tuple[str, ...], Field[Any]] = {
        (entry.name,): entry for entry in fields(RunConfig) if entry.name in PLAIN
    }
    known |= {(table, entry.name): entry for table, kind in SECTIONS.items() for entry in fields(kind)}
    found, mistakes = dict[str, object](), []
    for key, value in given:
        if key in known:
            entry = known[key]
            found[option_of(entry)] = _converted(value, entry, SECTIONS.get(key[0], RunConfig))
        else:
            mistakes.append(unknown_key(".".join(key), [".".join(name) for name in known]))
    try:
        RunConfig.from_options(found)
    except InputError as error:
        mistakes.append(str(error))
    if mistakes:
        raise InputError(f"config: {'; '.join(mistakes)}")
    return found


def check_named(found: Mapping[str, object], named: Iterable[str], option: str = "") -> None:
    """Refuse code that only a file names: it could be anybody's.

    Args:
        found: choices, as read.
        named: what the command itself names.
        option: that names code; by default the one of the choice.

    Raises:
        InputError: names the code.
    """
    for key in ("model", "shifts", "train_on"):
        value = found.get(key)
        for spec in value if isinstance(value, tuple) else (value,):
            if isinstance(spec, str) and is_code(spec) and not any(spec in text for text in named):
                raise InputError(
                    f"config: {spec} would run a Python file that only the configuration names; name it in the "
                    f"command, too ({option or '--' + key.replace('_', '-')})"
                )


def _entries(tables: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from (((key, inner), item) for inner, item in value.items())
        else:
            yield (key,), value


def _setting(text: str) -> tuple[tuple[str, ...], object]:
    key, separator, value = text.partition("=")
    if not (key.strip() and separator):
        raise InputError(f"settings: expected a key and a value, such as quantization.bits=w8a8, got {text!r}")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return tuple(key.strip().split(".")), parsed


def _converted(value: object, entry: Field[Any], kind: type[Section]) -> object:
    """A value of TOML as the field has it: a list, or text with commas, is a tuple; `8/255` is a number."""
    wanted = typing.get_type_hints(kind)[entry.name]
    if typing.get_origin(wanted) is not tuple:
        return value
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    numbers = float in typing.get_args(wanted)
    return tuple(_number(part) if numbers and isinstance(part, str) else _stripped(part) for part in parts)


def _stripped(part: object) -> object:
    return part.strip() if isinstance(part, str) else part


def _number(text: str) -> object:
    try:
        return float(Fraction(text.strip().replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return text


def as_toml(config: RunConfig) -> str:
    """The effective configuration of a run as a file that `--config` takes; what is not chosen is left out."""
    lines = [f"{name} = {_toml(getattr(config, name))}" for name in PLAIN]
    for table in SECTIONS:
        section = getattr(config, table)
        said = {entry.name: getattr(section, entry.name) for entry in fields(section)}
        lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in said.items() if value is not None)]
    return "\n".join([*lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


HEADER = """\
# Configuration of qrobust: qrobust run --config FILE --out DIR
# A key that is left out, or stands behind a #, has the default that it shows. Options go before this file.
"""
BOUNDS_OF_CHECK = """\

# Bounds of qrobust check RUN --config FILE.
# [check]
# max_drop = 1.0
# min_unseen_gain = 5.0
# min_integer_share = 0.95
# [check.min_recall]
# cat = 0.9
"""


def template(model: str, data: str) -> str:
    """A commented file with every key: what it means, and its default.

    Args:
        model: of the run, see `ModelConfig`.
        data: see `DataConfig`.
    """
    chosen = {("model", "spec"): model, ("data", "spec"): data}
    lines = [HEADER, "# Of splits, pixels and training.", f"# seed = {_default(RunConfig, 'seed')}"]
    lines += ["# Of torch and onnxruntime; default: all cores.", "# threads ="]
    lines += ["# Where networks are trained.", f"# device = {_default(RunConfig, 'device')}"]
    for table, kind in SECTIONS.items():
        lines += ["", f"[{table}]"]
        for entry in fields(kind):
            lines.append(f"# {explained(kind, entry.name)}")
            if one_of := entry.metadata.get("one_of"):
                lines.append(f"# One of {', '.join(one_of)}.")
            value = chosen.get((table, entry.name))
            default = f"# {entry.name} = {_default(kind, entry.name)}".rstrip()
            lines.append(default if value is None else f"{entry.name} = {_toml(value)}")
    return "\n".join(lines) + "\n" + BOUNDS_OF_CHECK


def _default(kind: type[Section], name: str) -> str:
    (entry,) = (one for one in fields(kind) if one.name == name)
    return "" if entry.default in (MISSING, None) else _toml(entry.default)
