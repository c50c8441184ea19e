"""What a graph takes beside time per image: memory at its peak, and time to load, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import qrobust
from qrobust.deployment.session import PIXELS, open_session, sums_saturate
from qrobust.errors import QRobustError
from qrobust.record import Footprint, from_json, to_json

# Times that a graph is loaded; the median counts.
LOADS = 3
# Where Linux tells of a process's memory, and how its peak is set back to what it has now.
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def footprints(
    paths: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    threads: int = 1,
    signed_activations: bool | None = None,
) -> dict[str, Footprint]:
    """Memory and load time of graphs.

    They are loaded by another Python, which holds onnxruntime and nothing else, in a process for each.

    Args:
        paths: files by name, each with one image input.
        shapes: of the batch of images that each classifies once, as its input has it.
        threads: of a session.
        signed_activations: as for `open_session`.

    Raises:
        QRobustError: that Python failed, as it does where memory is short.
    """
    graphs = [(str(path.resolve()), shapes[name]) for name, path in paths.items()]
    asked = {"graphs": graphs, "threads": threads}
    here = str(Path(qrobust.__file__).parents[1])
    found = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    # Without -P, files in the current folder would be taken for modules.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qrobust.deployment.footprint"],
        input=json.dumps(asked | {"signed": signed_activations}),
        env=os.environ | {"PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(paths):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise QRobustError(f"evaluate: a graph could not be loaded to measure its memory ({last})")
    return {name: from_json(Footprint, json.loads(line), name) for name, line in zip(paths, lines, strict=True)}


def measured(path: Path, shape: tuple[int, ...], threads: int, signed_activations: bool | None) -> Footprint:
    """The footprint of a graph in this process, which has opened none before."""
    resident = _memory("VmRSS")
    if resident is not None:
        CLEAR.write_text("5")
    session = open_session(path, threads, signed_activations=signed_activations)
    image = session.get_inputs()[0]
    session.run(None, {image.name: np.zeros(shape, PIXELS[image.type])})
    peak = _memory("VmHWM")
    times = []
    for _ in range(LOADS):
        started = time.perf_counter()
        open_session(path, threads, signed_activations=signed_activations)
        times.append(time.perf_counter() - started)
    return Footprint(
        load_ms=1e3 * float(np.median(times)),
        peak_memory_bytes=None if peak is None or resident is None else max(0, peak - resident),
    )


def _memory(key: str) -> int | None:
    """Bytes that the kernel tells of this process; None where there is no such kernel."""
    if not STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def main() -> None:
    """Read what is asked for, and print a line of JSON for each graph, each from a process of its own."""
    asked = json.load(sys.stdin)
    sums_saturate()  # runs a graph of one product: what onnxruntime takes for its first is no graph's own
    for path, shape in asked["graphs"]:
        child = os.fork() if hasattr(os, "fork") else 0
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                sys.exit(f"the process that loads {path} ended with status {status}")
            continue
        found = measured(Path(path), tuple(shape), asked["threads"], asked["signed"])
        print(json.dumps(to_json(found)), flush=True)
        if hasattr(os, "fork"):
            os._exit(0)


if __name__ == "__main__":
    main()
