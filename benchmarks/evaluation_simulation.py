"""Simulate the evaluation of 50,000 images on 64 workers from measured times, and measure the memory of its leader.

    python benchmarks/evaluation_simulation.py

Three graphs of EfficientNet-Lite0 (float, INT8, compensated) are asked about 50,000 images of 224 px, clean and under
19 corruptions at five severities. The time of a block of 500 images under a condition is that of rendering, which
differs between corruptions (`corruptions.json`), and of the graphs in batches of 32 (`imagenet_size.json`), each on
one thread. Units are cut by the very code that cuts them in `qrobust evaluate --runner`, by simulated times. Workers
fail once an hour on average and are back a minute later; what their unit kept, block by block, is kept. One unit in
twenty runs at a third of the speed. A worker's first unit takes ten seconds to begin. Decoding a block, which the
leading process does before its first unit, and putting an answered block into the file of its condition are measured
here.

Efficiency is the work at full speed over the time of all workers until the last condition is kept. What is missing is
told by what it was. Each variant leaves something out.

Memory is the largest of a Python process that leads an evaluation whose units end at once.
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
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import git_commit, record
from PIL import Image

from qrobust.evaluation.blocks import Asked, Block, Planned, Work
from qrobust.evaluation.kept import Predictions
from qrobust.evaluation.predictions import BLOCK_IMAGES, keep_said, kept
from qrobust.fleet.evaluation import TASKS, Units
from qrobust.fleet.unit import Ending, Unit
from qrobust.preprocessing import Preprocessing
from qrobust.record import hardware, to_json, versions
from qrobust.storage import write_json

RESULT = Path(__file__).parent / "results" / "evaluation_simulation.json"
WORKERS, FAILS_EVERY_S, BACK_AFTER_S, BEGINS_S = 64, 3600.0, 60.0, 10.0
SLOW_SHARE, SLOWNESS = 0.05, 3.0
IMAGES, SEVERITIES, GRAPHS = 50_000, 5, ("float", "int8", "compensated")
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "no failures": {"failures": False},
    "no slow units": {"slow": False},
    "neither": {"failures": False, "slow": False},
}
UNITS = (1_000, 10_000)


class Room:
    """A runner of which nothing is asked but how many units it makes at the same time."""

    def room(self) -> int:
        return WORKERS

    def per_host(self) -> int:
        return 1

    def submit(self, unit: Unit) -> Future[Ending | None]:
        raise NotImplementedError

    def stop(self) -> None: ...


def seconds_by_condition() -> list[float]:
    """What a block takes, by condition, the clean images first."""
    rendering = record("corruptions")["speed"]["224"]["corruptions"]
    latency = record("imagenet_size")["summary"]["latency_ms"]
    graphs = sum(latency[name]["batch_32"] / 32 for name in GRAPHS)
    each = [0.0, *(found["ours_ms"] for found in rendering.values() for _ in range(SEVERITIES))]
    return [BLOCK_IMAGES * (graphs + ms) / 1000 for ms in each]


def decoding_s(folder: Path, n: int = 40) -> float:
    """Seconds of a CPU that decoding a block takes, from JPEG files of 500 x 375 px to 224 px."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file, prepared = folder / "image.jpg", Preprocessing(size=224, resize="crop")
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
    began = time.process_time()
    for _ in range(n):
        with Image.open(file) as image:
            prepared.apply(np.asarray(image.convert("RGB")))
    return (time.process_time() - began) / n * BLOCK_IMAGES


def joining_s(folder: Path, n: int = 40) -> float:
    """Seconds of a CPU that reading an answered block takes, and its share of writing the condition."""
    rng, keys = np.random.default_rng(0), dict.fromkeys(GRAPHS, "0" * 64)
    found = {
        name: Predictions(
            rng.integers(0, 1000, BLOCK_IMAGES).astype(np.int32), *rng.random((2, BLOCK_IMAGES), dtype=np.float32)
        )
        for name in GRAPHS
    }
    places = np.arange(BLOCK_IMAGES)
    for index in range(n):
        keep_said(folder / str(index), ("fog", 1), places, places, keys, found)
    began = time.process_time()
    parts = [kept(folder / str(index), ("fog", 1), keys) for index in range(n)]
    whole = {name: Predictions.joined([part[name] for part in parts]) for name in GRAPHS}
    keep_said(folder / "whole", ("fog", 1), np.arange(n * BLOCK_IMAGES), np.arange(n * BLOCK_IMAGES), keys, whole)
    return (time.process_time() - began) / n


def planned(blocks: int, conditions: int) -> Planned:
    """Blocks that all are to be asked about under every condition."""
    labels, nowhere = np.zeros(BLOCK_IMAGES, dtype=np.int64), Path("nowhere")
    asked = tuple(Asked(("fog", index), {}) for index in range(conditions))
    each = tuple(Block(nowhere, nowhere / str(n), None, 10, labels, labels, asked) for n in range(blocks))
    return Planned(Work({}, 0, {}, each), (), 0)


@dataclass
class Spent:
    """Seconds of workers."""

    again: float = 0.0
    slowness: float = 0.0
    begins: float = 0.0
    units: int = 0


def simulated(
    times: list[float], decoding: float, joining: float, seed: int, *, failures: bool = True, slow: bool = True
) -> dict[str, float]:
    """One evaluation: its efficiency, and what the rest of the workers' time was."""
    chance, spent, numbers = random.Random(seed), Spent(), count()
    blocks = IMAGES // BLOCK_IMAGES
    units = Units(planned(blocks, len(times)), Room(), Path("nowhere"), "", TASKS)
    answered = [[False] * len(times) for _ in range(blocks)]
    sent, leads = set[int](), 0.0  # blocks whose pixels are there, and when the leading process has time again
    queue: list[tuple[float, int, Any]] = []  # units that wait for a worker, from when
    free = [(0.0, n, BEGINS_S) for n in range(WORKERS)]  # workers: from when, number, seconds to begin
    running: list[tuple[float, int, Any, Ending]] = []  # units: when they end, number, and how
    end = 0.0

    def cut(now: float) -> None:
        nonlocal leads
        while len(queue) + len(running) < TASKS.ahead * WORKERS and units.left:
            span, leads = units.next(), max(leads, now)
            if span.block not in sent:
                sent.add(span.block)
                leads += decoding
            queue.append((leads, next(numbers), span))

    def begin() -> None:
        """Every unit that waits gets a worker, as long as there is one."""
        while queue and free:
            ready, _, span = queue.pop(0)
            since, worker, begins = heapq.heappop(free)
            now, pace = max(ready, since), SLOWNESS if slow and chance.random() < SLOW_SHARE else 1.0
            fails = chance.expovariate(1 / FAILS_EVERY_S) if failures else float("inf")
            at, lost = now + begins, ""
            spent.begins += begins
            for place in range(span.first, span.last):
                took = 0.0 if answered[span.block][place] else pace * times[place]
                if at + took > now + fails:
                    lost = "the worker failed"
                    spent.again += max(0.0, now + fails - at)
                    break
                spent.slowness += took * (pace - 1) / pace
                answered[span.block][place], at = True, at + took
            at = now + fails if lost else at
            spent.begins += BACK_AFTER_S if lost else 0.0
            spent.units += 1
            ending = Ending(-9 if lost else 0, at - now - begins, lost=lost)
            heapq.heappush(running, (at, next(numbers), span, ending))
            heapq.heappush(free, (at + (BACK_AFTER_S if lost else 0.0), worker, BEGINS_S if lost else 0.0))

    cut(0.0)
    begin()
    while running:
        now, _, span, ending = heapq.heappop(running)
        units.ended(span, ending)
        end = max(end, now)
        cut(now)
        begin()
    joined = joining * blocks * len(times)
    every, useful = WORKERS * (end + joined), blocks * sum(times)
    parts = {
        "done_again": spent.again / every,
        "slowness": spent.slowness / every,
        "beginnings_and_failed_workers": spent.begins / every,
        "joining": WORKERS * joined / every,
    }
    return {
        "efficiency": useful / every,
        **parts,
        "waiting": 1 - useful / every - sum(parts.values()),
        "minutes": (end + joined) / 60,
        "units": spent.units,
    }


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure, and the standard error of the efficiency's."""
    error = statistics.stdev(one["efficiency"] for one in found) / len(found) ** 0.5
    return {
        "n": len(found),
        **{key: round(sum(one[key] for one in found) / len(found), 4) for key in found[0]},
        "efficiency_standard_error": round(error, 4),
    }


def led(units: int) -> None:
    """Lead an evaluation of so many units that end at once, and print the memory and seconds."""

    class AtOnce(Room):
        def submit(self, unit: Unit) -> Future[Ending | None]:
            future: Future[Ending | None] = Future()
            future.set_result(Ending(0, 1e6))  # so slow that a unit is one condition of a block
            return future

    with tempfile.TemporaryDirectory() as folder:
        plan = planned(100, units // 100)
        for block in plan.work.blocks:
            object.__setattr__(block, "pixels", Path(folder) / block.pixels.name)
            block.pixels.touch()
        began = time.monotonic()
        done = [0]
        Units(plan, AtOnce(), Path(folder) / "work", "", TASKS).make(lambda n: done.__setitem__(0, done[0] + n))
        peak, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() - began
        assert done[0] == units * BLOCK_IMAGES
    told = {"units": units, "peak_mib": peak / 1024, "seconds": round(seconds, 2)}
    print(json.dumps(told))


@click.command()
@click.option("--seeds", default=10, show_default=True, help="Evaluations of each kind.")
@click.option("--lead", type=int, help="Measure the memory of leading so many units; called by this script.")
def main(seeds: int, lead: int | None) -> None:
    """Simulate, measure, and write the result file."""
    if lead:
        led(lead)
        return
    times = seconds_by_condition()
    with tempfile.TemporaryDirectory() as folder:
        decoding, joining = decoding_s(Path(folder)), joining_s(Path(folder))
    found = {
        name: mean([simulated(times, decoding, joining, seed, **options) for seed in range(seeds)])
        for name, options in VARIANTS.items()
    }
    memory = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--lead", str(units)], capture_output=True, text=True, check=True
            ).stdout
        )
        for units in UNITS
    ]
    write_json(
        RESULT,
        {
            "what": "a simulated evaluation on 64 workers, shares of their time; memory of what leads one",
            "workers": WORKERS,
            "images": IMAGES,
            "conditions": len(times),
            "graphs": list(GRAPHS),
            "block_images": BLOCK_IMAGES,
            "block_s": {"shortest": min(times), "mean": sum(times) / len(times), "longest": max(times)},
            "one_core_hours": IMAGES / BLOCK_IMAGES * sum(times) / 3600,
            "decoding_s": decoding,
            "joining_s": joining,
            "assumed": {
                "fails_every_s": FAILS_EVERY_S,
                "back_after_s": BACK_AFTER_S,
                "begins_s": BEGINS_S,
                "slow_share": SLOW_SHARE,
                "slowness": SLOWNESS,
            },
            "seed": 0,
            "evaluations": found,
            "memory": memory,
            "commit": git_commit(),
            "command": "python benchmarks/evaluation_simulation.py",
            "hardware": to_json(hardware(1)),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
