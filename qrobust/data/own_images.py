"""A user's own images in Python, as tensors or as a torch data set, made a split."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from qrobust.data.sources import Images
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.preprocessing import Preprocessing


def as_split(images: Any, class_names: Sequence[str] | None = None) -> Split:
    """A split of images that are there already, in their order.

    Args:
        images: one of
            - a `Split`, which is returned as it is;
            - `(images, labels)`: uint8 `(N, 3, S, S)` or grey `(N, 1, S, S)`, and integers `(N,)`;
            - a torch data set of `(image, label)`, the image being a PIL image or uint8 `(C, S, S)`. Each item is
              read once now, for its label, and again when it is measured, so it must be the same each time.
        class_names: one name per class index. Default: the data set's `classes`, else the numbers up to the largest
            label.

    Raises:
        InputError: names what is not as it must be: `images`, `labels` or `split`.
    """
    if isinstance(images, Split):
        return images
    if isinstance(images, tuple) and len(images) == 2 and all(isinstance(part, torch.Tensor) for part in images):
        return _of_tensors(*images, class_names)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, tuple | torch.Tensor):
        return _of_dataset(images, class_names)
    raise InputError(
        f"split: expected a Split, (images, labels) or a data set of (image, label), got {type(images).__name__}"
    )


def _of_tensors(images: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str] | None) -> Split:
    _check_pixels("images", images, 4)
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"labels: expected {len(images)} integers, one per image, got {labels.dtype} {tuple(labels.shape)}"
        )
    pixels = images.cpu().contiguous()
    return _split(lambda i: pixels[i], labels.cpu().numpy(), class_names, pixels.shape[1:], _crc(pixels.numpy()))


def _of_dataset(dataset: Any, class_names: Sequence[str] | None) -> Split:
    def read(index: int) -> torch.Tensor:
        return _item(dataset, index)[0]

    labels, shape, version = [], None, 0
    for index in range(len(dataset)):
        pixels, label = _item(dataset, index)
        if shape not in (None, pixels.shape):
            raise InputError(
                f"images: expected all of one size, got {tuple(pixels.shape)} for item {index} and {tuple(shape)} "
                "before; resize and crop them in the data set"
            )
        shape, version = pixels.shape, _crc(pixels.numpy(), version)
        labels.append(label)
    if shape is None:
        raise InputError("images: expected at least 1, the data set has none")
    return _split(read, np.array(labels), class_names or getattr(dataset, "classes", None), shape, version)


def _item(dataset: Any, index: int) -> tuple[torch.Tensor, int]:
    """Pixels `(C, S, S)` and label."""
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(
            f"split: expected (image, label) from item {index} of the data set, got {type(item).__name__}"
        )
    image, label = item
    if isinstance(image, Image.Image):
        pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
        image = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    _check_pixels(f"images: item {index}", image, 3)
    try:
        return image.contiguous(), int(label)
    except (TypeError, ValueError) as error:
        raise InputError(f"labels: expected an integer for item {index}, got {label!r}") from error


def _check_pixels(what: str, pixels: Any, ndim: int) -> None:
    form = "(N, C, S, S)" if ndim == 4 else "(C, S, S)"
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8:
        got = f"{pixels.dtype}" if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise InputError(
            f"{what}: expected uint8 pixels {form} from 0 to 255, as a device sees them, got {got}; of images in "
            "[0, 1] these are (255 * images).round().to(torch.uint8)"
        )
    if pixels.ndim != ndim or pixels.shape[-3] not in (1, 3) or pixels.shape[-1] != pixels.shape[-2]:
        raise InputError(f"{what}: expected square uint8 pixels {form}, C 3 or 1, got {tuple(pixels.shape)}")
    if 0 in pixels.shape:
        raise InputError(f"{what}: expected at least 1, got {tuple(pixels.shape)}")


def _crc(pixels: np.ndarray, before: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data, before)


def _split(read: Any, labels: np.ndarray, class_names: Sequence[str] | None, shape: Sequence[int], crc: int) -> Split:
    """`read` maps an index to uint8 `(C, S, S)`."""
    if labels.min() < 0:
        raise InputError(f"labels: expected class indices from 0, got {labels.min()}")
    names = list(class_names) if class_names else [str(i) for i in range(int(labels.max()) + 1)]
    if labels.max() >= len(names):
        raise InputError(
            f"labels: expected 0 to {len(names) - 1}, an index of {len(names)} classes, got {labels.max()}"
        )

    def load(index: int) -> np.ndarray:
        pixels = read(index).permute(1, 2, 0).numpy()
        return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels

    source = Images(load, labels, names, lambda i: f"images[{i}]", f"{crc:08x}", f"{crc:08x}")
    source.prepare(Preprocessing(size=shape[1], resize="none", channels=shape[0]))
    return Split(source, torch.arange(len(labels)))
