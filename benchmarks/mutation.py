"""Mutation testing: how many small mistakes, made on purpose in the code, the tests notice.

    pip install mutmut==3.8.1
    python benchmarks/mutation.py --seed 0 --count 100

mutmut makes every mutant of the functions of the modules that `[tool.mutmut]` in pyproject.toml names, and runs
the tests that reach a mutant's function, those that take least time first, until one fails. Here a seeded sample
of each group's mutants is tried. A mutant that runs for ever counts as noticed, one that no test reaches as not.
Results go to `results/mutation.json`, under the label.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from figures import ROOT, git_commit

RESULT = Path(__file__).parent / "results" / "mutation.json"
MADE = ROOT / "mutants"
METRICS = "metrics|classes|clean_cost|confidence|effects|primary|recommendation"
# Modules of each group, as regular expressions.
GROUPS = {
    "statistics": r"qrobust\.evaluation\.statistics",
    "metrics": rf"qrobust\.evaluation\.({METRICS})",
    "shifts": r"qrobust\.shifts\..+",
    "integer layers": r"qrobust\.quantization\.(integer_layers|observers|convert)",
    "evaluate": rf"qrobust\.evaluation\.(?!statistics|{METRICS}).+",
}
NOTICED, TIMEOUTS = {1, 3}, {36, 24, -24, 152, 255}
UNREACHED = {5, 33}
COUNTED = ("mutants", "tried", "killed", "timeouts", "equivalent")
# Mutants that no test can tell from the code, by what is in the changed line, and why.
EQUIVALENT = {
    "strict=False": "both are as long by construction",
    'kind="STABLE"': "numpy does not tell capitals apart here",
    "(strength, dtype=None)": "single precision is what it is without",
    "strict=None": "both are as long by construction",
    "zip(tasks, keys, )": "both are as long by construction",
    "[1.0] * len(p_values)": "each value is written over",
    "clean_b.astype(None)": "without a type it is float64, too",
    "-1, -1, -1), padding_mode=": "bilinear is the default",
    "self.left = self.width = None": "the first batch sets both",
    "x.ndim else 2": "a single value has no more steps than one",
    "qmax - qmin > 101": "no grid has 101 steps",
    "return x.view(1, 1, -1), y": "the shape is made the same by broadcasting",
    "low, high = 1, MOST_IMAGES": "one image never tells",
    "if images.numel() else 2": "without images there is nothing to compute",
}


def mutmut(*arguments: str) -> str:
    """Run mutmut in the root of the project on one core, without paths that would hide the mutants."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = re.sub(r"^[\u2800-\u28ff].*\n?", "", done.stdout + done.stderr, flags=re.MULTILINE)  # its spinner
        raise click.ClickException(f"mutmut {arguments[0]}: {said[-2000:]}")
    return done.stdout


def found() -> dict[str, int | None]:
    """Every mutant by name, with pytest's exit code or mutmut's own; None: not tried."""
    codes: dict[str, int | None] = {}
    for path in sorted(MADE.rglob("*.meta")):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return codes


def module_of(mutant: str) -> str:
    return mutant.rpartition(".")[0]


def sampled(mutants: list[str], count: int, seed: int) -> dict[str, list[str]]:
    """So many of each group's mutants, or all where there are fewer."""
    chosen = {}
    for name, modules in GROUPS.items():
        own = sorted(mutant for mutant in mutants if re.fullmatch(modules, module_of(mutant)))
        chosen[name] = random.Random(f"{seed} {name}").sample(own, min(count, len(own)))
    return chosen


def changed(mutant: str) -> tuple[str, str]:
    """The lines before and after."""
    lines = mutmut("show", mutant).splitlines()
    sides = (
        [line[1:].strip() for line in lines if line.startswith(mark) and not line.startswith(3 * mark)]
        for mark in "-+"
    )
    before, after = (" ".join(side) for side in sides)
    return before, after


def function_of(mutant: str) -> str:
    """Module and function, as `evaluation/metrics.flips`."""
    module, _, name = mutant.partition("qrobust.")[2].rpartition(".")
    name = re.sub(r"__mutmut_\d+$", "", name).removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return f"{module.replace('.', '/')}.{name}"


def survivor(mutant: str, code: int | None) -> dict[str, str]:
    before, after = changed(mutant)
    found = {"mutant": mutant, "function": function_of(mutant), "before": before, "after": after}
    if code != 0:
        found["note"] = (
            "no test of those that are run calls the function" if code in UNREACHED else f"ended with {code}"
        )
    return found


def shares(tried: int, killed: int, same: int) -> dict[str, Any]:
    """How much was noticed, of all that was tried and without what no test can tell."""
    from qrobust.evaluation.statistics import wilson_interval

    return {
        "kill_share": killed / tried,
        "interval": wilson_interval(killed, tried),
        "kill_share_without_equivalent": killed / (tried - same),
    }


def summary(tried: list[str], codes: dict[str, int | None], of: int) -> dict[str, Any]:
    """What became of a group's mutants."""
    survivors = [survivor(name, codes[name]) for name in sorted(tried) if codes[name] not in NOTICED | TIMEOUTS]
    timeouts = sum(codes[name] in TIMEOUTS for name in tried)
    killed = len(tried) - len(survivors)
    return {"mutants": of, "tried": len(tried), "killed": killed, "timeouts": timeouts, "survivors": survivors}


def marked(run: dict[str, Any]) -> dict[str, Any]:
    """A run with its equivalent mutants marked, and its shares."""
    groups = run["groups"]
    for group in groups.values():
        for found in group["survivors"]:
            found.pop("equivalent", None)
            reasons = [
                why for text, why in EQUIVALENT.items() if text in found["after"] and text not in found["before"]
            ]
            if reasons:
                found["equivalent"] = reasons[0]
        group["equivalent"] = sum("equivalent" in found for found in group["survivors"])
        group |= shares(group["tried"], group["killed"], group["equivalent"])
    counts = {key: sum(group[key] for group in groups.values()) for key in COUNTED}
    return run | {"all": counts | shares(counts["tried"], counts["killed"], counts["equivalent"])}


@click.command()
@click.option("--count", default=100, show_default=True, help="Mutants of each group.")
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
@click.option("--label", default="now", show_default=True, help="Under which results are kept.")
@click.option("--about", default="a sample", show_default=True, help="What it is a sample of, for the page.")
@click.option("--mark", is_flag=True, help="Try nothing: mark the equivalent ones among what was kept.")
def main(count: int, seed: int, label: str, about: str, mark: bool) -> None:
    """Try a sample of the mutants and write what the tests noticed."""
    from qrobust.record import hardware, to_json
    from qrobust.storage import write_json

    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else {}
    if mark:
        write_json(RESULT, {"runs": {name: marked(run) for name, run in runs.items()}})
        return
    started, commit = time.perf_counter(), git_commit()
    shutil.rmtree(MADE, ignore_errors=True)  # verdicts of other tests
    # One mutant: all are made, and which tests reach what is found out.
    mutmut("run", "--max-children", "1", "qrobust.evaluation.statistics.x_lower_tail__mutmut_1")
    mutants = list(found())
    chosen = sampled(mutants, count, seed)
    click.echo({name: len(tried) for name, tried in chosen.items()})
    mutmut("run", "--max-children", "1", *(mutant for tried in chosen.values() for mutant in tried))
    codes = found()
    groups = {}
    for name, tried in chosen.items():
        of = sum(bool(re.fullmatch(GROUPS[name], module_of(mutant))) for mutant in mutants)
        groups[name] = summary(tried, codes, of)
        click.echo({name: {key: value for key, value in groups[name].items() if key != "survivors"}})
    runs |= {
        label: marked(
            {
                "about": about,
                "seed": seed,
                "groups": groups,
                "minutes": (time.perf_counter() - started) / 60,
                "tool": f"mutmut {importlib.metadata.version('mutmut')}",
                "hardware": to_json(hardware(1)),
                "commit": commit,
                "command": f"python benchmarks/mutation.py --seed {seed} --count {count} --label {label}",
            }
        )
    }
    write_json(RESULT, {"runs": runs})


if __name__ == "__main__":
    main()
