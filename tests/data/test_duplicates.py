"""Images that are in two splits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_folder, qrobust, save_npz
from PIL import Image

from qrobust.data.duplicates import digest, find_duplicates
from qrobust.data.loading import open_data
from qrobust.data.splits import SPLIT_NAMES, Data, Split
from qrobust.record import Duplicates


def splits(data: Data) -> dict[str, Split]:
    return {name: getattr(data, name) for name in SPLIT_NAMES}


def opened(root: Path) -> dict[str, Split]:
    return splits(open_data(f"imagefolder:{root}", seed=0, calibration_images=8))


def test_the_same_file_in_two_splits_is_found_whatever_its_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ("train", "val", "test"))
    assert find_duplicates(opened(root)) == ()
    copied, original = root / "test" / "cat" / "copy.png", root / "val" / "dog" / "3.png"
    shutil.copy(original, copied)
    assert find_duplicates(opened(root)) == (
        Duplicates(split="test", of="validation", n=1, example=str(copied), original=str(original)),
    )


def test_files_of_one_size_that_differ_by_a_byte_are_none(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=8)
    for path in (root / "train").rglob("*.png"):
        path.unlink()
    for i in range(40):
        pixels = np.full((8, 8, 3), i, np.uint8)
        Image.fromarray(pixels).save(root / "train" / ("cat", "dog")[i % 2] / f"{i}.bmp")
    for i, path in enumerate(sorted((root / "test").rglob("*.png"))):
        pixels = np.full((8, 8, 3), i, np.uint8)
        pixels[0, 0, 0] += 1
        Image.fromarray(pixels).save(path.with_suffix(".bmp"))
        path.unlink()
    assert find_duplicates(opened(root)) == ()


def test_the_same_pixels_in_another_encoding_are_found_where_pixels_are_known(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ("train", "val"))
    for part in ("train", "test"):
        shutil.copytree(root / "val", root / part, dirs_exist_ok=True)
    for path in (root / "test").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    found = opened(root)
    pixels = {name: list(map(digest, found[name].read(slice(None)))) for name in ("validation", "test")}
    told = {(d.split, d.of): d.n for d in find_duplicates(found, pixels)}
    assert told[("test", "validation")] == 40
    assert ("test", "training") not in told  # these were not decoded
    assert told[("validation", "training")] + told[("validation", "calibration")] == 40  # copies of files


def test_duplicates_within_one_pool_of_arrays_are_found(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz")
    with np.load(path) as stored:
        images, labels = stored["images"], stored["labels"]
    np.savez(tmp_path / "twice.npz", images=np.concatenate([images] * 2), labels=np.concatenate([labels] * 2))
    assert find_duplicates(splits(open_data(f"npz:{path}", seed=0, calibration_images=8))) == ()
    found = splits(open_data(f"npz:{tmp_path / 'twice.npz'}", seed=0, calibration_images=8))
    shared = {
        name: {tuple(image.flatten().tolist()) for image in split.read(slice(None))} for name, split in found.items()
    }
    told = {(d.split, d.of): d.n for d in find_duplicates(found)}
    assert told == {
        (name, other): len(shared[name] & shared[other])
        for name, others in (("validation", SPLIT_NAMES[:2]), ("test", SPLIT_NAMES[:3]))
        for other in others
        if shared[name] & shared[other]
    }
    assert told[("test", "training")] > 0


@pytest.mark.slow  # a quantization
def test_a_run_tells_of_duplicates_and_of_what_it_does_not_use(weights: Path, tmp_path: Path) -> None:
    from qrobust.storage import read_json

    root = make_folder(tmp_path / "data", ("Train", "valid"), per_class=12, size=32)
    shutil.copytree(root / "valid", root / "testing")
    (root / "testing" / "cat" / "0.heic").write_bytes(b"")
    (tmp_path / "names.txt").write_text("cat\ndog\n" + "".join(f"{i}\n" for i in range(8)))
    result = qrobust(
        *("quantize", "--model", "resnet8", "--weights", weights, "--data", f"imagefolder:{root}"),
        *("--class-names", tmp_path / "names.txt", "--calibration-images", 8, "--out", tmp_path / "out", "--anyway"),
    )
    assert result.exit_code == 0, result.output
    assert (
        "Splits: calibration from Train, training from Train, validation from valid, test from testing"
        in result.output
    )
    assert "Not used of the data: 1 .heic, which is not read (such as testing/cat/0.heic)" in result.output
    assert "Duplicates between splits, which were not removed: " in result.output
    stage = read_json(tmp_path / "out" / "stages" / "quantize.json")
    assert stage["left_out"] == [{"reason": ".heic, which is not read", "n": 1, "example": "testing/cat/0.heic"}]
    assert {(d["split"], d["of"]): d["n"] for d in stage["duplicates"]}[("test", "validation")] == 24
