"""Types of options: fractions and durations."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import click


class FractionType(click.ParamType):
    """A number, or a fraction such as 8/255."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            top, _, bottom = str(value).partition("/")
            return float(top) / float(bottom or 1)
        except (ValueError, ZeroDivisionError):
            self.fail(
                f"expected a number or a fraction such as 8/255, got {value!r}",
                param,
                ctx,
            )


class DurationType(click.ParamType):
    """Seconds, or a number with s, m or h."""

    name = "duration"
    units = MappingProxyType({"s": 1, "m": 60, "h": 3600})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            seconds = float(text[:-1]) * self.units[text[-1]] if text[-1:] in self.units else float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"expected a time such as 90s, 10m or 1h, got {value!r}", param, ctx)
        return seconds


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
