from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust.data.corruption_sets import open_corruption_set
from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing


def cifar_c(root: Path, count: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A tiny set in the layout of CIFAR-10-C."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(0, 256, (5 * count, 32, 32, 3), dtype=np.uint8) for n in ("fog", "gaussian_noise")}
    labels = np.tile(rng.integers(0, 10, count), 5).astype(np.uint8)
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    np.save(root / "labels.npy", labels)
    return arrays, labels


def imagenet_c(root: Path) -> None:
    """A tiny set in the layout of ImageNet-C: every picture is flat, its grey is ten times the severity."""
    for corruption in ("fog", "snow"):
        for severity in range(1, 6):
            for wnid in ("n01440764", "n01443537"):
                folder = root / corruption / str(severity) / wnid
                folder.mkdir(parents=True)
                for i in range(2):
                    Image.new("RGB", (224, 224), (10 * severity,) * 3).save(folder / f"val_{i}.JPEG")


def test_arrays_come_out_as_they_lie_there(tmp_path: Path) -> None:
    arrays, labels = cifar_c(tmp_path)
    stored = open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32))
    assert stored.conditions == tuple((n, s) for n in ("fog", "gaussian_noise") for s in range(1, 6))
    for severity in range(1, 6):
        images = stored.images("gaussian_noise", severity)
        block = slice(3 * severity - 3, 3 * severity)
        wanted = torch.from_numpy(arrays["gaussian_noise"][block]).permute(0, 3, 1, 2)
        assert torch.equal(images.read(torch.arange(3)), wanted)
        assert images.labels.tolist() == labels[:3].tolist()


def test_coloured_and_grey_arrays_are_read_as_luma(tmp_path: Path) -> None:
    arrays, _ = cifar_c(tmp_path)
    np.save(tmp_path / "fog.npy", arrays["fog"][..., 0])
    stored = open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32, channels=1))
    grey, coloured = (stored.images(name, 1).read(torch.arange(3)) for name in ("fog", "gaussian_noise"))
    assert torch.equal(grey[:, 0], torch.from_numpy(arrays["fog"][:3, ..., 0]))
    assert coloured.shape == (3, 1, 32, 32)
    wanted = Image.fromarray(arrays["gaussian_noise"][2]).convert("L")
    assert np.array_equal(coloured[2, 0], wanted)


def test_folders_come_out_as_they_lie_there(tmp_path: Path) -> None:
    imagenet_c(tmp_path)
    stored = open_corruption_set(tmp_path, preprocessing=Preprocessing(size=224))
    assert stored.conditions == tuple((n, s) for n in ("fog", "snow") for s in range(1, 6))
    images = stored.images("snow", 4)
    assert images.class_names == ("n01440764", "n01443537")
    assert images.labels.tolist() == [0, 0, 1, 1]
    # A flat grey survives JPEG to the level.
    assert torch.equal(images.read(torch.arange(4)), torch.full((4, 3, 224, 224), 40, dtype=torch.uint8))


def test_folders_of_a_subset_keep_their_indices(tmp_path: Path) -> None:
    imagenet_c(tmp_path)
    stored = open_corruption_set(
        tmp_path, preprocessing=Preprocessing(size=224), class_names=("n01443537", "n00000000", "n01440764")
    )
    assert stored.images("fog", 1).labels.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("labels", lambda a: a[:-1], "labels.npy must be 5 times"),
        ("labels", lambda a: a.astype(np.float32), "labels.npy must be"),
        ("labels", lambda a: np.concatenate([a[:-1], (a[-1:] + 1) % 10]), "repeat the same labels"),
        ("labels", lambda a: a + np.uint8(20), "must lie in 0..9"),
        ("labels", lambda a: np.concatenate([a, a[:5]]), "must"),
        ("fog", lambda a: a[:-1], "fog.npy must be uint8"),
        ("fog", lambda a: a.astype(np.float32), "float32"),
        ("fog", lambda a: a[..., :2], "fog.npy must be uint8"),
    ],
)
def test_arrays_that_are_not_what_they_must_be(tmp_path: Path, name: str, change: Callable, named: str) -> None:
    cifar_c(tmp_path)
    path = tmp_path / f"{name}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(InputError, match=named) as error:
        open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32), class_names=[str(i) for i in range(10)])
    assert "\n" not in str(error.value)


def test_pickles_and_damage_are_refused(tmp_path: Path) -> None:
    cifar_c(tmp_path)
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="without pickles"):
        open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32))
    (tmp_path / "fog.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"fog\.npy"):
        open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32))


def test_folders_that_are_not_what_they_must_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        open_corruption_set(tmp_path / "absent", preprocessing=Preprocessing(size=32))
    with pytest.raises(InputError, match="CORRUPTION/SEVERITY/CLASS"):
        open_corruption_set(tmp_path, preprocessing=Preprocessing(size=32))
    imagenet_c(tmp_path)
    (tmp_path / "snow" / "2" / "n01440764" / "val_1.JPEG").unlink()
    stored = open_corruption_set(tmp_path, preprocessing=Preprocessing(size=224))
    with pytest.raises(InputError, match="must hold the 4 images in 2 classes"):
        stored.images("snow", 2)
    with pytest.raises(InputError, match="smog"):
        stored.images("smog", 2)
    with pytest.raises(InputError, match="not one of the 1 class names"):
        open_corruption_set(tmp_path, preprocessing=Preprocessing(size=224), class_names=("n01440764",))
