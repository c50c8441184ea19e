"""What a command that fails leaves behind: nothing half-written, and what was there before."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import qrobust, save_npz

from qrobust.errors import ExportCheckError
from qrobust.storage import atomic_write

# Networks in files, by the name of their factory.
NETWORKS = """
import warnings

import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        tokens = torch.relu(self.mix(self.embed(x).flatten(2).transpose(1, 2)))
        return self.head(tokens.mean(1))

def tokens():
    return Tokens()

class Attentive(Tokens):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(torch.relu(self.mix(tokens)).mean(1))

def attentive():
    return Attentive()

def scripted():
    warnings.simplefilter("ignore")
    return torch.jit.trace(Tokens().eval(), torch.zeros(2, 3, 16, 16))

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))

def half():
    return Tokens().half()

def upward():
    return nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def nothing():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def quantize(folder: Path, network: str, *options: object) -> list[object]:
    """Arguments that quantize one of `NETWORKS` into `folder / "out"`."""
    (folder / "networks.py").write_text(NETWORKS)
    data = f"npz:{save_npz(folder / 'd.npz')}"
    model = network if network == "resnet8" else f"{folder / 'networks.py'}:{network}"
    return [
        "quantize",
        "--model",
        model,
        "--data",
        data,
        "--calibration-images",
        16,
        "--image-size",
        16,
        "--normalization",
        "none" if network != "resnet8" else "cifar10",
        "--out",
        folder / "out",
        "--threads",
        1,
        "-q",
        *options,
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with atomic_write(path) as part:
        part.write_text("one")

    def write(failure: BaseException) -> None:
        with atomic_write(path) as part:
            part.write_text("tw")
            raise failure

    with pytest.raises(OSError, match=r"cannot write .*f \(no space\)"):
        write(RuntimeError("no space"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert content(tmp_path) == {"f": b"one"}


@pytest.mark.parametrize(
    "writer", ["onnx.save_model", "qrobust.pipeline.run.save_file", "qrobust.storage.write_text"]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    arguments = quantize(tmp_path, "resnet8")
    monkeypatch.setattr(writer, full)
    result = qrobust(*arguments)
    told = result.output.splitlines()[-1]
    assert (result.exit_code, told.startswith("Error: ")) == (2, True), result.output
    assert "No space left on device" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "networks.py"]


def test_a_run_is_replaced_once_the_new_one_is_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert qrobust(*quantize(tmp_path, "resnet8")).exit_code == 0
    before = content(out)
    for failure in (ExportCheckError("parity: no"), RuntimeError("not foreseen")):

        def fail(*_: object, failure: Exception = failure) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr("qrobust.pipeline.quantize.saturation_risk", fail)
            assert qrobust(*quantize(tmp_path, "tokens", "--overwrite")).exit_code != 0
        assert content(out) == before
    assert qrobust(*quantize(tmp_path, "tokens", "--overwrite")).exit_code == 0
    assert json.loads((out / "config.json").read_text())["model"].endswith(":tokens")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "networks.py", "out"]


def test_layers_on_tokens_go_through_the_command(tmp_path: Path) -> None:
    result = qrobust(*quantize(tmp_path, "tokens"))
    assert result.exit_code == 0, result.output
    stage = json.loads((tmp_path / "out" / "stages" / "quantize.json").read_text())
    assert {layer["name"] for layer in stage["quantization"]["saturation"]["layers"]} == {"embed", "mix", "head"}


@pytest.mark.parametrize(
    ("network", "left"), [("attentive", "2 of 7 .* stay in float \\("), ("upward", "1 of 2 .*1 Conv")]
)
def test_what_has_no_integer_form_is_told(network: str, left: str, tmp_path: Path) -> None:
    result = qrobust(*quantize(tmp_path, network))
    assert result.exit_code == 0, result.output
    assert re.search(f"warning: {left}.*of the multiply-accumulates\\)", result.output), result.output


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("scripted", "must return a network that can be traced, got a TorchScript module"),
        ("lazy", "must return a network with shapes, '0.weight' has none before the first image"),
        ("half", "model: expected float32 weights, 'embed.weight' is torch.float16"),
        ("nothing", "model: expected a convolution or a linear layer to quantize, found none"),
    ],
)
def test_networks_that_cannot_be_quantized_are_one_line(network: str, message: str, tmp_path: Path) -> None:
    result = qrobust(*quantize(tmp_path, network))
    assert (result.exit_code, message in result.output.splitlines()[-1]) == (2, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("material", "told"), [(-1.0, True), (1.0, False)])
def test_what_other_cpus_lose_is_told(
    material: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.pipeline.quantize.MATERIAL", material)
    result = qrobust(*quantize(tmp_path, "resnet8"))
    assert result.exit_code == 0
    assert ("warning: on an x86 CPU without VNNI expect " in result.output) == told


def test_a_damaged_stage_is_one_line(tmp_path: Path) -> None:
    assert qrobust(*quantize(tmp_path, "resnet8")).exit_code == 0
    (tmp_path / "out" / "stages" / "quantize.json").write_text('{"a": 1}')
    result = qrobust("sensitivity", tmp_path / "out")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
    assert "quantize.json is not what a stage left; remove it and run that stage again" in result.output


@pytest.mark.parametrize("saturate", [True, False])
def test_how_sums_were_added_is_told(
    saturate: bool, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, as on its target; of files, as on this CPU."""
    monkeypatch.setattr("qrobust.deployment.session.sums_saturate", lambda: saturate)
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    result = qrobust("evaluate", out)
    assert result.exit_code == 0, result.output
    assert (
        "warning: this CPU has no VNNI; onnxruntime is asked to add as x86-vnni does" in result.output
    ) == saturate
    assert qrobust("report", out).exit_code == 0
    record = json.loads((out / "record.json").read_text())
    assert record["hardware"]["sums"] == ("exact-by-request" if saturate else "exact")
    for told in ("report.html", "report.md", "int8.card.md"):
        assert ("Times are of a CPU without VNNI" in (out / told).read_text()) == saturate

    for name, told in (("int8", saturate), ("float", False)):
        files = (out / f"{name}.onnx", "--data", "digits", "--shifts", "inversion", "--severities", "5")
        result = qrobust("evaluate-onnx", *files, "--test-images", "20", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert (f"its integer sums saturate: what is told of {name} is of such CPUs" in result.output) == told
        record = json.loads((tmp_path / name / "record.json").read_text())
        assert record["hardware"]["sums"] == ("saturating" if saturate else "exact")


def test_what_only_the_folder_names_is_said_to_stand_there(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"class_names": "gone.txt"}))
    result = qrobust("sensitivity", run)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: class_names: no file gone.txt; {run}/config.json names it"
