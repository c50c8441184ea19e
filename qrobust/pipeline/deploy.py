"""From a finished run to a folder that goes to a device: graph, manifest, card, and code without qrobust."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

import qrobust
from qrobust.comparison.measured import Measured
from qrobust.deployment.camera import save_with_camera
from qrobust.deployment.onnx_graph import load
from qrobust.deployment.ort_format import save_checked_ort
from qrobust.errors import ExportCheckError, InputError
from qrobust.pipeline.finished import failed_checks, open_finished
from qrobust.pipeline.run_folder import RunFolder
from qrobust.quantization.target import TARGETS
from qrobust.record import (
    DEPLOYMENT_SCHEMA,
    GraphInput,
    Manifest,
    MeasuredAccuracy,
    OrtCopy,
    Record,
    RuntimeVersions,
    WebGraph,
)
from qrobust.report.deployment import deployment_readme
from qrobust.report.model_card import model_card
from qrobust.report.verdict import NAMES
from qrobust.storage import read_json, read_npz, remove, write_json, write_text

MANIFEST, README, CARD, CODE = "manifest.json", "README.md", "model-card.md", "infer.py"
CAMERA, WEB = "camera", "web"
# What a page shows beside the graph that is deployed.
BESIDE = "int8"
# Random images that a copy in another format is tried on, beside the run's pictures.
RANDOM_IMAGES = 32
# Where `infer.py` and the page lie.
PACKAGE = Path(qrobust.__file__).parent / "deployment"
PAGE = PACKAGE / WEB
# Oldest onnxruntime that qrobust supports, as its package requires.
LEAST_ONNXRUNTIME = "1.20"


def deploy(
    run_folder: Path,
    out: Path,
    *,
    graph: str | None = None,
    camera: bool = False,
    web: bool = False,
    ort: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Write a folder for a device; it appears whole or not at all.

    Args:
        run_folder: of a finished run.
        out: new, empty, or with `overwrite` a folder that this made.
        graph: its name. Default: the one with the calibrator, else `int8`.
        camera: whether to write, in a folder `camera`, the graph that takes frames as a camera gives them, too.
        web: whether to write, in a folder `web`, a page that shows the graph beside `int8` in a browser, too.
        ort: whether to write the graph in onnxruntime's own format, too.
        overwrite: whether to replace such a folder.

    Raises:
        InputError: the run is not finished or does not say how images become its input, `out` holds something,
            or a graph for the page is not there.
        ExportCheckError: the graph's file is not the one that was measured, or its copy predicts otherwise.
    """
    _check_out(out, overwrite=overwrite)
    measured = open_finished(run_folder, "run folder")
    if not isinstance(measured.record, Record):
        raise InputError(f"run folder: expected a run, {run_folder} is an evaluation of ONNX files")
    name = measured.graph(graph)
    if failed := failed_checks(run_folder, measured, name):
        raise ExportCheckError(f"deploy: {'; '.join(failed)}")
    file = RunFolder(run_folder).graph(name)
    texts = {CARD: model_card(measured.record, name), CODE: _code()}
    manifest = _manifest(measured, measured.record, name, file, texts)
    shown = _shown(run_folder, measured, name) if web else {}
    part = out.with_name(f".{out.name}.{secrets.token_hex(8)}.part")
    part.mkdir(parents=True)
    try:
        (part / file.name).write_bytes(file.read_bytes())
        if camera:
            manifest = _with_camera(manifest, file, part)
        if ort:
            manifest = _with_ort(manifest, file, part, _check_images(run_folder, manifest))
        if web:
            manifest = _with_page(manifest, shown, part)
        for title, text in (texts | {README: deployment_readme(manifest)}).items():
            write_text(part / title, text)
        write_json(part / MANIFEST, manifest.to_json())
        if out.exists():
            remove(out)
        part.rename(out)
    finally:
        if part.exists():
            remove(part)
    return manifest


def _with_camera(manifest: Manifest, file: Path, part: Path) -> Manifest:
    """The manifest, once the graph that takes frames is written."""
    place = f"{CAMERA}/{file.name}"
    (part / CAMERA).mkdir()
    save_with_camera(file, part / place, manifest.steps)
    hashes = manifest.sha256 | {place: sha256((part / place).read_bytes()).hexdigest()}
    return replace(manifest, camera=place, sha256=hashes)


def _with_ort(manifest: Manifest, file: Path, part: Path, images: np.ndarray) -> Manifest:
    """The manifest, once the copy in ORT format is written and predicts what the graph does."""
    place = f"{file.stem}.ort"
    difference = save_checked_ort(file, part / place, TARGETS[manifest.target], images)
    copy = OrtCopy(file=place, written_by=version("onnxruntime"), n=len(images), max_logit_difference=difference)
    hashes = manifest.sha256 | {place: sha256((part / place).read_bytes()).hexdigest()}
    return replace(manifest, ort=copy, sha256=hashes)


def _check_images(run_folder: Path, manifest: Manifest) -> np.ndarray:
    """Images `(N, C, S, S)` in [0, 1] to compare files on: the run's pictures, shifted ones too, and random ones."""
    given = manifest.input
    shape = (RANDOM_IMAGES, given.channels, given.side, given.side)
    found = [np.random.default_rng(0).integers(0, 256, shape, np.uint8)]
    if (pictures := RunFolder(run_folder).pictures).is_file():
        kept = read_npz(pictures, "run folder")
        found += [images for name, images in kept.items() if images.shape[1:] == shape[1:]]
    return np.concatenate(found).astype(np.float32) / np.float32(255)


def _shown(run_folder: Path, measured: Measured, name: str) -> dict[str, Path]:
    """The files of the graphs that a page shows by their names, the one that is deployed last.

    Raises:
        InputError: one is not in the run's folder.
        ExportCheckError: one is not the file that was measured.
    """
    files = {each: RunFolder(run_folder).graph(each) for each in dict.fromkeys((BESIDE, name))}
    for each, file in files.items():
        if not file.is_file():
            raise InputError(f"web: expected {file}, which the page shows, got no such file")
        if failed := failed_checks(run_folder, measured, each):
            raise ExportCheckError(f"web: {'; '.join(failed)}")
    return files


def _with_page(manifest: Manifest, shown: Mapping[str, Path], part: Path) -> Manifest:
    """The manifest, once the page and what it shows beside the deployed graph are written."""
    written = {f"{WEB}/{source.name}": source.read_bytes() for source in sorted(PAGE.iterdir()) if source.is_file()}
    graphs = []
    for name, file in shown.items():
        place = file.name if name == manifest.name else f"{WEB}/{file.name}"
        if place != file.name:
            written[place] = file.read_bytes()
        graphs.append(WebGraph(file=place, name=NAMES.get(name, name)))
    (part / WEB).mkdir()
    for place, content in written.items():
        (part / place).write_bytes(content)
    hashes = {place: sha256(content).hexdigest() for place, content in written.items()}
    return replace(manifest, web=tuple(graphs), sha256=manifest.sha256 | hashes)


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"out: expected a folder, {out} is none")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        ours = read_json(out / MANIFEST).get("schema") == DEPLOYMENT_SCHEMA
    except InputError:
        ours = False
    if not ours:
        raise InputError(f"out: {out} holds files that `qrobust deploy` did not make, which nothing will remove")
    if not overwrite:
        raise InputError(f"out: {out} is not empty; --overwrite replaces it")


def _code() -> str:
    """`infer.py` as it lies in this package."""
    return (PACKAGE / CODE).read_text(encoding="utf-8")


def _manifest(measured: Measured, record: Record, name: str, file: Path, texts: dict[str, str]) -> Manifest:
    preprocessing, summary = record.preprocessing, record.summary
    if preprocessing is None:
        raise InputError(
            f"run folder: {measured.name} is of a version that did not keep how images become the input; run it again"
        )
    model = load(file)
    hashes = {file.name: sha256(file.read_bytes()).hexdigest()}
    hashes |= {title: sha256(text.encode()).hexdigest() for title, text in texts.items()}
    return Manifest(
        qrobust=qrobust.__version__,
        graph=file.name,
        name=name,
        target=record.quantization.target,
        input=GraphInput(
            name=model.graph.input[0].name,
            type="float32",
            layout="NCHW",
            channels=record.channels,
            side=record.image_size,
        ),
        output=model.graph.output[0].name,
        class_names=record.class_names,
        steps=tuple(preprocessing.steps()),
        preprocessing=preprocessing,
        onnxruntime=RuntimeVersions(
            measured_with=record.versions["onnxruntime"],
            at_least=LEAST_ONNXRUNTIME,
            opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
            ir_version=model.ir_version,
        ),
        accuracy=MeasuredAccuracy(
            n=record.n_test,
            clean=summary.clean_accuracy[name],
            clean_interval=summary.clean_interval[name],
            shift=summary.shift_accuracy[name],
            shift_interval=summary.shift_interval[name],
        ),
        sha256=hashes,
    )
