"""Ranges that were observed once, kept for other runs of the same network and the same calibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx

from qrobust.classifier import state_hash
from qrobust.device import Device
from qrobust.errors import InputError
from qrobust.quantization.observers import Observer
from qrobust.record import hardware
from qrobust.storage import atomic_write

# Of what a file holds: another one where observers remember something else.
VERSION = 1
NUMBERS = ("seen", "low", "high", "average_low", "average_high", "left", "width")
COUNTS = "counts"


@dataclass(frozen=True)
class RangeCache:
    """A folder of what observers saw, a file for each graph and set of images; runs may share it, at the same time.

    A file is found by a hash of all that what is observed depends on: the traced graph and its weights, after folding
    and equalization; which images, their pixels and the version of their source; the device, the CPU's flags, torch's
    version and its threads. So what is found is, to the bit, what would have been observed.

    Attributes:
        folder: where the files lie; it need not exist.
        images: which images, as `Split.identity` says.
    """

    folder: Path
    images: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"calibration_cache: expected a folder, got the file {self.folder}")

    def file(self, graph: fx.GraphModule, device: Device) -> Path:
        """Where what a graph with observers sees is kept; the graph is on the CPU."""
        found = hardware(torch.get_num_threads())
        about = (VERSION, torch.__version__, device.description, found.processor, found.flags, found.threads)
        parts = (about, self.images, repr(graph), graph.code, state_hash(graph))
        return self.folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.safetensors"

    def restore(self, graph: fx.GraphModule, device: Device) -> bool:
        """Let observers remember what they saw in an earlier run; whether any is known.

        Raises:
            InputError: the file cannot be read.
        """
        path = self.file(graph, device)
        if not path.exists():
            return False
        try:
            known = load_file(path)
            for name, observer in _observers(graph):
                numbers, counts = known[f"{name}.numbers"], known[f"{name}.{COUNTS}"]
                for attribute, number in zip(NUMBERS, numbers.tolist(), strict=True):
                    setattr(observer, attribute, type(getattr(observer, attribute))(number))
                observer.counts = counts
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"calibration_cache: {path} cannot be read ({error}); remove it") from error
        return True

    def keep(self, graph: fx.GraphModule, device: Device) -> None:
        """Write what observers saw, none of which was NaN or infinite.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {}
        for name, observer in _observers(graph):
            numbers = [getattr(observer, attribute) for attribute in NUMBERS]
            tensors[f"{name}.numbers"] = torch.tensor(numbers, dtype=torch.float64)
            tensors[f"{name}.{COUNTS}"] = observer.counts
        path = self.file(graph, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            save_file(tensors, part)


def _observers(graph: fx.GraphModule) -> Iterator[tuple[str, Observer]]:
    return ((name, module) for name, module in graph.named_modules() if isinstance(module, Observer))
