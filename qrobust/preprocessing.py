"""How a picture becomes what a network reads: declared once, executed wherever images are decoded, kept in graphs.

`PreprocessingConfig` is what a user says, or what a model's author said of it; `resolve` makes one `Preprocessing` of
both, which leaves nothing open. `Preprocessing.steps` tells it to whoever has only the exported file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from qrobust.choices import Section, choice
from qrobust.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# What is done to an image, under `do`, and its numbers.
Step: TypeAlias = dict[str, str | int | bool]
RESIZES = ("crop", "stretch", "letterbox", "none")
# Pillow's filters by their names there.
FILTERS = ("nearest", "box", "bilinear", "bicubic", "lanczos")
ORDERS = ("rgb", "bgr")
# Filters that can be told not to look at more pixels where an image becomes smaller.
NOT_ANTIALIASED = ("nearest", "bilinear")
# Below this side there is nothing to shift; beyond the other memory runs out.
LEAST_SIZE, MOST_SIDE = 8, 4096
# Up to this side a uniform, square data set is used at its own size whatever the model prefers.
NATIVE_SIZE_LIMIT = 128
# Of the shorter side, kept by the centre crop: the ImageNet convention, 224 of 256.
CROP_RATIO = 224 / 256
# Smaller ones would enlarge an image by more than memory holds.
LEAST_RATIO = 0.1
# Before an image is cropped, what lies further from its centre than this many shorter sides is left out: enlarged
# whole, a line of pixels could fill the memory.
MOST_ASPECT = 8
# Rounding of a ratio such as 224 / 232, which must not turn 232 px into 231.
ROUNDING = 1e-6

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def parse_normalization(text: str, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations per channel.

    Args:
        text: `none`; a key of `NORMALIZATIONS`, which are of three channels; or `m,m,m/s,s,s`, of one `m/s`.
        channels: how many the network reads.

    Raises:
        InputError: none of these, or for another number of channels.
    """
    if text == "none":
        return (0.0,) * channels, (1.0,) * channels
    try:
        mean, std = NORMALIZATIONS.get(text) or (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not (len(mean) == len(std) == channels and all(map(math.isfinite, mean + std)) and min(std) > 0):
        presets = [name for name, (known, _) in NORMALIZATIONS.items() if len(known) == channels]
        form = "/".join(",".join(letter * channels) for letter in "ms")
        raise InputError(
            f"normalization: expected {', '.join([*presets, 'none'])} or {form!r} with positive s for images of "
            f"{channels} channel{'s' * (channels > 1)}, got {text!r}"
        )
    return mean, std


class SizeError(InputError):
    """An image is not of the size that it must have where nothing is resized."""


@dataclass(frozen=True)
class PreprocessingConfig(Section):
    """What is said of a network's input; None: not said.

    Attributes:
        resize: `crop`: the shorter side to a size, then the centre; `stretch`: both sides to `image_size`;
            `letterbox`: the longer side to it, the rest filled; `none`: images must have it.
        image_size: side in pixels of what the network reads.
        crop_ratio: share of the shorter side that `crop` keeps.
        interpolation: Pillow's filter.
        antialias: whether the filter looks at all pixels where an image becomes smaller, as Pillow and timm do.
        fill: grey level, 0 to 255, beside a letterboxed image.
        channel_order: `rgb`, or `bgr` for a network that was trained on images as OpenCV reads them.
        normalization: `imagenet`, `cifar10`, `none` or `m,m,m/s,s,s`, in the order of the network's channels.
    """

    resize: str | None = choice(None, one_of=RESIZES)
    image_size: int | None = choice(None, at_least=LEAST_SIZE, at_most=MOST_SIDE)
    crop_ratio: float | None = choice(None, at_least=LEAST_RATIO, at_most=1)
    interpolation: str | None = choice(None, one_of=FILTERS)
    antialias: bool | None = None
    fill: int | None = choice(None, at_least=0, at_most=255)
    channel_order: str | None = choice(None, one_of=ORDERS)
    normalization: str | None = None

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        for name, rule in (("crop_ratio", "crop"), ("fill", "letterbox")):
            if getattr(self, name) is not None and self.resize not in (None, rule):
                yield f"{name}: expected with --resize {rule} only, got {self.resize}"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded picture becomes a network's input; everything that decides a pixel is here.

    Attributes:
        size: S, side in px of what the network reads.
        resize: `crop`: the shorter side to `size / crop_ratio` px, rounded down, then the centre; `stretch`: both
            sides to S; `letterbox`: the longer side to S, the rest filled; `none`: images must be of `size`.
        crop_ratio: share of the shorter side that `crop` keeps; of no use to other rules.
        interpolation: filter, as Pillow names it: `nearest`, `box`, `bilinear`, `bicubic` or `lanczos`.
        antialias: whether the filter looks at all pixels where an image becomes smaller.
        fill: grey level, 0 to 255, beside a letterboxed image.
        channels: 3 (RGB) or 1 (luma).
        channel_order: of the network's own input, `rgb` or `bgr`; the graph takes RGB and swaps inside.
        mean: per channel in that order, in units of [0, 1]; null where it is not known what is subtracted.
        std: likewise, what is divided by.

    Raises:
        InputError: on construction; a value makes no sense.
    """

    size: int
    resize: str = "crop"
    crop_ratio: float = CROP_RATIO
    interpolation: str = "bilinear"
    antialias: bool = True
    fill: int = 0
    channels: int = 3
    channel_order: str = "rgb"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, words in (
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, FILTERS),
            ("channel_order", self.channel_order, ORDERS),
        ):
            if value not in words:
                raise unknown(name, value, words)
        for name, number, least, most in (
            ("image_size", self.size, LEAST_SIZE, MOST_SIDE),
            ("crop_ratio", self.crop_ratio, LEAST_RATIO, 1),
            ("fill", self.fill, 0, 255),
        ):
            if not least <= number <= most:
                raise InputError(f"{name}: expected {least} to {most}, got {number}")
        if self.channels not in (1, 3):
            raise InputError(f"channels: expected 3 or 1, got {self.channels}")
        if not self.antialias and self.interpolation not in NOT_ANTIALIASED:
            raise InputError(
                f"antialias: expected true with --interpolation {self.interpolation}; only "
                f"{' and '.join(NOT_ANTIALIASED)} go without"
            )
        if self.channel_order == "bgr" and self.channels == 1:
            raise InputError("channel_order: expected rgb for a network of one channel, got bgr")

    @property
    def shorter_side(self) -> int:
        """Of a cropped image before the crop, in px."""
        return math.floor(self.size / self.crop_ratio + ROUNDING)

    @property
    def pixels(self) -> str:
        """Changes with whatever decides a decoded pixel, and with nothing else."""
        kept = replace(self, mean=None, std=None, channel_order="rgb")
        if self.resize != "crop":
            kept = replace(kept, crop_ratio=1.0)
        return repr(kept if self.resize == "letterbox" else replace(kept, fill=0))

    def for_images_of(self, native_size: int | None) -> Preprocessing:
        """The same for images whose own side is alike; those that have S already stay as they are."""
        return replace(self, resize="crop", crop_ratio=1.0) if native_size == self.size else self

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Bring a decoded image to the network's size.

        Args:
            pixels: RGB uint8 `(H, W, 3)`.

        Returns:
            uint8 `(S, S, C)`.

        Raises:
            SizeError: it has not the size, and `resize` is `none`.
        """
        import numpy as np
        from PIL import Image

        image = Image.fromarray(pixels)
        fitted = self._fitted(image.convert("L") if self.channels == 1 else image)
        return np.array(fitted).reshape(self.size, self.size, self.channels)

    def _fitted(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        size, (width, height) = self.size, image.size
        if self.resize == "crop":
            return self._cropped(image)
        if self.resize == "stretch":
            return self._resized(image, size, size)
        if self.resize == "letterbox":
            longer = max(width, height)
            small = self._resized(image, *(max(1, round(side * size / longer)) for side in (width, height)))
            whole = Image.new(image.mode, (size, size), (self.fill,) * self.channels)
            whole.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
            return whole
        if (width, height) != (size, size):
            raise SizeError(f"expected {size} x {size} px with --resize none, got {width} x {height}")
        return image

    def _cropped(self, image: Image.Image) -> Image.Image:
        """As torchvision resizes and crops the centre, to the pixel."""
        longest = MOST_ASPECT * min(image.size)
        left, top = (max(0, (side - longest) // 2) for side in image.size)
        image = image.crop((left, top, left + min(longest, image.width), top + min(longest, image.height)))
        shorter, side = min(image.size), self.shorter_side
        image = self._resized(image, *(side * length // shorter for length in image.size))
        left, top = (round((length - self.size) / 2) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        from PIL import Image

        if self.antialias or self.interpolation == "nearest":
            kernel = Image.Resampling[self.interpolation.upper()]
            # Columns, then rows, each rounded to grey levels: Pillow does so of itself, but from version 13 on not
            # where rows first is less work, and a pixel of a tall image would depend on its version.
            return image.resize((width, image.height), kernel).resize((width, height), kernel)
        return _interpolated(image, width, height)

    def steps(self) -> list[Step]:
        """What is done to an image file, in order, in words that need no qrobust; see docs/preprocessing.md."""
        resize: Step = {"do": "resize", "filter": self.interpolation, "antialias": self.antialias}
        mode = "L" if self.channels == 1 else "RGB"
        found: list[Step] = [{"do": "decode", "mode": mode}]
        if self.resize == "crop":
            found += [
                {"do": "limit_aspect", "at_most": MOST_ASPECT},
                resize | {"shorter_side": self.shorter_side},
                {"do": "centre_crop", "size": self.size},
            ]
        elif self.resize == "stretch":
            found.append(resize | {"width": self.size, "height": self.size})
        elif self.resize == "letterbox":
            found += [resize | {"longer_side": self.size}, {"do": "pad", "size": self.size, "fill": self.fill}]
        return [*found, {"do": "divide", "by": 255}]

    def as_metadata(self) -> dict[str, object]:
        """For a graph's file: what to feed it, how that is made of an image, and what the graph then does itself."""
        from dataclasses import asdict

        return {
            "input": f"{'RGB' if self.channels == 3 else 'luma'} in [0, 1], (N, {self.channels}, S, S)",
            "image_size": self.size,
            "steps": self.steps(),
            "channel_order_inside": self.channel_order,
            "normalization_inside": [self.mean, self.std],
            "declared": asdict(self),
        }

    def __str__(self) -> str:
        how = f"{self.interpolation}{'' if self.antialias else ' without antialiasing'}"
        size, read = f"{self.size} x {self.size} px", "luma" if self.channels == 1 else self.channel_order.upper()
        fitted = {
            "crop": f"shorter side to {self.shorter_side} px ({how}), centre {size}",
            "stretch": f"stretched to {size} ({how})",
            "letterbox": f"longer side to {self.size} px ({how}), filled up to {size} with grey {self.fill}",
            "none": f"{size}, not resized",
        }[self.resize]
        if self.mean is None or self.std is None:
            return f"{fitted}; {read}"
        mean, std = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{fitted}; {read}; minus {mean}, divided by {std}"


def _interpolated(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear between the four nearest pixels, rows first, in float64, rounded half to even.

    The centre of target pixel i lies at `(i + 1/2) * source / target - 1/2`, clamped to the source.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image, np.float64)
    for axis, target in ((0, height), (1, width)):
        source = values.shape[axis]
        at = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
        low = np.floor(at).astype(np.int64)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, source - 1), axis) * share
    return Image.fromarray(np.rint(values).astype(np.uint8))


def choose_size(chosen: PreprocessingConfig, preset: PreprocessingConfig, native_size: int | None, who: str) -> int:
    """Side in px of what a network reads.

    Args:
        chosen: what the user says.
        preset: what is known of the model.
        native_size: the side that the images share, if they are square and alike.
        who: the network, for the error.

    Raises:
        InputError: neither says it, nor do images that are square, alike and small.
    """
    if chosen.image_size is not None:
        return chosen.image_size
    if native_size is not None and (
        LEAST_SIZE <= native_size <= NATIVE_SIZE_LIMIT or (chosen.resize == "none" and native_size >= LEAST_SIZE)
    ):
        return native_size
    if preset.image_size is not None:
        return preset.image_size
    raise unknown_size(native_size, who)


def unknown_size(native_size: int | None, who: str) -> InputError:
    """The error where nothing says what size images shall have."""
    if native_size is not None and native_size < LEAST_SIZE:
        return InputError(
            f"image_size: expected at least {LEAST_SIZE}, images have {native_size} px; --image-size enlarges them"
        )
    sizes = "the images differ in size" if native_size is None else f"the images have {native_size} px"
    return InputError(
        f"image_size: {sizes} and it is not known what {who} was trained at; give --image-size, and --resize unless "
        f"it was the centre crop of {CROP_RATIO:g} of the shorter side"
    )


def resolve(
    chosen: PreprocessingConfig, preset: PreprocessingConfig, size: int, *, native_size: int | None, channels: int
) -> Preprocessing:
    """What is done, where all that a user or a model says is taken together; the user comes first.

    Images that are square, alike and no larger than the network reads hold nothing to crop: unless the user says
    otherwise, they are used whole.

    Args:
        chosen: what the user says.
        preset: what is known of the model.
        size: see `choose_size`.
        native_size: the side that the images share, if they are square and alike.
        channels: that the network reads.

    Raises:
        InputError: the choices exclude each other, or the normalisation is of other channels.
    """

    def said(name: str, default: Any) -> Any:
        return next((v for v in (getattr(chosen, name), getattr(preset, name)) if v is not None), default)

    resize, ratio = said("resize", "crop"), said("crop_ratio", CROP_RATIO)
    whole = native_size is not None and native_size <= size
    if whole and chosen.resize is None and chosen.crop_ratio is None:
        resize, ratio = "crop", 1.0
    elif chosen.crop_ratio is not None and resize != "crop":
        raise InputError(f"crop_ratio: expected with --resize crop only, the model's own is {resize}")
    normalization = said("normalization", None)
    mean, std = (None, None) if normalization is None else parse_normalization(normalization, channels)
    return Preprocessing(
        size=size,
        resize=resize,
        crop_ratio=ratio,
        interpolation=said("interpolation", "bilinear"),
        antialias=said("antialias", True),
        fill=said("fill", 0),
        channels=channels,
        channel_order=said("channel_order", "rgb"),
        mean=mean,
        std=std,
    )
