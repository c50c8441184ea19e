"""A graph in headless Chromium by onnxruntime-web, asked over a server of this machine's own; called by places.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np

PAGE = Path(__file__).parent / "places_page.html"
BATCH, PATIENCE_S = 50, 600
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KINDS = {".mjs": "text/javascript", ".wasm": "application/wasm"}
# What a session needs to compute as the target does, as `infer.py` asks for it.
SESSIONS = {"arm64": {"qdqisint8allowed": "1"}}


class _Server(ThreadingHTTPServer):
    """Serves page, library, graph and images, and keeps the logits that come back."""

    def __init__(self, graph: Path, job: Mapping[str, Any], images: np.ndarray, library: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.graph, self.job, self.images, self.library = graph, job, images, library
        self.logits: list[np.ndarray] = []
        self.about: dict[str, Any] = {}
        self.failed = "no answer in time"
        self.ended = threading.Event()


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, server = urlparse(self.path), self.server
        if path.path == "/job":
            self._give(json.dumps(server.job).encode(), "application/json")
        elif path.path == "/graph":
            self._give(server.graph.read_bytes(), "application/octet-stream")
        elif path.path == "/images":
            start = int(parse_qs(path.query)["start"][0])
            self._give(server.images[start : start + BATCH].tobytes(), "application/octet-stream")
        elif path.path == "/":
            self._give(PAGE.read_bytes(), "text/html")
        elif (file := server.library / Path(path.path).name).suffix in KINDS and file.is_file():
            self._give(file.read_bytes(), KINDS[file.suffix])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/logits":
            self.server.logits.append(np.frombuffer(body, np.float32).copy())
        elif self.path == "/done":
            self.server.about = json.loads(body)
            self.server.failed = ""
        else:
            self.server.failed = body.decode()
        self._give(b"", "text/plain")
        if self.path in ("/done", "/failed"):
            self.server.ended.set()

    def _give(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _renderer_peak_mib(profile: str) -> float:
    """The most memory that a process which shows a page of this browser held."""
    peaks = [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode()
            if "--type=renderer" in command and profile in _browser_of(process):
                lines = (process / "status").read_text().splitlines()
                peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
        except OSError:
            continue  # it ended meanwhile
    return max(peaks)


def _browser_of(process: Path) -> str:
    """Command lines of a process's ancestors."""
    found = ""
    while process.name not in ("0", "1"):
        found += (process / "cmdline").read_bytes().decode()
        process = process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]
    return found


def classify_in_browser(
    graph: Path, manifest: Mapping[str, Any], images: np.ndarray, library: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits `(N, K)` of images `(N, C, S, S)`, and what was measured beside.

    Args:
        graph: the ONNX file.
        manifest: of its folder.
        images: float32 in [0, 1].
        library: folder `dist` of the package onnxruntime-web.

    Raises:
        OSError: there is no Chromium, or the page failed; says how.
    """
    program = shutil.which("chromium")
    if program is None:
        raise OSError("no chromium; apt-get install chromium")
    job = {
        "input": manifest["input"]["name"],
        "output": manifest["output"],
        "n": len(images),
        "batch": BATCH,
        "shape": images.shape,
        "session": SESSIONS.get(manifest["target"], {}),
    }
    server = _Server(graph, job, np.ascontiguousarray(images, np.float32), library)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://127.0.0.1:{server.server_port}/"
        command = [program, *OPTIONS, f"--user-data-dir={profile}", address]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            server.ended.wait(PATIENCE_S)
            peak = _renderer_peak_mib(profile)
        finally:
            running.terminate()
            running.wait(30)
            server.shutdown()
            server.server_close()
    if server.failed:
        raise OSError(f"onnxruntime-web: {server.failed}")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    logits = np.concatenate(server.logits).reshape(len(images), -1)
    about = {key: value for key, value in server.about.items() if key not in ("agent", "onnxruntime_web")}
    held = {"chromium": version, "onnxruntime-web": server.about["onnxruntime_web"]}
    return logits, about | {"peak_mib": peak, "agent": server.about["agent"], "versions": held}
