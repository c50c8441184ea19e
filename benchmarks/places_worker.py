"""Logits of a deployed graph in the Python that runs this; called by places.py.

    python places_worker.py FOLDER LIST OUT [--qrobust]

Needs numpy, Pillow, onnxruntime and the folder's own `infer.py`, nothing of qrobust; `--qrobust` goes the way of a
run instead, with torch and qrobust. LIST holds a path of an image a line. Leaves OUT.npy, float32 `(N, K)`, and
OUT.json.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

BATCH = 50
# Bits of Linux's AT_HWCAP (16) and AT_HWCAP2 (26) on 64-bit ARM.
HWCAP, HWCAP2 = (16, {1: "asimd", 10: "asimdhp", 20: "asimddp", 22: "sve"}), (26, {13: "i8mm"})


def arm_flags() -> list[str]:
    """What an ARM CPU says that it can do; nothing elsewhere."""
    if platform.machine() != "aarch64":
        return []
    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return sorted(name for kind, names in (HWCAP, HWCAP2) for bit, name in names.items() if ask(kind) >> bit & 1)


def peak_mib() -> float:
    """The most memory that this process held so far, not that of whatever started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


Prepare: TypeAlias = Callable[[str], np.ndarray]
Classify: TypeAlias = Callable[[np.ndarray], np.ndarray]


def as_deployed(folder: Path) -> tuple[Callable[[], Classify], Prepare]:
    """What opens the graph, and what prepares an image, by the code beside it."""
    sys.path.insert(0, str(folder))
    import infer

    (file,) = folder.glob("*.onnx")
    steps = json.loads((folder / "manifest.json").read_text())["steps"]

    def opened() -> Classify:
        network = infer.Network(file)
        return lambda images: network.session.run(None, {network.input: images})[0]

    return opened, lambda path: infer.prepare(path, steps)


def as_measured(folder: Path) -> tuple[Callable[[], Classify], Prepare]:
    """The same as a run does it."""
    import torch

    from qrobust.data.sources import decode_file
    from qrobust.deployment.deploy import open_on_target
    from qrobust.quantization.target import TARGETS
    from qrobust.record import Manifest, from_json

    torch.set_num_threads(1)
    manifest = from_json(Manifest, json.loads((folder / "manifest.json").read_text()), "manifest.json")

    def opened() -> Classify:
        classifier = open_on_target(folder / manifest.graph, TARGETS[manifest.target])
        return lambda images: classifier(torch.from_numpy(images)).numpy()

    def prepared(path: str) -> np.ndarray:
        pixels = manifest.preprocessing.apply(decode_file(Path(path)))
        return pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)

    return opened, prepared


def main() -> None:
    """Measure."""
    folder, listed, out = map(Path, sys.argv[1:4])
    opened, prepared = (as_measured if "--qrobust" in sys.argv else as_deployed)(folder)
    import onnxruntime
    import PIL

    before, started = peak_mib(), time.perf_counter()
    classify = opened()
    load_s = time.perf_counter() - started
    paths, digest, parts = listed.read_text().splitlines(), sha256(), []
    started = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        images = np.stack([prepared(path) for path in paths[start : start + BATCH]])
        digest.update(np.ascontiguousarray(images).tobytes())
        parts.append(classify(images))
    found: dict[str, Any] = {
        "input_sha256": digest.hexdigest(),
        "load_s": load_s,
        "images_s": time.perf_counter() - started,
        "peak_mib": peak_mib(),
        "peak_before_mib": before,
        "machine": platform.machine(),
        "flags": arm_flags(),
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "has_torch": "torch" in sys.modules,
    }
    np.save(out.with_suffix(".npy"), np.concatenate(parts))
    out.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
