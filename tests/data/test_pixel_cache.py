"""Each image is decoded once, wherever it is kept, and one that finds no room is decoded again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qrobust.data import pixel_cache
from qrobust.data.pixel_cache import PixelCache
from qrobust.data.sources import array_images
from qrobust.preprocessing import Preprocessing


def image(index: int) -> torch.Tensor:
    return torch.full((3, 8, 8), index, dtype=torch.uint8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Two images fit into memory and three into a block of the file; how many bytes one takes."""
    size = image(0).numel()
    monkeypatch.setattr(pixel_cache, "MEMORY_BYTES", 2 * size)
    monkeypatch.setattr(pixel_cache, "BLOCK_BYTES", 3 * size)
    return size


def test_what_memory_does_not_hold_the_file_does(small: int) -> None:
    cache = PixelCache()
    for index in range(10):
        assert cache.get(index) is None
        cache.put(index, image(index))
    for index in range(10):
        found = cache.get(index)
        assert found is not None
        assert torch.equal(found, image(index))


def test_what_is_given_out_is_not_what_is_kept(small: int) -> None:
    cache = PixelCache()
    for index in range(3):
        cache.put(index, image(index))
    found = cache.get(2)
    assert found is not None
    found += 1
    kept = cache.get(2)
    assert kept is not None
    assert torch.equal(kept, image(2))


def test_nothing_is_left_where_temporary_files_lie(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = PixelCache()
    for index in range(5):
        cache.put(index, image(index))
    assert cache.get(4) is not None
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_a_bound(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "FILE_BYTES", 7 * small)
    cache = PixelCache()
    for index in range(20):
        cache.put(index, image(index))
    assert [cache.get(index) is not None for index in range(20)] == [True] * 8 + [False] * 12


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is not taken beforehand on this system")
def test_a_full_disk_ends_the_cache_and_not_the_program(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = PixelCache()
    for index in range(5):
        cache.put(index, image(index))
    assert [cache.get(index) is not None for index in range(5)] == [True, True, False, False, False]


def test_a_source_decodes_each_image_once(small: int) -> None:
    pixels = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)
    source = array_images(pixels, np.zeros(6, dtype=np.int64), None, "test")
    source.prepare(Preprocessing(size=8))
    decoded, load = [], source._load

    def counted(index: int) -> np.ndarray:
        decoded.append(index)
        return load(index)

    source._load = counted
    first = source.read(range(6))
    assert torch.equal(source.read(range(6)), first)
    assert sorted(decoded) == list(range(6))
