"""Networks as people write them: what is read twice, constants of unusual form, outputs of other kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import qrobust, save_npz
from torch import nn
from torch.nn import functional as F

from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.parity import check_export, check_meaning, parity
from qrobust.errors import ExportCheckError, InputError
from qrobust.quantization.integer_layers import ActivationQuantizer
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI
from qrobust.quantization.tracing import calls, folded

SIZE = 16


class Views(nn.Module):
    """A 3x3 stem that reads the image, and something else of it."""

    def __init__(self, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.view, self.stem, self.head = view, nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.stem(x) + self.stem(self.view(x))).mean((2, 3)))


class Behind(nn.Module):
    """A small network, and arithmetic on its features `(N, 8, S, S)` or its logits `(N, 5)`."""

    def __init__(self, where: str, what: Callable[[nn.Module, torch.Tensor], torch.Tensor], value: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.where, self.what = where, what
        self.value = nn.Parameter(torch.as_tensor(value, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(self.what(self, x) if self.where == "features" else x).mean((2, 3))
        return self.what(self, self.head(x)) if self.where == "logits" else self.head(x)


CONSTANTS: dict[str, Behind] = {
    "temperature": Behind("logits", lambda net, z: z * net.value, 1.7),
    "divided": Behind("logits", lambda net, z: z / net.value, 1.7),
    "exponential": Behind("logits", lambda net, z: z * net.value.exp(), 2.6),
    "prior": Behind("logits", lambda net, z: z + net.value.log(), [0.2] * 5),
    "nothing": Behind("logits", lambda net, z: net.value + z, [0.0] * 5),
    "mask": Behind("features", lambda net, x: x * net.value, [[[[1.0] * 8] * 8] * 8]),
    "zeros": Behind("features", lambda net, x: x + net.value, [[[[0.0] * 8] * 8] * 8]),
    "rank 5": Behind(
        "features",
        lambda net, x: (x.reshape(-1, 2, 4, 8, 8) * net.value).reshape(-1, 8, 8, 8),
        [[[[[0.5]]], [[[2.0]]]]],
    ),
}

EXPORTED = ("exponential", "zeros", "rank 5")  # an export takes a second


@pytest.fixture
def pixels() -> torch.Tensor:
    coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1)


def test_a_stem_that_reads_two_views_is_widened_once_for_each(
    pixels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_quantized = quantize(Views(lambda x: torch.flip(x, (3,))).eval(), X86_VNNI, [pixels])
    export(fake_quantized, tmp_path / "wide.onnx", SIZE)
    monkeypatch.setattr("qrobust.deployment.export._widen", lambda proto: None)
    export(fake_quantized, tmp_path / "plain.onnx", SIZE)
    wide, plain = (OnnxClassifier(tmp_path / f"{name}.onnx", 1) for name in ("wide", "plain"))
    assert torch.equal(wide(pixels), plain(pixels))  # zeros change no sum
    counted = audit(tmp_path / "wide.onnx")
    assert counted.integer_ops == counted.quantizable_ops == 3


def test_layers_that_compute_the_same_may_become_one(pixels: torch.Tensor, tmp_path: Path) -> None:
    fake_quantized = quantize(Views(lambda x: x).eval(), X86_VNNI, [pixels])
    export(fake_quantized, tmp_path / "once.onnx", SIZE)
    counted = audit(tmp_path / "once.onnx")
    assert counted.integer_ops == counted.quantizable_ops == 2  # onnxruntime runs the stem once
    labels = fake_quantized(pixels).argmax(1)
    check_export("int8", counted, parity(fake_quantized, fake_quantized, pixels, labels), 3)


@pytest.mark.parametrize("name", CONSTANTS)
def test_arithmetic_with_constants_is_quantized_as_it_is(name: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    network = CONSTANTS[name].eval()
    fake_quantized = quantize(network, X86_VNNI, [pixels])
    with torch.no_grad():
        wanted, got = network(pixels), fake_quantized(pixels)
    # Three roundings to 8 bits are far below a tenth of the spread.
    assert (wanted - got).abs().mean() < 0.1 * wanted.std()
    quantized = [str(node.args[0]) for node, _ in calls(fake_quantized, ActivationQuantizer)]
    assert not any("head" in source for source in quantized)  # logits keep all their digits
    if name in EXPORTED:
        export(fake_quantized, tmp_path / "int8.onnx", SIZE)
        # A step of an activation here and there.
        assert (OnnxClassifier(tmp_path / "int8.onnx", 1)(pixels) - got).abs().mean() < 0.02 * wanted.std()


class Joined(nn.Module):
    """Two views along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.head(F.relu(self.stem(torch.cat([x, x.flip(3)], 0))).mean((2, 3)))
        first, second = z.chunk(2, 0)
        return first + second


def test_images_joined_along_the_batch_are_one_line(pixels: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds for batches of 2 alone, since 'cat' makes 4 rows of them; keep the"):
        export(folded(Joined().eval(), pixels[:1]), tmp_path / "joined.onnx", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_float_graph_must_say_what_the_network_says() -> None:
    wanted = torch.tensor([[100.0, 101.0], [100.0, 99.0]])
    check_meaning(wanted, wanted + 0.02)  # of a spread of one half
    for got in (wanted + 0.03, wanted.flip(1), wanted * float("nan")):
        with pytest.raises(
            ExportCheckError, match=r"logits of the float graph differ by .* spread over 0\.5 \(n = 2\)"
        ):
            check_meaning(wanted, got)


# Networks in files, by the name of their factory.
NETWORKS = """
import torch
from torch import nn
from torch.nn import functional as F

LEVELS = torch.tensor([0.08, 0.31, 0.55])  # mean pixels of the three classes

def loud(by=1e5):
    # One channel that nothing reads is so loud that the grid of all has no step for the other.
    first, last = nn.Conv2d(3, 2, 1), nn.Linear(2, 3)
    first.weight.data = torch.tensor([[by / 3] * 3, [1 / 3] * 3]).view(2, 3, 1, 1)
    last.weight.data = torch.stack([torch.zeros(3), 2 * LEVELS], 1)
    first.bias.data.zero_()
    last.bias.data = -LEVELS.square()
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

def quiet():
    return loud(1.0)

class Dynamic(nn.Conv2d):
    # Its weights depend on the images.
    def forward(self, x):
        return F.conv2d(x, torch.where(x.sum() > -1, self.weight, -self.weight), self.bias)

def dynamic():
    return nn.Sequential(Dynamic(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def run(network: str, folder: Path, *options: object) -> tuple[int, str, dict]:
    """`qrobust quantize` on one of `NETWORKS`: exit code, what it printed, and what the stage left."""
    (folder / "networks.py").write_text(NETWORKS)
    data = f"npz:{save_npz(folder / 'd.npz', 300)}"
    result = qrobust(
        "quantize",
        "--model",
        f"{folder / 'networks.py'}:{network}",
        "--data",
        data,
        "--image-size",
        SIZE,
        "--normalization",
        "none",
        "--calibration-images",
        32,
        "--out",
        folder / "out",
        "--threads",
        1,
        "-q",
        *options,
    )
    stage = folder / "out" / "stages" / "quantize.json"
    return result.exit_code, result.output, json.loads(stage.read_text()) if stage.exists() else {}


def test_what_int8_loses_is_told(tmp_path: Path) -> None:
    code, output, stage = run("loud", tmp_path)
    assert code == 0, output
    measured = stage["quantization"]["validation"]
    n = measured["n"]
    assert measured["accuracy"]["float"] == 1
    assert measured["accuracy"]["int8"] == measured["agreement"] < 0.5
    assert measured["interval"]["float"][1] == 1
    lost = 100 * (1 - measured["agreement"])
    assert f"warning: INT8 loses {lost:.1f} points of accuracy on {n} validation images (100.0 -> " in output
    assert "try --ptq auto, --equalize, --qat-epochs 1, --keep-float auto:N" in output
    assert f"Validation images (n = {n}, onnxruntime): Float 100.0 % [" in output
    assert f"INT8 predicts what float does on {100 * measured['agreement']:.1f} %." in output
    assert "parity with its fake-quantized model in torch 100.00 %" in output
    assert "agreement with torch" not in output


def test_the_loss_is_told_in_the_measure_that_decides(tmp_path: Path) -> None:
    code, output, stage = run("loud", tmp_path, "--primary", "balanced")
    assert code == 0, output
    measured = stage["quantization"]["validation"]
    lost = 100 * (1 - measured["primary"]["int8"])
    assert f"warning: INT8 loses {lost:.1f} points of balanced accuracy on {measured['n']} validation" in output
    assert "In the measure that decides: Float 100.0 %, INT8 " in output


def test_nothing_lost_is_no_warning(tmp_path: Path) -> None:
    code, output, stage = run("quiet", tmp_path)
    assert (code, "INT8 loses" in output) == (0, False), output
    assert stage["quantization"]["validation"]["agreement"] == 1


def test_a_graph_of_float_work_alone_says_why(tmp_path: Path) -> None:
    code, output, _ = run("dynamic", tmp_path)
    assert code == 0, output
    assert "1 Conv, 99." in output
    assert "int8.onnx is no faster than float.onnx" in output


def test_a_rewrite_that_changes_what_the_network_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: nn.Module, example: torch.Tensor) -> nn.Module:
        graph = folded(model, example)
        next(graph.parameters()).data.mul_(0.5)
        return graph

    monkeypatch.setattr("qrobust.pipeline.quantize.folded", wrong)
    code, output, _ = run("quiet", tmp_path)
    assert code == 3, output
    assert output.splitlines()[-1].startswith("Error: parity: logits of the float graph differ by")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "networks.py"]
