"""Numbers as reports show them."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import Footprint


def percent(value: float | None) -> str:
    """A fraction as a percentage; nothing where nothing was measured."""
    return "" if value is None else f"{100 * value:.1f} %"


def bounds(interval: tuple[float, float]) -> str:
    """The 95 % interval of a fraction, in per cent."""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def points(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A difference in percentage points, with its 95 % interval; nothing where nothing was measured."""
    if value is None:
        return ""
    text = f"{value:+.1f} points"
    return text if interval is None else f"{text} [{interval[0]:+.1f}, {interval[1]:+.1f}]"


def footprint_cells(found: Mapping[str, Footprint] | None, graph: str) -> list[str]:
    """Memory at its peak and time to load, for a table; nothing where they were not measured."""
    if not found:
        return []
    memory = found[graph].peak_memory_bytes
    return ["" if memory is None else f"{memory / 2**20:.1f} MiB", f"{found[graph].load_ms:.0f} ms"]
