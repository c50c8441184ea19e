"""Debian's chromium without a window, spoken to over pipes (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
# Seconds for an answer: a busy machine starts the browser slowly.
PATIENCE_S = 120.0
# Codes of keys.
KEYS = {"Tab": 9, "ArrowRight": 39}
# Of a phone, in px.
PHONE = 390
# What npm installs, which is not kept here.
MODULES = Path(__file__).parents[1] / "build" / "web" / "node_modules"
AXE = MODULES / "axe-core" / "axe.min.js"
INSTALL_AXE = "npm install --prefix build/web --ignore-scripts axe-core@4.14.1"
# What axe-core finds: rule, what it asks for, elements.
AXE_FOUND = """axe.run().then(found => {
    const of = one => one.nodes.map(node => node.html.slice(0, 100)).join(" | ");
    window.axeFound = found.violations.map(one => `${one.id} (${one.impact}): ${one.help}: ${of(one)}`);
}); null"""


class Browser:
    """A browser's end of the pipes: commands, answers, and what happened in between."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write, self._read = to_browser, from_browser
        self._buffer, self._ids = b"", itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """A command's result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def until(self, method: str) -> None:
        """Wait for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self._read, 1 << 16)
            assert got, "the browser ended"
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """An open page, of a file or an address."""

    def __init__(self, browser: Browser, at: Path | str, width: int) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width)
        self.call("Page.navigate", url=at if isinstance(at, str) else at.as_uri())
        browser.until("Page.loadEventFired")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def resize(self, width: int) -> None:
        """So many px wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """`screen` or `print`; `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[feature])

    def value(self, expression: str) -> Any:
        """What JavaScript comes to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for JavaScript to come to something true."""
        ends = time.monotonic() + PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < ends, expression
            time.sleep(0.05)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file where the page asks for one."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def requests(self) -> list[str]:
        """Addresses that the page asked for, without itself and what it holds."""
        asked = [
            e["params"]["request"]["url"] for e in self._browser.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of console and log."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self._browser.events if event["method"] in kinds]

    def barriers(self) -> list[str]:
        """What axe-core finds to be in the way of readers with a disability, be it minor."""
        self.value(AXE.read_text(encoding="utf-8") + "; null")
        self.value(AXE_FOUND)
        self.until("window.axeFound !== undefined")
        return self.value("window.axeFound")

    def pdf(self) -> bytes:
        """As printed."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(shot))


@contextlib.contextmanager
def opened(profile: Path, *options: str) -> Iterator[Browser]:
    """A running browser, with its own profile folder and further options."""
    assert PROGRAM
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    # The protocol's pipes are descriptors 3 and 4 of the browser.
    line = f'exec "$@" 3<&{read_in} 4>&{write_out}'
    command = ["bash", "-c", line, "bash", PROGRAM, *OPTIONS, *options, f"--user-data-dir={profile}"]
    running = subprocess.Popen(
        command, pass_fds=(read_in, write_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read_in)
    os.close(write_out)
    browser = Browser(write_in, read_out)
    try:
        yield browser
        browser.call("Browser.close")
    finally:
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(write_in)
        os.close(read_out)
