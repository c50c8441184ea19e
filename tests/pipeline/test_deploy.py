"""`qrobust deploy`: a folder for a device, whole or not at all. What it predicts: tests/test_preprocessing.py."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_folder, qrobust
from finished_folders import evaluation_folder

from qrobust.data.files import FORMATS
from qrobust.deployment import infer, ort_format
from qrobust.deployment.onnx_graph import one_product
from qrobust.errors import InputError
from qrobust.evaluation.kept import CLEAN
from qrobust.pipeline import deploy as stage
from qrobust.pipeline.deploy import LEAST_ONNXRUNTIME, deploy
from qrobust.quantization.target import TARGETS
from qrobust.record import Manifest, from_json, read_record
from qrobust.record.recommendation import FEW_STEPS
from qrobust.storage import read_json

ROOT = Path(__file__).parents[2]


def test_the_manifest_tells_what_the_graph_takes(finished_run: Path, tmp_path: Path) -> None:
    deploy(finished_run, tmp_path / "out", graph="int8")
    found = from_json(Manifest, read_json(tmp_path / "out" / "manifest.json"), "manifest.json")
    graph = onnx.load(tmp_path / "out" / found.graph).graph
    shape = graph.input[0].type.tensor_type.shape.dim
    assert (found.input.name, found.output) == (graph.input[0].name, graph.output[0].name)
    assert [d.dim_value for d in shape[1:]] == [found.input.channels, found.input.side, found.input.side]
    assert (found.target, found.class_names) == ("x86-vnni", tuple("0123456789"))


def test_hashes_are_of_the_files(finished_run: Path, tmp_path: Path) -> None:
    found = deploy(finished_run, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"compensated.onnx", "infer.py", "model-card.md", "README.md", "manifest.json"}
    for name, expected in found.sha256.items():
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == expected, name
    assert set(found.sha256) == files - {"manifest.json", "README.md"}


def test_the_readme_s_calls_name_input_and_output(finished_run: Path, tmp_path: Path) -> None:
    deploy(finished_run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'const char* inputs[] = {"images"};' in text
    assert 'new ort.Tensor("float32", pixels, [1, 3, 32, 32])' in text
    assert re.findall(r"\{\{|\}\}", text) == []


def test_only_what_deploy_made_is_replaced(finished_run: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    for folder, options, message in (
        (own, ("--overwrite",), "holds files that `qrobust deploy` did not make"),
        (out, (), ""),
        (out, (), "is not empty; --overwrite replaces it"),
        (out, ("--overwrite", "--graph", "int8"), ""),
    ):
        result = qrobust("deploy", finished_run, "--out", folder, *options)
        assert (result.exit_code == 0) == (message == ""), result.output
        assert message in result.output
    assert (own / "thesis.txt").read_text() == "mine"
    assert not (out / "compensated.onnx").exists()


def test_nothing_is_left_of_what_fails(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device", "manifest.json")

    monkeypatch.setattr(stage, "write_json", fail)
    result = qrobust("deploy", finished_run, "--out", tmp_path / "out")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_recommended_is_deployed_with_a_warning(finished_run: Path, tmp_path: Path) -> None:
    refusals = read_record(finished_run / "record.json").recommendation
    assert refusals is not None
    assert FEW_STEPS in refusals.refusals("compensated"), "the fixture's calibrator learned from a few steps"
    result = qrobust("deploy", finished_run, "--out", tmp_path / "out")
    assert result.stderr.startswith("warning: INT8 + calibrator is not recommended: ")
    assert result.stderr.removeprefix("warning: ").strip() in (tmp_path / "out" / "model-card.md").read_text()


def test_a_graph_other_than_was_measured_is_not_deployed(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with (run / "int8.onnx").open("ab") as file:
        file.write(b"more")
    result = qrobust("deploy", run, "--graph", "int8", "--out", tmp_path / "out")
    assert (result.exit_code, (tmp_path / "out").exists()) == (3, False)
    assert "int8.onnx is not the file that was measured" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph", "int9"], "--graph: expected one of int8"),
        (["--out", "file"], "--out: expected a folder, file is none"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    result = qrobust("deploy", finished_run, *(("--out", "out") if "--out" not in options else ()), *options)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert message in result.output


def test_an_evaluation_has_nothing_to_deploy(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "e", {CLEAN: {"int8": [0, 1]}}, [0, 1])
    with pytest.raises(InputError, match=r"run folder: expected a run, .* is an evaluation of ONNX files"):
        deploy(folder, tmp_path / "out")


def test_the_code_for_devices_knows_what_qrobust_knows() -> None:
    exact = {name for name, target in TARGETS.items() if target.exact_sums and not target.signed}
    signed = {name for name, target in TARGETS.items() if target.signed}
    assert (set(infer.EXACT), set(infer.SIGNED)) == (exact, signed)
    assert infer.FORMATS == FORMATS
    assert one_product() == infer.ONE_PRODUCT


def test_the_oldest_onnxruntime_is_that_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"onnxruntime>={LEAST_ONNXRUNTIME}" in setup["options"]["install_requires"].split()


def test_commands_of_the_page_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "runs/one")
    make_folder(tmp_path / "images", parts=("",))
    page = (ROOT / "docs" / "deploy.md").read_text()
    lines = [
        line
        for block in re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) >= 3
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "qrobust":
            result = qrobust(*arguments)
            assert result.exit_code == 0, result.output
        else:
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
            assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_a_page_comes_with_what_it_shows(finished_run: Path, tmp_path: Path) -> None:
    result = qrobust("deploy", finished_run, "--out", tmp_path / "out", "--web")
    assert result.exit_code == 0, result.output
    found = from_json(Manifest, read_json(tmp_path / "out" / "manifest.json"), "manifest.json")
    assert [graph.file for graph in found.web] == ["web/int8.onnx", "compensated.onnx"]
    assert (tmp_path / "out" / "web" / "int8.onnx").read_bytes() == (finished_run / "int8.onnx").read_bytes()
    files = {f"web/{path.name}" for path in (tmp_path / "out" / "web").iterdir()}
    assert {"web/index.html", "web/page.js", "web/prepare.js"} < files < set(found.sha256)
    for name in files:
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == found.sha256[name], name
    assert "npm install --prefix web" in (tmp_path / "out" / "README.md").read_text()


def test_a_page_of_one_graph_shows_that(finished_run: Path, tmp_path: Path) -> None:
    found = deploy(finished_run, tmp_path / "out", graph="int8", web=True)
    assert [(graph.file, graph.name) for graph in found.web] == [("int8.onnx", "INT8")]


def test_a_page_fetches_from_its_own_folder_alone() -> None:
    """The library, too: what a page of another server loads may change."""
    for path in (stage.PAGE).iterdir():
        assert re.findall(r"https?://(?!127\.0\.0\.1)[^\s\"]*", path.read_text()) == [], path.name


def test_a_page_without_its_graph_is_one_line(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (run / "int8.onnx").unlink()
    result = qrobust("deploy", run, "--out", tmp_path / "out", "--web")
    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert len(result.output.strip().splitlines()) == 1
    assert f"--web: expected {run / 'int8.onnx'}, which the page shows, got no such file" in result.output


def test_a_camera_s_graph_says_what_the_run_said(finished_run: Path, tmp_path: Path) -> None:
    """Frames that hold the test images as they are: the logits are those of the graph without a camera."""
    result = qrobust("deploy", finished_run, "--out", tmp_path / "out", "--camera")
    assert result.exit_code == 0, result.output
    found = from_json(Manifest, read_json(tmp_path / "out" / "manifest.json"), "manifest.json")
    assert found.camera == "camera/compensated.onnx"
    file = tmp_path / "out" / found.camera
    assert sha256(file.read_bytes()).hexdigest() == found.sha256[found.camera]
    assert found.camera in (tmp_path / "out" / "README.md").read_text()
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    with_camera, without = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (file, tmp_path / "out" / found.graph)
    )
    images = frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    wanted = without.run(None, {found.input.name: images})[0]
    assert np.array_equal(with_camera.run(None, {"frames": frames})[0], wanted)


def test_a_copy_in_ort_format_predicts_the_same(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = qrobust("deploy", finished_run, "--out", tmp_path / "out", "--ort")
    assert result.exit_code == 0, result.output
    found = from_json(Manifest, read_json(tmp_path / "out" / "manifest.json"), "manifest.json")
    assert found.ort is not None
    file = tmp_path / "out" / found.ort.file
    assert (found.ort.file, found.ort.written_by) == ("compensated.ort", onnxruntime.__version__)
    assert sha256(file.read_bytes()).hexdigest() == found.sha256["compensated.ort"]
    assert "`compensated.ort` is the same graph" in (tmp_path / "out" / "README.md").read_text()
    # Random images, and the run's two pictures: clean, and before and after for each of four shifts.
    assert found.ort.n == stage.RANDOM_IMAGES + 2 * (1 + 2 * 4)
    images = sorted(make_folder(tmp_path / "images", parts=("",)).rglob("*.png"))
    wanted, got = (infer.Network(tmp_path / "out" / name).logits(images) for name in (found.graph, found.ort.file))
    assert np.abs(wanted - got).max() <= 1e-4
    monkeypatch.setattr(infer, "sums_saturate", lambda: True)
    with pytest.raises(ValueError, match="expected the ONNX file on this CPU, whose own kernels saturate"):
        infer.Network(file)


class Reversed:
    """A session whose logits have the other sign."""

    def __init__(self, path: Path, _threads: int) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.get_inputs = self.session.get_inputs

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [-found for found in self.session.run(names, feed)]


def test_a_copy_that_predicts_otherwise_is_not_deployed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_format, "open_ort", Reversed)
    result = qrobust("deploy", finished_run, "--graph", "int8", "--out", tmp_path / "out", "--ort")
    assert (result.exit_code, (tmp_path / "out").exists()) == (3, False)
    assert "ort: the copy in ORT format predicts another class for" in result.output
