"""The page of `qrobust deploy --web` in a browser says what infer.py says."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from qrobust.deployment.infer import Network, prepare
from qrobust.pipeline.deploy import deploy
from qrobust.report.deployment import ONNXRUNTIME_WEB

PACKAGE = browser.MODULES / "onnxruntime-web"
INSTALL = f"npm install --prefix build/web --ignore-scripts onnxruntime-web@{ONNXRUNTIME_WEB}"
pytestmark = [
    pytest.mark.skipif(browser.PROGRAM is None, reason="needs chromium: apt-get install chromium"),
    pytest.mark.skipif(not PACKAGE.is_dir(), reason=f"needs {INSTALL}"),
]
STATE = "document.body.dataset.state"
# Per graph class and confidence of its first row, not rounded.
FIRST = """[...document.querySelectorAll("#graphs tbody")].map(rows => [
    rows.querySelector("td").textContent, rows.querySelector("meter").value, rows.children.length])"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that tells nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def deployed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page, and onnxruntime-web where the README puts it."""
    folder = tmp_path_factory.mktemp("deployed") / "out"
    deploy(finished_run, folder, web=True)
    (folder / "web" / "node_modules").mkdir()
    (folder / "web" / "node_modules" / "onnxruntime-web").symlink_to(PACKAGE)
    return folder


@pytest.fixture(scope="module")
def address(deployed: Path) -> Iterator[str]:
    """Of the folder on a server of this machine's own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(deployed)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """With a camera that shows a moving test picture, and leave to use it."""
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with browser.opened(tmp_path_factory.mktemp("profile"), *camera) as started:
        yield started


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit of 90 x 70 px, so that it is resized and cropped."""
    path = tmp_path_factory.mktemp("picture") / "digit.png"
    pixels = (load_digits().images[7] * 15.9).astype(np.uint8)
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).convert("RGB").save(path)
    return path


@pytest.fixture
def page(chromium: browser.Browser, address: str) -> browser.Page:
    opened = browser.Page(chromium, f"{address}web/", 1280)
    opened.until(f"{STATE} !== 'loading'")
    assert opened.value(STATE) == "ready", opened.value("document.getElementById('status').textContent")
    return opened


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_graphs_see_what_infer_prepares(
    page: browser.Page, deployed: Path, picture: Path, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"digit.{kind}"
    Image.open(picture).save(path)
    page.choose("#file", path)
    page.until(f"{STATE} === 'shown'")
    seen = "[...document.getElementById('shown').getContext('2d').getImageData(0, 0, 32, 32).data]"
    pixels = np.array(page.value(seen)).reshape(32, 32, 4)[:, :, :3].transpose(2, 0, 1)
    steps = json.loads((deployed / "manifest.json").read_text())["steps"]
    difference = np.abs(pixels - np.rint(prepare(path, steps) * 255)).max()
    # Two decoders of JPEG may round otherwise.
    assert difference == 0 if kind == "png" else difference <= 3


def test_both_graphs_say_what_infer_says(page: browser.Page, deployed: Path, picture: Path, address: str) -> None:
    page.choose("#file", picture)
    page.until(f"{STATE} === 'shown'")
    shown = page.value(FIRST)
    files = [deployed / graph["file"] for graph in json.loads((deployed / "manifest.json").read_text())["web"]]
    assert [file.name for file in files] == ["int8.onnx", "compensated.onnx"]
    for (name, confidence, rows), file in zip(shown, files, strict=True):
        (wanted,) = Network(file).classify([picture])
        assert (name, rows) == (wanted[0], 3)
        # A number all but halfway between two integers may become either: an activation is one step off.
        assert confidence == pytest.approx(wanted[1], abs=0.01)
    command = [sys.executable, deployed / "infer.py", picture]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\t")[1]
    assert shown[-1][0] == said
    assert [url for url in page.requests() if not url.startswith(address)] == []
    assert page.complaints() == []


def test_a_shift_changes_what_graphs_see_and_none_brings_it_back(page: browser.Page, picture: Path) -> None:
    page.choose("#file", picture)
    page.until(f"{STATE} === 'shown'")
    seen = "document.getElementById('shown').toDataURL()"
    before = page.value(seen)
    page.value("document.getElementById('noise').focus()")
    page.press("ArrowRight")
    page.until(f"{seen} !== {json.dumps(before)}")
    assert page.value("document.querySelector('output[for=noise]').value") == "0.1"
    page.value("document.getElementById('reset').click()")
    page.until(f"{seen} === {json.dumps(before)}")


def test_the_camera_is_classified_frame_by_frame(page: browser.Page) -> None:
    seen, status = "document.getElementById('shown').toDataURL()", "document.getElementById('status').textContent"
    page.value("document.getElementById('camera').click()")
    page.until(f"{status} === 'Camera is on.' && document.querySelectorAll('#graphs tr').length === 6")
    page.until(f"{seen} !== {json.dumps(page.value(seen))}")
    page.value("document.getElementById('camera').click()")
    page.until(f"{status} === 'Camera is off.'")
    assert page.complaints() == []


def test_keys_reach_every_control(page: browser.Page) -> None:
    reached = []
    for _ in range(6):
        page.press("Tab")
        reached.append(page.value("document.activeElement.id"))
    assert reached == ["file", "camera", "fog", "noise", "darkness", "reset"]


def test_what_is_no_picture_is_said(page: browser.Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    page.choose("#file", tmp_path / "text.png")
    status = "document.getElementById('status').textContent"
    page.until(f"{status}.startsWith('text.png is no picture')")


def test_it_fits_a_phone_and_the_dark(page: browser.Page, picture: Path) -> None:
    page.choose("#file", picture)
    page.until(f"{STATE} === 'shown'")
    page.resize(browser.PHONE)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    backgrounds = []
    for scheme in ("light", "dark"):
        page.media("screen", scheme)
        backgrounds.append(page.value("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(18, 21, 26)"]


@pytest.mark.skipif(not browser.AXE.is_file(), reason=f"needs {browser.INSTALL_AXE}")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(page: browser.Page, picture: Path, scheme: str) -> None:
    page.media("screen", scheme)
    page.choose("#file", picture)
    page.until(f"{STATE} === 'shown'")
    assert page.barriers() == []


def test_without_a_server_it_says_what_to_do(chromium: browser.Browser, deployed: Path) -> None:
    opened = browser.Page(chromium, deployed / "web" / "index.html", 1280)
    assert "python -m http.server" in opened.value("document.getElementById('status').textContent")


def test_without_onnxruntime_web_it_says_so(chromium: browser.Browser, address: str, deployed: Path) -> None:
    library = deployed / "web" / "node_modules"
    library.rename(library.with_name("elsewhere"))
    try:
        opened = browser.Page(chromium, f"{address}web/", 1280)
        opened.call("Network.setCacheDisabled", cacheDisabled=True)
        opened.until(f"{STATE} === 'failed'")
        assert "README.md has the command" in opened.value("document.getElementById('status').textContent")
    finally:
        library.with_name("elsewhere").rename(library)
