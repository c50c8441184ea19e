"""Give `qrobust` hundreds of malformed inputs, made from a seed: none may end in a traceback, or hang.

    python benchmarks/malformed.py --seed 0 --each 80

What is tried is in malformed_inputs.py: data, weights, ONNX files, folders of runs, options, names. Every command
runs in a process of its own, forked from one that has everything imported. It must accept its input (exit code 0), or
refuse it with exit code 2 (3 where a graph fails a check) and one line that names the input, within 30 seconds of
computing or of waiting. It may write only to its output folder, and one that fails may remove nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import stat
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import onnx
import torch
from click.testing import CliRunner
from malformed_inputs import SURFACES, Base, Case, classifier, save_npz

from qrobust.cli.main import main
from qrobust.deployment import profiling
from qrobust.storage import write_json
from qrobust.text import FORMULA, printable

RESULT = Path(__file__).parent / "results" / "malformed.json"
LIMIT_S, MEMORY = 30, 10 * 2**30
# What a command may write, among the folders of a case.
OUTPUTS = ("out", "run")
# Before an error there may be warnings, and what of the data is left out.
TOLD_BEFORE = re.compile(r"[Ww]arning|^Not used of the data")
# In Markdown: what is escaped, and code spans.
SHOWN = re.compile(r"\\<|`[^`]*`")
# What onnxruntime and torch leave in the folder for temporary files.
THEIRS = ("tmp/.ses", "tmp/torchinductor")


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, or None where it was stopped or crashed; what it printed; a traceback."""

    code: int | None
    output: str
    trace: str = ""


def _run(arguments: list[str], folder: Path, limited: bool, report: Any) -> None:
    """In a process of its own: a command, with a working folder and a folder for temporary files of its own."""
    os.chdir(folder / "cwd")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
    profiling.ROUND_S = 1e-3  # times are not what is tried here
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    result = CliRunner().invoke(main, arguments)
    unforeseen = result.exception is not None and not isinstance(result.exception, SystemExit)
    trace = "".join(traceback.format_exception(result.exception)) if unforeseen else ""
    report.send((result.exit_code, result.output, trace))


def run(arguments: list[str], folder: Path, limit_s: float = LIMIT_S, *, limited: bool = True) -> Ending:
    """Run a command, and stop it after so many seconds of computing, or of waiting."""
    for name in ("cwd", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(arguments, folder, limited, send))
    process.start()
    send.close()
    try:
        in_time = _ends(receive, process.pid or 0, limit_s)
        ending = Ending(*receive.recv()) if in_time else Ending(None, f"no end after {limit_s} s")
    except EOFError:
        process.join(5)
        ending = Ending(None, f"crashed with {process.exitcode}")
    process.kill()
    process.join()
    return ending


def _ends(receive: Any, process: int, limit_s: float) -> bool:
    """Whether an answer comes before a process has computed for so long, or done nothing for so long.

    Time on the clock says little where many programs share a processor.
    """
    spent, since = 0.0, time.monotonic()
    while not receive.poll(0.2):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if now > spent:
            spent, since = now, time.monotonic()
        if spent > limit_s or time.monotonic() - since > limit_s:
            return False
    return True


def make_base(folder: Path) -> Base:
    """The whole inputs, in a folder, if it does not hold them."""
    base = Base(folder / "whole.npz", folder / "graph.onnx", folder / "run")
    if (base.run / "record.json").exists():
        return base
    folder.mkdir(parents=True)
    onnx.save(classifier(), base.graph)
    save_npz(base.npz)
    ending = run(
        [
            "run",
            "--model",
            "resnet8",
            "--data",
            f"npz:{base.npz}",
            "--calibration-images",
            "8",
            "--image-size",
            "16",
            "--shifts",
            "contrast,rotation",
            "--severities",
            "5",
            "--train-on",
            "contrast",
            "--steps",
            "5",
            "--batch-size",
            "16",
            "--attack-images",
            "4",
            "--epsilons",
            "8/255",
            "--threads",
            "1",
            "-q",
            "--out",
            str(base.run),
        ],
        folder,
        600,
        limited=False,
    )
    if ending.code != 0:
        raise RuntimeError(f"the run to mutate cannot be made: {ending.output}{ending.trace}")
    return base


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every entry below a folder, with its kind, size and time of change; links are not followed."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        changes = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
        found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), *changes)
    return found


def faults(case: Case, ending: Ending, before: dict[str, Any], after: dict[str, Any], folder: Path) -> list[str]:
    """What is wrong with how a command ended; nothing if all is well."""
    if ending.code is None or ending.trace:
        return [(ending.trace.strip().splitlines() or [ending.output])[-1] + " | " + _place(ending.trace)]
    lines, found = ending.output.splitlines(), []
    if ending.code not in (0, 2, 3):
        found.append(f"exit code {ending.code}")
    if case.accepted is not None and case.accepted != (ending.code == 0):
        found.append(f"expected it {'accepted' if case.accepted else 'refused'}, got exit code {ending.code}")
    if not all(map(str.isprintable, lines)) or any("Traceback" in line for line in lines):
        found.append("control characters or a traceback in the output")
    errors = [line for line in lines if line.startswith("Error: ")]
    if ending.code != 0:
        if len(errors) != 1 or lines[-1] != errors[0] or not all(map(TOLD_BEFORE.search, lines[:-1])):
            found.append(f"expected one line, got {len(lines)}")
        elif not any(word in errors[0] for word in case.named):
            found.append("the line does not name the input")
        found += [f"deleted {name}" for name in before.keys() - after.keys()]
    for name in sorted(after):
        if Path(name).parts[0] not in OUTPUTS and not name.startswith(THEIRS):
            if name not in before:
                found.append(f"wrote {name}")
            elif after[name] != before[name] and name != "tmp":
                found.append(f"changed {name}")
    if ending.code != 0 and "out" in after:
        found.append("left an output folder")
    made = {name for name, entry in after.items() if before.get(name) != entry}
    return found + (_unescaped(folder, made) if ending.code == 0 else [])


def _place(trace: str) -> str:
    """Where in qrobust it came from."""
    places = re.findall(r'qrobust/(\S+\.py)", line (\d+)', trace)
    return ":".join(places[-1]) if places else ""


def _unescaped(folder: Path, made: set[str]) -> list[str]:
    """What in the reports that the command made would be obeyed instead of shown."""
    found = []
    for path in (p for output in OUTPUTS for p in (folder / output).glob("*") if p.is_file() and not p.is_symlink()):
        if path.suffix not in (".md", ".html", ".csv") or str(path.relative_to(folder)) not in made:
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not all(line.isprintable() for line in lines):
            found.append(f"control characters in {path.name}")
        if path.suffix in (".md", ".html") and any("<script>alert" in SHOWN.sub("", line) for line in lines):
            found.append(f"HTML of a name in {path.name}")
        if path.suffix == ".csv":
            conditions = [condition for line in lines for condition in line.split(",")]
            found += [f"formula in {path.name}: {c}" for c in conditions if c.startswith(FORMULA)]
        if path.suffix == ".md" and _torn(lines):
            found.append(f"a row of {path.name} has other columns")
    return found


def _torn(lines: list[str]) -> bool:
    """Whether a row of a Markdown table has another number of cells than the one before it."""
    counts = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in lines]
    return any(a and b and a != b for a, b in pairwise(counts))


def try_one(surface: str, seed: int, number: int, base: Base, folder: Path) -> tuple[Case, Ending, list[str], float]:
    """Make an input in a new folder, run the command, and judge how it ended."""
    folder.mkdir()
    case = SURFACES[surface](random.Random(f"{seed}/{surface}/{number}"), folder, base)
    for name in ("cwd", "tmp"):
        (folder / name).mkdir()
    before, started = listing(folder), time.perf_counter()
    ending = run(case.arguments, folder)
    seconds = time.perf_counter() - started
    return case, ending, faults(case, ending, before, listing(folder), folder), seconds


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--each", default=80, show_default=True, help="Inputs for each surface.")
@click.option("--only", type=click.Choice(list(SURFACES)), help="One surface.")
@click.option("--number", type=int, help="With --only: one input, and what came out.")
@click.option("--base", "kept", type=click.Path(path_type=Path), help="Folder that keeps the whole inputs.")
def malformed(seed: int, each: int, only: str | None, number: int | None, kept: Path | None) -> None:
    """Try malformed inputs, note what came out; exit code 1 where one ends otherwise than it should."""
    torch.set_num_threads(1)
    fine = True
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = make_base(kept or root / "base")
        for surface in [only] if only else SURFACES:
            ends: Counter[str] = Counter()
            failures: list[dict[str, Any]] = []
            for index in range(each) if number is None else [number]:
                case, ending, wrong, seconds = try_one(surface, seed, index, base, root / "case")
                shutil.rmtree(root / "case")
                ends["failed" if wrong else "accepted" if ending.code == 0 else "refused"] += 1
                if number is not None:
                    click.echo(f"{case}\n{ending.output}\n{ending.trace}\n{wrong}")
                elif wrong:
                    what = printable(f"{case.what}: {'; '.join(wrong)}").replace(name, "DIR")
                    failures.append({"number": index, "what": what})
                    click.echo(f"{surface} {index} {seconds:.0f} s {what} {printable(ending.output[-300:])}")
            click.echo(f"{surface}: {json.dumps(ends)}")
            fine = fine and not failures
            if number is None:
                note(seed, surface, {**ends, "failures": failures})
    raise SystemExit(0 if fine else 1)


def note(seed: int, surface: str, found: dict[str, Any]) -> None:
    """Write what came out for a surface beside what is known of others and of other seeds."""
    seeds = json.loads(RESULT.read_text())["seeds"] if RESULT.exists() else {}
    seeds.setdefault(str(seed), {})[surface] = found
    write_json(
        RESULT,
        {
            "what": "qrobust on malformed inputs, by seed and surface: refused in one line with exit code 2 or 3, "
            "accepted, "
            "or failed (traceback, no end within 30 s, an input that is not named, a file elsewhere)",
            "command": "python benchmarks/malformed.py --seed SEED",
            "seeds": seeds,
        },
    )


if __name__ == "__main__":
    malformed()
