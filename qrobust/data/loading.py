"""From a data spec to four disjoint, seeded splits of decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qrobust.data.sources import (
    Images,
    digits_images,
    folder_images,
    npz_images,
    torchvision_images,
)
from qrobust.data.splits import SPLIT_NAMES, Data, Split
from qrobust.errors import InputError, nearest, unknown
from qrobust.paths import check_file, user_path
from qrobust.preprocessing import LEAST_SIZE, NATIVE_SIZE_LIMIT, Preprocessing, PreprocessingConfig, resolve

SCHEMES = {"imagefolder": "imagefolder:DIR", "npz": "npz:FILE", "torchvision": "torchvision:NAME", "digits": "digits"}


def open_data(
    spec: str,
    *,
    seed: int,
    image_size: int | None = None,
    calibration_images: int = 512,
    train_images: int | None = None,
    test_images: int | None = None,
    class_names_file: str | Path | None = None,
    root: str | Path | None = None,
    skip_bad_images: bool = False,
) -> Data:
    """Open a data set and split it.

    A folder with `train` and `test` (or `val`) keeps them apart: test images come from `test`
    (from `val` where there is no `test`), validation from `val` where both exist, everything else
    from `train`. Any other source is one pool, of which a seeded fifth is the test split. A tenth of
    the training pool, at most 5,000 images, is the validation split.

    Args:
        spec: `imagefolder:DIR`, `npz:FILE`, `torchvision:NAME` or `digits`.
        seed: decides every split.
        image_size: side in pixels to which images are brought, see `preprocessing_for`; `Data.prepared` says it
            all. Default: the images' own side where all are square, alike and at most 128 px.
        calibration_images: images on which quantization ranges are observed.
        train_images: keep only so many training images (default all).
        test_images: keep only so many test images (default all).
        class_names_file: one class name per line, in index order, for data of some of the classes.
        root: where torchvision data sets lie.
        skip_bad_images: leave out files of an `imagefolder` that cannot be decoded, and list them.

    Raises:
        InputError: unknown scheme, missing or damaged files, too few images for a split.
    """
    train_pool, val_pool, test_pool = _open_pools(spec, class_names_file, root, skip_bad_images)
    pools = [pool for pool in (train_pool, val_pool, test_pool) if pool is not None]
    native_size = _native_size(pools)
    for pool in pools:
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
        count = min(5000, len(rest) // 10)
        val_pool, validation, rest = train_pool, rest[:count], rest[count:]
    else:
        validation = _shuffled(len(val_pool), seed)
    if len(rest) < calibration_images + 1:
        raise InputError(
            f"calibration_images: expected fewer than the {len(rest)} images that {spec} leaves for "
            f"calibration and training, got {calibration_images}"
        )
    if test_images is not None and test_images > len(test):
        raise InputError(f"test_images: expected at most the {len(test)} of {spec}, got {test_images}")
    data = Data(
        calibration=Split(train_pool, rest[:calibration_images]),
        training=Split(train_pool, rest[calibration_images:][:train_images]),
        validation=Split(val_pool, validation),
        test=Split(test_pool, test[:test_images]),
        class_names=train_pool.class_names,
        native_size=native_size,
        skipped=tuple(name for pool in pools for name in pool.skipped),
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
    """Open what a data set has to test on: its `test` part, else `val`, else all of it.

    Args:
        spec: as for `open_data`.
        seed: decides the order, and so which `test_images` are kept.
        image_size: as for `open_data`.
        test_images: keep only so many (default all).
        class_names_file: as for `open_data`.
        root: where torchvision data sets lie.
        skip_bad_images: as for `open_data`.

    Raises:
        InputError: as `open_data`.
    """
    train, val, test = _open_pools(spec, class_names_file, root, skip_bad_images, test_only=True)
    pool = test or val or train
    if found := preprocessing_for(image_size, pool.native_size()):
        pool.prepare(found)
    if test_images is not None and not 1 <= test_images <= len(pool):
        raise InputError(f"test_images: expected 1 to the {len(pool)} of {spec}, got {test_images}")
    return Split(pool, _shuffled(len(pool), seed)[:test_images])


def _shuffled(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


def _open_pools(
    spec: str, names_file: str | Path | None, root: str | Path | None, skip_bad: bool, *, test_only: bool = False
) -> tuple[Images, Images | None, Images | None]:
    scheme, _, value = spec.partition(":")
    names = None if names_file is None else _read_names(user_path(names_file))
    if scheme == "imagefolder" and value:
        return _open_folder(user_path(value), names, skip_bad, test_only)
    if skip_bad:
        raise InputError(f"skip_bad_images: expected data in imagefolder:DIR, which holds files, got {spec}")
    if scheme == "npz" and value:
        return npz_images(check_file(user_path(value), "data"), names), None, None
    if scheme == "torchvision" and value:
        folder = user_path(root or "~/.cache/torchvision")
        train, test = (torchvision_images(value, folder, part, names) for part in (True, False))
        return train, None, test
    if spec == "digits":
        if names is not None:
            raise InputError("class_names: the digits have names of their own")
        return digits_images(), None, None
    if Path(spec).expanduser().is_dir():
        near = [f"imagefolder:{spec}"]
    else:
        near = [SCHEMES[found] for found in nearest(scheme, SCHEMES)]
    raise unknown("data", spec, SCHEMES.values(), near=near)


def _read_names(file: Path) -> list[str]:
    check_file(file, "class_names")
    try:
        names = [n for n in file.read_text(encoding="utf-8").splitlines() if n.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class_names: cannot read {file} ({error})") from error
    if not names:
        raise InputError(f"class_names: expected one class name per line, {file} holds none")
    return names


def _open_folder(
    folder: Path, names: list[str] | None, skip_bad: bool, test_only: bool
) -> tuple[Images, Images | None, Images | None]:
    """Its parts; what is bad is looked for, by decoding everything, only in those that will be used."""
    if not folder.is_dir():
        raise InputError(f"data: no folder {folder}")
    parts = {n: folder / n for n in ("train", "val", "test") if (folder / n).is_dir()}
    if "train" not in parts:
        return folder_images(folder, names, skip_bad=skip_bad), None, None
    if len(parts) == 1:
        return folder_images(parts["train"], names, skip_bad=skip_bad), None, None
    last = "test" if "test" in parts else "val"

    def opened(name: str) -> Images:
        return folder_images(parts[name], names, skip_bad=skip_bad and (name == last or not test_only))

    train = opened("train")
    names = names or list(train.class_names)
    others = {name: opened(name) for name in parts if name != "train"}
    if "test" in others:
        return train, others.get("val"), others["test"]
    return train, None, others["val"]


def _native_size(pools: list[Images]) -> int | None:
    """The side that the images of all pools share, if they are square and alike."""
    native = {pool.native_size() for pool in pools}
    return native.pop() if len(native) == 1 else None
