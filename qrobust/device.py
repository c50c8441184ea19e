"""Where torch computes: the only module that names a kind of device.

Modules live on the CPU, where they are made, quantized, exported and saved. Work that takes long borrows a device for
its modules (`Device.holding`) and follows them there (`device_of`): so there is one code path, whatever the device.
Random numbers are drawn on the CPU and moved, so that they do not depend on it either.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import InputError

CPU = torch.device("cpu")
# Values of images that a CPU takes at once. What layers make of them then stays in its caches, and in memory that is
# used again: the C library gives tensors of over 32 MiB back to the system, which clears them page by page each time.
PART_VALUES = 2**20
# What torch says of memory that is used up, where it has no exception of its own for it.
_USED_UP = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """Where modules are while they work.

    Attributes:
        place: torch's device.
        description: its name for readers.
    """

    place: torch.device = CPU
    description: str = "cpu"

    @contextmanager
    def holding(self, *modules: object) -> Iterator[None]:
        """Lend the device to modules: they move there, and back to the CPU at the end; others are ignored."""
        lent = [module for module in modules if isinstance(module, nn.Module)]
        try:
            for module in lent:
                module.to(self.place)
            yield
        finally:
            for module in lent:
                module.to(CPU)

    def classifier(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """A module as a function of images on the CPU that computes here; the gradient comes back to the CPU, too."""
        return module if self.place == CPU else _Lent(module, self.place)


CPU_ONLY = Device()


class _Lent:
    """A copy of a module that lives on a device, asked from the CPU."""

    def __init__(self, module: nn.Module, place: torch.device) -> None:
        import copy

        self._module = copy.deepcopy(module).to(place)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return ask(self._module, images)


def device_of(module: object) -> torch.device:
    """Where a module is; what is no module, or has no tensors, is on the CPU."""
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return CPU


def ask(module: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What a module, wherever it is, makes of images on the CPU; the result is on the CPU. Differentiable."""
    return module(images.to(device_of(module))).to(CPU)


def on_cpu(state: Any) -> Any:
    """A state dict, or any nest of dictionaries, lists and tuples, with all its tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to(CPU)
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return type(state)(map(on_cpu, state)) if isinstance(state, list | tuple) else state


@functools.cache
def bfloat16_kernels(place: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there; on a CPU without kernels it takes 10 to 50 times as long."""
    if place.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def fast_arithmetic(place: torch.device, *, enabled: bool = True) -> AbstractContextManager[None]:
    """Autocast to bfloat16 where a device gains by it; else, and where it is not enabled, float32 as it is."""
    if bfloat16_kernels(place):
        return torch.autocast(place.type, torch.bfloat16, enabled=enabled)
    return nullcontext()


def part_size(images: torch.Tensor) -> int:
    """How many images `(N, C, H, W)` a network takes fastest at once: on a CPU few, on other devices all."""
    return (
        max(1, PART_VALUES // images[:1].numel()) if images.device.type == "cpu" and len(images) else len(images) or 1
    )


def strided_depthwise_is_slow(x: torch.Tensor) -> bool:
    """Whether a strided depthwise convolution's gradient takes 10 to 80 times a dense one's: bfloat16 on CPUs."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_autocast_enabled("cpu")


def devices() -> dict[str, str]:
    """Every device there is, the fastest first: what `find_device` takes, and what its maker calls it."""
    found = {}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found | {"cpu": "cpu"}


def gpus_of(name: str) -> int:
    """How many GPUs of a cluster's host a device of this name takes: one for `cuda` and `cuda:N`."""
    return int(name.startswith("cuda"))


def find_device(name: str = "auto") -> Device:
    """A device by name: `auto` (the fastest that can train), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        InputError: there is none of that name, with a list of those that are; or torch lacks kernels for it.
    """
    there = devices()
    wanted = list(there) if name == "auto" else ["cuda:0" if name == "cuda" else name]
    if wanted[0] not in there:
        known = ", ".join(f"{key} ({value})" if key != value else key for key, value in there.items())
        raise InputError(f"device: expected auto or one that is here, {known}, got {name!r}")
    lacking = ""
    for chosen in wanted:
        place = torch.device(chosen)
        lacking = _lacking(place)
        if not lacking:
            if place.type == "cuda":
                # Products of 10 bits would move a quantized activation to another step: float32 means float32.
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            return Device(place, chosen if place == CPU else f"{chosen} ({there[chosen]})")
    raise InputError(f"device: {name} has not all float32 kernels in this build of torch ({lacking}); try cpu")


def _lacking(place: torch.device) -> str:
    """What torch says where a device has no kernel for what training needs; nothing where it has them all."""
    try:
        images = torch.ones(1, 1, 4, 4).to(place).requires_grad_()
        seen = F.conv2d(images, torch.ones(1, 1, 3, 3).to(place), padding=1)
        warped = F.grid_sample(seen, torch.zeros(1, 4, 4, 2).to(place), align_corners=False)
        F.hardtanh(warped.round()).sum().backward()
        torch.histc(seen.detach(), 4)
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _USED_UP.search(str(error)) is not None


def largest_that_fits(batch_size: int, attempt: Callable[[int], object], least: int = 1) -> int | None:
    """The largest half, quarter, ... of a batch size for which `attempt` runs; None if not even `least` does."""
    while (batch_size := batch_size // 2) >= least:
        _give_back()
        try:
            attempt(batch_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return batch_size
    return None


def _give_back() -> None:
    """Let go of memory that torch keeps for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
