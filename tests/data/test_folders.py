"""Image folders as people have them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_folder
from PIL import Image

from qrobust.data.files import FORMATS, IMAGE_SUFFIXES
from qrobust.data.folders import folder_images
from qrobust.data.loading import open_data, open_test
from qrobust.data.sources import decode_file
from qrobust.data.splits import Data, Split
from qrobust.data.target_images import open_target_images
from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing


def opened(root: Path) -> Data:
    return open_data(f"imagefolder:{root}", seed=0, calibration_images=8)


def folders_of(split: Split, root: Path) -> set[str]:
    """The folders below the root that a split's images are from."""
    return {Path(split.source.name_of(int(i))).relative_to(root).parts[0] for i in split.indices}


def left_out(found: Data | Split) -> dict[str, tuple[int, str]]:
    entries = found.left_out if isinstance(found, Data) else found.source.left_out
    return {entry.reason: (entry.n, entry.example) for entry in entries}


@pytest.mark.parametrize(
    ("folders", "training", "validation", "test"),
    [
        (("train", "valid", "test"), "train", "valid", "test"),
        (("TRAIN", "Validation", "Testing"), "TRAIN", "Validation", "Testing"),
        (("training", "dev", "test"), "training", "dev", "test"),
        (("Training", "Testing"), "Training", "Training", "Testing"),
        (("train", "validation"), "train", "train", "validation"),
        (("val", "test"), "val", "val", "test"),
        (("val",), "val", "val", "val"),
        (("Train",), "Train", "Train", "Train"),
    ],
)
def test_folders_of_splits_by_any_of_their_names(
    folders: tuple[str, ...], training: str, validation: str, test: str, tmp_path: Path
) -> None:
    data = opened(make_folder(tmp_path, folders))
    assert data.class_names == ("cat", "dog")
    assert folders_of(data.training, tmp_path) == folders_of(data.calibration, tmp_path) == {training}
    assert folders_of(data.validation, tmp_path) == {validation}
    assert folders_of(data.test, tmp_path) == {test}
    assert data.taken_from == {
        "calibration": training,
        "training": training,
        "validation": validation,
        "test": test,
    }
    assert data.summary()["test"].taken_from == test


@pytest.mark.parametrize(
    ("folders", "test"),
    [(("train", "valid"), "valid"), (("Val",), "Val"), (("train", "val", "Test"), "Test"), (("dev", "test"), "test")],
)
def test_what_is_tested_on_is_no_training_image(folders: tuple[str, ...], test: str, tmp_path: Path) -> None:
    split = open_test(f"imagefolder:{make_folder(tmp_path, folders)}", seed=0)
    assert (folders_of(split, tmp_path), split.taken_from) == ({test}, test)


def test_training_images_alone_are_tested_on_only_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ("Train",))
    with pytest.raises(InputError, match=r"expected test images, .* holds training images alone"):
        open_test(f"imagefolder:{root}", seed=0)
    assert len(open_test(f"imagefolder:{root / 'Train'}", seed=0)) == 40


def flat(root: Path, name: str) -> None:
    """A folder of images without classes."""
    (root / name).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(root / name / f"{i}.png")


@pytest.mark.parametrize(
    ("folders", "loose", "match"),
    [
        (("train", "Training"), (), "expected one train folder in .*, got 'Training' and 'train'"),
        (("val", "valid"), (), "expected one val folder"),
        (("train",), ("test",), "'test' in .* looks like a split but holds images and no class folders"),
        ((), ("train", "test"), "'test' in .* looks like a split but holds images and no class folders"),
        (("train", "test2"), (), "'test2' in .*, beside 'train', looks like a split but is not called so"),
        (("seg_train", "seg_test"), (), "'seg_test' and 'seg_train' in .* look like splits but are not called so"),
        (("train",), ("cat", "dog"), "'train' in .* looks like a split, but 'cat' beside it like a class"),
        (("cat/train", "cat/test"), ("dog",), "class folder .*cat holds folders of splits"),
        (("data",), (), "at least two class folders in .*, found 'data' alone"),
    ],
)
def test_what_looks_like_a_split_but_cannot_be_one(
    folders: tuple[str, ...], loose: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, folders, per_class=4)
    for name in loose:
        flat(tmp_path, name)
    for open_any in (opened, lambda root: open_test(f"imagefolder:{root}", seed=0)):
        with pytest.raises(InputError, match=match) as caught:
            open_any(tmp_path)
        assert "\n" not in str(caught.value)


def test_trains_are_a_class_beside_others(tmp_path: Path) -> None:
    for name in ("bus", "train", "validation"):
        flat(tmp_path, name)
    assert folder_images(tmp_path).class_names == ("bus", "train", "validation")
    assert open_test(f"imagefolder:{tmp_path}", seed=0).source.class_names == ("bus", "train", "validation")


def test_what_lies_beside_the_splits_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "test"))
    flat(tmp_path, "unlabelled")
    (tmp_path / "classes.csv").write_text("cat\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "sample.png")
    assert left_out(opened(tmp_path)) == {
        "beside the splits": (2, "sample.png"),
        ".csv, which is not read": (1, "classes.csv"),
    }


def test_hidden_files_are_not_images_and_counted(tmp_path: Path) -> None:
    """Copies of Jupyter's, resource forks of a Mac's zip, thumbnails of Windows."""
    root = make_folder(tmp_path)
    before = opened(root)
    shutil.copytree(root / "test" / "cat", root / "test" / "cat" / ".ipynb_checkpoints")
    shutil.copytree(root / "test", root / "test" / "__MACOSX")
    shutil.copytree(root / "test", root / "__MACOSX")
    (root / "test" / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (root / "test" / "dog" / "Thumbs.db").write_bytes(b"")
    data = opened(root)
    assert data.class_names == ("cat", "dog")
    assert data.test.identity() == before.test.identity()
    assert left_out(data) == {"hidden or the system's": (5, "__MACOSX")}
    assert left_out(open_test(f"imagefolder:{root}", seed=0)) == {"hidden or the system's": (5, "__MACOSX")}


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".avif", ".webp", ".tiff", ".TIF", ".jpe", ""])
def test_formats_of_any_usual_suffix_and_none_are_read(suffix: str, tmp_path: Path) -> None:
    if suffix == ".avif" and "AVIF" not in FORMATS:
        pytest.skip("this Pillow has no AVIF")
    root = make_folder(tmp_path)
    for path in (root / "test" / "cat").iterdir():
        kind = {".gif": "GIF", ".avif": "AVIF", ".webp": "WEBP", ".tiff": "TIFF", ".TIF": "TIFF"}.get(suffix, "JPEG")
        Image.open(path).save(path.with_suffix(suffix), kind)
        path.unlink()
    data = opened(root)
    assert np.bincount(data.test.labels).tolist() == [20, 20]
    assert data.test.read(slice(None)).shape == (40, 3, 16, 16)
    assert data.left_out == ()


def test_formats_that_start_programs_or_are_seldom_are_none_of_those_read() -> None:
    assert not {"EPS", "WMF", "PDF", "FPX", "MIC", "IM", "JPEG2000"} & set(FORMATS)
    assert len(FORMATS) in (7, 8)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_files_that_are_not_read_are_counted_by_reason(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    cat = root / "test" / "cat"
    for i in range(3):
        (cat / f"{i}.png").rename(cat / f"{i}.HEIC")
    (cat / "README").write_text("hello")
    (cat / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (8, 8)).save(root / "test" / "without.png")
    data = opened(root)
    assert left_out(data) == {
        ".heic, which is not read": (3, "test/cat/0.HEIC"),
        "without suffix and no image": (1, "test/cat/README"),
        "links to nothing": (1, "test/cat/gone.png"),
        "beside the class folders, so without a class": (1, "test/without.png"),
    }
    assert np.bincount(data.test.labels).tolist() == [17, 20]


def test_linked_folders_are_read_and_loops_end(tmp_path: Path) -> None:
    store = make_folder(tmp_path / "store", ("all",)) / "all"
    root = tmp_path / "data"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(store / "cat")  # a class
    (root / "dog" / "batch").symlink_to(store / "dog")  # a folder within one
    (root / "dog" / "again").symlink_to(store / "dog")
    (root / "dog" / "root").symlink_to(root)  # would give cats to the dogs, for ever
    (root / "dog" / "self").symlink_to(root / "dog")
    images = folder_images(root)
    assert np.bincount(images.labels).tolist() == [20, 20]
    assert [(entry.reason, entry.n) for entry in images.left_out] == [("links to folders above or read already", 3)]


def test_a_class_is_all_below_its_folder_or_the_path_that_class_names_have(tmp_path: Path) -> None:
    for place in ("animal/cat/day", "animal/cat/night", "animal/dog", "vehicle/bus"):
        flat(tmp_path / "data", place)
    names = tmp_path / "names.txt"
    names.write_text("vehicle\nanimal/dog\nanimal/cat\n")
    spec = f"imagefolder:{tmp_path / 'data'}"
    first = open_test(spec, seed=0)
    assert first.source.class_names == ("animal", "vehicle")
    assert np.bincount(first.labels).tolist() == [9, 3]
    named = open_test(spec, seed=0, class_names_file=names)
    assert np.bincount(named.labels).tolist() == [3, 3, 6]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path)
    listed = os.listdir

    def refuse(path: Path) -> list[str]:
        if str(path).endswith("test/cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=r"data: cannot read folder .*test/cat \(Permission denied\)"):
        opened(root)


def test_hidden_files_among_target_images(tmp_path: Path) -> None:
    flat(tmp_path, "new")
    flat(tmp_path / "new", ".trash")
    flat(tmp_path / "new", "__MACOSX")
    for i in range(3, 6):
        Image.new("RGB", (16, 16)).save(tmp_path / "new" / f"{i}", "PNG")
    found = open_target_images(tmp_path / "new", preprocessing=Preprocessing(size=16), class_names=("a", "b"), seed=0)
    assert (found.labelled, len(found.training.source)) == (False, 6)
    assert left_out(found.training) == {"hidden or the system's": (2, ".trash")}


def test_only_the_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(decode_file(tmp_path / "a.gif")).tolist() == [10]
