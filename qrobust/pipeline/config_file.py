"""Configuration files: TOML with a table for each section, and `[check]` for the bounds of `qrobust check`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qrobust.comparison.bounds import BOUNDS, RECALL
from qrobust.errors import InputError, nearest
from qrobust.paths import check_file, user_path

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
    near = nearest(key.rpartition(".")[2], known, count=1)
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
