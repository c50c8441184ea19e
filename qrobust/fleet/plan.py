"""A fleet's plan: one TOML file, the configuration that all runs share and a matrix of what differs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from qrobust.choices import Section, choice
from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.config_file import CHECK, check_named, read_limits, read_toml, run_choices, unknown_key

FLEET, MATRIX, NAME = "fleet", "matrix", "name"
MOST_RUNS = 1000
# Letters of a value that a folder's name has; what else there is becomes a dash.
SAFE = re.compile(r"[^A-Za-z0-9._]+")
LONGEST_NAME, HASH_DIGITS = 80, 8

# What a run is told beside the shared configuration: keys such as ("quantization", "bits"), and values.
Settings = dict[tuple[str, ...], object]


@dataclass(frozen=True)
class FleetConfig(Section):
    """How a fleet's runs are made: the table `[fleet]`.

    Attributes:
        attempts: how often a run is tried that something else than its input ends, such as a lack of memory.
        at_once: runs at the same time; more than one disturb each other's latencies.
        hours: after so many no other run is begun; 0: no limit.
    """

    attempts: int = choice(2, at_least=1, at_most=10)
    at_once: int = choice(1, at_least=1, at_most=256)
    hours: float = choice(0.0, at_least=0)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a fleet.

    Attributes:
        name: of its folder, from its values of the matrix, with a hash of the whole configuration: another
            configuration is another run.
        values: what it has of each axis of the matrix, as text.
        config: every choice.
    """

    name: str
    values: Mapping[str, str]
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """What a fleet is to do.

    Attributes:
        axes: names of the axes of the matrix, in order.
        runs: every combination.
        config: how they are made.
        limits: bounds that each is held to, see `qrobust.comparison.bounds`; empty: none.
    """

    axes: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    config: FleetConfig
    limits: Mapping[str, float | Mapping[str, float] | None]


@dataclass(frozen=True)
class _Value:
    """A value of an axis: what it is called, and what it sets."""

    shown: str
    settings: Settings


def read_plan(path: str | Path, *, threads: int, named: Sequence[str] = ()) -> Plan:
    """Read and check a fleet's plan; nothing is run.

    Args:
        path: a TOML file: tables as `qrobust init` writes them, which all runs share; `[fleet]`, and in it `matrix`,
            lists of values by key, such as `seed = [0, 1]`, or lists of tables that have a `name` and several keys.
        threads: that runs at the same time share, where the plan does not say.
        named: code that the command names; no other runs.

    Raises:
        InputError: names every mistake at once.
    """
    tables = read_toml(path)
    own, shared = tables.get(FLEET), {key: value for key, value in tables.items() if key not in (FLEET, CHECK)}
    if not isinstance(own, dict) or not isinstance(own.get(MATRIX), dict) or not own[MATRIX]:
        raise InputError(f"fleet: expected a table [{FLEET}.{MATRIX}] with lists of values in {path}, got none")
    config = _config({key: value for key, value in own.items() if key != MATRIX})
    axes = dict(_axes(own[MATRIX], ()))
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise InputError(f"fleet: expected at most {MOST_RUNS:,} runs, got {count:,} combinations")
    runs, mistakes, each = list[PlannedRun](), dict[str, None](), max(1, threads // config.at_once)
    for combination in itertools.product(*axes.values()):
        try:
            runs.append(_planned(shared, dict(zip(axes, combination, strict=True)), each, named))
        except InputError as error:
            mistakes[str(error)] = None  # of several runs, the same
    if mistakes:
        raise InputError(f"fleet: {'; '.join(mistakes)}")
    if len({run.name for run in runs}) < len(runs):
        raise InputError("fleet: two runs of the matrix have the same configuration, expected each once")
    return Plan(tuple(axes), tuple(runs), config, read_limits(path) if CHECK in tables else {})


def _config(given: Mapping[str, object]) -> FleetConfig:
    known = {entry.name for entry in fields(FleetConfig)}
    wrong = [
        unknown_key(f"{FLEET}.{key}", [f"{FLEET}.{name}" for name in known]) for key in given if key not in known
    ]
    if wrong:
        raise InputError(f"fleet: {'; '.join(wrong)}")
    return FleetConfig(**given)  # type: ignore[arg-type]  # checked on construction


def _axes(table: Mapping[str, object], above: tuple[str, ...]) -> Iterator[tuple[str, list[_Value]]]:
    """Axes of the matrix: `quantization.bits` may be written with a dot, quoted or in a table of its own."""
    for written, value in table.items():
        key = (*above, *written.split("."))
        shown = ".".join(key)
        if isinstance(value, dict):
            yield from _axes(value, key)
        elif not isinstance(value, list) or not value:
            raise InputError(f"fleet: {MATRIX}.{shown}: expected a list of values, got {value!r}")
        elif all(isinstance(entry, dict) for entry in value):
            yield shown, [_named(shown, entry) for entry in value]
        else:
            yield shown, [_Value(_word(entry), {key: entry}) for entry in value]


def _named(axis: str, entry: Mapping[str, object]) -> _Value:
    """A value that sets several keys, and has a name."""
    name = entry.get(NAME)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"fleet: {MATRIX}.{axis}: expected a name in each of its tables, got {dict(entry)}")
    return _Value(name, dict(_flat({key: value for key, value in entry.items() if key != NAME}, ())))


def _flat(table: Mapping[str, object], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    for written, value in table.items():
        key = (*above, *written.split("."))
        if isinstance(value, dict):
            yield from _flat(value, key)
        else:
            yield key, value


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _planned(
    shared: Mapping[str, object], combination: Mapping[str, _Value], threads: int, named: Sequence[str]
) -> PlannedRun:
    settings: Settings = dict(_flat(shared, ()))
    for value in combination.values():
        settings |= value.settings
    found = run_choices(settings.items())
    check_named(found, named, "--code")
    config = RunConfig.from_options({"threads": threads, **found})
    values = {axis: value.shown for axis, value in combination.items()}
    words = "-".join(filter(None, (SAFE.sub("-", shown).strip("-.") for shown in values.values())))
    # Threads that the plan does not choose are the machine's: with others, a fleet goes on.
    chosen = {key: value for key, value in config.as_json().items() if key != "threads" or key in found}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return PlannedRun(f"{words[:LONGEST_NAME]}-{digest[:HASH_DIGITS]}".lstrip("-"), values, config)
