"""`qrobust evaluate-onnx`: ONNX files of any make, checked against what their arithmetic must give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import evaluate_files, make_folder, qrobust, save_npz
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import CENTRES, SIDE
from onnx_graphs import classifier_graph as graph

from qrobust.deployment.classifiers import ForeignClassifier
from qrobust.errors import InputError
from qrobust.evaluation.kept import read_predictions
from qrobust.evaluation.summary import comparison_rows
from qrobust.record import EARLIER_SCHEMAS, EVALUATION_SCHEMA, without_timings
from qrobust.shifts.registry import _own_shift
from qrobust.storage import read_json


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"npz:{save_npz(tmp_path / 'd.npz')}"


SHORT = ("--shifts", "contrast,gaussian_noise,inversion", "--severities", "5")


@pytest.mark.parametrize(
    ("shape", "wants", "dtype"),
    [
        (("n", 3, SIDE, SIDE), "imagenet", TensorProto.FLOAT),
        (("n", 3, SIDE, SIDE), "byte", TensorProto.FLOAT),
        (("n", SIDE, SIDE, 3), "unit", TensorProto.FLOAT),
        ((7, 3, SIDE, SIDE), "unit", TensorProto.FLOAT),
        ((1, SIDE, SIDE, 3), "byte", TensorProto.UINT8),
        (("n", 3, "h", "w"), "unit", TensorProto.DOUBLE),
    ],
)
def test_any_input_form_gives_the_same_logits(
    shape: Sequence[int | str], wants: str, dtype: int, tmp_path: Path
) -> None:
    # Whole grey levels, as rendering makes them, so that uint8 inputs lose nothing.
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, SIDE, SIDE))
    images = torch.from_numpy((pixels / 255).astype(np.float32))
    plain = ForeignClassifier(graph(tmp_path / "plain.onnx"), 1)
    given = None if dtype == TensorProto.UINT8 else wants
    other = ForeignClassifier(graph(tmp_path / "o.onnx", shape, wants=wants, dtype=dtype), 1, given)
    # Closed form of the classifier; float32 sums of 768 values near 0.5 err by less than 1e-5 of the largest logit.
    mean = images.double().mean((1, 2, 3))[:, None]
    exact = 200 * (2 * torch.from_numpy(CENTRES) * mean - torch.from_numpy(CENTRES) ** 2)
    assert torch.allclose(plain(images).double(), exact, atol=2e-3)
    assert torch.allclose(other(images), plain(images), atol=2e-3)
    assert other.layout == ("NHWC" if shape[-1] == 3 else "NCHW")


@pytest.mark.parametrize(
    ("shape", "wants", "given", "dtype"),
    [
        (("n", 1, SIDE, SIDE), "unit", None, TensorProto.FLOAT),
        (("n", 1, "h", "w"), "grey", "0.5/0.25", TensorProto.FLOAT),
        ((4, SIDE, SIDE, 1), "byte", None, TensorProto.UINT8),
    ],
)
def test_graphs_of_one_channel_see_luma(
    shape: Sequence[int | str], wants: str, given: str | None, dtype: int, data: str, tmp_path: Path
) -> None:
    path = graph(tmp_path / "m.onnx", shape, wants=wants, dtype=dtype)
    range_of = ("--input-range", given) if given else ()
    record = evaluate_files([path], data, tmp_path / "out", *SHORT, *range_of)
    assert record["channels"] == 1
    assert record["models"]["m"]["layout"] == ("NHWC" if shape[-1] == 1 else "NCHW")
    # The means of the three classes' images lie 60 levels apart, their noise has a deviation of 1 in the mean.
    assert record["summary"]["clean_accuracy"] == {"m": 1.0}
    assert record["summary"]["shift_accuracy"]["m"] < 1


def test_times_size_and_memory_stand_beside_accuracy(data: str, tmp_path: Path) -> None:
    forms: dict[str, tuple[Sequence[int | str], int]] = {
        "open": (("n", 3, "h", "w"), TensorProto.DOUBLE),
        "fixed": ((4, SIDE, SIDE, 3), TensorProto.UINT8),
    }
    files = [graph(tmp_path / f"{name}.onnx", shape, dtype=dtype) for name, (shape, dtype) in forms.items()]
    record = evaluate_files(files, data, tmp_path / "out", *SHORT, "--image-size", SIDE)
    assert set(record["footprint"]) == set(forms)
    assert min(one["load_ms"] for one in record["footprint"].values()) > 0
    assert min(one["batch_1"] for one in record["latency_ms"].values()) > 0
    header, _, first, _ = (tmp_path / "out" / "report.md").read_text().splitlines()[2:6]
    assert "| batch 1 | batch 32 | size | memory | load |" in header
    assert f"| {files[0].stat().st_size / 1024:.0f} KiB |" in first


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        (("n", 3, "h", "w"), "NCHW", (1, 3, SIDE, SIDE)),
        ((4, 3, SIDE, SIDE), "NCHW", (4, 3, SIDE, SIDE)),
        (("n", SIDE, SIDE, 1), "NHWC", (1, SIDE, SIDE, 1)),
    ],
)
def test_one_image_is_what_a_graph_takes_at_least(
    shape: Sequence[int | str], layout: str, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    classifier = ForeignClassifier(graph(tmp_path / "m.onnx", shape), 1)
    assert (classifier.layout, classifier.input_shape(SIDE)) == (layout, wanted)


def test_probabilities_become_logits_with_the_same_margins(tmp_path: Path) -> None:
    images = torch.rand(20, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plain = ForeignClassifier(graph(tmp_path / "a.onnx"), 1)
    soft = ForeignClassifier(graph(tmp_path / "b.onnx", softmax=True), 1)
    for classifier in (plain, soft):
        classifier.examine(images, 3)
    assert (plain.output, soft.output) == ("logits", "probabilities")
    assert torch.allclose(soft(images).softmax(1), plain(images).softmax(1), atol=1e-6)
    wanted, got = (c(images).topk(2).values for c in (plain, soft))
    # The second probability is at least e^-15 here, so float32 keeps its logarithm to 1e-4.
    assert torch.allclose(got[:, 0] - got[:, 1], wanted[:, 0] - wanted[:, 1], atol=1e-3)


def test_rounded_probabilities_are_told_from_logits(tmp_path: Path) -> None:
    """Eight-bit outputs in steps of 1/256: a row may sum to half a step more or less for every class."""
    classifier, images = ForeignClassifier(graph(tmp_path / "a.onnx"), 1), torch.rand(2, 3, SIDE, SIDE)
    uneven = torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.07, 0.03]])
    exact, rounded = uneven.numpy(), (256 * uneven).round().numpy() / 256
    rounded[1, 0] += 1 / 256
    for output, expected in (
        (exact, "probabilities"),
        (rounded, "probabilities"),
        (100 * exact, "percentages"),
        (exact * 1.01, "scores"),
        (rounded + 4 / 256, "scores"),
        (exact * 1.2, "logits"),
        (exact - 0.5, "logits"),
    ):
        classifier.output = "logits"
        classifier._run = lambda *_, output=output: output  # type: ignore[method-assign]
        classifier.examine(images, 3)
        assert classifier.output == expected


def test_evaluation_of_two_files(data: str, tmp_path: Path) -> None:
    first = graph(tmp_path / "good.onnx")
    second = graph(tmp_path / "bad.onnx", softmax=True, noise=0.1)
    record = evaluate_files([first, second], data, tmp_path / "out", *SHORT)
    assert [(r["shift"], r["severity"]) for r in record["rows"]] == [
        ("clean", 0),
        ("contrast", 5),
        ("gaussian_noise", 5),
        ("inversion", 5),
    ]
    assert record["summary"]["clean_accuracy"]["good"] == 1.0
    assert record["models"]["bad"]["output"] == "probabilities"
    assert record["models"]["good"]["output"] == "logits"
    assert {r["n"] for r in record["rows"]} == {60}
    drop = record["summary"]["versus"]["bad"]["quantization_drop_pp"]
    assert drop == pytest.approx(100 * (1 - record["summary"]["clean_accuracy"]["bad"]))
    labels, predictions = read_predictions(tmp_path / "out" / "predictions", [("clean", 0), ("contrast", 5)])
    rebuilt = comparison_rows(predictions, labels, seed=0, of=60)
    assert rebuilt[1].accuracy == record["rows"][1]["accuracy"]
    assert (
        (tmp_path / "out" / "results.csv").read_text().startswith(",contrast,gaussian_noise,inversion\n,5,5,5\ngood,")
    )
    recalls = (tmp_path / "out" / "results.classes.csv").read_text().splitlines()
    assert recalls[1].startswith(",,,majority,0,60,")
    assert sum(line.startswith("bad,contrast,5,recall,") for line in recalls) == 3
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["schema"] == EVALUATION_SCHEMA
    # A folder that an earlier version began is gone on with, and may be replaced.
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"schema": EARLIER_SCHEMAS[EVALUATION_SCHEMA]}))
    for way in ("--resume", "--overwrite"):
        again = evaluate_files([first, second], data, tmp_path / "out", *SHORT, way)
        assert without_timings(again) == without_timings(record)
    assert "drop to bad" in (tmp_path / "out" / "report.md").read_text()


def test_files_are_attacked_without_a_gradient(data: str, tmp_path: Path) -> None:
    """The classes' greys are 0.235 apart: a mean moved by 0.05 changes no prediction, one moved by 0.25 any."""
    files = [graph(tmp_path / "good.onnx"), graph(tmp_path / "bad.onnx", noise=0.1)]
    options = ("--attacks", "quick", "--epsilons", "0,0.05,0.25", "--attack-images", 12)
    attacks = evaluate_files(files, data, tmp_path / "out", *SHORT, *options)["attacks"]
    left = {(w["classifier"], w["epsilon"]): w["robust_accuracy"] for w in attacks["worst"]}
    assert left["good", 0.0] == left["good", 0.05] == 1.0
    assert left["good", 0.25] == 0.0
    assert left["bad", 0.0] == next(
        r["robust_accuracy"] for r in attacks["rows"] if (r["classifier"], r["kind"]) == ("bad", "clean")
    )
    # What the second gets wrong and the first right, of the pixels as they are.
    risk = next(r["differential_risk"] for r in attacks["rows"] if (r["classifier"], r["kind"]) == ("bad", "clean"))
    assert risk == 1.0 - left["bad", 0.0]
    assert {r["kind"] for r in attacks["rows"]} == {"clean", "noise", "black-box", "transfer"}
    assert (attacks["n"], attacks["flags"], attacks["zero_gradients"]) == (12, [], {})
    short = [*options[:3], "0,0.05", *options[4:]]
    weak = evaluate_files(files[:1], data, tmp_path / "weak", *SHORT, *short)["attacks"]
    assert weak["flags"] == ["UNRELIABLE: good, Linf: the largest epsilon, 0.05, leaves 100.0%, chance is 33.3%"]
    assert "an upper bound" in (tmp_path / "out" / "report.md").read_text()


def test_skipped_images_are_counted_and_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", per_class=6)
    (root / "test" / "cat" / "0.png").write_bytes(b"")
    (root / "train" / "cat" / "0.png").write_bytes(b"")  # which is not measured, and so not looked at
    model = graph(tmp_path / "m.onnx", classes=2)
    base = ["evaluate-onnx", model, "--data", f"imagefolder:{root}", "--out", tmp_path / "o", *SHORT]
    refused = qrobust(*base, "-q", "--threads", 1)
    assert (refused.exit_code, refused.output.count("cat/0.png")) == (2, 1)
    result = qrobust(*base, "--skip-bad-images", "-q", "--threads", 1)
    assert "Skipped 1 images that cannot be decoded" in result.output
    record = read_json(tmp_path / "o" / "record.json")
    assert record["skipped_images"] == [str(root / "test" / "cat" / "0.png")]
    assert record["summary"]["n_test"] == 11
    assert "cat/0.png" in (tmp_path / "o" / "report.md").read_text()


def test_the_table_is_printed_and_probabilities_are_told(data: str, tmp_path: Path) -> None:
    model = graph(tmp_path / "soft.onnx", softmax=True)
    result = qrobust(
        "evaluate-onnx",
        model,
        model,
        "--data",
        data,
        "--out",
        tmp_path / "o",
        "--threads",
        1,
        *SHORT,
    )
    assert result.exit_code == 0, result.output
    assert "soft-1 returns probabilities" in result.output
    assert "| soft-2 | 100.0 % |" in result.output
    assert "n = 60." in result.output
    alone = qrobust("evaluate-onnx", model, "--data", data, "--out", tmp_path / "p", "--threads", 1, "-q", *SHORT)
    assert "drop" not in alone.output


def test_killed_evaluation_goes_on_to_the_same_record(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz', n=600)}"
    model = graph(tmp_path / "m.onnx")
    options = ("--shifts", "motion_blur,fog,rotation,shear", "--severities", "1,2,3,4,5")
    out = tmp_path / "killed"
    program = [sys.executable, "-c", "from qrobust.cli.main import main; main()"]
    command = [*program, "evaluate-onnx", model, "--data", data, "--out", out, "--threads", "1", "-q", *options]
    process = subprocess.Popen([str(c) for c in command], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not (out / "predictions" / "motion_blur-1.npz").exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in (out / "predictions").glob("*.npz")}
    assert 2 <= len(done) < 21
    assert not (out / "record.json").exists()
    resumed = evaluate_files([model], data, out, *options, "--resume")
    assert {n: (out / "predictions" / n).stat().st_mtime_ns for n in done} == done
    whole = evaluate_files([model], data, tmp_path / "whole", *options)
    assert without_timings(resumed) == without_timings(whole)


def test_own_shifts_run_on_the_threads_asked_for_and_may_lie_deep(data: str, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120) / ("e" * 120)
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(
        "import torch\n\n\ndef dim(images, strength, generators):\n"
        "    return images / 2 if torch.get_num_threads() == 1 else images * 2\n"
    )
    out = tmp_path / "out"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        record = evaluate_files(
            [graph(tmp_path / "m.onnx")], data, out, "--shifts", f"{folder}/own.py:dim", "--severities", 5
        )
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    conditions = [(row["shift"], row["severity"]) for row in record["rows"]]
    assert conditions[1] == (f"{folder}/own.py:dim", 5)
    assert set(read_predictions(out / "predictions", conditions)[1]) == set(conditions)


def test_budget_and_workers_are_said_and_change_no_pixel(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz', n=90)}"
    model = graph(tmp_path / "m.onnx")
    alone = evaluate_files([model], data, tmp_path / "alone", *SHORT)
    shared = evaluate_files([model], data, tmp_path / "shared", *SHORT, "--workers", 2, "--budget", "1h")
    assert alone["rows"] == shared["rows"]
    subset = json.loads((tmp_path / "shared" / "predictions" / "subset.json").read_text())
    (tmp_path / "shared" / "predictions" / "subset.json").write_text(json.dumps(subset | {"n": 30}))
    fewer = evaluate_files([model], data, tmp_path / "shared", *SHORT, "--budget", "60m", "--resume")
    assert {(r["n"], r["of"]) for r in fewer["rows"]} == {(30, 90)}
    assert "n = 30 of 90 (a subset stratified by class)" in (tmp_path / "shared" / "report.md").read_text()


@pytest.mark.parametrize("budget", ["soon", "0s", "-5m", "inf"])
def test_budgets_that_are_no_time_are_refused(budget: str) -> None:
    result = qrobust("evaluate-onnx", "a.onnx", "--data", "digits", "--out", "o", "--budget", budget)
    assert (result.exit_code, "expected a time such as 90s, 10m or 1h" in result.output) == (2, True)


def test_resume_refuses_other_choices_and_new_runs_want_a_new_folder(data: str, tmp_path: Path) -> None:
    model = graph(tmp_path / "m.onnx")
    out = tmp_path / "out"
    evaluate_files([model], data, out, *SHORT)
    base = ["evaluate-onnx", model, "--data", data, "--out", out, "-q", "--threads", 1]
    refused = qrobust(*base, *SHORT, "--resume", "--seed", 3)
    assert (refused.exit_code, "begun with seed=0, got 3" in refused.output) == (2, True)
    assert "not empty" in qrobust(*base, *SHORT).output
    assert qrobust(*base, *SHORT, "--overwrite").exit_code == 0


def too_short(*_: object, **__: object) -> None:
    raise InputError("budget: 1 s are too short for 10 images")


def test_what_fails_leaves_an_earlier_evaluation_alone(
    data: str, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.evaluation.evaluate.within_budget", too_short)
    model, out = graph(tmp_path / "m.onnx"), tmp_path / "out"
    evaluate_files([model], data, out, *SHORT)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    base = ["evaluate-onnx", model, "--data", data, "-q", "--threads", 1, *SHORT, "--overwrite"]
    for options, said in (
        (["--workers", 0], "workers: expected at least 1"),
        (["--budget", "1s"], "too short for"),
    ):
        refused = qrobust(*base, "--out", out, *options)
        assert (refused.exit_code, said in refused.output) == (2, True)
        new = tmp_path / "new"
        assert qrobust(*base, "--out", new, *options).exit_code == 2
        assert not new.exists()
    own = tmp_path / "own.py"
    for body in ("images * float('nan')", "images + 1", "images[:1]", "1 / 0"):
        own.write_text(f"def lens(images, strength, generators):\n    return {body}\n")
        refused = qrobust(*base, "--out", out, "--shifts", f"{own}:lens")
        assert (refused.exit_code, len(refused.output.strip().splitlines())) == (2, 1)
        _own_shift.cache_clear()  # the same name with other text
    # What fails at the very end, too.
    monkeypatch.setattr("qrobust.evaluation.evaluate.attacked", too_short)
    assert qrobust(*base, "--out", out).exit_code == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert not list(tmp_path.glob(".out*"))
    # Of a new one, the conditions that were measured are kept to go on with.
    assert qrobust(*base, "--out", new).exit_code == 2
    assert len(list(new.glob("predictions/*.npz"))) == 4
    monkeypatch.undo()
    assert (
        evaluate_files([model], data, new, *SHORT, "--resume")["rows"]
        == json.loads((out / "record.json").read_text())["rows"]
    )
    # A run is no evaluation: it is not removed to make room for one.
    refused = qrobust(*base, "--out", finished_run)
    assert (refused.exit_code, "no evaluation made" in refused.output) == (2, True)
    assert (finished_run / "record.json").exists()


@pytest.mark.parametrize("changed", ["weights", "images", "labels"])
def test_predictions_are_made_again_when_anything_below_them_changed(changed: str, tmp_path: Path) -> None:
    """Weights beside the graph, or the images behind the same path: `--resume` must not answer from the old ones."""
    path, out = graph(tmp_path / "m.onnx"), tmp_path / "out"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "b"):
            onnx.external_data_helper.set_external_data(tensor, "w.bin")
    onnx.save(model, path)
    file = save_npz(tmp_path / "d.npz")
    data, before = f"npz:{file}", (tmp_path / "w.bin").read_bytes()
    first = evaluate_files([path], data, out, *SHORT)
    assert set(first["models"]["m"]["external_data"]) == {"w.bin"}
    assert first["models"]["m"]["size_bytes"] == path.stat().st_size + len(before)
    assert evaluate_files([path], data, out, *SHORT, "--resume")["rows"] == first["rows"]
    if changed == "weights":
        (tmp_path / "w.bin").write_bytes(bytes(len(before)))
    else:
        with np.load(file) as stored:
            arrays = dict(stored)
        arrays[changed] = arrays[changed][::-1] if changed == "labels" else 255 - arrays[changed]
        np.savez(file, **arrays)
    again = evaluate_files([path], data, out, *SHORT, "--resume")
    assert again["rows"] == evaluate_files([path], data, tmp_path / "fresh", *SHORT)["rows"]
    assert again["rows"] != first["rows"]


def test_files_in_onnxruntimes_own_format_are_measured(data: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    plain = graph(tmp_path / "m.onnx")
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    record = evaluate_files([tmp_path / "m.ort"], data, tmp_path / "out", *SHORT)
    assert record["models"]["m"]["external_data"] == {}
    rows = evaluate_files([plain], data, tmp_path / "plain", *SHORT)["rows"]
    assert record["rows"] == rows


def bad(kind: str, tmp_path: Path, data: str) -> tuple[list[object], str]:
    model: Path = tmp_path / "m.onnx"
    options: list[object] = []
    if kind == "classes":
        return [graph(model, classes=2)], "gives (2,) numbers per image, the data has 3 classes"
    if kind == "size":
        return [graph(model), graph(tmp_path / "b.onnx", ("n", 3, 8, 8))], "expected one size"
    if kind == "tiny":
        return [graph(model, ("n", 3, 1, 1))], "m takes images of 1 px, expected 8 to 4096"
    if kind == "no text":  # onnxruntime's message then cannot be decoded, which has onnxruntime try again, aloud
        model.write_bytes(graph(model).read_bytes().replace(b"ReduceMean", b"Reduce\x8dean"))
        return [model], "onnxruntime refuses"
    if kind == "two channels":
        return [graph(model, ("n", 2, SIDE, SIDE))], "square images (N, C, S, S) or (N, S, S, C) of 3 channels or 1"
    if kind == "grey and colour":
        grey = graph(tmp_path / "b.onnx", ("n", 1, SIDE, SIDE))
        return [graph(model), grey], "of one number of channels, got m 3, b 1"
    if kind == "range of grey":
        grey = graph(model, ("n", 1, SIDE, SIDE))
        return [grey, "--input-range", "imagenet"], "--input-range: expected unit, byte or m/s, got 'imagenet'"
    if kind == "oblong":
        return [graph(model, ("n", 3, SIDE, 8))], "square images (N, C, S, S)"
    if kind == "missing":
        return [model], "no file"
    if kind == "damaged":
        model.write_bytes(b"nonsense")
        return [model], "onnxruntime refuses"
    if kind == "range":
        return [graph(model), "--input-range", "percent"], "--input-range: expected unit, byte, imagenet"
    if kind == "range of bytes":
        return [
            graph(model, wants="byte", dtype=TensorProto.UINT8),
            "--input-range",
            "imagenet",
        ], "takes uint8 pixels"
    if kind == "test images":
        return [graph(model), "--test-images", 61], "--test-images: expected 1 to the 60"
    if kind == "conditions":
        return [graph(model), "--shifts", "inversion", "--severities", 3], "severities: expected one defined"
    if kind == "attacks":
        return [graph(model), "--attacks", "quick", "--epsilons", "2"], "--epsilons: expected at most 1, got 2.0"
    if kind == "threads":
        return [graph(model), "--threads", 0], "--threads: expected 1 to 512, got 0"
    return [graph(model), *options], kind


KINDS = (
    "classes",
    "size",
    "tiny",
    "no text",
    "two channels",
    "grey and colour",
    "range of grey",
    "oblong",
    "missing",
    "damaged",
    "range",
    "range of bytes",
    "test images",
    "conditions",
    "attacks",
    "threads",
)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_line_and_writes_nothing(kind: str, data: str, tmp_path: Path) -> None:
    words, match = bad(kind, tmp_path, data)
    models = [m for m in words if isinstance(m, Path)]
    rest = [w for w in words if not isinstance(w, Path)]
    result = qrobust("evaluate-onnx", *models, "--data", data, "--out", tmp_path / "out", "-q", *rest)
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert match in result.output
    assert not (tmp_path / "out").exists()


def test_the_form_before_evaluate_onnx_names_it(data: str, tmp_path: Path) -> None:
    for words in (["--data", data, "--model", "a.onnx"], [tmp_path, "--model=a.onnx"], ["--out", tmp_path]):
        result = qrobust("evaluate", *words)
        assert (result.exit_code, result.output.count("`qrobust evaluate-onnx FILE...")) == (2, 1)
        assert len(result.output.strip().splitlines()) == 1
    for words in (["--model", "a.onnx"], ["--data", data, "--out", tmp_path], ["a.onnx", "--data", data], []):
        result = qrobust("evaluate-onnx", *words)
        assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output


def test_a_graph_that_fails_on_its_images_is_named(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", ("n", 3, "h", "w"))
    model = onnx.load(path)
    model.graph.node[4].CopyFrom(helper.make_node("Reshape", ["mean", "wrong"], ["column"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 1], np.int64), "wrong"))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"cannot run .*m\.onnx on \(2, 3, 16, 16\)"):
        ForeignClassifier(path, 1)(torch.rand(2, 3, SIDE, SIDE))


def instead_of_logits(
    path: Path, node: onnx.NodeProto, dtype: int | None = TensorProto.FLOAT, **constants: Any
) -> Path:
    """The graph of `classifier_graph` with one node more, which makes `out` of `logits`; no type: a sequence."""
    model = onnx.load(graph(path))
    model.graph.node.append(node)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    made = helper.make_tensor_sequence_value_info("out", TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(made if dtype is None else helper.make_tensor_value_info("out", dtype, None))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("node", "dtype", "constants", "got"),
    [
        (helper.make_node("ArgMax", ["logits"], ["out"], axis=1, keepdims=0), TensorProto.INT64, {}, "int64 (4,)"),
        (helper.make_node("Reshape", ["logits", "to"], ["out"]), TensorProto.FLOAT, {"to": [2, 6]}, "float32 (2, 6)"),
        (
            helper.make_node("Expand", ["row", "to"], ["out"]),
            TensorProto.FLOAT,
            {"row": np.zeros((1, 1, 3), np.float32), "to": [4, 5, 3]},
            "float32 (4, 5, 3)",
        ),
        (helper.make_node("ReduceMax", ["logits"], ["out"], keepdims=0), TensorProto.FLOAT, {}, "float32 ()"),
        (
            helper.make_node("Cast", ["logits"], ["out"], to=TensorProto.STRING),
            TensorProto.STRING,
            {},
            "object (4, 3)",
        ),
        (helper.make_node("SequenceConstruct", ["logits"], ["out"]), None, {}, "list"),
    ],
)
def test_outputs_that_are_no_rows_of_logits(
    node: onnx.NodeProto, dtype: int | None, constants: dict[str, Any], got: str, tmp_path: Path
) -> None:
    path = instead_of_logits(tmp_path / "m.onnx", node, dtype, **constants)
    with pytest.raises(InputError) as caught:
        ForeignClassifier(path, 1).examine(torch.rand(4, 3, SIDE, SIDE), 3)
    assert str(caught.value) == f"onnx: expected logits (N, K), one per class, from {path}, got {got} for 4 images"


def test_axes_of_length_one_beside_the_classes_are_fine(tmp_path: Path) -> None:
    images = torch.rand(4, 3, SIDE, SIDE)
    node = helper.make_node("Unsqueeze", ["logits", "axes_of_one"], ["out"])
    pooled = ForeignClassifier(instead_of_logits(tmp_path / "b.onnx", node, axes_of_one=[2, 3]), 1)
    pooled.examine(images, 3)
    assert torch.equal(pooled(images), ForeignClassifier(graph(tmp_path / "a.onnx"), 1)(images))


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    node = helper.make_node("Log", ["logits"], ["out"])  # the logits of black are negative or 0
    path, images = instead_of_logits(tmp_path / "m.onnx", node), torch.rand(4, 3, SIDE, SIDE)
    images[1:] = 0
    with pytest.raises(InputError) as caught:
        ForeignClassifier(path, 1).examine(images, 3)
    assert str(caught.value) == (
        f"onnx: expected finite logits from {path}, got NaN or infinity for 3 of 4 images; check --input-range and "
        "the weights"
    )


def test_one_class_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, out = graph(tmp_path / "m.onnx", classes=1), tmp_path / "out"
    data = f"npz:{save_npz(tmp_path / 'd.npz', classes=1)}"
    result = qrobust("evaluate-onnx", path, "--data", data, "--out", out, *SHORT)
    assert (result.exit_code, out.exists()) == (2, False)
    assert f"Error: onnx: expected logits of at least 2 classes from {path}, got (50, 1)" in result.output
