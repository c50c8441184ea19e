"""Where images come from: every source yields square uint8 images and integer labels."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from qrobust.data.files import FORMATS
from qrobust.data.pixel_cache import PixelCache
from qrobust.errors import InputError, unknown
from qrobust.paths import check_file
from qrobust.preprocessing import Preprocessing, SizeError, unknown_size
from qrobust.record.data import LeftOut

# Images whose sizes are looked at.
SAMPLE = 16
# A label above this is taken for a mistake where classes have no names.
MOST_UNNAMED = 100_000


class Images:
    """A labelled collection, decoded on demand.

    Args:
        load: maps an index to an RGB uint8 array `(H, W, 3)` of any size.
        labels: one class index per image.
        class_names: one name per class index.
        names: what to call image `i` in an error message.
        version: changes when the images do.
        listing: changes when images come or go, and with it what a split of them holds.

    Attributes:
        preprocessing: how they are read; None until whoever opens a source says it (`prepare`).
        contents: functions of an image's index that say more and more exactly what it holds; images are the same if
            the last ones agree.
        skipped: files that cannot be decoded, where those are to be left out.
        left_out: files and folders of the data that are not used, by reason.

    Raises:
        InputError: a label that is no class index.
    """

    def __init__(
        self,
        load: Callable[[int], np.ndarray],
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        names: Callable[[int], str],
        version: str = "",
        listing: str = "",
    ) -> None:
        self.version, self.listing = version, listing
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64))  # a copy: a file may lie below
        self.class_names = tuple(class_names)
        wrong = ((self.labels < 0) | (self.labels >= len(self.class_names))).nonzero().flatten().tolist()
        if wrong and self.class_names:  # without classes there are no labels
            raise InputError(
                f"data: labels out of range: they must lie in 0..{len(self.class_names) - 1}, one for each of "
                f"{len(self.class_names)} classes, {names(wrong[0])} has {int(self.labels[wrong[0]])}"
            )
        self.name_of = names
        self.preprocessing: Preprocessing | None = None
        self.skipped: tuple[str, ...] = ()
        self.left_out: tuple[LeftOut, ...] = ()
        self.contents: tuple[Callable[[int], Hashable], ...] = (lambda i: _digest(load(i)),)
        self._load = load
        self._cache = PixelCache()

    def __len__(self) -> int:
        return len(self.labels)

    def prepare(self, preprocessing: Preprocessing) -> None:
        """Read images so from now on."""
        self.preprocessing = preprocessing
        self._cache = PixelCache()

    @property
    def prepared(self) -> Preprocessing:
        """How images are read.

        Raises:
            InputError: nobody said it.
        """
        if self.preprocessing is None:
            raise unknown_size(self.native_size(), "the network")
        return self.preprocessing

    @property
    def image_size(self) -> int:
        """S of what is read."""
        return self.prepared.size

    @property
    def channels(self) -> int:
        """C of what is read: 3 for RGB, 1 for luma."""
        return self.prepared.channels

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of a seeded sample of images, as they lie there."""
        sample = np.random.default_rng(0).permutation(len(self))[:SAMPLE]
        return tuple(self._load(int(i)).shape[:2] for i in sample)

    def native_size(self) -> int | None:
        """The side shared by a seeded sample of images, or None if they are not square and alike."""
        (height, width), *others = set(self.sizes)
        return height if height == width and not others else None

    def decode(self, index: int) -> np.ndarray:
        """An image as it is, RGB uint8 `(H, W, 3)`."""
        return self._load(index)

    def read(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Decode images to uint8 `(n, C, S, S)`.

        Raises:
            InputError: an image cannot be decoded, or is not of the size that it must have; the message names it.
        """
        if not len(indices):
            return torch.empty((0, self.prepared.channels, self.prepared.size, self.prepared.size), dtype=torch.uint8)
        return torch.stack([self._image(int(i)) for i in indices])

    def _image(self, index: int) -> torch.Tensor:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        try:
            pixels = self.prepared.apply(self._load(index))
        except SizeError as error:
            raise InputError(f"data: {self.name_of(index)}: {error}") from error
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        self._cache.put(index, image)
        return image


def _digest(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return pixels.shape, hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def decode_file(path: Path) -> np.ndarray:
    """Read an image file as RGB uint8 `(H, W, 3)`, turned upright by its EXIF orientation.

    What is transparent shows white; 16-bit greys keep their upper 8 bits; palettes and inks become colours.

    Raises:
        InputError: it is no image, is damaged, has floating-point pixels, whose range is not known, or more
            pixels than Pillow takes for safe.
    """
    check_file(path, "data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"data: {path} has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe") from error
    except UnidentifiedImageError as error:
        raise InputError(f"data: cannot decode image {path} (it is none of {', '.join(FORMATS)})") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"data: cannot decode image {path} ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def are_images(array: np.ndarray) -> bool:
    """Whether it is uint8 of shape `(N, H, W, 3)`, `(N, H, W, 1)` or `(N, H, W)`."""
    return array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[3:] in ((), (1,), (3,))


def array_images(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, origin: str) -> Images:
    """Images already in memory, see `are_images`, and labels `(N,)`."""
    if not are_images(images):
        raise InputError(
            f"data: 'images' in {origin} must be uint8 (N, H, W, 3) or (N, H, W), got {images.dtype} {images.shape}"
        )
    if labels.ndim != 1 or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"data: 'labels' in {origin} must be {len(images)} integers, got {labels.dtype} {labels.shape}"
        )
    if len(images) == 0:
        raise InputError(f"data: {origin} holds no image")
    if 0 in images.shape[1:3]:
        raise InputError(f"data: images in {origin} must have pixels, got {images.shape}")
    names = list(class_names) if class_names is not None else _numbered(labels)
    if not names:
        raise InputError(
            f"data: expected at least one class in {origin}, got labels from {labels.min()} to {labels.max()} and no "
            "class names"
        )

    def load(index: int) -> np.ndarray:
        image = images[index]
        return image if image.shape[2:] == (3,) else image.reshape(*image.shape[:2], 1).repeat(3, axis=2)

    version = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return Images(load, labels, names, lambda i: f"{origin}[{i}]", version, version)


def _numbered(labels: np.ndarray) -> list[str]:
    """Class names where there are none: the numbers up to the largest label."""
    if labels.max() > MOST_UNNAMED:
        raise InputError(
            f"data: label {labels.max()} without class names, expected at most {MOST_UNNAMED}; name the classes if "
            "there are so many"
        )
    return [str(i) for i in range(int(labels.max()) + 1)]


def npz_images(path: Path, class_names: Sequence[str] | None = None) -> Images:
    """An `.npz` file with `images`, `labels` and optionally `class_names`, before which those given go.

    Pickles are refused.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = {"images", "labels"} - set(archive.files)
            if missing:
                raise InputError(f"data: {path} must hold arrays 'images' and 'labels', lacks {sorted(missing)}")
            if class_names is None and "class_names" in archive.files:
                class_names = [str(n) for n in archive["class_names"]]
            images, labels = archive["images"], archive["labels"]
    except InputError:
        raise
    except Exception as error:  # numpy raises a different type for each kind of damage
        raise InputError(f"data: cannot read {path} as npz without pickles ({error})") from error
    return array_images(images, labels, class_names, str(path))


def digits_images() -> Images:
    """scikit-learn's 1,797 real handwritten digits (8x8 grey), enlarged to 32x32.

    Source: UCI "Optical Recognition of Handwritten Digits", shipped inside scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(d).resize((32, 32), Image.Resampling.BICUBIC)) for d in small]
    return array_images(np.stack(large), digits.target, [str(n) for n in digits.target_names], "digits")


@functools.cache
def photographs() -> tuple[np.ndarray, ...]:
    """Two photographs that scikit-learn ships, uint8 `(H, W, 3)`: a Chinese temple and a flower."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def torchvision_images(name: str, root: Path, train: bool, class_names: Sequence[str] | None = None) -> Images:
    """A torchvision data set of (PIL image, label) pairs already on disk, e.g. `CIFAR10`.

    Class names are those given, else its own, else numbers.
    """
    import torchvision

    factory = getattr(torchvision.datasets, name, None)
    if factory is None:
        raise unknown("data", name, torchvision.datasets.__all__)
    try:
        dataset = factory(root=str(root), train=train, download=False)
    except TypeError as error:
        raise InputError(
            f"data: torchvision.datasets.{name} has no train/test form; use imagefolder: or npz:"
        ) from error
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"data: torchvision.datasets.{name} is not in {root}; download it there first ({error})"
        ) from error
    labels = np.asarray(dataset.targets)
    names = class_names or getattr(dataset, "classes", None) or _numbered(labels)
    return Images(lambda i: np.asarray(dataset[i][0].convert("RGB")), labels, names, lambda i: f"{name}[{i}]")
