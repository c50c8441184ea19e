"""Does the file that was measured here predict the same elsewhere?

    benchmarks/arm_root.sh WORK/arm
    python benchmarks/places.py --runs RUNS --images DIR --work WORK

RUNS holds finished runs of one network, a folder per target, by its name. DIR holds test images, a folder per class.
Each graph (`int8`, `compensated`) is deployed as `qrobust deploy` does it, and the same file classifies the same
images in four places: onnxruntime here as a run asks it; a fresh environment without torch, by the folder's own
`infer.py`; onnxruntime-web (WebAssembly) in headless Chromium; `infer.py` on an emulated 64-bit ARM CPU. What is
downloaded lies in WORK. A place that cannot be had is in the result with its reason. Leaves results/places.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import git_commit
from places_browser import classify_in_browser

from qrobust.deployment.infer import prepare
from qrobust.pipeline.deploy import deploy
from qrobust.record import Manifest, hardware, to_json, versions
from qrobust.storage import write_json

RESULT = Path(__file__).parent / "results" / "places.json"
WORKER, CPU, QEMU = Path(__file__).parent / "places_worker.py", "cortex-a76", "qemu-aarch64-static"
GRAPHS = ("int8", "compensated")
# Of onnxruntime-web, from npm.
WEB_VERSION = "1.30.0"
# An image is a tie where the two largest logits lie closer than this many standard deviations of all logits, as an
# export's parity has it: one 8-bit step of a deep activation can decide between them.
TIE = 0.05


class MissingError(Exception):
    """A place that cannot be had; says why."""


def chosen(images: Path, class_names: Sequence[str], count: int) -> tuple[list[Path], np.ndarray]:
    """The first files of each class in the order of their names, alike many of each, and their labels `(N,)`."""
    paths, labels = [], []
    for label, name in enumerate(class_names):
        files = sorted((images / name).iterdir())[: count // len(class_names)]
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels)


def worked(command: Sequence[str | Path], out: Path, **environment: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and measurements of the worker, started by a command."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return np.load(out.with_suffix(".npy")), json.loads(out.with_suffix(".json").read_text())


def here(folder: Path, listed: Path, out: Path, work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The onnxruntime of this environment, as a run asks it."""
    command: list[str | Path] = [sys.executable, WORKER, folder, listed, out, "--qrobust"]
    return worked(command, out, PYTHONPATH=str(RESULT.parents[2]))


def without_torch(folder: Path, listed: Path, out: Path, work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A fresh environment that holds what `infer.py` needs."""
    python = work / "bare" / "bin" / "python"
    if not python.exists():
        venv.create(work / "bare", with_pip=True)
        pinned = f"onnxruntime=={versions()['onnxruntime']}"
        subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pillow", pinned], check=True)
    return worked([python, WORKER, folder, listed, out], out)


def emulated_arm(folder: Path, listed: Path, out: Path, work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """What `arm_root.sh` made, under qemu."""
    root, site = work / "arm" / "root", work / "arm" / "site"
    if not site.is_dir():
        raise MissingError(f"benchmarks/arm_root.sh has not made {site.relative_to(work)}")
    command: list[str | Path] = [
        QEMU,
        "-cpu",
        CPU,
        "-L",
        root,
        root / "usr/bin/python3.11",
        WORKER,
        folder,
        listed,
        out,
    ]
    logits, found = worked(command, out, PYTHONPATH=str(site))
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return logits, found | {"cpu": CPU, "qemu": version}


def in_browser(folder: Path, listed: Path, out: Path, work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The page `places_page.html` in Chromium, fed with the input that `infer.py` makes here."""
    package = work / "web" / "node_modules" / "onnxruntime-web"
    if not package.is_dir():
        name = f"onnxruntime-web@{WEB_VERSION}"
        subprocess.run(["npm", "install", "--prefix", work / "web", "--ignore-scripts", "--silent", name], check=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    images = np.stack([prepare(path, manifest["steps"]) for path in listed.read_text().splitlines()])
    try:
        return classify_in_browser(folder / manifest["graph"], manifest, images, package / "dist")
    except OSError as error:
        raise MissingError(str(error)) from error


PLACES: dict[str, Callable[[Path, Path, Path, Path], tuple[np.ndarray, dict[str, Any]]]] = {
    "here": here,
    "without torch": without_torch,
    "browser": in_browser,
    "emulated ARM64": emulated_arm,
}


def compared(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Predictions beside those of onnxruntime here, with and without its ties."""
    ordered = np.sort(reference, 1)
    gap, same = ordered[:, -1] - ordered[:, -2], logits.argmax(1) == reference.argmax(1)
    clear, difference = gap >= TIE * reference.std(), np.abs(logits - reference)
    return {
        "n": len(labels),
        "agreement": float(same.mean()),
        "beyond_ties": {"n": int(clear.sum()), "agreement": float(same[clear].mean())},
        "widest_gap_of_a_flip": float(gap[~same].max()) if (~same).any() else None,
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "logit_std": float(reference.std()),
        "logit_difference": {"mean": float(difference.mean()), "max": float(difference.max())},
        "images_with_equal_logits": float((difference == 0).all(1).mean()),
    }


def measure(folder: Path, paths: list[Path], labels: np.ndarray, work: Path) -> list[dict[str, Any]]:
    """A row per place of one deployed folder."""
    listed = work / "images.txt"
    listed.write_text("".join(f"{path}\n" for path in paths))
    rows, reference, digest = [], None, None
    for place, run in PLACES.items():
        row: dict[str, Any] = {"place": place}
        try:
            logits, found = run(folder, listed, work / "logits", work)
        except (MissingError, OSError, subprocess.CalledProcessError) as error:
            rows.append(row | {"missing": str(error)})
            click.echo(rows[-1])
            continue
        if reference is None:
            reference, digest = logits, found["input_sha256"]
        row |= compared(logits, reference, labels)
        row["same_input"] = found.pop("input_sha256", digest) == digest
        rows.append(row | found)
        click.echo(rows[-1])
    return rows


@click.command()
@click.option("--runs", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--images", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path))
@click.option("--count", default=1000, show_default=True)
def main(runs: Path, images: Path, work: Path, count: int) -> None:
    """Ask every place."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    graphs = []
    for run in sorted(path for path in runs.resolve().iterdir() if (path / "record.json").is_file()):
        for graph in (name for name in GRAPHS if (run / f"{name}.onnx").is_file()):
            folder = work / "deployed" / run.name / graph
            manifest: Manifest = deploy(run, folder, graph=graph, overwrite=True)
            paths, labels = chosen(images.resolve(), manifest.class_names, count)
            click.echo(f"{manifest.target} {graph}")
            rows = measure(folder, paths, labels, work)
            graphs.append(
                {
                    "target": manifest.target,
                    "graph": graph,
                    "sha256": manifest.sha256[manifest.graph],
                    "recorded_accuracy": manifest.accuracy.clean,
                    "places": rows,
                }
            )
    write_json(
        RESULT,
        {
            "graphs": graphs,
            "tie_in_logit_standard_deviations": TIE,
            "hardware": to_json(hardware(1)),
            "versions": versions(),
            "commit": git_commit(),
            "command": "python benchmarks/places.py --runs RUNS --images DIR --work WORK",
        },
    )


if __name__ == "__main__":
    main()
