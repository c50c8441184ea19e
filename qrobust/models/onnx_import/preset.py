"""How images become the input of an ONNX file, as far as the file says."""

from __future__ import annotations

import json

import torch

from qrobust.errors import InputError
from qrobust.models.onnx_import.file import OnnxFile
from qrobust.preprocessing import PreprocessingConfig

# What metadata of qrobust's graphs say outside of the graph; normalisation and the order of channels are inside.
DECLARED = ("resize", "crop_ratio", "interpolation", "antialias", "fill")
BYTES = 1 / 255


def preset_of_file(file: OnnxFile) -> PreprocessingConfig:
    """What is known of a file's images: the size that it fixes, and more where qrobust or a uint8 input says it.

    Raises:
        InputError: metadata of qrobust's make no sense.
    """
    normalization = None
    if file.pixels == torch.uint8:
        zeros, bytes_ = (",".join([number] * file.channels) for number in ("0", repr(BYTES)))
        normalization = f"{zeros}/{bytes_}"
    if "qrobust.graph" not in file.metadata or "declared" not in file.metadata.get("preprocessing", ""):
        return PreprocessingConfig(image_size=file.image_size, normalization=normalization)
    try:
        declared = json.loads(file.metadata["preprocessing"])["declared"]
        given = {name: declared[name] for name in DECLARED}
        if given["resize"] != "crop":
            given["crop_ratio"] = None
        if given["resize"] != "letterbox":
            given["fill"] = None
        size = file.image_size or declared["size"]
        return PreprocessingConfig(image_size=size, normalization=normalization or "none", **given)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"model: {file.path}: its metadata 'preprocessing' make no sense ({error})") from error
