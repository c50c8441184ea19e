"""Simulate fleets of 64 workers from the measured times of whole jobs, and measure the memory of what leads a fleet.

    python benchmarks/fleet_simulation.py

Jobs are drawn from those of `compensation*.json` and `main_job.json`, with the times of their stages. Workers fail
once an hour on average and are back a minute later; one attempt in twenty runs at a third of the speed. Each attempt
takes ten seconds to begin. Runs are begun in the order of the plan, or the longest first. A run whose worker failed
begins again at the front of the queue, as `qrobust fleet` does it, or at its end. It goes on from nothing, from its
finished stages, or, as runs do, also from a checkpoint of its training (one a fifth of it).

Efficiency is the work of the runs at full speed, over the time of all workers until the last run is done. What is
missing is told by what it was: work done again, slowness, beginnings and failed workers, and workers that wait at the
end while others finish.

Memory is that of a Python process that leads a fleet whose runs end at once (`make_fleet`, 64 of them in hand).
"""

from __future__ import annotations

import heapq
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from figures import git_commit

from qrobust.record import hardware, to_json, versions
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
SOURCES = ("compensation", "compensation_resnet20", "compensation_mobilenet_v2", "main_job")
STAGES = ("quantize", "compensate", "export", "evaluate")
WORKERS, FAILS_EVERY_S, BACK_AFTER_S, BEGINS_S = 64, 3600.0, 60.0, 10.0
# As many checkpoints as a training judges itself (`qrobust.compensation.training.VALIDATIONS`, which imports torch).
SLOW_SHARE, SLOWNESS, CHECKPOINTS = 0.05, 3.0, 5
COUNTS = (128, 640, 1000, 10_000)
NOTHING, KEPT_STAGES, KEPT_ALL = GOES_ON_FROM = ("nothing", "stages", "stages and checkpoints")
MEMORY_COUNTS = (100, 1000, 10_000)

Job = tuple[float, ...]


def jobs() -> list[Job]:
    """Seconds of the stages of every whole job that was measured."""
    found = set[Job]()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            stages = value.get("stages")
            if isinstance(stages, dict) and all(name in stages for name in STAGES):
                found.add(tuple(float(stages[name]["duration_s"]) for name in STAGES))
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    for name in SOURCES:
        look(json.loads((RESULTS / f"{name}.json").read_text()))
    return sorted(found)


def kept(job: Job, done: float, goes_on_from: str) -> float:
    """Of so many seconds of a job's work, those that another worker need not do again."""
    if goes_on_from == NOTHING:
        return 0.0
    whole = 0.0
    for name, seconds in zip(STAGES, job, strict=True):
        if whole + seconds > done:
            if name == "compensate" and goes_on_from == KEPT_ALL:
                part = seconds / CHECKPOINTS
                whole += (done - whole) // part * part
            break
        whole += seconds
    return whole


def simulated(
    work: list[Job], goes_on_from: str, seed: int, *, at_front: bool = True, failures: bool = True, slow: bool = True
) -> dict[str, float]:
    """One fleet: its efficiency, and what the rest of the workers' time was."""
    chance = random.Random(seed)
    queue = deque((job, 0.0) for job in work)
    free = [0.0] * WORKERS
    heapq.heapify(free)
    again = slowness = begins = end = 0.0
    waiting: list[tuple[float, int, Job, float]] = []  # runs of failed workers, from when that is known
    count = 0
    while queue or waiting:
        now = heapq.heappop(free)
        while waiting and (waiting[0][0] <= now or not queue):
            known, _, job, had = heapq.heappop(waiting)
            now = max(now, known) if not queue else now
            (queue.appendleft if at_front else queue.append)((job, had))
        job, had = queue.popleft()
        pace = SLOWNESS if slow and chance.random() < SLOW_SHARE else 1.0
        left = sum(job) - had
        fails = chance.expovariate(1 / FAILS_EVERY_S) if failures else float("inf")
        if fails >= BEGINS_S + pace * left:
            begins += BEGINS_S
            slowness += (pace - 1) * left
            now += BEGINS_S + pace * left
            end = max(end, now)
        else:
            done = max(0.0, fails - BEGINS_S) / pace
            has = max(had, kept(job, had + done, goes_on_from))
            begins += min(fails, BEGINS_S) + BACK_AFTER_S
            slowness += (pace - 1) * done
            again += had + done - has
            count += 1
            heapq.heappush(waiting, (now + fails, count, job, has))
            now += fails + BACK_AFTER_S
        heapq.heappush(free, now)
    every = WORKERS * end
    useful = sum(map(sum, work))
    parts = {
        "done_again": again / every,
        "slowness": slowness / every,
        "beginnings_and_failed_workers": begins / every,
    }
    efficiency = useful / every
    return {
        "efficiency": efficiency,
        **parts,
        "waiting_at_the_end": 1 - efficiency - sum(parts.values()),
        "hours": end / 3600,
    }


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure over the fleets, and the standard error of the efficiency's."""
    error = statistics.stdev(one["efficiency"] for one in found) / len(found) ** 0.5
    means = {key: round(sum(one[key] for one in found) / len(found), 4) for key in found[0]}
    return {"n": len(found), **means, "efficiency_standard_error": round(error, 4)}


def led(count: int) -> None:
    """Lead a fleet of so many runs that end at once, and print the memory and seconds that it took."""
    from qrobust.fleet import fleet
    from qrobust.fleet.plan import Plan, read_plan
    from qrobust.fleet.unit import Ending, Unit

    class AtOnce:
        def room(self) -> int:
            return WORKERS

        def per_host(self) -> int:
            return 1

        def submit(self, unit: Unit) -> Future[Ending | None]:
            future: Future[Ending | None] = Future()
            future.set_result(Ending(2, 0.0))
            unit.log.touch()
            return future

        def stop(self) -> None: ...

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        file = out / "plan.toml"
        file.write_text('[model]\nspec = "resnet8"\n[data]\nspec = "digits"\n[fleet.matrix]\nseed = [0]\n')
        plan = read_plan(file, threads=1)
        (run,) = plan.runs
        runs = tuple(replace(run, name=f"{index}") for index in range(count))
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        fleet.make_fleet(Plan(plan.axes, runs, plan.config, {}), out, AtOnce())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = time.monotonic() - began
    print(
        json.dumps(
            {"runs": count, "before_mib": before / 1024, "peak_mib": peak / 1024, "seconds": round(seconds, 2)}
        )
    )


@click.command()
@click.option("--seeds", default=100, show_default=True, help="Fleets of each kind; a tenth of 10,000 runs.")
@click.option("--lead", type=int, help="Measure the memory of leading so many runs; called by this script.")
def main(seeds: int, lead: int | None) -> None:
    """Simulate, measure, and write the result file."""
    if lead:
        led(lead)
        return
    measured = jobs()
    fleets = list[dict[str, Any]]()
    for count in COUNTS:
        drawn = [
            random.Random(seed).choices(measured, k=count)
            for seed in range(seeds if count <= 1000 else max(2, seeds // 10))
        ]
        kinds = [(kind, True, longest_first) for longest_first in (False, True) for kind in GOES_ON_FROM]
        kinds += [(KEPT_ALL, False, longest_first) for longest_first in (False, True)]
        for kind, at_front, longest_first in kinds:
            orders = [sorted(work, key=sum, reverse=True) if longest_first else work for work in drawn]
            found = [simulated(work, kind, seed, at_front=at_front) for seed, work in enumerate(orders)]
            told = {"runs": count, "goes_on_from": kind, "lost_at_front": at_front, "longest_first": longest_first}
            fleets.append({**told, **mean(found)})
    alone = {
        "no_failures": {"failures": False},
        "no_slow_attempts": {"slow": False},
        "neither": {"failures": False, "slow": False},
    }
    drawn = [random.Random(seed).choices(measured, k=1000) for seed in range(seeds)]
    without = {
        name: mean([simulated(work, KEPT_ALL, seed, **options) for seed, work in enumerate(drawn)])
        for name, options in alone.items()
    }
    memory = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--lead", str(count)], capture_output=True, text=True, check=True
            ).stdout
        )
        for count in MEMORY_COUNTS
    ]
    totals = [sum(job) for job in measured]
    write_json(
        RESULTS / "fleet_simulation.json",
        {
            "what": "simulated fleets of 64 workers, shares of the workers' time; memory of what leads a fleet",
            "workers": WORKERS,
            "jobs": {
                "n": len(totals),
                "shortest_s": min(totals),
                "mean_s": sum(totals) / len(totals),
                "longest_s": max(totals),
            },
            "assumed": {
                "fails_every_s": FAILS_EVERY_S,
                "back_after_s": BACK_AFTER_S,
                "begins_s": BEGINS_S,
                "slow_share": SLOW_SHARE,
                "slowness": SLOWNESS,
                "checkpoints": CHECKPOINTS,
            },
            "seed": 0,
            "fleets": fleets,
            "of_1000_runs_without": without,
            "memory": memory,
            "commit": git_commit(),
            "command": "python benchmarks/fleet_simulation.py",
            "hardware": to_json(hardware(1)),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
