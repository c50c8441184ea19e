"""Do two commits give the same figures and the same graphs?

    python benchmarks/same_figures.py ee42081 1625378 --work WORK
    python benchmarks/same_figures.py ee42081 1625378 --work WORK --options "--model ... --data ..."

Runs the demo, or with `--options` another run, at each commit, from its files below WORK; a run that is there is not
made again. Compares the records as the present reader understands both, without times: keys that both have must be
equal. Compares the graphs after their values were renamed in order: nodes, constants and metadata but for the version
must be equal, and outputs on images bit-equal. results/same_figures.json keeps what was found of the demo beside what
was found of a run.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from figures import ROOT, git_commit

from qrobust.data.loading import open_data
from qrobust.deployment.session import open_session
from qrobust.record import hardware, read_record, to_json, versions, without_timings
from qrobust.storage import read_json, write_json

RESULT = Path(__file__).parent / "results" / "same_figures.json"
# What tells one version or one checkout from the other.
ABOUT = ("qrobust", "schema", "config", "versions", "hardware", "stages", "weights")
# Difference, relative or near 0, that the same formula may leave when another library evaluates it.
ROUNDING = 1e-12
IMAGES = 1000


def made(commit: str, work: Path, options: str) -> Path:
    """The folder of a finished run of a commit."""
    folder = (work / commit).resolve()
    checkout, out = folder / "checkout", folder / "run"
    if not (out / "record.json").exists():
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(checkout, filter="data")
        command = ["run", *shlex.split(options)] if options else ["demo"]
        # From there, for `-m` looks in the current folder first.
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        module = [sys.executable, "-m", "qrobust"]
        subprocess.run(
            [*module, *command, "--out", str(out), "--threads", "1"], env=environment, cwd=checkout, check=True
        )
    return out


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of a record by the path of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, Any] = {}
    for key, item in items:
        found |= leaves(item, f"{path}.{key}" if path else str(key))
    return found if items or isinstance(value, (dict, list)) else {path: value}


def is_rounding(first: Any, second: Any) -> bool:
    """Whether two values are numbers that are equal but for rounding."""
    return (
        isinstance(first, float)
        and isinstance(second, float)
        and math.isclose(first, second, rel_tol=ROUNDING, abs_tol=ROUNDING)
    )


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run, without times and without what tells versions apart."""
    record = without_timings(to_json(read_record(run / "record.json")))
    return leaves({key: value for key, value in record.items() if key not in ABOUT})


def canonical(path: Path) -> dict[str, Any]:
    """A graph whose values are numbered in the order in which nodes read or make them."""
    model = onnx.load(path)
    names: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return names.setdefault(name, str(len(names)))

    inputs = [number(value.name) for value in model.graph.input]
    nodes = [
        (
            node.op_type,
            node.domain,
            [number(name) for name in node.input],
            [number(name) for name in node.output],
            sorted((a.name, repr(onnx.helper.get_attribute_value(a))) for a in node.attribute),
        )
        for node in model.graph.node
    ]
    constants = {}
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        constants[number(tensor.name)] = (str(array.dtype), array.shape, array.tobytes())
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key != "qrobust.version"}
    return {"inputs": inputs, "nodes": nodes, "constants": constants, "metadata": metadata}


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits of a graph on images."""
    session = open_session(path, 1)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part})[0] for part in np.array_split(images, 20)])


def compare_graphs(first: Path, second: Path, images: np.ndarray) -> dict[str, Any]:
    """Which parts of two graphs are equal."""
    one, other = canonical(first), canonical(second)
    found: dict[str, Any] = {f"same_{part}": one[part] == other[part] for part in one}
    different = [
        key for key in one["metadata"] | other["metadata"] if one["metadata"].get(key) != other["metadata"].get(key)
    ]
    found |= {"n_nodes": len(one["nodes"]), "n_constants": len(one["constants"]), "different_metadata": different}
    return found | {"same_outputs": bool((outputs(first, images) == outputs(second, images)).all())}


@click.command()
@click.argument("earlier")
@click.argument("later")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of checkouts and runs.")
@click.option("--options", default="", help="Of `qrobust run`, in place of the demo.")
@click.option("--data", default="digits", show_default=True, help="Whose images the graphs are shown.")
def main(earlier: str, later: str, work: Path, options: str, data: str) -> None:
    """Compare a run of one commit with that of another."""
    work = work.resolve()
    runs = [made(commit, work, options) for commit in (earlier, later)]
    before, after = map(figures, runs)
    common = sorted(set(before) & set(after))
    unequal = {key: [before[key], after[key]] for key in common if before[key] != after[key]}
    rounded = {key for key, pair in unequal.items() if is_rounding(*pair)}
    differing = {key: pair for key, pair in unequal.items() if key not in rounded}
    opened = open_data(data, seed=0, calibration_images=64)
    splits = (opened.training, opened.validation, opened.test)
    pixels = np.concatenate([split.read(slice(None)).numpy() for split in splits])[:IMAGES]
    images = pixels.astype(np.float32) / 255
    graphs = {
        path.stem: compare_graphs(path, runs[1] / path.name, images)
        for path in sorted(runs[0].glob("*.onnx"))
        if (runs[1] / path.name).exists()
    }
    for key, (old, new) in differing.items():
        click.echo(f"{key}: {old} -> {new}")
    for name, graph in graphs.items():
        click.echo(f"{name}: {graph}")
    click.echo(f"{len(common)} figures in both, {len(rounded)} differ by rounding, {len(differing)} else")
    found = {
        "commits": [earlier, later],
        "options": _plain(options) or "demo",
        "n_figures": len(common),
        "equal_but_for_rounding": len(rounded),
        "differing": differing,
        "only_earlier": sorted(set(before) - set(after)),
        "only_later": sorted(set(after) - set(before)),
        "n_images": len(images),
        "graphs": graphs,
        "hardware": to_json(hardware(1)),
        "versions": versions(),
        "commit": git_commit(),
    }
    known = read_json(RESULT)["runs"] if RESULT.exists() else {}
    told = "figures and graphs of the same run by two commits"
    write_json(RESULT, {"what": told, "runs": known | {"run" if options else "demo": found}})


def _plain(options: str) -> str:
    """Options without the folders of this machine."""
    return re.sub(r"(?<=[\s:])[~/][^\s]*/", "", options)


if __name__ == "__main__":
    main()
