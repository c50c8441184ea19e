"""From a data spec to four disjoint, seeded splits of decoded images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qrobust.data.files import LeftOutLog
from qrobust.data.folders import SPLIT_FOLDERS, class_folders, folder_images, split_folders
from qrobust.data.lists import list_images
from qrobust.data.sources import (
    Images,
    digits_images,
    npz_images,
    torchvision_images,
)
from qrobust.data.splits import SPLIT_NAMES, Data, Split
from qrobust.errors import InputError, nearest, unknown
from qrobust.paths import check_file, user_path
from qrobust.preprocessing import LEAST_SIZE, NATIVE_SIZE_LIMIT, Preprocessing, PreprocessingConfig, resolve
from qrobust.record.data import LeftOut

SCHEMES = {
    "imagefolder": "imagefolder:DIR",
    "list": "list:FILE",
    "npz": "npz:FILE",
    "torchvision": "torchvision:NAME",
    "digits": "digits",
}

# Images to choose by: at most, and how many a fifth of a small set may be.
MOST_VALIDATION, FEW_VALIDATION = 5000, 500
# Images on which ranges are observed, where nobody says how many: more change little, and are missing in training.
MOST_CALIBRATION, LEAST_CALIBRATION = 512, 32


def open_data(
    spec: str,
    *,
    seed: int,
    image_size: int | None = None,
    calibration_images: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    class_names_file: str | Path | None = None,
    root: str | Path | None = None,
    skip_bad_images: bool = False,
) -> Data:
    """Open a data set and split it.

    A folder with folders of splits (`qrobust.data.folders.SPLIT_FOLDERS`) keeps them apart: test images come from
    `test` (from `val` where there is no `test`), validation from `val` where both exist, everything else from
    `train` (from `val` where there is no `train`). Any other source, and a folder of one split, is one pool, of
    which a seeded fifth is the test split. Of the training pool a tenth is the validation split; more of a small one,
    see `validation_count`.

    Args:
        spec: `imagefolder:DIR`, `list:FILE`, `npz:FILE`, `torchvision:NAME` or `digits`.
        seed: decides every split.
        image_size: side in pixels to which images are brought, see `preprocessing_for`; `Data.prepared` says it
            all. Default: the images' own side where all are square, alike and at most 128 px.
        calibration_images: images on which quantization ranges are observed. Default: see `calibration_count`.
        train_images: keep only so many training images (default all).
        test_images: keep only so many test images (default all).
        class_names_file: one class name per line, in index order, for data of some of the classes.
        root: where torchvision data sets lie.
        skip_bad_images: leave out files of an `imagefolder` or a `list` that cannot be decoded, and list them.

    Raises:
        InputError: unknown scheme, missing or damaged files, too few images for a split.
    """
    pools = _open_pools(spec, class_names_file, root, skip_bad_images)
    train_pool, val_pool, test_pool = pools.for_splits()
    opened = [pool for pool in (train_pool, val_pool, test_pool) if pool is not None]
    native_size = _native_size(opened)
    for pool in opened:
        if pool.class_names != train_pool.class_names:
            raise InputError(
                f"data: train and test of {spec} must hold the same classes, got "
                f"{len(train_pool.class_names)} and {len(pool.class_names)}, which differ"
            )

    rest = _shuffled(len(train_pool), seed)
    if test_pool is None:
        test_pool, rest, test = train_pool, rest[len(rest) // 5 :], rest[: len(rest) // 5]
    else:
        test = _shuffled(len(test_pool), seed)
    if val_pool is None:
        count = validation_count(len(rest))
        val_pool, validation, rest = train_pool, rest[:count], rest[count:]
    else:
        validation = _shuffled(len(val_pool), seed)
    if calibration_images is None:
        calibration_images = calibration_count(len(rest))
    if len(rest) < calibration_images + 1:
        raise InputError(
            f"calibration_images: expected fewer than the {len(rest)} images that {spec} leaves for "
            f"calibration and training, got {calibration_images}"
        )
    if test_images is not None and test_images > len(test):
        raise InputError(f"test_images: expected at most the {len(test)} of {spec}, got {test_images}")
    data = Data(
        calibration=pools.split(train_pool, rest[:calibration_images]),
        training=pools.split(train_pool, rest[calibration_images:][:train_images]),
        validation=pools.split(val_pool, validation),
        test=pools.split(test_pool, test[:test_images]),
        class_names=train_pool.class_names,
        native_size=native_size,
        skipped=tuple(name for pool in opened for name in pool.skipped),
        left_out=pools.left_out,
    )
    for name in SPLIT_NAMES:
        if len(getattr(data, name)) == 0:
            raise InputError(f"data: {spec} has too few images for a {name} split (at least 1 needed, got 0)")
    found = preprocessing_for(image_size, native_size)
    return data if found is None else data.prepared(found)


def preprocessing_for(image_size: int | None, native_size: int | None) -> Preprocessing | None:
    """What is done to images of which nothing but a size is said; None where there is none.

    Args:
        image_size: S. Default: the images' own, up to 128 px.
        native_size: the side that the images share, if they are square and alike.
    """
    if image_size is None and (native_size is None or not LEAST_SIZE <= native_size <= NATIVE_SIZE_LIMIT):
        return None
    nothing = PreprocessingConfig()
    return resolve(nothing, nothing, image_size or native_size or 0, native_size=native_size, channels=3)


def open_test(
    spec: str,
    *,
    seed: int,
    image_size: int | None = None,
    test_images: int | None = None,
    class_names_file: str | Path | None = None,
    root: str | Path | None = None,
    skip_bad_images: bool = False,
) -> Split:
    """Open what a data set has to test on: its `test` part, else `val`, else all of it if it is not divided.

    Args:
        spec: as for `open_data`.
        seed: decides the order, and so which `test_images` are kept.
        image_size: as for `open_data`.
        test_images: keep only so many (default all).
        class_names_file: as for `open_data`.
        root: where torchvision data sets lie.
        skip_bad_images: as for `open_data`.

    Raises:
        InputError: as `open_data`, or there are training images alone.
    """
    pools = _open_pools(spec, class_names_file, root, skip_bad_images, test_only=True)
    pool = pools.for_test()
    pool.left_out = pools.left_out
    if found := preprocessing_for(image_size, pool.native_size()):
        pool.prepare(found)
    if test_images is not None and not 1 <= test_images <= len(pool):
        raise InputError(f"test_images: expected 1 to the {len(pool)} of {spec}, got {test_images}")
    return pools.split(pool, _shuffled(len(pool), seed)[:test_images])


def validation_count(images: int) -> int:
    """How many of so many images to choose by: a tenth, but a fifth as long as that is below `FEW_VALIDATION`."""
    return min(MOST_VALIDATION, max(images // 10, min(images // 5, FEW_VALIDATION)))


def calibration_count(images: int) -> int:
    """How many of so many images to observe ranges on: an eighth, `LEAST_CALIBRATION` to `MOST_CALIBRATION`."""
    return min(MOST_CALIBRATION, max(images // 8, min(images // 2, LEAST_CALIBRATION)))


def _shuffled(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


@dataclass(frozen=True)
class _Pools:
    """Images by kind of split (`train`, `val`, `test`), or one pool called "", which is not divided.

    Attributes:
        images: the pools.
        names: what the source calls each kind, where it is not divided by qrobust.
        left_out: what of the source is not used.
    """

    images: dict[str, Images]
    names: dict[str, str] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    def for_splits(self) -> tuple[Images, Images | None, Images | None]:
        """To take training, validation and test images from; None where a part of the first is taken."""
        if len(self.images) == 1:
            return next(iter(self.images.values())), None, None
        train = self.images.get("train") or self.images["val"]
        if "test" not in self.images:
            return train, None, self.images["val"]
        validation = self.images.get("val") if "train" in self.images else None
        return train, validation, self.images["test"]

    def for_test(self) -> Images:
        """To take test images from."""
        return next(self.images[kind] for kind in ("test", "val", "") if kind in self.images)

    def split(self, pool: Images, indices: torch.Tensor) -> Split:
        """Some images of a pool, with the name that the source has for it."""
        kind = next(kind for kind, images in self.images.items() if images is pool)
        return Split(pool, indices, taken_from=self.names.get(kind))


def _open_pools(
    spec: str, names_file: str | Path | None, root: str | Path | None, skip_bad: bool, *, test_only: bool = False
) -> _Pools:
    scheme, _, value = spec.partition(":")
    names = None if names_file is None else _read_names(user_path(names_file))
    if scheme == "imagefolder" and value:
        return _open_folder(user_path(value), names, skip_bad, test_only)
    if scheme == "list" and value:
        return _open_list(user_path(value), names, skip_bad, test_only)
    if skip_bad:
        raise InputError(f"skip_bad_images: expected data of files, imagefolder:DIR or list:FILE, got {spec}")
    if scheme == "npz" and value:
        return _Pools({"": npz_images(check_file(user_path(value), "data"), names)})
    if scheme == "torchvision" and value:
        folder = user_path(root or "~/.cache/torchvision")
        parts = {kind: torchvision_images(value, folder, kind == "train", names) for kind in ("train", "test")}
        return _Pools(parts, {kind: kind for kind in parts})
    if spec == "digits":
        if names is not None:
            raise InputError("class_names: the digits have names of their own")
        return _Pools({"": digits_images()})
    if user_path(spec).is_dir():
        near = [f"imagefolder:{spec}"]
    else:
        near = [SCHEMES[found] for found in nearest(scheme, SCHEMES)]
    raise unknown("data", spec, SCHEMES.values(), near=near)


def _read_names(file: Path) -> list[str]:
    """Class names, one a line, without blanks around them.

    Raises:
        InputError: the file is not text, or a line before the last name is empty or repeats a name.
    """
    check_file(file, "class_names")
    try:
        content = file.read_bytes()
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class_names: cannot read {file} ({error})") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise InputError(f"class_names: expected one class name per line, {file} holds none")
    lines: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"class_names: expected one class name per line, line {number} of {file} is empty")
        if (first := lines.setdefault(name, number)) != number:
            raise InputError(
                f"class_names: expected different names, {name!r} is on lines {first} and {number} of {file}"
            )
    return names


def _open_folder(folder: Path, names: list[str] | None, skip_bad: bool, test_only: bool) -> _Pools:
    """Its splits, or all of it; for a test only that which is tested on."""
    if not folder.is_dir():
        raise InputError(f"data: no folder {folder}")
    log = LeftOutLog(folder)
    splits = split_folders(folder, log)
    if not splits:
        return _Pools({"": folder_images(folder, names, skip_bad=skip_bad, log=log)}, left_out=log.entries())
    if names is None and len(splits) > 1:  # the same order of classes for all
        first = next(splits[kind] for kind in SPLIT_FOLDERS if kind in splits)
        names = [path.name for path in class_folders(first, LeftOutLog(folder))]
    if test_only:
        kind = _to_test_on(folder, splits)
        splits = {kind: splits[kind]}
    pools = {kind: folder_images(path, names, skip_bad=skip_bad, log=log) for kind, path in splits.items()}
    return _Pools(pools, {kind: path.name for kind, path in splits.items()}, log.entries())


def _open_list(file: Path, names: list[str] | None, skip_bad: bool, test_only: bool) -> _Pools:
    """The splits that a file lists, or all of it; for a test only that which is tested on."""
    pools, called = list_images(file, names, skip_bad=skip_bad)
    if test_only and called:
        kind = _to_test_on(file, called)
        pools, called = {kind: pools[kind]}, {kind: called[kind]}
    return _Pools(pools, called)


def _to_test_on(source: Path, splits: Collection[str]) -> str:
    """The kind of split that is tested on.

    Raises:
        InputError: there are training images only.
    """
    kind = next((kind for kind in ("test", "val") if kind in splits), None)
    if kind is None:
        raise InputError(
            f"data: expected test images, {source} holds training images alone; to measure on these all the same, "
            "give them without a split (imagefolder:DIR/train)"
        )
    return kind


def _native_size(pools: list[Images]) -> int | None:
    """The side that the images of all pools share, if they are square and alike."""
    native = {pool.native_size() for pool in pools}
    return native.pop() if len(native) == 1 else None
