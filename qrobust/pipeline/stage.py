"""What stages have in common: a stage is done or has left nothing; a graph passes its gates or is not there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qrobust.pipeline.run import Workbench
from qrobust.pipeline.run_folder import ALTERNATIVES, TORCH_ONLY
from qrobust.shifts.registry import find_shift
from qrobust.storage import write_json

# Choices that no training depends on.
MEASURING = (
    "scene_names",
    "threads",
    "test_images",
    "attacks",
    "attack_images",
    "attack_steps",
    "epsilons",
    "norms",
    "l2_epsilons",
)
STAGES = ("quantize", "compensate", "export", "evaluate")
# Stages that are kept where they were done with the choices of now.
COMPARED = ("compensate", *ALTERNATIVES, TORCH_ONLY)


@contextmanager
def stage(bench: Workbench, name: str, began_s: float = 0.0) -> Iterator[dict[str, Any]]:
    """Time a stage, begun so many seconds ago; on success store what it put into the yielded dict.

    What was done before stays done until it is replaced, however this ends; only quantization, which replaces files
    as it goes, and all that builds on it are undone from its start on.
    """
    bench.reporter.say(f"{name} ...")
    folder = bench.place()
    if name == "quantize":
        undo(bench, name)
    torch.set_num_threads(bench.config.threads)
    started = time.perf_counter() - began_s
    result: dict[str, Any] = {}
    yield result
    result["choices"] = choices_key(bench, name) if name in COMPARED else None
    earlier = result.pop("earlier_s", 0.0)  # by processes that were killed
    result["duration_s"] = round(time.perf_counter() - started + earlier, 3)
    undo(bench, name)
    write_json(folder.config, bench.config.as_json())
    folder.finish(name, result)
    bench.reporter.detail(f"{name} done in {result['duration_s']:.1f} s")


def undo(bench: Workbench, name: str) -> None:
    """Before what a stage made is replaced: neither it nor any stage that builds on it is done any more."""
    building = STAGES[STAGES.index(name) :] if name in STAGES else (name, "evaluate")
    bench.place().forget(*building, *(ALTERNATIVES if name == "quantize" else ()))


def kept(bench: Workbench, name: str) -> bool:
    """Whether a stage is done, and was done with the choices of now."""
    done = bench.place().stage(name)
    return done is not None and done["choices"] == choices_key(bench, name)


def choices_key(bench: Workbench, kind: str, without: tuple[str, ...] = ()) -> str:
    """Changes with every choice that training depends on, with the code of own shifts and with a scene's images.

    Args:
        bench: of the run.
        kind: what the key is for.
        without: choices that this does not depend on.
    """
    choices = {k: v for k, v in sorted(bench.config.as_json().items()) if k not in (*MEASURING, *without)}
    own = {name: shift.version for name, _ in bench.cells if (shift := find_shift(name)).is_own}
    found = [part for part in (own, bench.scene and bench.scene.summary()) if part]
    return hashlib.sha256(repr((choices, kind, *found)).encode()).hexdigest()[:12]
