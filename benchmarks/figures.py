"""Results, and how figures are written in README and docs."""

from __future__ import annotations

import json
import subprocess
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


def git_commit() -> str:
    """The commit, `-dirty` where anything but results differs from it, for they are written one after the other.

    `unknown` outside a clone.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")
