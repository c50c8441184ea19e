"""Classify image files with a graph of qrobust's: needs numpy, Pillow and onnxruntime, and nothing of qrobust.

    python infer.py photo.jpg another.png
    python infer.py --graph int8.onnx --threads 4 photo.jpg

Prints per image its path, its class and the confidence. How an image becomes the network's input, the classes and the
CPU family stand in the graph's metadata. `qrobust deploy` writes a copy of this file beside the graph.
"""

import argparse
import base64
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

# Else onnxruntime looks up a host for telemetry and writes an id of the device below the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime  # reads it while it is imported

# What is decoded, whatever a file's name says: formats that Pillow decodes in memory, without starting programs.
FORMATS = (
    *("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF"),
    *(("AVIF",) if "avif" in features.get_supported() else ()),
)
BATCH = 100
# Targets whose kernels add integer products exactly, and those whose activations are signed.
EXACT, SIGNED = ("x86-vnni",), ("arm64",)
# An ONNX graph of one product, 255 * 127 + 255 * 127, which kernels that add pairs in 16 bits get wrong.
ONE_PRODUCT = base64.b64decode(
    "CAo6hgEKKwoLYWN0aXZhdGlvbnMKB3dlaWdodHMSBHN1bXMiDU1hdE11bEludGVnZXISC29uZV9wcm9kdWN0KhMIAggBEANCB3dlaWdodHNKAn9/"
    "Wh0KC2FjdGl2YXRpb25zEg4KDAgCEggKAggBCgIIAmIWCgRzdW1zEg4KDAgGEggKAggBCgIIAUIECgAQFQ=="
)


class Network:
    """A graph of qrobust's, opened to compute as its target does.

    Args:
        path: the ONNX file.
        threads: within an operator.

    Attributes:
        class_names: in index order.

    Raises:
        ValueError: its metadata does not say how images become its input, or it is in ORT format, whose kernels are
            chosen, and this CPU needs others.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.session = _opened(path, threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.steps = json.loads(metadata["preprocessing"])["steps"]
            self.class_names = json.loads(metadata["class_names"])
            target = json.loads(metadata["provenance"])["target"]
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"expected a graph whose metadata has preprocessing steps, class names and target, got {path}; "
                "qrobust of this version writes such"
            ) from None
        if entry := _as_on(target):
            if Path(path).suffix == ".ort" and target in EXACT:
                raise ValueError(f"expected the ONNX file on this CPU, whose own kernels saturate, got {path}")
            self.session = _opened(path, threads, entry)
        (taken,) = self.session.get_inputs()
        self.input, self.shape = taken.name, tuple(taken.shape[1:])

    def logits(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Of image files, float32 `(N, K)`.

        Raises:
            ValueError: a file is no image, or not of the size that it must have; the text names it.
        """
        parts = []
        for start in range(0, len(paths), BATCH):
            images = np.stack([self._prepared(path) for path in paths[start : start + BATCH]])
            parts.append(self.session.run(None, {self.input: images})[0])
        return np.concatenate(parts)

    def _prepared(self, path: str | Path) -> np.ndarray:
        try:
            image = prepare(path, self.steps)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read image {path} ({error})") from error
        if image.shape != self.shape:
            raise ValueError(f"cannot use image {path}: expected (C, H, W) = {self.shape}, got {image.shape}")
        return image

    def classify(self, paths: Sequence[str | Path]) -> list[tuple[str, float]]:
        """Class name and confidence, the softmax probability, of each image file."""
        found = []
        for row in self.logits(paths):
            shares = np.exp((row - row.max()).astype(np.float64))
            index = int(row.argmax())
            found.append((self.class_names[index], float(shares[index] / shares.sum())))
        return found


def _opened(graph: str | Path | bytes, threads: int = 1, entry: str = "") -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.intra_op_num_threads = threads
    if entry:
        options.add_session_config_entry(entry, "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    # Its fallback would print, and try the same provider again.
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _as_on(target: str) -> str:
    """The entry of a session's configuration with which this CPU computes as a target does; "" if it does anyway."""
    if target in SIGNED:
        return "" if platform.machine().lower() in ("aarch64", "arm64") else "session.qdqisint8allowed"
    # Slower kernels, which add as the target's.
    return "session.x64quantprecision" if target in EXACT and sums_saturate() else ""


def sums_saturate() -> bool:
    """Whether this CPU's kernels add pairs of integer products in 16 bits, as x86 ones without VNNI."""
    session = _opened(ONE_PRODUCT)
    return int(session.run(None, {"activations": np.full((1, 2), 255, np.uint8)})[0][0, 0]) != 2 * 255 * 127


def prepare(path: str | Path, steps: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """An image file as the network's input, float32 `(C, S, S)` in [0, 1]."""
    for step in steps:
        match step["do"]:
            case "decode":
                image = decode(path).convert(step["mode"])
            case "limit_aspect":  # of an image longer than this, the middle
                longest = step["at_most"] * min(image.size)
                left, top = (max(0, (side - longest) // 2) for side in image.size)
                width, height = (min(longest, side) for side in image.size)
                image = image.crop((left, top, left + width, top + height))
            case "resize":
                image = resize(image, step)
            case "centre_crop":
                left, top = (round((side - step["size"]) / 2) for side in image.size)  # half to even
                image = image.crop((left, top, left + step["size"], top + step["size"]))
            case "pad":
                whole = Image.new(image.mode, (step["size"],) * 2, (step["fill"],) * len(image.getbands()))
                whole.paste(image, tuple((step["size"] - side) // 2 for side in image.size))
                image = whole
            case "divide":
                pixels = np.asarray(image, np.float32) / np.float32(step["by"])
            case unknown:
                raise ValueError(f"the graph asks for {unknown!r}, which this version does not know")
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def decode(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright by its EXIF orientation, what is transparent over white."""
    with Image.open(path, formats=FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise ValueError(f"{path}: floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16 bits: the upper eight
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB")


def resize(image: Image.Image, step: Mapping[str, Any]) -> Image.Image:
    """Bring an image to the size of a step, by its filter."""
    if "shorter_side" in step:
        size = [step["shorter_side"] * side // min(image.size) for side in image.size]
    elif "longer_side" in step:
        size = [max(1, round(side * step["longer_side"] / max(image.size))) for side in image.size]
    else:
        size = [step["width"], step["height"]]
    if step["antialias"] or step["filter"] == "nearest":
        kernel = Image.Resampling[step["filter"].upper()]
        # Columns, then rows: in one call, which comes first depends on Pillow's version, and a grey level on that.
        return image.resize((size[0], image.height), kernel).resize(size, kernel)
    values = np.asarray(image, np.float64)  # bilinear between the four nearest pixels
    for axis in (0, 1):
        source, target = values.shape[axis], size[1 - axis]
        at = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, source - 1), axis) * share
    return Image.fromarray(np.rint(values).astype(np.uint8))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--graph", help="ONNX file; default: the one that lies beside this script")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    given = parser.parse_args()
    beside = sorted(Path(__file__).parent.glob("*.onnx"))
    if given.graph is None and len(beside) != 1:
        parser.error(f"expected one ONNX file beside {__file__}, found {len(beside)}; name one by --graph")
    try:
        found = Network(given.graph or beside[0], given.threads).classify(given.images)
    except (OSError, ValueError) as error:
        parser.exit(2, f"Error: {error}\n")
    for path, (name, confidence) in zip(given.images, found, strict=True):
        print(f"{path}\t{name}\t{confidence:.4f}")


if __name__ == "__main__":
    main()
