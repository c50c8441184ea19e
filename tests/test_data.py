from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_npz
from PIL import Image

from qrobust.data import SPLIT_NAMES, open_data
from qrobust.data.sources import fit_square
from qrobust.errors import InputError


def make_folder(root: Path, parts: tuple[str, ...] = ("train", "test"), per_class: int = 20, size: int = 16) -> Path:
    """An image folder of two classes."""
    rng = np.random.default_rng(0)
    for part in parts:
        for index, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 100, (size, size, 3)) + 100 * index
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def test_splits_are_disjoint_seeded_and_recorded() -> None:
    data, again, other = (open_data("digits", seed=s) for s in (0, 0, 1))
    sets = [set(getattr(data, n).indices.tolist()) for n in SPLIT_NAMES]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 1797
    assert data.summary() == again.summary()
    assert data.summary()["test"] != other.summary()["test"]


def test_folder_keeps_train_and_test_apart(tmp_path: Path) -> None:
    data = open_data(f"imagefolder:{make_folder(tmp_path)}", seed=0, calibration_images=8)
    assert data.class_names == ("cat", "dog")
    assert data.image_size == 16
    assert len(data.test) == 40
    assert data.test.source is not data.training.source
    images = data.test.read(slice(0, 40)).float().mean((1, 2, 3))
    assert torch.equal((images > 100).long(), data.test.labels)


def test_val_is_validation_where_there_is_a_test(tmp_path: Path) -> None:
    data = open_data(f"imagefolder:{make_folder(tmp_path, ('train', 'val', 'test'))}", seed=0, calibration_images=8)
    assert (len(data.validation), len(data.test)) == (40, 40)
    assert data.validation.source is not data.training.source


def test_class_names_file_keeps_indices(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\ncat\nbee\ndog\n")
    folder = make_folder(tmp_path / "data")
    data = open_data(f"imagefolder:{folder}", seed=0, calibration_images=8, class_names_file=names)
    assert data.class_names == ("ant", "cat", "bee", "dog")
    assert set(data.test.labels.tolist()) == {1, 3}


def test_npz_colour_and_gray(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", class_names=np.array(["a", "b", "c"]))
    data = open_data(f"npz:{path}", seed=0, calibration_images=8)
    assert data.class_names == ("a", "b", "c")
    assert data.test.read(slice(0, 2)).shape == (2, 3, 16, 16)
    gray = tmp_path / "g.npz"
    np.savez(gray, images=np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), labels=np.arange(40) % 2)
    image = open_data(f"npz:{gray}", seed=0, calibration_images=8).test.read(slice(0, 1))[0]
    assert torch.equal(image[0], image[1])


def test_images_of_other_sizes_are_fitted() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 30:50] = 255
    fitted = fit_square(pixels, 28)
    assert fitted.shape == (28, 28, 3)
    assert fitted[14, 14, 0] == 255
    assert fitted[14, 1, 0] == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    picture = Image.new("RGB", (16, 16), (200, 200, 200))
    picture = (
        Image.new("I;16", (16, 16), 51400)
        if mode == "I;16"
        else picture.quantize(4)
        if mode == "P"
        else picture.convert(mode)
    )
    target = root / "test" / "dog" / ("0.tif" if mode in ("CMYK", "I;16") else "0.png")
    (root / "test" / "dog" / "0.png").unlink()
    picture.save(target)
    data = open_data(f"imagefolder:{root}", seed=0, calibration_images=8)
    position = next(i for i, k in enumerate(data.test.indices) if data.test.source.name_of(int(k)) == str(target))
    image = data.test.read(slice(position, position + 1))
    assert image.shape == (1, 3, 16, 16)
    # CMYK inks are rounded, and so are palettes.
    assert (image.float() - 200).abs().max() <= 2


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=16)
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(root / "test" / "cat" / "0.png", exif=exif)
    data = open_data(f"imagefolder:{root}", seed=0, calibration_images=8)
    source = data.test.source
    image = source.read([next(i for i in range(40) if source.name_of(i).endswith("cat/0.png"))])[0]
    assert image[0, 15, 8] == 255
    assert image[0, 0, 8] == 0


def refused(match: str, spec: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_data(spec, seed=0, **options).test.read(slice(None))  # type: ignore[arg-type]  # wrong on purpose
    assert "\n" not in str(caught.value)


def test_unknown_scheme_names_those_there_are() -> None:
    refused("imagefolder:DIR", "s3:bucket")
    refused("imagefolder:DIR", "imagefolder:")
    refused("no folder", "imagefolder:/does/not/exist")
    refused("no file", "npz:/does/not/exist.npz")
    refused("has no 'CIFAR11'", "torchvision:CIFAR11")


def test_torchvision_data_that_is_not_there(tmp_path: Path) -> None:
    refused("download it", "torchvision:CIFAR10", root=tmp_path)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused("one sub-folder per class", f"imagefolder:{tmp_path / 'none'}")
    empty = make_folder(tmp_path / "empty")
    (empty / "train" / "eel").mkdir()
    refused("eel holds no image", f"imagefolder:{empty}")
    other = make_folder(tmp_path / "other")
    (other / "test" / "dog").rename(other / "test" / "fox")
    refused("'fox'", f"imagefolder:{other}", calibration_images=8)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    broken = root / "test" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    refused(r"cat/3\.png", f"imagefolder:{root}", calibration_images=8)


def test_too_few_images() -> None:
    refused("calibration_images", "digits", calibration_images=2000)
    refused("test_images", "digits", test_images=1000)


def test_images_of_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for i in range(20):
        Image.new("RGB", (20, 30)).save(root / "train" / "cat" / f"{i}.png")
    refused("--image-size", f"imagefolder:{root}", calibration_images=8)
    assert open_data(f"imagefolder:{root}", seed=0, calibration_images=8, preferred_size=24).image_size == 24


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, "lacks"),
        ({"images": np.zeros((4, 8, 8, 3)), "labels": np.zeros(4, int)}, "uint8"),
        ({"images": np.zeros((4, 8, 8, 2), np.uint8), "labels": np.zeros(4, int)}, "uint8"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.zeros(3, int)}, "4 integers"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.zeros(4)}, "integers"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.array([0, 1, 2, -1])}, "labels"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": np.zeros(0, int)}, "no image"),
        ({"images": np.array([{"a": 1}]), "labels": np.zeros(1, int)}, "pickle"),
    ],
)
def test_bad_npz(arrays: dict, match: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(match, f"npz:{tmp_path / 'bad.npz'}")


def test_npz_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    refused("cannot read", f"npz:{tmp_path / 'bad.npz'}")
