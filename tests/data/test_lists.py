"""Lists of image files: CSV and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qrobust.data.loading import open_data, open_test
from qrobust.errors import InputError

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, the even ones black cats, the odd ones white dogs."""
    (tmp_path / "my images").mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (255 * (i % 2), 255 * (i % 2), i)).save(tmp_path / "my images" / f"{i}.png")
    return tmp_path


def lines(*form: str) -> str:
    return "".join(
        form[0].format(i=i, name=CLASSES[i % 2], number=i % 2, split=("Train", "val", "testing")[i // 4]) + "\n"
        for i in range(12)
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (lines("my images/{i}.png,{name}"), CLASSES),
        ("\ufefffilename,label\r\n" + lines("my images/{i}.png,{name}").replace("\n", "\r\n"), CLASSES),
        ("id;Label;Path\n" + lines("{i};{name};my images/{i}.png"), CLASSES),
        (lines("my images/{i}.png\t{number}"), ("0", "1")),
        (lines("my images/{i}.png {number}"), ("0", "1")),
        (lines('"my images/{i}.png", {name} ') + "\n\n", CLASSES),
        (lines("my images/{i}.png,00{number}"), ("0", "1")),
    ],
)
def test_forms_of_a_list(text: str, names: tuple[str, ...], folder: Path) -> None:
    (folder / "list.csv").write_text(text, encoding="utf-8", newline="")
    split = open_test(f"list:{folder / 'list.csv'}", seed=0)
    assert split.source.class_names == names
    assert len(split) == 12
    assert split.read(slice(None))[:, 0, 0, 0].tolist() == (255 * split.labels).tolist()


def test_splits_of_a_list(folder: Path) -> None:
    (folder / "list.csv").write_text("image,label,split\n" + lines("my images/{i}.png,{name},{split}"))
    spec = f"list:{folder / 'list.csv'}"
    data = open_data(spec, seed=0, calibration_images=1)
    assert data.taken_from == {"calibration": "train", "training": "train", "validation": "val", "test": "test"}
    assert {Path(data.test.source.name_of(int(i))).stem for i in data.test.indices} == {"8", "9", "10", "11"}
    test = open_test(spec, seed=0)
    assert test.identity() == data.test.identity()


@pytest.mark.parametrize("label", ["{name}", "{number}"])
def test_class_names_of_a_list_are_names_or_their_indices(label: str, folder: Path) -> None:
    (folder / "list.csv").write_text(lines("my images/{i}.png," + label))
    (folder / "names.txt").write_text("dog\ncat\n" if label == "{name}" else "cat\ndog\n")
    split = open_test(f"list:{folder / 'list.csv'}", seed=0, class_names_file=folder / "names.txt")
    expected = split.labels if label == "{number}" else 1 - split.labels
    assert split.read(slice(None))[:, 0, 0, 0].tolist() == (255 * expected).tolist()


def test_names_that_are_not_utf8(folder: Path) -> None:
    (folder / "my images" / "0.png").rename(folder / "my images" / "caf\udce9.png")
    text = lines("my images/{i}.png,{name}").encode().replace(b"/0.png", b"/caf\xe9.png")
    (folder / "list.csv").write_bytes(text)
    assert len(open_test(f"list:{folder / 'list.csv'}", seed=0).read(slice(None))) == 12


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected a line path,label per image in .*, got none"),
        ("path,label\n", "got none"),
        ("my images/0.png,cat\nmy images/1.png\n", "line 2 of .*: expected path,label, got 1 of 2 columns"),
        ("my images/0.png,cat\nmy images/1.png,dog,test\n", "line 2 of .*: expected path,label, got 3 of 2"),
        ("my images/0.png,cat\n\nmy images/1.png,\n", "line 3 of .*: expected a path and a label, got .* and ''"),
        ("my images/0.png,cat\nmy images/99.png,dog\n", r"line 2 of .*: no file .*99\.png"),
        ("path,label,split\nmy images/0.png,cat,tset\n", "line 2 of .*: expected a split .train: .*, got 'tset'"),
        ("my images/0.png,cat,train\nmy images/1.png,cat,\n", "line 2 of .*: expected a split .*, got ''"),
        ("my images/0.png,cat\nmy images/0.png,dog\n", "line 2 of .* is listed with another label on line 1"),
        ("my images/0.png,cat\nmy images/1.png,dog\nmy images/0.png,cat\n", "line 3 .* is listed already on line 1"),
        ("my images/0.png,0\nmy images/1.png,9999999\n", "line 2 of .*: expected a label of at most 100000"),
        ("my images/0.png,cat\n" + "a" * 300 + ",dog\n", "line 2 of .*: cannot read"),
        ("my images/0.png,cat\nmy images,dog\n", "line 2 of .*: expected a regular file, .* is a folder"),
        ('my images/0.png,cat\n"my\nimages",dog\n', "line 3 of .*: expected a path and a label"),
        ("\x00,cat\n", "line 1 of"),
    ],
)
def test_bad_lines_are_named_by_number(text: str, match: str, folder: Path) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(InputError, match=match) as caught:
        open_test(f"list:{folder / 'list.csv'}", seed=0)
    assert "\n" not in str(caught.value)


def test_labels_that_are_no_class_are_named(folder: Path) -> None:
    (folder / "names.txt").write_text("cat\n")
    for label, got in (("{name}", "'dog'"), ("{number}", "'1'")):
        (folder / "list.csv").write_text(lines("my images/{i}.png," + label))
        with pytest.raises(InputError, match=f"line 2 of .*: label {got} is none of the 1 class names"):
            open_test(f"list:{folder / 'list.csv'}", seed=0, class_names_file=folder / "names.txt")


def test_training_images_alone_are_not_tested_on(folder: Path) -> None:
    (folder / "list.csv").write_text(lines("my images/{i}.png,{name},train"))
    with pytest.raises(InputError, match="expected test images"):
        open_test(f"list:{folder / 'list.csv'}", seed=0)
    assert np.bincount(open_data(f"list:{folder / 'list.csv'}", seed=0, calibration_images=1).test.labels).sum() == 2


def test_bad_images_of_a_list_are_skipped_when_asked(folder: Path) -> None:
    (folder / "list.csv").write_text(lines("my images/{i}.png,{name}"))
    (folder / "my images" / "3.png").write_bytes(b"")
    split = open_test(f"list:{folder / 'list.csv'}", seed=0, skip_bad_images=True)
    assert (len(split), split.source.skipped) == (11, (str(folder / "my images" / "3.png"),))
    assert len(split.read(slice(None))) == 11
