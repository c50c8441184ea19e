"""The training loop of calibrator and classifier: resumable, keeps the best, stops when it diverges."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qrobust.device import is_out_of_memory, largest_that_fits, on_cpu
from qrobust.errors import InputError
from qrobust.paths import check_file
from qrobust.progress import Progress
from qrobust.stopwatch import BACKWARD, FORWARD, part
from qrobust.storage import atomic_write


@dataclass(frozen=True)
class Outcome:
    """What a training run came to; the module ends with the best state.

    Attributes:
        start: what `judge` found before the first step.
        best: what it found of the state that was kept.
        best_step: the step whose state was kept; 0 is the start.
        steps: optimizer steps made.
        diverged: training was stopped at a loss or a gradient that is not finite.
        earlier_s: seconds of training up to the checkpoint that this process went on from; 0 without.
        history: what `judge` found at each validation, in order.
    """

    start: tuple[float, ...]
    best: tuple[float, ...]
    best_step: int
    steps: int
    diverged: bool
    earlier_s: float
    history: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class _Resumed:
    """Where a training goes on: steps made, what was measured of the start and of the best state, and that state."""

    step: int
    start: tuple[float, ...]
    best: tuple[float, ...]
    best_step: int
    kept: Mapping[str, torch.Tensor]
    seconds: float
    history: tuple[tuple[float, ...], ...]


def _resumed(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> _Resumed:
    """Put module and optimizer where the checkpoint left them; returns the rest of what it holds."""
    check_file(checkpoint, "checkpoint")
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scores = tuple(state["start"]), tuple(state["best"])
        history = tuple(map(tuple, state["history"]))
        return _Resumed(state["step"], *scores, state["best_step"], state["kept"], state["seconds"], history)
    except Exception as error:  # each kind of damage raises another type
        raise InputError(f"checkpoint: {checkpoint} cannot be read; remove it to train from the start") from error


def _gradients(
    loss: Callable[[int, int], torch.Tensor],
    step: int,
    batch_size: int,
    least_batch: int,
    optimizer: torch.optim.Optimizer,
) -> torch.Tensor:
    """The loss of a step, whose gradients are in the parameters unless it is not finite."""

    def attempt(size: int) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with part(FORWARD):
            value = loss(step, size)
            finite = bool(torch.isfinite(value))
        if finite:
            with part(BACKWARD):
                value.backward()
        return value.detach()

    try:
        return attempt(batch_size)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Out here nothing holds what the failed attempt has allocated.
    fits = largest_that_fits(batch_size, attempt, least_batch)
    expected = f"{fits}, which fits into memory," if fits else f"more memory than a batch of {least_batch} needs,"
    raise InputError(f"batch_size: expected {expected} got {batch_size}")


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    rates: Callable[[int], list[float]],
    loss: Callable[[int, int], torch.Tensor],
    batch_size: int,
    least_batch: int,
    judge: Callable[[], tuple[float, ...]],
    score: Callable[[tuple[float, ...]], tuple[float, ...]],
    judge_after: Callable[[int], bool],
    describe: Callable[[tuple[float, ...]], str],
    checkpoint: Path,
    checkpoint_every: int,
    progress: Progress,
    replaces_start: Callable[[tuple[float, ...], tuple[float, ...]], bool] | None = None,
) -> Outcome:
    """Train a module in place; a run that was killed goes on from its checkpoint and ends alike.

    Checkpoints hold tensors of the CPU, so that a training may go on on another device.

    Args:
        module: what is trained; it ends with the state of highest score.
        optimizer: over its parameters.
        steps: optimizer steps.
        rates: step to the learning rate of each parameter group.
        loss: step and batch size to the loss of its batch, a function of these and the weights alone.
        batch_size: images in a batch.
        least_batch: images without which there is no batch.
        judge: measures the module as it is; called in training mode, must leave it so.
        score: of what `judge` found; the highest wins.
        judge_after: number of steps made to whether the module is judged now; it is after the last one.
        describe: what `judge` found, in words for the progress bar.
        checkpoint: file to resume from.
        checkpoint_every: steps between checkpoints, which are also made whenever the module is judged.
        progress: called with steps done, all steps and a note, first of all with the step that it begins at.
        replaces_start: what `judge` found of a state, and of the start, to whether that state may take its place; by
            default one of higher score does.

    Raises:
        InputError: the checkpoint is damaged, or a batch does not fit into memory; the message says which does.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step, diverged, note, earlier, began = 0, False, "", 0.0, time.perf_counter()
    if checkpoint.exists():
        resumed = _resumed(checkpoint, module, optimizer)
        step, start, kept = resumed.step, resumed.start, resumed.kept
        best, best_step, earlier = resumed.best, resumed.best_step, resumed.seconds
        history = list(resumed.history)
    else:
        start, history = judge(), []
        best = start
        best_step, kept = 0, copy.deepcopy(on_cpu(module.state_dict()))
    progress(step, steps, note)
    while step < steps:
        for group, rate in zip(optimizer.param_groups, rates(step), strict=True):
            group["lr"] = rate
        value = _gradients(loss, step, batch_size, least_batch, optimizer)
        if not torch.isfinite(value):
            diverged = True
            break
        with part(BACKWARD):
            diverged = not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 1.0))
            if diverged:
                break
            optimizer.step()
        step += 1
        deployed = step == steps or judge_after(step)
        if deployed:
            found = judge()
            history.append(found)
            note = describe(found)
            better = replaces_start(found, start) if best_step == 0 and replaces_start else score(found) > score(best)
            if better:
                best, best_step, kept = found, step, copy.deepcopy(on_cpu(module.state_dict()))
        if deployed or step % checkpoint_every == 0:
            state = {
                "model": on_cpu(module.state_dict()),
                "optimizer": on_cpu(optimizer.state_dict()),
                "step": step,
                "start": list(start),
                "best": list(best),
                "best_step": best_step,
                "kept": kept,
                "history": list(map(list, history)),
                "seconds": earlier + time.perf_counter() - began,
            }
            with atomic_write(checkpoint) as file:
                torch.save(state, file)
        progress(step, steps, note)
    module.load_state_dict(kept)
    return Outcome(start, best, best_step, step, diverged, earlier, tuple(history))
