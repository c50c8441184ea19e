"""Names are shown, never obeyed; what is read is a regular file, and what is read back is what was written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import qrobust, save_npz
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import classifier_graph
from PIL import Image

from qrobust.choices import option_of
from qrobust.data.loading import open_data, open_test
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.errors import InputError
from qrobust.evaluation.workers import check_workers
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.models.resnet import resnet8
from qrobust.paths import check_file, user_path
from qrobust.pipeline.config import SECTIONS, RunConfig
from qrobust.report.markdown import table
from qrobust.report.plots import gains_plot, layers_plot, looks_of
from qrobust.report.robustbench import unaggregated_csv
from qrobust.report.verdict import NAMES
from qrobust.shifts.rendering import render
from qrobust.storage import (
    read_json,
    read_npz,
    write_json,
    write_sealed,
    write_text,
)
from qrobust.storage import save_npz as save_arrays
from qrobust.text import code, markdown, printable

MODEL, NOT_UTF8 = {"model": "resnet8", "data": "digits"}, os.fsdecode(b"\xff\xfe")


def test_text_is_printable_and_markdown_is_literal() -> None:
    assert printable("plain é 名前 |") == "plain é 名前 |"
    assert printable(f"\x1b[31m\n\u202e{NOT_UTF8}") == r"\x1b[31m\n\u202e\udcff\udcfe"
    assert markdown("a|b<c>`d`*e*[f](g)\n") == r"a\|b\<c>\`d\`\*e\*[f]\(g)\\n"
    assert markdown("gaussian_noise +1.0 points [+0.5, +1.5]") == "gaussian_noise +1.0 points [+0.5, +1.5]"
    assert [code("a b"), code("a`b"), code("``")] == ["`a b`", "`` a`b ``", "``` `` ```"]
    assert table([["a|b", "c"], ["d\ne", "f"]]) == [r"| a\|b | c |", "|---|---:|", r"| d\\ne | f |"]


def test_no_name_is_a_formula_of_a_spreadsheet() -> None:
    names = ["=1+1", "+1", "-1", "@SUM", "a", "\t=1"]
    rows: Any = [SimpleNamespace(shift=name, severity=5, accuracy=dict.fromkeys(names, -0.5)) for name in names]
    found = list(csv.reader(io.StringIO(unaggregated_csv(rows, names))))
    wanted = ["'=1+1", "'+1", "'-1", "'@SUM", "a", r"\t=1"]
    assert found[0] == ["", *wanted]
    assert [line[0] for line in found[2:]] == wanted
    assert found[2][1] == "-0.5"


@pytest.mark.parametrize("name", ["$a_^$", "\x1b[0m", NOT_UTF8, "名前", "<b>"])
def test_any_name_can_be_drawn(name: str) -> None:
    noise = SimpleNamespace(name=name, weight_sqnr_db=1.0, input_sqnr_db=1.0, output_sqnr_db=1.0)
    record: Any = SimpleNamespace(
        quantization=SimpleNamespace(layer_noise=[noise], layer_effects=[]),
        rows=[SimpleNamespace(shift=name, accuracy={"int8": 0.5})],
    )
    drawn = "".join(layers_plot(record)) + str(gains_plot(record.rows, looks_of(["int8"], NAMES)))
    assert drawn.count(printable(name).replace("_", " ").replace("<", "&lt;").replace(">", "&gt;")) >= 1
    assert "<b>" not in drawn
    assert all(line.isprintable() for line in drawn.splitlines())


def test_text_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "t", NOT_UTF8)
    assert (tmp_path / "t").read_text(encoding="utf-8") == r"\udcff\udcfe"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "s"))
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    for path, told in (
        (tmp_path / "fifo", "FIFO"),
        (tmp_path / "s", "socket"),
        (tmp_path, "folder"),
        (Path("/dev/zero"), "device"),
    ):
        with pytest.raises(InputError, match=f"^x: expected a regular file, {path} is a {told}$"):
            check_file(path, "x")
    with pytest.raises(InputError, match="x: no file"):
        check_file(tmp_path / "link", "x")
    with pytest.raises(InputError, match=r"x: cannot read .*loop"):
        check_file(tmp_path / "loop", "x")
    (tmp_path / "file").touch()
    assert check_file(tmp_path / "link", "x") == tmp_path / "link"


@pytest.mark.parametrize("what", ["image", "npz", "names", "weights", "onnx", "stored"])
def test_a_fifo_is_one_line_wherever_a_file_is_read(what: str, tmp_path: Path) -> None:
    graph, npz = classifier_graph(tmp_path / "m.onnx"), save_npz(tmp_path / "d.npz")
    names = {"weights": "f.pt", "stored": "labels.npy", "image": "data/a/f.png"}
    fifo = tmp_path / names.get(what, "f")
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / "0.png")
    os.mkfifo(fifo)
    options: dict[str, object] = {"--model": graph, "--data": f"npz:{npz}", "--out": tmp_path / "out"}
    options |= {
        "image": {"--data": f"imagefolder:{tmp_path / 'data'}"},
        "npz": {"--data": f"npz:{fifo}"},
        "names": {"--class-names": fifo},
        "onnx": {"--model": fifo},
        "stored": {"--shifts": f"stored:{tmp_path}"},
        "weights": {"--model": "resnet8", "--weights": fifo, "--calibration-images": 8},
    }[what]
    command = ["quantize"] if what == "weights" else ["evaluate-onnx", options.pop("--model")]
    result = qrobust(*command, *(word for pair in options.items() for word in pair), "-q")
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    # A folder with a labels.npy that is no file is no set of arrays.
    assert (
        "corruption data set: " if what == "stored" else f"expected a regular file, {fifo} is a FIFO"
    ) in result.output


def test_paths_that_can_be_none_are_refused() -> None:
    with pytest.raises(InputError, match="path: ~nobody-here/x names the home folder of a user who is not known"):
        user_path("~nobody-here/x")
    with pytest.raises(InputError, match=r"path: expected one without NUL characters, got 'a\\x00b'"):
        user_path("a\0b")


@pytest.mark.parametrize(
    "name", ["a|b", "=1+1", "two\nlines", "\x1b[31mred", "$a_^$", NOT_UTF8, "<script>x</script>"]
)
def test_classes_and_graphs_of_any_name_are_measured(name: str, tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / f"{name.replace('/', '-') if name != NOT_UTF8 else 'm'}.onnx")
    for label, folder in enumerate((name.replace("/", "-"), "y", "z")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (20 + 60 * label,) * 3).save(tmp_path / "data" / folder / f"{i}{name[:3]}.png")
    result = qrobust(
        "evaluate-onnx",
        graph,
        "--data",
        f"imagefolder:{tmp_path / 'data'}",
        "--out",
        tmp_path / "out",
        "--shifts",
        "contrast",
        "--severities",
        "5",
        "-q",
        "--threads",
        1,
    )
    assert result.exit_code == 0, result.output
    assert all(line.isprintable() for line in result.output.splitlines())
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert name.replace("/", "-") in record["class_names"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    assert "<script>" not in text.replace(r"\<", "")
    assert not any(line.startswith("=") for line in (tmp_path / "out" / "results.csv").read_text().splitlines())


def test_errors_of_names_reach_no_terminal_as_commands(tmp_path: Path) -> None:
    path = tmp_path / "\x1b]0;title\x07.onnx"
    path.write_bytes(b"no graph")
    result = qrobust("audit", path)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert r"\x1b]0;title\x07.onnx" in result.output
    assert "\x1b" not in result.output


def test_what_a_stage_left_is_not_changed(tmp_path: Path) -> None:
    path, value = tmp_path / "s.json", {"a": [1, 2.5, None], "b": {"c": "é"}}
    write_sealed(path, value)
    assert read_json(path) == value
    text = path.read_text()
    path.write_text(text.replace("2.5", "2.25"))
    with pytest.raises(InputError, match=r"s\.json was changed since it was written"):
        read_json(path)
    write_json(path, value)  # as earlier versions did
    assert read_json(path) == value


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", '{"a": NaN}', '{"a": ' + "1" * 5000 + "}"]
)
def test_json_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    result = qrobust("report", tmp_path)
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output[:300]
    assert "results: cannot read" in result.output


def test_arrays_are_those_that_were_written(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.npz", {"x": np.arange(5), f"{NOT_UTF8}.y": np.zeros((2, 0))}
    save_arrays(path, arrays)
    assert list(read_npz(path, "x")) == ["x", r"\udcff\udcfe.y"]
    with pytest.raises(InputError, match=r"pictures: expected clean in .*, got x, "):
        read_npz(path, "pictures", ("x", "clean"))
    with np.load(path) as stored:
        changed = {key: stored[key] for key in stored.files} | {"x": np.arange(6)}
    np.savez(path, **changed)
    with pytest.raises(InputError, match=r"x: .*a\.npz was changed since it was written"):
        read_npz(path, "x")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"x: cannot read .*; removed, it is made again"):
        read_npz(path, "x")


def numbers() -> dict[str, tuple[float, ...]]:
    """Every single number among the options of a run, with the bounds that may be reached."""
    single, found = {"int", "float", "int | None", "float | None"}, {}
    for section in fields(RunConfig):
        inner = fields(SECTIONS[section.name]) if section.name in SECTIONS else [section]
        for entry in inner:
            if entry.type in single:
                found[option_of(entry)] = tuple(
                    entry.metadata[b] for b in ("at_least", "at_most") if b in entry.metadata
                )
    return found


@pytest.mark.parametrize("name", numbers())
@pytest.mark.parametrize("value", [-1, 10**12, 10**400, float("nan"), float("inf")])
def test_every_number_of_a_run_has_bounds(name: str, value: Any) -> None:
    # What some of them make no sense without.
    given = (
        {"qat_epochs": 1.0} if name.startswith("qat_") else {"target_drop": 1.0} if name == "target_latency" else {}
    )
    with pytest.raises(InputError, match=f"{name}: expected "):
        RunConfig.from_options(MODEL | given | {name: value})
    for bound in numbers()[name]:
        RunConfig.from_options(MODEL | given | {name: bound})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"steps": 5.5}, "steps: expected an integer, got 5.5"),
        ({"steps": True}, "steps: expected an integer, got True"),
        ({"weights": 3}, "weights: expected text, got 3"),
        ({"mac_budget": "x"}, "mac_budget: expected a number, got 'x'"),
        ({"severities": [3, "x"]}, r"severities: expected a list, each an integer, got \[3, 'x'\]"),
        ({"shifts": [3]}, r"shifts: expected a list, each text, got \[3\]"),
    ],
)
def test_entries_of_a_configuration_have_types(entry: dict[str, Any], message: str) -> None:
    config = RunConfig.from_options(MODEL)
    assert RunConfig.from_json(json.loads(json.dumps(config.as_json()))) == config
    with pytest.raises(InputError, match=f"^{message}$"):
        RunConfig.from_json(MODEL | entry)


def test_there_are_not_many_times_more_workers_than_cores() -> None:
    with pytest.raises(InputError, match=r"workers: expected at most .*, 4 for each core here, got 100000"):
        check_workers(100_000)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--threads", 0, "--threads: expected at least 1, got 0"),
        ("--seed", -1, "--seed: expected at least 0, got -1"),
        ("--device", "nowhere", "--device: expected auto or one that is here, cpu.*, got 'nowhere'"),
        ("--allow-code", "abc", "--allow-code: expected a SHA-256 of 64 hexadecimal digits, got 'abc'"),
    ],
)
def test_a_demo_is_refused_before_it_trains(
    option: str, value: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.pipeline.demo.weights_file", None)
    result = qrobust("demo", "--out", tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert re.fullmatch(f"Error: {told}\n", result.output)
    assert not (tmp_path / "out").exists()


def endless(path: Path, kind: str) -> Path:
    """A graph that repeats itself for ever, perhaps within an If, a function, or onnxruntime's own format."""
    kinds, value = TensorProto, helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [value("i", kinds.INT64, []), value("go", kinds.BOOL, []), value("x", kinds.FLOAT, None)],
        [value("on", kinds.BOOL, []), value("y", kinds.FLOAT, None)],
    )
    always = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    nodes = [always, helper.make_node("Loop", ["", "yes", "images"], ["pixels"], body=body)]
    functions = []
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    if kind == "if":
        inner = helper.make_graph([nodes[1]], "branch", [], [value("pixels", kinds.FLOAT, None)])
        nodes = [always, helper.make_node("If", ["yes"], ["pixels"], then_branch=inner, else_branch=inner)]
    elif kind == "function":
        functions = [helper.make_function("own", "F", ["images"], ["pixels"], nodes, opsets)]
        nodes = [helper.make_node("F", ["images"], ["pixels"], domain="own")]
    images, logits = value("images", kinds.FLOAT, [1, 3, 8, 8]), value("pixels", kinds.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [images], [logits]), opset_imports=opsets, functions=functions
    )
    if kind == "ort":
        path = path.with_suffix(".ort")
        path.write_bytes(b"....ORTM" + b"\x04\0\0\0Loop\0")
    else:
        onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", ["plain", "if", "function", "ort"])
def test_graphs_with_loops_are_refused(kind: str, tmp_path: Path) -> None:
    path = endless(tmp_path / "m.onnx", kind)
    told = f"onnx: {path} has Loop; expected a graph without loops, whose time is bounded"
    with pytest.raises(InputError, match=f"^{told}$"):
        audit(path)
    with pytest.raises(InputError, match=f"^{told}$"):
        ForeignClassifier(path, 1)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
@pytest.mark.parametrize(
    ("kind", "told"),
    [("sparse", "sparse_coo"), ("quantized", "qint8"), ("complex", "complex64"), ("meta", "without values")],
)
def test_weights_that_are_no_plain_numbers_are_one_line(kind: str, told: str, tmp_path: Path) -> None:
    state = resnet8(10).state_dict()
    value = state["fc.weight"]
    odd = {
        "sparse": lambda: value.to_sparse(),
        "complex": lambda: value.to(torch.complex64),
        "meta": lambda: value.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    }[kind]()
    torch.save(state | {"fc.weight": odd}, tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=f"weights: expected dense tensors of real numbers, 'fc.weight' in .* is {told}"
    ):
        load_model(
            find_model("resnet8"),
            classes=10,
            image_size=16,
            weights=tmp_path / "w.pt",
            pretrained=False,
            normalization=None,
            seed=0,
        )


@pytest.mark.parametrize("side", [0, 1, 7])
def test_images_of_few_pixels_are_refused_or_enlarged(side: int, tmp_path: Path) -> None:
    npz = save_npz(tmp_path / "d.npz", images=np.zeros((60, side, side, 3), np.uint8))
    with pytest.raises(InputError, match="must have pixels" if side == 0 else "image_size: expected at least 8"):
        open_test(f"npz:{npz}", seed=0).read(slice(0, 1))
    if side:
        assert open_data(f"npz:{npz}", seed=0, image_size=32, calibration_images=8).image_size == 32
    with pytest.raises(InputError, match="images: expected sides of at least 8 px"):
        render(torch.zeros(1, 3, side, side, dtype=torch.uint8), "glass_blur", 5, table="cifar-c", seed=0)


@pytest.mark.parametrize("shape", [(10**9, 3, 16, 16), (1, 3, 10**6, 10**6)])
def test_batches_that_would_fill_the_memory_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "m.onnx", shape)
    for open_it in (audit, lambda path: ForeignClassifier(path, 1)):
        with pytest.raises(InputError, match="expected at most 268435456 numbers a batch"):
            open_it(path)


def test_memory_that_runs_out_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("qrobust.deployment.audit.explained_audit", full)
    result = qrobust("audit", classifier_graph(tmp_path / "m.onnx"))
    assert (result.exit_code, result.output) == (2, "Error: memory: not enough for this (no more is known)\n")


def test_weights_outside_a_graph_are_regular_files(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "m.onnx")
    for location, told in (("w.bin", "expected a regular file, .*w.bin is a FIFO"), ("\0", "'.x00' is no path")):
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
        if location == "w.bin":
            os.mkfifo(tmp_path / location)
        with pytest.raises(InputError, match=told):
            audit(tmp_path / "other.onnx")
