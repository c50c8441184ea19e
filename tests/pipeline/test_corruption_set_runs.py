"""`--shifts stored:DIR`: conditions with images and labels of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import evaluate_files, qrobust, save_npz
from onnx_graphs import SIDE
from onnx_graphs import classifier_graph as graph
from PIL import Image

from qrobust.data.splits import Split
from qrobust.evaluation.kept import read_predictions
from qrobust.evaluation.statistics import mcnemar_exact
from qrobust.evaluation.summary import comparison_rows
from qrobust.record import to_json
from qrobust.storage import read_json

N = 10


def grey_set(root: Path, side: int = SIDE, classes: int = 3) -> Path:
    """A set in CIFAR-10-C's layout of flat greys; at severity s, s of ten images show the next class's grey."""
    root.mkdir()
    labels = np.random.default_rng(5).integers(0, 3, N)
    shown = np.concatenate([(labels + (np.arange(N) < s)) % 3 for s in range(1, 6)])
    images = np.broadcast_to((20 + 60 * shown)[:, None, None, None], (5 * N, side, side, 3)).astype(np.uint8)
    for name in ("fog", "smog"):
        np.save(root / f"{name}.npy", images)
    np.save(root / "labels.npy", np.tile(labels, 5) % classes)
    return root


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"npz:{save_npz(tmp_path / 'd.npz')}"


def test_stored_cells_have_their_own_images_labels_and_rows(data: str, tmp_path: Path) -> None:
    root = grey_set(tmp_path / "set")
    good, bad = graph(tmp_path / "good.onnx"), graph(tmp_path / "bad.onnx", noise=0.1)
    options = ("--shifts", f"contrast,stored:{root}", "--severities", "2,5")
    record = evaluate_files([good, bad], data, tmp_path / "out", *options)
    # The run's own rows know nothing of the set.
    plain = evaluate_files([good, bad], data, tmp_path / "plain", "--shifts", "contrast", "--severities", "2,5")
    assert (record["rows"], record["summary"], plain["corruption_sets"]) == (plain["rows"], plain["summary"], [])
    (stored,) = record["corruption_sets"]
    assert stored["name"] == f"stored:{root}"
    conditions = [("fog", 2), ("fog", 5), ("smog", 2), ("smog", 5)]
    assert [(r["shift"], r["severity"]) for r in stored["rows"]] == conditions
    assert [r["accuracy"]["good"] for r in stored["rows"]] == [0.8, 0.5, 0.8, 0.5]  # as the set was made
    assert {(r["n"], r["of"], r["family"]) for r in stored["rows"]} == {(N, N, "stored")}
    s = stored["summary"]
    assert s["accuracy"]["good"] == pytest.approx(0.65)
    assert (s["n_test"], s["of"], s["n_conditions"], s["mce"]["corruptions"]) == (N, N, 4, 1)
    assert s["mce"]["value"]["good"] == pytest.approx(0.35)
    assert s["versus"]["bad"]["drop_pp"] == pytest.approx(100 * (s["accuracy"]["good"] - s["accuracy"]["bad"]))
    # Paired with the reference on the set's own labels, and rebuilt without inference.
    labels, predictions = read_predictions(tmp_path / "out" / "predictions" / stored["predictions"], conditions)
    assert labels.tolist() == np.load(root / "labels.npy")[:N].tolist()
    assert to_json(comparison_rows(predictions, labels, seed=0, of=N)) == stored["rows"]
    right = [predictions["fog", 5][name].prediction == labels for name in ("good", "bad")]
    assert stored["rows"][1]["versus"]["bad"]["drop_p"] == mcnemar_exact(*right)
    lines = (tmp_path / "out" / "results-set.csv").read_text().splitlines()
    assert lines[:3] == [",fog,fog,smog,smog", ",2,5,2,5", "good,0.8,0.5,0.8,0.5"]
    assert (tmp_path / "out" / "results.csv").read_text().startswith(",contrast,contrast\n")
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"## Corruption data set: stored:{root}" in report
    assert "| smog | 5 | 50.0 % |" in report
    text = (Path(__file__).parents[2] / "docs" / "record.md").read_text()
    for keys in (stored, s, stored["rows"][0]):
        for key in keys:
            assert f"`{key}`" in text, key
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "predictions").rglob("*.npz")}
    assert len(kept) == 3 + 4 + 2  # clean and contrast; the set; foreign images
    again = evaluate_files([good, bad], data, tmp_path / "out", *options, "--resume")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert again["corruption_sets"] == record["corruption_sets"]


def test_a_stored_set_alone_and_a_part_of_it(data: str, tmp_path: Path) -> None:
    root = grey_set(tmp_path / "set")
    options = ("--shifts", f"stored:{root}", "--severities", "5", "--test-images", 6)
    record = evaluate_files(
        [graph(tmp_path / "a.onnx"), graph(tmp_path / "b.onnx")], data, tmp_path / "out", *options
    )
    assert [r["shift"] for r in record["rows"]] == ["clean"]
    assert record["summary"]["shift_accuracy"] == {"a": None, "b": None}
    assert record["summary"]["versus"]["b"]["shift_quantization_drop_pp"] is None
    (stored,) = record["corruption_sets"]
    assert {(r["n"], r["of"]) for r in stored["rows"]} == {(6, N)}
    assert "n = 6 of 10 (a subset stratified by class)" in (tmp_path / "out" / "report.md").read_text()


def test_a_budget_bounds_the_images_of_a_stored_set(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked = grey_set(tmp_path / "set"), []

    def four(kept: object, split: Split, *_: object, also: int, **__: object) -> tuple[Split, dict[str, int]]:
        asked.append(also)
        return split.first(4), {"n": 4}

    monkeypatch.setattr("qrobust.evaluation.evaluate.within_budget", four)
    options = ("--shifts", f"contrast,stored:{root}", "--severities", "2,5", "--budget", "1m")
    record = evaluate_files([graph(tmp_path / "a.onnx")], data, tmp_path / "out", *options)
    assert asked == [4]  # conditions of the set, beside those that are rendered
    assert {(r["n"], r["of"]) for r in record["corruption_sets"][0]["rows"]} == {(4, N)}
    assert {r["n"] for r in record["rows"]} == {4}


def test_folders_are_measured_too(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index, name in enumerate("abc"):
        for shown, part in (
            (index, root / "snow" / "3" / name),
            (index, tmp_path / "data" / "test" / name),
            (index, tmp_path / "data" / "train" / name),
        ):
            part.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (SIDE, SIDE), (20 + 60 * shown,) * 3).save(part / f"{i}.png")
    model, data = graph(tmp_path / "m.onnx"), f"imagefolder:{tmp_path / 'data'}"
    record = evaluate_files([model], data, tmp_path / "out", "--shifts", f"stored:{root}", "--severities", "3")
    assert record["corruption_sets"][0]["rows"][0]["accuracy"] == {"m": 1.0}
    assert (
        f"stored:{root}: m 100.00 % (n = 12 of 12, 1 conditions)"
        in qrobust(
            "evaluate-onnx",
            model,
            "--data",
            data,
            "--out",
            tmp_path / "again",
            "--shifts",
            f"stored:{root}",
            "--severities",
            "3",
            "-q",
            "--threads",
            1,
        ).output
    )
    # A later condition that holds other images is refused before anything is measured.
    shutil.copytree(root / "snow" / "3", root / "snow" / "4")
    (root / "snow" / "4" / "a" / "0.png").unlink()
    result = qrobust(
        "evaluate-onnx",
        model,
        "--data",
        data,
        "--out",
        tmp_path / "o",
        "--shifts",
        f"stored:{root}",
        "--severities",
        "3,4",
        "-q",
    )
    assert (result.exit_code, "snow/4 must hold the 12 images" in result.output) == (2, True)
    assert not (tmp_path / "o").exists()
    (root / "snow" / "3" / "c").rename(root / "snow" / "3" / "d")
    result = qrobust(
        "evaluate-onnx",
        model,
        "--data",
        data,
        "--out",
        tmp_path / "o",
        "--shifts",
        f"stored:{root}",
        "--severities",
        "3",
        "-q",
    )
    assert (result.exit_code, "'d'" in result.output, "not one of the 3 class names" in result.output) == (
        2,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("labels", "labels out of range: they must lie in 0..2, one for each of 3 classes"),
        ("severity", "severities: expected some of those that stored:"),
        ("missing", "corruption data set: no folder"),
        ("empty", "corruption data set: expected labels.npy or folders"),
    ],
)
def test_sets_that_do_not_fit_are_refused_before_anything_is_written(
    kind: str, match: str, data: str, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    if kind == "labels":
        labels = np.load(grey_set(root) / "labels.npy")
        np.save(root / "labels.npy", labels + 7)
    elif kind == "severity":
        for name in "012":
            (root / "snow" / "3" / name).mkdir(parents=True)
            Image.new("RGB", (SIDE, SIDE)).save(root / "snow" / "3" / name / "0.png")
    elif kind == "empty":
        root.mkdir()
    words = ["evaluate-onnx", graph(tmp_path / "m.onnx"), "--data", data, "--out", tmp_path / "out"]
    result = qrobust(*words, "--shifts", f"stored:{root}", "--severities", 5, "-q")
    assert match in result.output
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_numbers_that_end_before_the_classes_are_doubted(data: str, tmp_path: Path) -> None:
    root = grey_set(tmp_path / "set", classes=2)
    result = qrobust(
        "evaluate-onnx",
        graph(tmp_path / "m.onnx"),
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--shifts",
        f"stored:{root}",
        "--severities",
        5,
        "-q",
        "--threads",
        1,
    )
    assert result.exit_code == 0, result.output
    assert "labels end at 1, the classifier tells 3 classes apart" in result.output


def test_a_run_measures_a_stored_set(finished_run: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "run", grey_set(tmp_path / "set", side=32)
    shutil.copytree(finished_run, out)
    for shifts in (f"inversion,stored:{root}", f"stored:{root}"):
        result = qrobust("evaluate", out, "--shifts", shifts, "--attacks", "none", "-q")
        assert result.exit_code == 0, result.output
        assert f"stored:{root}: float " in result.output
        assert qrobust("report", out).exit_code == 0
        record = read_json(out / "record.json")
        assert record["attacks"]["level"] == "none"
        (stored,) = record["corruption_sets"]
        assert {r["n"] for r in stored["rows"]} == {N}
        assert set(stored["summary"]["versus"]) == {"int8", "compensated"}
        for report in ("report.html", "report.md"):
            assert f"Corruption data set: stored:{root}" in (out / report).read_text()
    assert record["summary"]["compensation_gain_pp"] is None
    (root / "labels.npy").unlink()
    refused = qrobust("evaluate", out, "-q")
    assert (refused.exit_code, len(refused.output.strip().splitlines())) == (2, 1)
