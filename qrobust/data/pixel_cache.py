"""Decoded images, kept so that each is decoded once: in memory up to a bound, beyond it in temporary files.

The files are this process's own and have no names, so they cannot hold another data set's images, and nothing of them
is left when the process ends, however it does. They lie where temporary files do: `TMPDIR` says where that is.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import numpy as np
import torch

# What images may take in memory, and in files.
MEMORY_BYTES, FILE_BYTES = 256 * 2**20, 16 * 2**30
# Share of what is free where temporary files lie; others need some of it, too.
FREE_SHARE = 0.5
# Of one file: each keeps one of the files that a process may have open.
BLOCK_BYTES = 256 * 2**20


class PixelCache:
    """Images by index, each uint8 `(C, S, S)` and all of one shape. One that finds no room is not kept."""

    def __init__(self) -> None:
        self._images: dict[int, torch.Tensor] = {}
        self._bytes = 0
        self._rows: dict[int, int] = {}
        self._blocks: list[np.ndarray] = []
        self._room: int | None = None  # of the files, in bytes; None before there is one

    def get(self, index: int) -> torch.Tensor | None:
        """The image, or None if it is not kept."""
        row = self._rows.get(index)
        if row is None:
            return self._images.get(index)
        block, place = divmod(row, len(self._blocks[0]))
        return torch.from_numpy(self._blocks[block][place].copy())

    def put(self, index: int, image: torch.Tensor) -> None:
        """Keep an image, if there is room."""
        if self._bytes + image.numel() <= MEMORY_BYTES:
            self._images[index] = image
            self._bytes += image.numel()
            return
        row, each = len(self._rows), max(1, BLOCK_BYTES // image.numel())
        if row == each * len(self._blocks) and not self._grow(each, image.shape):
            return
        self._blocks[-1][row % each] = image.numpy()
        self._rows[index] = row

    def _grow(self, count: int, shape: torch.Size) -> bool:
        """Make room for so many more images in a file; False where there is none."""
        size, held = count * shape.numel(), sum(block.nbytes for block in self._blocks)
        try:
            if self._room is None:
                self._room = min(FILE_BYTES, int(FREE_SHARE * shutil.disk_usage(tempfile.gettempdir()).free))
            if held + size > self._room:
                return False
            with tempfile.TemporaryFile() as file:  # mapped, it outlives its being closed
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and no signal where it is written
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                block = np.memmap(file, np.uint8, "r+", shape=(count, *shape))
        except OSError:
            self._room = 0
            return False
        self._blocks.append(block)
        return True
