"""Images of no class that a classifier knows, read as its own are."""

from __future__ import annotations

import numpy as np
import torch

from qrobust.data.foreign import foreign_splits
from qrobust.data.loading import open_data
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.preprocessing import Preprocessing


def known(channels: int = 3) -> Split:
    source = array_images(np.zeros((4, 24, 24, 3), dtype=np.uint8), np.arange(4) % 2, ["cat", "dog"], "test")
    source.prepare(Preprocessing(size=24, channels=channels))
    return Split(source, torch.arange(4))


def test_noise_and_digits_have_no_labels_and_the_classifiers_size() -> None:
    found = foreign_splits(known(), 6, seed=0)
    assert set(found) == {"noise", "digits"}
    for split in found.values():
        assert split.read(slice(0, 6)).shape == (6, 3, 24, 24)
        assert split.labels.tolist() == [-1] * 6
    assert abs(float(found["noise"].read(slice(0, 6)).float().mean()) - 127.5) < 5  # four standard errors are 2


def test_digits_are_no_foreign_images_of_digits() -> None:
    assert set(foreign_splits(open_data("digits", seed=0).test, 2, seed=0)) == {"noise", "photographs"}


def test_a_network_of_one_channel_reads_luma() -> None:
    assert foreign_splits(known(channels=1), 2, seed=0)["digits"].read(slice(0, 2)).shape == (2, 1, 24, 24)


def test_equal_seeds_give_equal_images() -> None:
    first, second = (foreign_splits(known(), 3, seed=1)["noise"].read(slice(0, 3)) for _ in range(2))
    assert torch.equal(first, second)
