"""What stages have in common: a stage is done or has left nothing; a graph passes its checks or is not there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from qrobust.pipeline.config_file import as_toml
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import REMEDIES, TORCH_ONLY
from qrobust.record import StageResult, to_json
from qrobust.remedies import BEHIND_CALIBRATOR
from qrobust.shifts.registry import find_shift, training_sets
from qrobust.storage import write_json, write_text

# Choices that no training depends on.
MEASURING = (
    "shifts",
    "scenarios",
    "threads",
    "device",
    "calibration_cache",
    "test_images",
    "attacks",
    "attack_images",
    "attack_steps",
    "epsilons",
    "norms",
    "l2_epsilons",
    "correction_output",
    "remedy",
    "accept_undecided",
)
STAGES = ("quantize", "compensate", "export", "evaluate")
# Stages that are kept where they were done with the choices of now.
COMPARED = ("compensate", *REMEDIES, TORCH_ONLY)


@dataclass
class RunningStage:
    """A stage while it runs.

    Attributes:
        result: what it leaves, to be set before it ends.
        earlier_s: seconds of its training by processes that were killed.
    """

    result: StageResult = field(default_factory=StageResult)
    earlier_s: float = 0.0


@contextmanager
def stage(run: Run, name: str, began_s: float = 0.0) -> Iterator[RunningStage]:
    """Time a stage, begun so many seconds ago; on success store the `result` of what is yielded.

    What was done before stays done until it is replaced, however this ends; only quantization, which replaces files
    as it goes, and all that builds on it are undone from its start on.
    """
    run.reporter.say(f"{name} ...")
    folder = run.require_folder()
    if name == "quantize":
        invalidate(run, name)
    torch.set_num_threads(run.config.threads)
    started = time.perf_counter() - began_s
    running = RunningStage()
    yield running
    choices = choices_key(run, name) if name in COMPARED else None
    duration_s = round(time.perf_counter() - started + running.earlier_s, 3)
    invalidate(run, name)
    write_text(folder.toml, as_toml(run.config))
    write_json(folder.config, run.config_with_code.as_json())
    folder.finish(name, replace(running.result, choices=choices, duration_s=duration_s))
    run.reporter.detail(f"{name} done in {duration_s:.1f} s")


def invalidate(run: Run, name: str) -> None:
    """Before what a stage made is replaced: neither it nor any stage that builds on it is done any more."""
    building = STAGES[STAGES.index(name) :] if name in STAGES else (name, "evaluate")
    above = {"quantize": REMEDIES, "compensate": (BEHIND_CALIBRATOR,)}.get(name, ())
    run.require_folder().delete_stages(*building, *above)


def is_current(run: Run, name: str) -> bool:
    """Whether a stage is done, and was done with the choices of now."""
    done = run.require_folder().result(StageResult, name)
    return done is not None and done.choices == choices_key(run, name)


def choices_key(run: Run, kind: str, without: tuple[str, ...] = ()) -> str:
    """Changes with every choice that training depends on, with the user's own code and with the target images.

    Args:
        run: of the run.
        kind: what the key is for.
        without: choices that this does not depend on.
    """
    choices = {k: v for k, v in sorted(run.config.as_json().items()) if k not in (*MEASURING, "code", *without)}
    names = training_sets(run.config.shifts.train_on)[1]
    own = {name: shift.version for name in names if (shift := find_shift(name)).is_custom}
    if version := run.model_spec.version:
        own["model"] = version
    found = [part for part in (own, run.target_images and to_json(run.target_images.summary())) if part]
    return hashlib.sha256(repr((choices, kind, *found)).encode()).hexdigest()[:12]
