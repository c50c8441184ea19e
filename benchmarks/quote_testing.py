"""Quotes about the tests themselves."""

from __future__ import annotations

from typing import Any

from figures import percent, record


def _runs() -> dict[str, Any]:
    return record("mutation")["runs"]


def _share(group: dict[str, Any]) -> str:
    low, high = group["interval"]
    return f"{percent(group['kill_share'])} [{percent(low)}, {percent(high)}]"


def mutation() -> str:
    """How many mutants of each group the tests notice, in each sample."""
    lines = []
    for found in _runs().values():
        lines += [
            f"{found['about'].capitalize()} (seed {found['seed']}, {found['minutes']:.0f} minutes):",
            "",
            "| code | mutants | tried | noticed | without equivalent ones |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, group in [*found["groups"].items(), ("all", found["all"])]:
            lines.append(
                f"| {name} | {group['mutants']:,} | {group['tried']} | {_share(group)} "
                f"| {percent(group['kill_share_without_equivalent'])} |"
            )
        weighted = sum(group["mutants"] * group["kill_share"] for group in found["groups"].values())
        lines += ["", f"Each group weighted by its mutants: {percent(weighted / found['all']['mutants'])}.", ""]
    last = list(_runs().values())[-1]
    return "\n".join([*lines, f"Intervals are Wilson's at 95 %; {last['tool']}, on one core."])


def _cell(text: str) -> str:
    """As code within a table."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "nothing"


def survivors() -> str:
    """Mutants of the last sample that no test noticed."""
    lines = ["| function | code | mutant | |", "|---|---|---|---|"]
    for group in list(_runs().values())[-1]["groups"].values():
        for one in group["survivors"]:
            why = f"equivalent: {one['equivalent']}" if "equivalent" in one else one.get("note", "")
            lines.append(f"| `{one['function']}` | {_cell(one['before'])} | {_cell(one['after'])} | {why} |")
    return "\n".join(lines)


TESTING = (mutation, survivors)
