"""Quantize a float ONNX file by NNCF, in an environment of its own that has neither torch nor qrobust.

    python3 -m venv ENV && ENV/bin/pip install nncf onnx onnxruntime
    ENV/bin/python benchmarks/quantize_nncf.py FLOAT.onnx IMAGES.npy INT8.onnx

`quantized_file.py --nncf ENV/bin/python` calls it. IMAGES.npy holds what the file takes, `(n, C, S, S)` float32.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
import onnx

BATCH = 32


def main(source: str, images: str, path: str) -> None:
    """Quantize, and print which version of NNCF did it."""
    import nncf

    model, batches = onnx.load(source), np.load(images)
    name = model.graph.input[0].name
    given = [batches[start : start + BATCH] for start in range(0, len(batches), BATCH)]
    found = nncf.quantize(model, nncf.Dataset(given, lambda batch: {name: batch}), subset_size=len(given))
    onnx.save(found, path)
    print(version("nncf"))  # the caller reads it


if __name__ == "__main__":
    main(*sys.argv[1:4])
