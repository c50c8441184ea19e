"""Kill a whole job at random moments and go on with it; stop another with signals while it replaces a run.

    python benchmarks/interruptions.py --kills 20 --signals 20

The job is the demo's, on scikit-learn's digits; `--steps` shortens it. It runs undisturbed once. Then it is killed
(SIGKILL) after a time drawn from its whole duration, goes on with `--resume`, and its record must be that of the
undisturbed one but for times. With `--overwrite` on a run of another seed it gets SIGINT or SIGTERM at such a moment;
what the folder then holds must be the old run to the byte, or the graphs and weights of the new one.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from figures import git_commit
from filelock import FileLock

from qrobust.pipeline.demo import OPTIONS, weights_file
from qrobust.pipeline.output_folder import claimed, content
from qrobust.progress import Reporter
from qrobust.record import (
    hardware,
    to_json,
    versions,
    without_timings,
)
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results"
# Of a run that is quantized: what the first stage leaves.
QUANTIZED = ("float.onnx", "int8.onnx", "float.safetensors", "twin.safetensors")
# Options of the job that `quantize` has as well.
QUANTIZING = ("--model", "--data", "--normalization", "--calibration-images", "--weights", "--threads")
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Job:
    """The command line of the demo's job.

    Args:
        weights: of the network.
        steps: of the calibrator's training.
        threads: of torch and onnxruntime.
    """

    def __init__(self, weights: Path, steps: int, threads: int) -> None:
        options = {**OPTIONS, "weights": weights, "steps": steps, "threads": threads}
        every = {f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}
        self._options = {"run": every, "quantize": {name: every[name] for name in QUANTIZING}}

    def start(self, command: str, out: Path, *more: str) -> subprocess.Popen[str]:
        """Begin `run`, or `quantize` with those of its options that it has."""
        given = [part for option in self._options[command].items() for part in option]
        arguments = [sys.executable, "-m", "qrobust", command, "--out", str(out), "-q", *given, *more]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, command: str, out: Path, *more: str) -> float:
        """Run to the end; returns the seconds that it took."""
        began, process = time.perf_counter(), self.start(command, out, *more)
        said, _ = process.communicate()
        if process.returncode:
            raise click.ClickException(f"{command} {' '.join(more)}: exit code {process.returncode}: {said}")
        return time.perf_counter() - began

    def stop(self, number: int, after_s: float, out: Path, *more: str) -> tuple[int, str]:
        """Send a signal after so many seconds; returns the exit code and the last line said."""
        process = self.start("run", out, *more)
        try:
            said, _ = process.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            said, _ = process.communicate()
        return process.returncode, (said.splitlines() or [""])[-1]


def files(folder: Path) -> dict[str, bytes]:
    """Names and contents of what a run's folder holds, without what is to replace it."""
    found = (path for entry in content(folder) for path in (entry, *entry.rglob("*")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


def killed(job: Job, folder: Path, whole: Path, after_s: float) -> dict[str, Any]:
    """Kill the job once and go on with it."""
    out = folder / "killed"
    code, _ = job.stop(signal.SIGKILL, after_s, out)
    done = sorted(path.stem for path in (out / "stages").glob("*.json"))
    job.finish("run", out, "--resume")
    first, second = (without_timings(read_json(path / "record.json")) for path in (whole, out))
    shutil.rmtree(out)
    return {"after_s": round(after_s, 2), "exit_code": code, "stages_done": done, "same_record": first == second}


def stopped(job: Job, folder: Path, whole: Path, old: Path, number: int, after_s: float) -> dict[str, Any]:
    """Stop the job while it replaces a run."""
    out = folder / "stopped"
    shutil.copytree(old, out)
    code, said = job.stop(number, after_s, out, "--overwrite")
    with claimed(out):  # as the next command would
        found = files(out)
    new = all(found.get(name) == (whole / name).read_bytes() for name in QUANTIZED)
    holds = "old" if found == files(old) else "new" if new else "neither"
    shutil.rmtree(out)
    expected = code in (EXIT_CODES[signal.Signals(number)], 0)
    return {
        "signal": signal.Signals(number).name,
        "after_s": round(after_s, 2),
        "exit_code": code,
        "said": _plain(said),
        "holds": holds,
        "as_expected": expected and holds != "neither",
    }


@click.command()
@click.option("--kills", default=20, show_default=True, help="How often the job is killed, and goes on.")
@click.option("--signals", default=20, show_default=True, help="How often it is stopped while it replaces a run.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--steps", default=OPTIONS["steps"], show_default=True, help="Of the calibrator's training.")
@click.option("--threads", default=2, show_default=True)
def main(kills: int, signals: int, seed: int, steps: int, threads: int) -> None:
    """Interrupt the demo's job at random moments; the results say what came of each."""
    moments = random.Random(seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    after_kills, after_signals = list[dict[str, Any]](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, weights_file(0, Reporter(), threads) as weights:
        folder = Path(name)
        job, whole, old = Job(weights, steps, threads), folder / "whole", folder / "old"
        duration = job.finish("run", whole)
        job.finish("quantize", old, "--seed", "1")

        def keep() -> None:
            note(seed, threads, steps, duration, after_kills, after_signals)

        for number in range(kills):
            after_kills.append(killed(job, folder, whole, moments.uniform(0, duration)))
            keep()
            click.echo(f"kill {number + 1} of {kills}: {after_kills[-1]}", err=True)
        for number in range(signals):
            stop = moments.choice(list(EXIT_CODES))
            after_signals.append(stopped(job, folder, whole, old, stop, moments.uniform(0, duration)))
            keep()
            click.echo(f"signal {number + 1} of {signals}: {after_signals[-1]}", err=True)
    same = sum(found["same_record"] for found in after_kills)
    intact = sum(found["as_expected"] for found in after_signals)
    click.echo(
        f"{same} of {kills} killed jobs went on to the same record; after {intact} of {signals} signals the old or "
        "the new run was whole"
    )
    if (same, intact) != (kills, signals):
        raise SystemExit(1)


def note(
    seed: int,
    threads: int,
    steps: int,
    duration_s: float,
    after_kills: list[dict[str, Any]],
    after_signals: list[dict[str, Any]],
) -> None:
    """Write what is known of a seed beside what is known of others."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "interruptions.json"
    with FileLock(path.with_suffix(".lock")):
        seeds = read_json(path)["seeds"] if path.exists() else {}
        seeds[str(seed)] = {
            "kills": len(after_kills),
            "same_records": sum(found["same_record"] for found in after_kills),
            "signals": len(after_signals),
            "old_or_new_whole": sum(found["as_expected"] for found in after_signals),
            "undisturbed_s": round(duration_s, 2),
            "after_kills": after_kills,
            "after_signals": after_signals,
            "hardware": to_json(hardware(threads)),
            "versions": versions(),
            "commit": git_commit(),
            "command": f"python benchmarks/interruptions.py --kills {len(after_kills)} "
            f"--signals {len(after_signals)} --seed {seed} --steps {steps} --threads {threads}",
        }
        write_json(path, {"what": "jobs that were killed or stopped at random moments, by seed", "seeds": seeds})


def _plain(said: str) -> str:
    """What a command said, without the paths of this machine."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/]+/", "", said.partition(";")[0])


if __name__ == "__main__":
    main()
