from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder, save_npz
from PIL import Image

from qrobust.data.loading import calibration_count, open_data, open_test, validation_count
from qrobust.data.sources import decode_file
from qrobust.data.splits import SPLIT_NAMES
from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing


def test_splits_are_disjoint_seeded_and_recorded() -> None:
    data, again, other = (open_data("digits", seed=s) for s in (0, 0, 1))
    sets = [set(getattr(data, n).indices.tolist()) for n in SPLIT_NAMES]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 1797
    assert data.summary() == again.summary()
    assert data.summary()["test"] != other.summary()["test"]


@pytest.mark.parametrize(
    ("images", "validation", "calibration"),
    [
        (50_000, 5000, 512),
        (100_000, 5000, 512),
        (5000, 500, 512),
        (2500, 500, 250),
        (1423, 284, 142),
        (200, 40, 32),
        (40, 8, 16),
        (5, 1, 2),
    ],
)
def test_few_images_are_shared_sensibly(images: int, validation: int, calibration: int) -> None:
    assert validation_count(images) == validation
    assert calibration_count(images - validation) == calibration


def test_splits_scale_with_the_data(tmp_path: Path) -> None:
    data = open_data(f"npz:{save_npz(tmp_path / 'd.npz', n=500)}", seed=0)
    sizes = {name: len(getattr(data, name)) for name in SPLIT_NAMES}
    assert sizes == {"test": 100, "validation": 80, "calibration": 40, "training": 280}


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


def test_identity_changes_with_files_and_labels(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "f")
    spec = f"imagefolder:{root}"
    before = open_data(spec, seed=0, image_size=16, calibration_images=8).test.identity()
    assert open_data(spec, seed=0, image_size=16, calibration_images=8).test.identity() == before
    file = root / "test" / "cat" / "0.png"
    file.write_bytes((root / "test" / "dog" / "0.png").read_bytes())
    after = open_data(spec, seed=0, image_size=16, calibration_images=8).test
    assert after.identity() != before
    assert after.fingerprint() == before[0]


def test_class_names_that_are_no_text_and_labels_beyond_reason(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="class_names: cannot read"):
        open_data("digits", seed=0, class_names_file=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="digits have names of their own"):
        open_data("digits", seed=0, class_names_file=tmp_path / "names.txt")
    file = save_npz(tmp_path / "d.npz")
    with np.load(file) as stored:
        images, labels = stored["images"], stored["labels"].copy()
    labels[3] = 10**9
    np.savez(tmp_path / "far.npz", images=images, labels=labels)
    with pytest.raises(InputError, match="label 1000000000 without class names"):
        open_data(f"npz:{tmp_path / 'far.npz'}", seed=0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_class_names_as_editors_save_them(encoding: str, tmp_path: Path) -> None:
    """With a byte-order mark, Windows' ends of lines, blanks behind names and empty lines at the end."""
    (tmp_path / "names.txt").write_bytes("cat \r\n dog\t\r\nbig bee\r\n\r\n \r\n".encode(encoding))
    folder = make_folder(tmp_path / "data")
    data = open_data(f"imagefolder:{folder}", seed=0, calibration_images=8, class_names_file=tmp_path / "names.txt")
    assert data.class_names == ("cat", "dog", "big bee")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("cat\ndog\n cat\n", "'cat' is on lines 1 and 3"),
        ("\ncat\ndog\n", "line 1 .* is empty"),
        ("cat\n  \ndog\n", "line 2 .* is empty"),
    ],
)
def test_class_names_whose_order_is_in_doubt(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(InputError, match=f"class_names: .*{match}"):
        open_data(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, class_names_file=tmp_path / "names.txt")


@pytest.mark.parametrize("kind", [str, Path])
def test_class_names_file_keeps_indices(kind: type, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\ncat\nbee\ndog\n")
    folder = make_folder(tmp_path / "data")
    data = open_data(f"imagefolder:{folder}", seed=0, calibration_images=8, class_names_file=kind(names))
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


@pytest.mark.parametrize("size", [16, 12])
def test_luma_is_pillow_s_before_it_is_resized(size: int, tmp_path: Path) -> None:
    data = open_data(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, calibration_images=8)
    colour = data.test.read(slice(0, 4)).permute(0, 2, 3, 1).numpy()
    luma = data.prepared(Preprocessing(size=size, resize="stretch", channels=1)).test.read(slice(0, 4))
    assert luma.shape == (4, 1, size, size)
    wanted = [Image.fromarray(c).convert("L").resize((size, size), Image.Resampling.BILINEAR) for c in colour]
    assert all(np.array_equal(one[0], c) for one, c in zip(luma, wanted, strict=True))


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 8, 8, 1)])
def test_grey_levels_are_their_own_luma(shape: tuple[int, ...], tmp_path: Path) -> None:
    levels = np.arange(40 * 64, dtype=np.uint8).reshape(shape)
    np.savez(tmp_path / "g.npz", images=levels, labels=np.arange(40) % 2)
    test = open_test(f"npz:{tmp_path / 'g.npz'}", seed=0)
    test.source.prepare(Preprocessing(size=8, channels=1, resize="none"))
    assert np.array_equal(test.read(slice(None))[:, 0], levels.reshape(40, 8, 8)[test.indices])


def test_images_of_other_sizes_are_fitted() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 30:50] = 255
    fitted = Preprocessing(size=28).apply(pixels)
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


def test_the_home_of_a_user_who_is_not_known() -> None:
    with pytest.raises(InputError, match="names the home folder of a user who is not known"):
        open_data("~nobody-here/images", seed=0)


def test_unknown_scheme_names_those_there_are() -> None:
    refused("imagefolder:DIR", "s3:bucket")
    refused("imagefolder:DIR", "imagefolder:")
    refused("no folder", "imagefolder:/does/not/exist")
    refused("no file", "npz:/does/not/exist.npz")
    refused("got 'CIFAR11'; did you mean 'CIFAR10'", "torchvision:CIFAR11")


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
    assert open_data(f"imagefolder:{root}", seed=0, calibration_images=8, image_size=24).image_size == 24


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


def test_labels_beyond_the_classes_are_refused_whatever_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_npz(tmp_path / "d.npz", class_names=np.array(["a", "b"]))
    refused(
        r"labels out of range: they must lie in 0\.\.1, one for each of 2 classes, .*d\.npz\[2\] has 2", f"npz:{path}"
    )

    class Pairs:
        """A torchvision set that names one class too few."""

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.targets, self.classes = [0, 1, 2] * 20, ("a", "b")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pairs)
    refused(r"labels out of range: .* 2 classes, CIFAR10\[2\] has 2", "torchvision:CIFAR10")
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    folder = make_folder(tmp_path / "folder")
    refused("'dog' .* is not one of the 1 class names", f"imagefolder:{folder}", class_names_file=names)


@pytest.mark.parametrize(("label", "names"), [(-1, {}), (0, {"class_names": np.array([], str)})])
def test_arrays_without_a_class(label: int, names: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", labels=np.full(60, label), **names)
    refused(
        rf"^data: expected at least one class in {path}, got labels from {label} to {label} and no class names$",
        f"npz:{path}",
    )


def test_class_names_are_taken_for_arrays_too(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    data = open_data(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, calibration_images=8, class_names_file=names)
    assert data.class_names == ("a", "b", "c", "d")


def test_npz_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    refused("cannot read", f"npz:{tmp_path / 'bad.npz'}")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str, tmp_path: Path) -> None:
    """Half transparent black over white is grey; the colour below full transparency does not matter."""
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        picture = Image.new("P", (3, 1))
        picture.putpalette([0, 0, 0, 9, 9, 9])
        picture.putpixel((1, 0), 1)
        picture.info["transparency"] = 1
    else:
        picture.putpixel((2, 0), (0, 0, 0, 127))
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 0 if mode == "P" else 128]


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 128, 255]


def test_one_pixel_and_a_line_of_pixels_are_fitted(tmp_path: Path) -> None:
    assert (Preprocessing(size=32).apply(np.full((1, 1, 3), 77, np.uint8)) == 77).all()
    # Enlarged whole, this line would take 256 x 25 million pixels.
    line = np.zeros((1, 100_000, 3), np.uint8)
    line[:, 49_990:50_010] = 200
    assert (Preprocessing(size=224).apply(line) == 200).all()
    assert Preprocessing(size=32).apply(np.ascontiguousarray(line.transpose(1, 0, 2))).shape == (32, 32, 3)


def test_cropping_of_long_images_leaves_the_middle_as_it_was() -> None:
    ramp = np.tile(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], (10, 1, 3))
    whole = np.asarray(Image.fromarray(ramp).resize((round(125 * 1.6), 16), Image.Resampling.BILINEAR))
    # 14 of 16 px, the convention for images that are not square; a crop by half a pixel shifts a ramp by 1.25 / 2.
    middle = whole[1:15, 93:107].astype(int)
    assert np.abs(Preprocessing(size=14).apply(ramp).astype(int) - middle).max() <= 1


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_enormous_images_are_refused_in_one_line(side: int, tmp_path: Path) -> None:
    """Both Pillow's warning (above 89 million pixels) and its error (above twice that)."""
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"bomb\.png has more than the \d+ pixels that are safe"):
        decode_file(path)


def test_a_program_in_a_picture_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives an EPS file to Ghostscript, whatever the file's name says."""
    from PIL import EpsImagePlugin

    path, started = tmp_path / "x.png", []
    Image.new("RGB", (8, 8)).save(path, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    with pytest.raises(InputError, match=r"x\.png \(it is none of JPEG, PNG"):
        decode_file(path)
    assert not started


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_formats_are_known_by_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    extra = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if kind == "MPO" else {}
    Image.new("RGB", (8, 8), (200, 200, 200)).save(path, kind, **extra)
    assert decode_file(path).shape == (8, 8, 3)
    assert abs(int(decode_file(path).mean()) - 200) <= 2  # what compression may change


def test_a_file_without_a_class_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"class_names: expected one class name per line, .*names\.txt holds none"):
        open_data(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, class_names_file=tmp_path / "names.txt")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif \(floating-point pixels"):
        decode_file(tmp_path / "a.tif")


def test_bad_images_are_skipped_only_when_asked_and_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    broken, empty = root / "test" / "cat" / "3.png", root / "train" / "dog" / "5.png"
    broken.write_bytes(broken.read_bytes()[:100])
    empty.write_bytes(b"")
    refused(r"cat/3\.png", f"imagefolder:{root}", calibration_images=8)
    data = open_data(f"imagefolder:{root}", seed=0, calibration_images=8, skip_bad_images=True)
    assert set(data.skipped) == {str(broken), str(empty)}
    assert len(data.test) == 39
    assert data.test.read(slice(None)).shape[0] == 39
    assert np.bincount(data.test.labels).tolist() == [19, 20]
    assert open_test(f"imagefolder:{root}", seed=0, skip_bad_images=True).source.skipped == (str(broken),)
    refused("skip_bad_images", "digits", skip_bad_images=True)
    for file in (root / "test" / "cat").iterdir():
        file.write_bytes(b"")
    refused("no image that can be decoded", f"imagefolder:{root}", calibration_images=8, skip_bad_images=True)


def test_test_images_of_each_layout(tmp_path: Path) -> None:
    both = make_folder(tmp_path / "both")
    assert len(open_test(f"imagefolder:{both}", seed=0)) == 40
    val = make_folder(tmp_path / "val", ("train", "val"))
    assert open_test(f"imagefolder:{val}", seed=0).source.name_of(0).startswith(str(val / "val"))
    pool = open_test(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, test_images=10)
    assert (len(pool), len(pool.source), pool.source.image_size) == (10, 60, 16)
    # What `open_data` calls the test split, in the same order.
    data = open_data(f"imagefolder:{both}", seed=3, calibration_images=8)
    assert torch.equal(data.test.indices, open_test(f"imagefolder:{both}", seed=3).indices)
    with pytest.raises(InputError, match="test_images: expected 1 to the 60"):
        open_test(f"npz:{tmp_path / 'd.npz'}", seed=0, test_images=61)


def test_no_images_are_read_as_none(tmp_path: Path) -> None:
    images = open_data(f"npz:{save_npz(tmp_path / 'd.npz')}", seed=0, image_size=16).test
    assert images.source.read([]).shape == (0, 3, 16, 16)
