"""The configuration file as a JSON schema, by which editors complete keys, show what they mean and mark mistakes."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from qrobust.choices import Section
from qrobust.comparison.bounds import BOUNDS, RECALL
from qrobust.pipeline.config import SECTIONS, RunConfig
from qrobust.pipeline.config_file import CHECK, PLAIN
from qrobust.record.documentation import explained

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
LIMITS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum"}
ABOUT_PLAIN = {
    "seed": "Of splits, pixels and training.",
    "threads": "Of torch and onnxruntime; default: all cores.",
    "device": "Where networks are trained: auto, cpu, cuda, cuda:N or mps.",
}
Schema = Mapping[str, object]


def json_schema() -> Schema:
    """A schema of draft 2020-12 for what `qrobust run --config` and `qrobust check --config` read."""
    tables: dict[str, object] = {
        entry.name: {"description": ABOUT_PLAIN[entry.name], **_value(RunConfig, entry)}
        for entry in fields(RunConfig)
        if entry.name in PLAIN
    }
    for name, kind in SECTIONS.items():
        keys = {
            entry.name: {"description": explained(kind, entry.name), **_value(kind, entry)} for entry in fields(kind)
        }
        tables[name] = {"type": "object", "additionalProperties": False, "properties": keys}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    recalls = {"description": "Of the clean images of a class, by its name.", "additionalProperties": share}
    bounds = {bound: {"type": "number"} for bound in BOUNDS} | {RECALL: {"type": "object", **recalls}}
    tables[CHECK] = {
        "description": "Bounds of qrobust check.",
        "type": "object",
        "additionalProperties": False,
        "properties": bounds | {bound.replace("_", "-"): value for bound, value in bounds.items()},
    }
    return {
        "$schema": DRAFT,
        "title": "Configuration of qrobust",
        "type": "object",
        "additionalProperties": False,
        "properties": tables,
    }


def _value(kind: type[Section], entry: Field[Any]) -> dict[str, object]:
    found = _typed(typing.get_type_hints(kind)[entry.name], entry.metadata)
    if entry.default not in (MISSING, None):
        found["default"] = list(entry.default) if isinstance(entry.default, tuple) else entry.default
    return found


def _typed(kind: Any, bounds: Mapping[str, Any]) -> dict[str, object]:
    if isinstance(kind, types.UnionType):  # a file leaves out what is None
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        one = typing.get_args(kind)[0]
        # 8/255 is a number, and a list may be written as text with commas.
        items = {"anyOf": [_typed(one, bounds), {"type": "string"}]} if one is float else _typed(one, bounds)
        return {"anyOf": [{"type": "array", "items": items}, _typed(one, bounds), {"type": "string"}]}
    words = {"enum": list(bounds["one_of"])} if "one_of" in bounds else {}
    return {"type": TYPES[kind], **words, **{LIMITS[key]: bounds[key] for key in LIMITS if key in bounds}}
