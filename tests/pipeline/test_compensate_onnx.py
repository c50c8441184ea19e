"""`qrobust compensate FILE.onnx`: a file that is quantized already, from its integers to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import qrobust, save_npz
from onnx import TensorProto, helper, numpy_helper
from quantized_files import (
    KINDS,
    NORMALIZATION,
    SIZE,
    float_file,
    quantized_file,
    with_batch,
    with_input,
    with_softmax,
)

from qrobust.data.loading import open_data
from qrobust.data.splits import Data
from qrobust.deployment.front import same_parts
from qrobust.deployment.imported import check_integers
from qrobust.errors import InputError
from qrobust.models.onnx_import.file import read_onnx
from qrobust.models.onnx_import.network import as_network
from qrobust.pipeline.file_run import batches_to_compare
from qrobust.record import read_evaluation
from qrobust.shifts.filters import to_unit

# A calibrator that has hardly learned: what is tried is what becomes of it.
BRIEF = (
    *("--calibration-images", 32, "--shifts", "contrast", "--severities", 5, "--train-on", "contrast"),
    *("--steps", 10, "--batch-size", 16, "--mac-budget", 1, "--threads", 1),
)


def command(path: Path, out: Path, *options: object, normalization: str | None = NORMALIZATION) -> tuple[object, ...]:
    data = out.parent / "d.npz"
    if not data.exists():
        save_npz(data, 300)
    given = () if normalization is None else ("--normalization", normalization)
    return ("compensate", path, "--data", f"npz:{data}", *given, *BRIEF, "--out", out, *options)


@pytest.fixture(scope="module")
def compensated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A file, the folder of what was made of it, and what the command printed."""
    folder = tmp_path_factory.mktemp("files")
    path, out = quantized_file(folder / "net.onnx"), folder / "out"
    result = qrobust(*command(path, out))
    assert result.exit_code == 0, result.output
    return path, out, result.output


@pytest.mark.slow  # trains and exports a calibrator
def test_the_files_graph_is_in_both_graphs_byte_for_byte(compensated: tuple[Path, Path, str]) -> None:
    path, out, output = compensated
    assert same_parts(path, out / "int8.onnx")
    assert same_parts(path, out / "compensated.onnx")
    assert "its integers in torch say what onnxruntime says on 100.0 % of 1,000 images" in output


@pytest.mark.slow  # trains and exports a calibrator
def test_both_are_measured_and_no_float_network_is_told_of(compensated: tuple[Path, Path, str]) -> None:
    path, out, output = compensated
    record = read_evaluation(out / "record.json")
    assert list(record.summary.clean_accuracy) == ["int8", "compensated"]
    assert record.summary.clean_accuracy["int8"] > 0.9
    assert record.compensation is not None
    assert record.compensation.file.file == str(path)
    assert record.compensation.calibrator.trained_on == ("contrast",)
    report = (out / "report.md").read_text()
    assert "its nodes and constants are in both, byte for byte" in report
    assert "float" not in report.replace("No float network took part", "")
    assert "float" not in output


@pytest.mark.slow  # trains and exports a calibrator
def test_it_says_whether_to_ship_the_calibrator(compensated: tuple[Path, Path, str]) -> None:
    _, out, output = compensated
    told = "compensated is not recommended: was trained for 10 steps, too few to have learned"
    assert told in output
    for name in ("report.md", "report.html"):
        assert told in (out / name).read_text()
    found = read_evaluation(out / "record.json").compensation
    assert found is not None
    assert found.recommendation is not None
    assert found.recommendation.graph == "int8"


@pytest.mark.slow  # trains and exports a calibrator
def test_what_is_done_is_kept_and_the_folder_can_be_checked(compensated: tuple[Path, Path, str]) -> None:
    path, out, _ = compensated
    kept = (out / "compensated.onnx").read_bytes()
    result = qrobust("compensate", path, "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    for stage in ("import", "compensate", "export"):
        assert f"{stage}: done before, kept" in result.output
    assert (out / "compensated.onnx").read_bytes() == kept
    result = qrobust("check", out, "--min-accuracy", 0.9)
    assert result.exit_code == 0, result.output


@pytest.mark.slow  # trains and exports a calibrator
def test_other_commands_say_what_the_folder_is(compensated: tuple[Path, Path, str]) -> None:
    _, out, _ = compensated
    for name in ("evaluate", "report", "export"):
        result = qrobust(name, out)
        assert result.exit_code == 2
        assert "is of a file that was quantized before" in result.output


@pytest.mark.slow  # trains and exports a calibrator
def test_another_file_of_that_name_does_not_go_on(compensated: tuple[Path, Path, str]) -> None:
    path, out, _ = compensated
    kept = path.read_bytes()
    quantized_file(path, seed=0)
    try:
        result = qrobust("compensate", path, "--resume", "--out", out)
    finally:
        path.write_bytes(kept)
    assert result.exit_code == 2
    assert f"--model: expected the file that {out} was made of, {path} is another" in result.output


@pytest.mark.slow  # trains and exports a calibrator
def test_bytes_channels_last_old_opset_probabilities_one_image_and_operators_on_integers(tmp_path: Path) -> None:
    source = quantized_file(tmp_path / "a.onnx", opset=11, **KINDS["QOperator, S8S8"])
    path = with_input(with_softmax(source), tmp_path / "net.onnx", TensorProto.UINT8, channels_last=True)
    with_batch(path, 1)
    result = qrobust(*command(path, tmp_path / "out", "--no-labels", normalization=None))
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    file = record["compensation"]["file"]
    assert (file["opset"], file["converted_to"], file["layout"], file["pixels"]) == (11, 13, "NHWC", "uint8")
    assert file["bit_equal_images"] > 0
    assert record["compensation"]["parity"]["max_logit_difference"] < 1  # of probabilities
    assert record["models"]["compensated"]["output"] == "probabilities"
    assert record["compensation"]["calibrator"]["branches"] == ["residual", "photometric"]
    assert record["compensation"]["calibrator"]["validation"]["measures"]["clean"] == "agreement with the file"
    assert "its logits are equal to the bit on" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow  # trains scales and evaluates
@pytest.mark.parametrize("kind", ["QDQ, U8S8", "QOperator, U8S8"])
def test_scales_leave_nodes_and_integer_weights_and_are_measured(kind: str, tmp_path: Path) -> None:
    path, out = quantized_file(tmp_path / "net.onnx", **KINDS[kind]), tmp_path / "out"
    result = qrobust(*command(path, out, "--remedy", "scales", "--clean-budget", 50))
    assert result.exit_code == 0, result.output
    record = read_evaluation(out / "record.json")
    assert list(record.summary.clean_accuracy) == ["int8", "scales"]
    found = record.compensation
    assert found is not None
    assert found.calibrator is None
    assert found.scales is not None
    assert found.remedy is not None
    assert (found.remedy.remedy, found.remedy.macs) == ("scales", 0)
    assert found.remedy.weight_change is not None
    assert found.remedy.weight_change.integers_changed == 0
    before, after = (onnx.load(file).graph for file in (path, out / "scales.file.onnx"))
    assert [n.SerializeToString() for n in before.node] == [n.SerializeToString() for n in after.node]
    constants = {one.name for one, other in zip(before.initializer, after.initializer, strict=True) if one != other}
    assert 0 < len(constants) <= 2 * (found.scales.scales + found.scales.biases)
    assert same_parts(path, out / "scales.onnx", constants)
    assert same_parts(out / "scales.file.onnx", out / "scales.onnx")
    report = (out / "report.md").read_text()
    assert "its nodes and integer weights are in both, byte for byte" in report
    assert "The new scales" in result.output
    assert "calibrator" not in report


@pytest.mark.slow  # trains scales and a calibrator, and evaluates
def test_a_calibrator_stands_in_front_of_the_new_scales(tmp_path: Path) -> None:
    path, out = quantized_file(tmp_path / "net.onnx"), tmp_path / "out"
    result = qrobust(*command(path, out, "--remedy", "scales+calibrator", "--clean-budget", 50))
    assert result.exit_code == 0, result.output
    record = read_evaluation(out / "record.json")
    assert list(record.summary.clean_accuracy) == ["int8", "scales+calibrator"]
    found = record.compensation
    assert found is not None
    assert found.scales is not None
    assert found.calibrator is not None
    assert found.remedy is not None
    assert found.remedy.macs
    assert found.remedy.weight_change == found.scales.weight_change
    assert found.parity.agreement_beyond_ties == 1
    assert same_parts(out / "scales.file.onnx", out / "scales+calibrator.onnx")
    report = (out / "report.md").read_text()
    assert "other scales and biases and a calibrator in front" in report
    result = qrobust("compensate", path, "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert "scales+calibrator: done before, kept" in result.output


@pytest.mark.slow  # trains scales and evaluates
def test_scales_of_an_old_opset_go_on_and_keep_to_their_remedy(tmp_path: Path) -> None:
    path, out = quantized_file(tmp_path / "net.onnx", opset=11, **KINDS["QOperator, S8S8"]), tmp_path / "out"
    result = qrobust(*command(path, out, "--remedy", "scales"))
    assert result.exit_code == 0, result.output
    assert onnx.load(out / "scales.onnx").opset_import[0].version == 13
    assert onnx.load(out / "scales.file.onnx").opset_import[0].version == 11
    result = qrobust("compensate", path, "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert "scales: done before, kept" in result.output
    result = qrobust("compensate", path, "--remedy", "calibrator", "--resume", "--out", out)
    assert result.exit_code == 2
    assert f"--remedy: expected scales, with which {out} was begun, got calibrator" in result.output


def controlled(path: Path) -> Path:
    model = onnx.load(quantized_file(path))
    branch = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["i"])],
        "b",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "t"))
    model.graph.node.append(helper.make_node("If", ["t"], ["z"], then_branch=branch, else_branch=branch))
    onnx.save(model, path)
    return path


def custom(path: Path) -> Path:
    model = onnx.load(quantized_file(path))
    model.graph.node.append(helper.make_node("Magic", ["logits"], ["z"], domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, path)
    return path


def two_images(path: Path) -> Path:
    model = onnx.load(quantized_file(path))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3, SIZE, SIZE]))
    onnx.save(model, path)
    return path


def outside(path: Path) -> Path:
    onnx.save(
        onnx.load(quantized_file(path)), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def dynamic(path: Path) -> Path:
    model = onnx.load(float_file(path))
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["logits"], ["q", "s", "z"], "rounding"))
    model.graph.output[0].name = "s"
    onnx.save(model, path)
    return path


BAD = {
    "control flow": (controlled, "has control flow (If); expected operators alone"),
    "custom operators": (custom, "needs custom operators: mine:Magic"),
    "two images": (two_images, "expected one image as input, got 2 inputs"),
    "float": (float_file, "--model: expected a file that is quantized, "),
    "weights outside": (outside, "keeps weights in other files (weights.bin)"),
    "dynamic quantization": (dynamic, "DynamicQuantizeLinear 'rounding' has no torch form here"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_taken_is_one_line(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    result = qrobust(*command(make(tmp_path / "net.onnx"), tmp_path / "out"))
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--remedy", "finetune"), "--remedy: expected calibrator, scales or scales+calibrator, as "),
        (("--compare",), "--remedy: expected calibrator, scales or scales+calibrator, as "),
        (("--attacks", "quick"), "--attacks: expected with a run only"),
        (("--branches", "geometric"), "--branches: expected none that moves the image, which needs opset 16"),
    ],
)
def test_options_that_a_file_cannot_have_are_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = quantized_file(tmp_path / "net.onnx", opset=13)
    result = qrobust(*command(path, tmp_path / "out", *options))
    assert result.exit_code == 2
    assert message in result.output


def test_a_run_takes_no_options_of_files(tmp_path: Path) -> None:
    result = qrobust("compensate", tmp_path, "--data", "digits")
    assert result.exit_code == 2
    assert "--data: expected with FILE.onnx only" in result.output


def few_images(folder: Path, **options: int) -> Data:
    data = open_data(f"npz:{save_npz(folder / 'd.npz', 60)}", seed=0, calibration_images=10, **options)
    assert len(data.validation) + len(data.calibration) + len(data.training) == 48
    return data


def test_few_images_are_compared_in_all_symmetries_of_a_square(tmp_path: Path) -> None:
    data = few_images(tmp_path)
    pixels = torch.cat([images for images, _ in batches_to_compare(data)])
    assert len(pixels) == 8 * 48
    assert torch.equal(pixels[: len(data.validation)], data.validation.read(slice(None)))
    different = {image.numpy().tobytes() for image in pixels}
    assert len(different) == len(pixels)
    assert not different & {image.numpy().tobytes() for image in data.test.read(slice(None))}


def test_large_images_are_compared_until_one_may_differ(tmp_path: Path) -> None:
    data = few_images(tmp_path, image_size=512)  # of which 2**24 pixels are 64 images
    assert sum(len(labels) for _, labels in batches_to_compare(data)) == 200


def test_one_image_that_rounds_otherwise_does_not_refuse_a_file(tmp_path: Path) -> None:
    data = few_images(tmp_path)
    network = as_network(read_onnx(quantized_file(tmp_path / "net.onnx")))
    odd, forward = to_unit(data.validation.read(slice(0, 1))), network.forward

    def rounding(images: torch.Tensor) -> torch.Tensor:
        same = (images == odd).all(3).all(2).all(1)
        return torch.where(same[:, None], -forward(images), forward(images))

    network.forward = rounding
    batches = [(to_unit(pixels), labels) for pixels, labels in batches_to_compare(data)]
    assert check_integers(network, batches).agreement_beyond_ties == pytest.approx(1 - 1 / (8 * 48))
    with pytest.raises(InputError, match=r"agree with the file on 88.9 % of 9 images \(ties apart\), expected"):
        check_integers(network, batches[:1])


def test_integers_that_say_something_else_are_refused_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrobust.models.onnx_import.integers import FakeQuantize

    path = quantized_file(tmp_path / "net.onnx")
    monkeypatch.setattr(FakeQuantize, "forward", lambda self, x: -x)
    result = qrobust(*command(path, tmp_path / "out"))
    assert result.exit_code == 2
    assert "as a torch network agree with the file on" in result.output
    assert "; first at DequantizeLinear" in result.output
