"""Results, and how figures are written in README and docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def record(name: str = "main_job") -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def change(summary: dict[str, Any], key: str) -> str:
    low, high = summary[f"{key}_interval_pp"]
    return f"{summary[f'{key}_pp']:+.1f} points [{low:+.1f}, {high:+.1f}]"
