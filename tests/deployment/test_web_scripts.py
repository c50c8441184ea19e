"""Scripts of the page in `deployment/web/`, run by Node: preparing as infer.py does, to the bit, and shifts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qrobust
from qrobust.deployment.infer import prepare
from qrobust.preprocessing import FILTERS, RESIZES, Preprocessing, Step

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node: apt-get install nodejs")
WEB = Path(qrobust.__file__).parent / "deployment" / "web"
SIZE = 24
# Odd, not square, longer than eight times the shorter side, smaller and larger than SIZE, SIZE itself.
SIDES = ((31, 47), (64, 33), (20, 20), (9, 120), (200, 3), (1, 1), (61, 61), (SIZE, SIZE), (SIZE, 50))
FIT = """
import { readFileSync, writeFileSync } from "node:fs";
import { fitted, planes } from "WEB/prepare.js";
for (const { raw, width, height, steps, out } of JSON.parse(readFileSync("jobs.json", "utf8"))) {
  const source = { pixels: new Uint8Array(readFileSync(raw)), width, height, channels: 3 };
  writeFileSync(out, Buffer.from(planes(fitted(source, steps), steps).buffer));
}
"""
SHIFT = """
import { writeFileSync } from "node:fs";
import { shifted } from "WEB/shifts.js";
const side = 96;
const grey = { pixels: new Uint8Array(3 * side * side).fill(128), width: side, height: side, channels: 3 };
const none = { fog: 0, noise: 0, darkness: 0 };
for (const [name, severities] of [["none", [0]], ["noise", [1, 5]], ["darkness", [1, 5]], ["fog", [5]]]) {
  for (const severity of severities) {
    writeFileSync(`${name}-${severity}`, shifted(grey, { ...none, [name]: severity }).pixels);
  }
}
"""


def by_node(folder: Path, script: str) -> None:
    (folder / "script.mjs").write_text(script.replace("WEB", WEB.as_uri()))
    done = subprocess.run([str(NODE), "script.mjs"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("resize", RESIZES)
def test_every_input_is_that_of_infer_to_the_bit(resize: str, channels: int, tmp_path: Path) -> None:
    rng, jobs = np.random.default_rng(0), []
    wanted: dict[str, np.ndarray] = {}
    for n, (width, height) in enumerate(SIDES if resize != "none" else ((SIZE, SIZE),)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        (tmp_path / f"{n}.raw").write_bytes(pixels.tobytes())
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        for interpolation, antialias in [(name, True) for name in FILTERS] + [("bilinear", False)]:
            steps: list[Step] = Preprocessing(
                size=SIZE,
                resize=resize,
                crop_ratio=0.83,
                fill=114,
                channels=channels,
                interpolation=interpolation,
                antialias=antialias,
            ).steps()
            out = f"{n}-{interpolation}-{antialias}"
            jobs.append({"raw": f"{n}.raw", "width": width, "height": height, "steps": steps, "out": out})
            wanted[out] = prepare(tmp_path / f"{n}.png", steps)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    by_node(tmp_path, FIT)
    for out, expected in wanted.items():
        found = np.frombuffer((tmp_path / out).read_bytes(), np.float32).reshape(expected.shape)
        assert np.array_equal(found, expected), out


def test_shifts_are_as_strong_as_their_severity_says(tmp_path: Path) -> None:
    """Mean and deviation of a grey image; 27,648 values, so a mean is off by less than a level with all certainty."""
    by_node(tmp_path, SHIFT)
    found = {path.name: np.frombuffer(path.read_bytes(), np.uint8) / 255 for path in tmp_path.glob("*-?")}
    grey = 128 / 255
    assert (found["none-0"] == grey).all()
    for severity, sigma in (("1", 0.08), ("5", 0.38)):
        noisy = found[f"noise-{severity}"]
        middle = np.percentile(noisy, 50 + 34.134 * np.array([-1, 1]))  # one deviation, which clipping leaves
        assert noisy.mean() == pytest.approx(grey, abs=0.01)
        assert (middle[1] - middle[0]) / 2 == pytest.approx(sigma, rel=0.03)
    for severity, exposure, photons in (("1", 0.6, 400), ("5", 0.12, 25)):
        dark = found[f"darkness-{severity}"]
        assert dark.mean() == pytest.approx(exposure * grey, abs=0.003)
        assert dark.std() == pytest.approx(exposure * np.sqrt(grey / photons), rel=0.05)
    # (grey + 3 h) grey / (grey + 3), h from 0 to 1: never brighter than it was.
    fog = found["fog-5"]
    assert fog.max() <= grey + 1 / 255
    assert fog.min() >= grey * grey / (grey + 3) - 1 / 255
    assert fog.std() > 0.02
