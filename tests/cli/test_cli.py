"""The command line as a user meets it: help, whole runs, stages one by one, bad input."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, qrobust, save_npz
from PIL import Image

from qrobust.errors import ExportCheckError, InputError
from qrobust.evaluation.kept import read_predictions
from qrobust.evaluation.summary import run_rows
from qrobust.models.resnet import resnet8
from qrobust.pipeline.provenance import training_images
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import RunFolder
from qrobust.progress import Reporter
from qrobust.quantization import ptq
from qrobust.record import QuantizationResult, to_json, without_timings
from qrobust.report.plots import layers_plot
from qrobust.shifts.registry import SUITES
from qrobust.storage import read_json, write_sealed

COMMANDS = (
    "quantize-and-compensate",
    "run",
    "quantize",
    "sensitivity",
    "evaluate",
    "evaluate-onnx",
    "compensate",
    "export",
    "report",
    "init",
    "compare",
    "check",
    "fleet",
    "deploy",
    "predict",
    "audit",
    "demo",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = qrobust(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from qrobust.cli.main import main; "
        "CliRunner().invoke(main, ['--help']); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_whole_run_keeps_its_contract(finished_run: Path) -> None:
    record = read_json(finished_run / "record.json")
    s = record["summary"]
    for key in ("clean_accuracy", "shift_accuracy", "latency_ms", "size_bytes"):
        assert set(s[key]) == {"float", "int8", "compensated"}
    for name in ("float", "int8", "compensated"):
        assert s["size_bytes"][name] == (finished_run / f"{name}.onnx").stat().st_size
        assert set(s["latency_ms"][name]) == {"batch_1", "batch_32"}
        assert record["audit"][name]["quantizable_ops"] > 0
        assert record["parity"][name]["agreement_beyond_ties"] >= 0.985
    for name in ("int8", "compensated"):
        assert record["audit"][name]["integer_ops"] == record["audit"][name]["quantizable_ops"]
    assert record["n_test"] == 80
    assert s["quantization_drop_pp"] == pytest.approx(
        100 * (s["clean_accuracy"]["float"] - s["clean_accuracy"]["int8"])
    )
    assert s["clean_cost_pp"] == pytest.approx(
        100 * (s["clean_accuracy"]["int8"] - s["clean_accuracy"]["compensated"])
    )
    gain = 100 * (s["shift_accuracy"]["compensated"] - s["shift_accuracy"]["int8"])
    assert s["compensation_gain_pp"] == pytest.approx(gain)
    shifted = [r for r in record["rows"] if r["shift"] != "clean"]
    assert s["shift_accuracy"]["int8"] == pytest.approx(np.mean([r["accuracy"]["int8"] for r in shifted]))
    assert {r["shift"] for r in shifted if not r["seen_by_remedy"]} == {"rotation"}
    assert record["compensation"]["classifier_hash"]["before"] == record["compensation"]["classifier_hash"]["after"]
    assert s["macs"]["calibrator_share"] <= record["config"]["mac_budget"]
    assert {"torch", "onnxruntime"} <= set(record["versions"])
    assert set(record["splits"]) == {"calibration", "training", "validation", "test"}
    assert record["hardware"]["threads"] == 1
    assert set(record["stages"]) == {"quantize", "compensate", "export", "evaluate"}


def test_compensation_wins_contrast_back(finished_run: Path) -> None:
    rows = {r["shift"]: r for r in read_json(finished_run / "record.json")["rows"]}
    assert rows["clean"]["accuracy"]["int8"] > 0.8
    assert rows["contrast"]["gain_interval_pp"][0] > 10


def test_predictions_rebuild_the_rows_without_inference(finished_run: Path) -> None:
    wanted = read_json(finished_run / "record.json")["rows"]
    conditions = [(r["shift"], r["severity"]) for r in wanted]
    labels, predictions = read_predictions(finished_run / "predictions", conditions)
    seen = ("contrast", "gaussian_noise", "inversion")
    assert to_json(run_rows(predictions, labels, seed=0, of=len(labels), seen=seen)) == wanted


def test_report_is_self_contained_and_says_the_verdict_first(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "https://" not in page
    assert page.index("the INT8 graph goes from") < page.index("<table")
    missed = len(read_json(finished_run / "record.json")["missed_images"])
    assert page.count("data:image/png;base64,") == 4 * 2 * 3 + missed > 4 * 2 * 3
    text = (finished_run / "report.md").read_text()
    assert "INT8 + calibrator" in text
    for said in ("Holm", "not normalised"):
        assert said in text
        assert said in page
    assert len((finished_run / "results.csv").read_text().splitlines()) == 5


def test_every_report_has_the_recall_of_every_class(finished_run: Path) -> None:
    for name in ("report.md", "report.html", "compensated.card.md"):
        assert "INT8 + calibrator, under shift" in (finished_run / name).read_text(), name
    rows = (finished_run / "results.classes.csv").read_text().splitlines()
    assert sum(row.startswith("compensated,rotation,5,recall,") for row in rows) == 10


def test_a_report_adds_classes_to_a_run_of_an_earlier_version(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    stage = run / "stages" / "evaluate.json"
    write_sealed(stage, {key: value for key, value in read_json(stage).items() if key != "classes"})
    assert qrobust("report", run).exit_code == 0
    assert read_json(run / "record.json")["classes"] == read_json(finished_run / "record.json")["classes"]


@pytest.mark.slow  # a whole run
def test_stages_one_by_one_equal_the_whole_of_the_same_seed(
    finished_run: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "staged"
    options = dict(zip(SMALL[:-1:2], SMALL[1:-1:2], strict=True))
    quantizing = ["--data", "--normalization", "--calibration-images", "--train-images", "--test-images"]
    rendering, attacks = ["--shifts", "--severities"], ["--attack-images", "--epsilons"]
    training = ["--train-on", "--steps", "--learning-rate", "--batch-size"]

    def chosen(names: list[str]) -> list[str]:
        return [word for n in names for word in (n, options[n])] + ["--threads", "1", "-q"]

    result = qrobust("quantize", "--model", "resnet8", "--weights", weights, "--out", out, *chosen(quantizing))
    assert result.exit_code == 0, result.output
    assert {"float.onnx", "int8.onnx"} <= {p.name for p in out.iterdir()}
    for command, names in (
        ("evaluate", rendering + attacks),
        ("compensate", rendering + training),
        ("export", []),
        ("evaluate", []),
        ("report", []),
    ):
        result = qrobust(command, out, *([] if command == "report" else chosen(names)))
        assert result.exit_code == 0, result.output
    first, second = (without_timings(read_json(p / "record.json")) for p in (finished_run, out))
    assert first == second
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


@pytest.mark.slow  # processes are started
def test_evaluate_before_compensation_and_early_report(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert qrobust(*small_quantize(weights, out, "--test-images", 40)).exit_code == 0
    for command in ("export", "report"):
        result = qrobust(command, out)
        assert result.exit_code == 2
        assert "first" in result.output
    options = ["--shifts", "fog", "--attack-images", 0, "--budget", "1h", "--workers", 2]
    measured = qrobust("evaluate", out, "-q", *options)
    assert "(n = 40 of 40, 2 conditions)" in measured.output
    assert json.loads((out / "predictions" / "subset.json").read_text())["n"] == 40
    assert qrobust("report", out).exit_code == 0
    assert set(read_json(out / "record.json")["summary"]["clean_accuracy"]) == {"float", "int8"}


def test_resume_goes_on_and_refuses_other_choices(finished_run: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    shutil.copytree(finished_run, out)
    for stage in ("export", "evaluate"):
        (out / "stages" / f"{stage}.json").unlink()
    kept = (out / "calibrator.safetensors").read_bytes()
    arguments = ["run", "--model", "resnet8", "--weights", weights, "--out", out, *SMALL]
    assert qrobust(*arguments, "--resume").exit_code == 0
    assert (out / "calibrator.safetensors").read_bytes() == kept
    first, second = (without_timings(read_json(p / "record.json")) for p in (finished_run, out))
    assert first == second
    result = qrobust(*arguments, "--resume", "--seed", 4)
    assert result.exit_code == 2
    assert "--seed: expected 0, with which the run was begun, got 4" in result.output


def test_damaged_choices_of_a_run_are_one_line(tmp_path: Path) -> None:
    out, data = tmp_path / "out", f"npz:{save_npz(tmp_path / 'd.npz')}"
    out.mkdir()
    for text, kind in (("[]", "list"), ("null", "NoneType"), ('"run"', "str")):
        (out / "config.json").write_text(text)
        match = f"Error: results: expected a JSON object in {out / 'config.json'}, got {kind}"
        one_line_error(["run", "--model", "resnet8", "--data", data, "--out", out, "--resume"], None, match)
        one_line_error(["report", out], None, match)
        one_line_error(["evaluate-onnx", "m.onnx", "--data", data, "--out", out, "--resume"], None, match)


def test_audit_prints_and_gates(finished_run: Path) -> None:
    result = qrobust("audit", finished_run / "int8.onnx", "--min-integer", "1.0")
    assert result.exit_code == 0
    assert "10 of 10" in result.output
    result = qrobust("audit", finished_run / "float.onnx", "--min-integer", "0.5")
    assert result.exit_code == 3
    assert json.loads(qrobust("audit", finished_run / "compensated.onnx", "--json").output)["integer_ops"] == 23


def one_line_error(arguments: list[object], out: Path | None, match: str) -> None:
    result = qrobust(*arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, result.output
    assert match in errors[0]
    assert "Traceback" not in result.output
    if out is not None:
        assert not out.exists()


def image_folder(root: Path) -> Path:
    for part in ("train", "test"):
        for index, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for i in range(30):
                Image.new("RGB", (32, 32), (index * 99, i, 0)).save(root / part / name / f"{i}.jpg")
    return root


# Options that must be refused, and a word of the refusal.
Case = tuple[dict[str, object], str]


def corrupt_weights(folder: Path) -> Case:
    (folder / "w.pt").write_bytes(b"PK\x03\x04 nonsense")
    return {"--weights": folder / "w.pt"}, "not a readable"


def weights_of_another_network(folder: Path) -> Case:
    torch.save({"net": torch.nn.Linear(2, 2)}, folder / "w.pt")
    return {"--weights": folder / "w.pt"}, "does not fit the model"


def weights_of_other_shapes(folder: Path) -> Case:
    torch.save(resnet8(10).state_dict(), folder / "w.pt")
    return {"--weights": folder / "w.pt"}, "'fc.bias' has shape (10,)"


def weights_with_nan(folder: Path) -> Case:
    torch.save(resnet8(3).state_dict() | {"conv1.weight": torch.full((16, 3, 3, 3), torch.nan)}, folder / "w.pt")
    return {"--weights": folder / "w.pt"}, "NaN"


def empty_class(folder: Path) -> Case:
    root = image_folder(folder / "f")
    (root / "train" / "c").mkdir()
    return {"--data": f"imagefolder:{root}"}, "holds no image"


def truncated_image(folder: Path) -> Case:
    root = image_folder(folder / "f")
    file = root / "test" / "b" / "7.jpg"
    file.write_bytes(file.read_bytes()[:300])
    return {"--data": f"imagefolder:{root}"}, "b/7.jpg"


def own_network(folder: Path, text: str, match: str, **options: object) -> Case:
    (folder / "m.py").write_text(text)
    return {"--model": f"{folder / 'm.py'}:net", **{f"--{key}": value for key, value in options.items()}}, match


def other_classes(folder: Path) -> Case:
    text = "from qrobust.models.resnet import resnet8\ndef net():\n    return resnet8(7)\n"
    return own_network(folder, text, "3 classes")


def softmax(folder: Path) -> Case:
    text = (
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))\n"
    )
    match = (
        "Error: --model: expected logits, got probabilities (rows that lie in [0, 1] and sum to 1): leave the "
        "softmax out"
    )
    return own_network(folder, text, match, normalization="none")


def untraceable(folder: Path) -> Case:
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        if x.mean() > 0:\n"
        "            x = -x\n        return x.mean((2, 3))\ndef net():\n    return Net()\n"
    )
    return own_network(folder, text, "m.py:4", normalization="none")


FILES = (
    corrupt_weights,
    weights_of_another_network,
    weights_of_other_shapes,
    weights_with_nan,
    empty_class,
    truncated_image,
    other_classes,
    softmax,
    untraceable,
)
FLOATS = "expected comma-separated numbers or fractions such as 8/255, got '1/255,abc'"
OPTIONS: tuple[Case, ...] = (
    ({"--model": "resnet21"}, "--model: expected"),
    ({"--data": "hdf5:x"}, "--data: expected"),
    ({"--weights": "no.pt"}, "no file"),
    ({"--calibration-images": 60}, "--calibration-images: expected fewer"),
    ({"--shifts": "smog"}, "smog"),
    ({"--train-on": "foog"}, "did you mean 'fog'?"),
    ({"--train-on": "none"}, "--train-on: expected something to learn from, got none"),
    ({"--severities": "7"}, "--severities: expected at most 5, got 7"),
    ({"--severities": "3,x"}, "Error: --severities: expected comma-separated integers, got '3,x'"),
    ({"--epsilons": "1/255,abc"}, f"Error: --epsilons: {FLOATS}"),
    ({"--train-on": "stored:x"}, "Error: --train-on: expected what can be rendered, got stored:x"),
    (
        {"--shifts": "inversion", "--severities": 3},
        "Error: --severities: expected one defined for inversion, got 3",
    ),
    ({"--mac-budget": "1e-4"}, "smallest calibrator"),
    ({"--steps": 0, "--attack-images": -1}, "--attack-images: expected at least 0, got -1"),
    ({"--batch-size": 8}, "--batch-size: expected at least 16, got 8"),
    ({"--target": "riscv"}, "x86-vnni"),
    ({"--threads": 0}, "threads"),
)


def arguments_of(folder: Path, options: dict[str, object]) -> list[object]:
    """A run with these options, of which all others are good."""
    base = {"--model": "resnet8", "--data": f"npz:{save_npz(folder / 'd.npz')}", "--calibration-images": 16}
    return ["run", *(word for pair in (base | options).items() for word in pair)]


@pytest.mark.parametrize(("options", "match"), OPTIONS)
def test_a_bad_option_is_one_line_and_writes_nothing(options: dict[str, object], match: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one_line_error([*arguments_of(tmp_path, options), "--out", out], out, match)


@pytest.mark.parametrize("make", FILES)
def test_a_bad_file_is_one_line_and_writes_nothing(make: Callable[[Path], Case], tmp_path: Path) -> None:
    (options, match), out = make(tmp_path), tmp_path / "out"
    one_line_error([*arguments_of(tmp_path, options), "--out", out], out, match)


def test_own_weights_are_of_torchvision_and_timm(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*arguments_of(tmp_path, {}), "--pretrained", "--out", out]
    one_line_error(arguments, out, "only models of torchvision and timm")


def test_failed_gate_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ExportCheckError("parity: no")

    monkeypatch.setattr("qrobust.pipeline.export.check_export", refuse)
    arguments = arguments_of(tmp_path, {})
    result = qrobust(*arguments, "--out", tmp_path / "out", "-q")
    assert result.exit_code == 3
    assert "Error: parity: no" in result.output
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_no_cell_is_refused(run_copy: Path) -> None:
    kept = (run_copy / "config.json").read_bytes()
    result = qrobust("evaluate", run_copy, "--shifts", "inversion", "--severities", 3, "-q")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "--severities: expected one defined for inversion, got 3" in result.output
    assert (run_copy / "config.json").read_bytes() == kept


@pytest.mark.parametrize("options", [["--workers", 0], ["--budget", "1s"]])
def test_a_refused_evaluation_keeps_the_finished_one(
    options: list[object], run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_short(*_: object, **__: object) -> None:
        raise InputError("budget: 1 s are too short for 10 images")

    monkeypatch.setattr("qrobust.evaluation.evaluate.within_budget", too_short)
    stages = run_copy / "stages"
    before = (stages / "evaluate.json").read_bytes()
    one_line_error(["evaluate", run_copy, *options], None, str(options[0]).removeprefix("--"))
    assert (stages / "evaluate.json").read_bytes() == before


def test_errors_are_one_line_whatever_they_quote(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def torn(images, strength, generators):\n    raise RuntimeError('first\\nsecond')\n")
    data = f"npz:{save_npz(tmp_path / 'd.npz')}"
    base = ["run", "--model", "resnet8", "--data", data, "--calibration-images", 16, "--out", tmp_path / "out", "-q"]
    result = qrobust(*base, "--shifts", f"{own}:torn")
    assert (result.exit_code, "first second" in result.output) == (2, True)
    for words in (
        ["run", "--ptq", "best", "--model", "resnet8", "--data", data, "--out", tmp_path / "out"],
        ["run"],
        ["runn"],
        ["audit"],
        ["report", tmp_path, "--loud"],
    ):
        result = qrobust(*words)
        lines = result.output.strip().splitlines()
        assert (result.exit_code, len(lines)) == (2, 1), result.output
        assert lines[0].startswith("Error: ")
        assert "--help" in lines[0]


def test_own_shifts_are_tried_before_a_folder_is_made(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def broken(images, strength, generators):\n    return images * float('nan')\n")
    arguments = arguments_of(tmp_path, {})
    one_line_error([*arguments, "--shifts", f"{own}:broken", "--out", tmp_path / "out"], tmp_path / "out", "got NaN")


def test_overwrite_leaves_what_others_made(tmp_path: Path) -> None:
    """A `config.json` does not make a run of a folder: other tools' models have one, too."""
    arguments = ["run", "--model", "resnet8", "--data", f"npz:{save_npz(tmp_path / 'd.npz')}", "--overwrite", "--out"]
    for name, text in (("other", '{"model_type": "resnet"}'), ("list", "[]"), ("damaged", "{")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(text)
        one_line_error([*arguments, folder], None, "no run made, which nothing will remove")
        assert (folder / "config.json").read_text() == text


def test_output_folder_is_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--model", "resnet8", "--data", f"npz:{save_npz(tmp_path / 'd.npz')}", "--out"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    one_line_error([*arguments, full], None, "holds files that no run made")
    one_line_error([*arguments, full, "--overwrite"], None, "nothing will remove")
    assert (full / "thesis.txt").read_text() == "precious"
    file = tmp_path / "file"
    file.touch()
    one_line_error([*arguments, file], None, "is a file")
    one_line_error([*arguments, file / "below"], None, "not a writable folder")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked)  # root may write anywhere
    one_line_error([*arguments, locked / "out"], locked / "out", "cannot write")


def test_demo_recommends_only_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(WHOLE + "}")
    result = qrobust("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert (
        result.output == f"Error: --out: {tmp_path} is not empty; --resume goes on with it, --overwrite replaces it\n"
    )


def test_stages_keep_the_seed_of_the_splits(finished_run: Path) -> None:
    with pytest.raises(InputError, match="drawn with 0"):
        Run.open(finished_run, Reporter(), seed=3)
    for command in ("sensitivity", "export", "evaluate", "report"):
        one_line_error([command, finished_run, "--seed", 0], None, "--seed is for new runs")
    one_line_error(["compensate", finished_run, "--seed", 0], None, "--seed: expected with FILE.onnx only")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--compare", "--remedy", "none"],
            "--remedy: expected --compare, which makes all of them, or --remedy, got both",
        ),
        (["--hold-out", "fog"], "is now --train-on NAME,...: what is learned from"),
        (["--train-on", "fogg"], "got 'fogg'; did you mean 'fog'?"),
        (["--train-on", "generic,c-bar"], "--train-on: expected shifts to learn from, got c-bar, which is for"),
        (["--scenario", "ripple"], "--scenario: expected shifts to learn from, got ripple of c-bar, which is for"),
        (["--scenario-share", "1.5"], "--scenario-share: expected at most 1, got 1.5"),
        (["--scenario", "night", "--train-on", "fog"], "expected either --scenario or --train-on, got both"),
        (["--few-shot", 100_000], "--few-shot: expected at most the"),
        (["--target-images", ""], "--target-images: expected a value, got an empty string"),
        (["--branches", "photometric,photometric"], "--branches: expected some of"),
        (["--latency-budget", "0.5"], "--latency-budget: expected a factor above 1, or 0 for none, got 0.5"),
        (["--clean-budget", "-1"], "--clean-budget: expected at least 0, got -1.0"),
        (["--clean-budget", "nan"], "--clean-budget: expected a finite number, got nan"),
    ],
)
def test_choices_that_cannot_be_met_leave_the_run_as_it_was(
    options: list[object], message: str, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    one_line_error(["compensate", run, *options], None, message)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished"]


def test_budgets_can_be_taken_back(finished_run: Path) -> None:
    def opened(**choices: object) -> Run:
        return Run.open(finished_run, Reporter(), **choices)

    every = len(opened().data.training)
    assert len(training_images(opened(few_shot=20))) == 20
    assert len(training_images(opened(few_shot=0))) == every
    assert opened(latency_budget=0.0).config.calibrator.latency_budget == 0


def test_stage_commands_want_a_run_folder(tmp_path: Path) -> None:
    for command in ("evaluate", "compensate", "export", "report"):
        one_line_error([command, tmp_path], None, "no config.json")
    one_line_error(["audit", tmp_path / "none.onnx"], None, "no file")


WHOLE = '{"model": "tiny", "data": "digits", "target": "x86-vnni", "calibration_images": 9'


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "is of something else"),
        ('{"model_type": "resnet"}', "is of something else"),
        (WHOLE + ', "stpes": 9}', "['stpes']"),
        (WHOLE + ', "steps": "many"}', "steps: expected an integer, got 'many'"),
        (WHOLE + ', "scene_images": 3}', "target_images: expected text, got 3"),
        (WHOLE + ', "use_labels": "no"}', "use_labels: expected true or false, got 'no'"),
        (WHOLE + ', "shifts": "fog"}', "shifts: expected a list, each text, got 'fog'"),
        (WHOLE.replace('"tiny"', "3") + "}", "model: expected text, got 3"),
        (WHOLE + ', "shifts": [3]}', "shifts: expected a list, each text, got [3]"),
        (WHOLE + ', "code": []}', "config.json: code: expected hashes by file, got []"),
        ("[]", "expected a JSON object"),
        ('{"model"', "cannot read"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    one_line_error(["evaluate", tmp_path], None, message)


def test_random_weights_are_announced(tmp_path: Path) -> None:
    arguments = arguments_of(tmp_path, {"--mac-budget": "1e-4"})
    assert "random weights" in qrobust(*arguments, "--out", tmp_path / "out").output


def small_quantize(weights: Path, out: Path, *options: object) -> list[object]:
    return [
        "quantize",
        "--model",
        "resnet8",
        "--weights",
        weights,
        "--data",
        "digits",
        "--normalization",
        "cifar10",
        "--calibration-images",
        "48",
        "--train-images",
        "96",
        "--test-images",
        "48",
        "--out",
        out,
        "--threads",
        "1",
        "-q",
        *options,
    ]


def test_narrow_bits_stay_integer_and_int4_is_smaller(weights: Path, tmp_path: Path) -> None:
    sizes = {}
    for storage in ("int8", "int4"):
        out = tmp_path / storage
        result = qrobust(*small_quantize(weights, out, "--bits", "w4a4", "--storage", storage))
        assert result.exit_code == 0, result.output
        stage = json.loads((out / "stages" / "quantize.json").read_text())
        assert stage["audit"]["int8"]["integer_ops"] == stage["audit"]["int8"]["quantizable_ops"] == 10
        assert stage["quantization"]["recipe"]["bits"] == "w4a4"
        assert {n["weight_bits"] for n in stage["quantization"]["layer_noise"]} == {4, 8}
        sizes[storage] = (out / "int8.onnx").stat().st_size
    # 76 thousand 4-bit weights save half a byte each.
    assert sizes["int8"] - sizes["int4"] > 30_000


@pytest.mark.slow  # a table of layers, and several networks observed, exported and timed
def test_bounds_are_met_or_said_not_to_be(weights: Path, tmp_path: Path) -> None:
    bounds = ["--bits", "w4a4", "--target-drop", "1", "--target-latency", "0.0001"]
    result = qrobust(*(o for o in small_quantize(weights, tmp_path / "run", *bounds) if o != "-q"))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "stages" / "quantize.json").read_text())["quantization"]
    mixed = found["mixed_precision"]
    assert mixed["bounds"] == {"drop_pp": 1, "latency_ms": 0.0001}
    assert mixed["drop_met"] == (mixed["drop_pp"] <= 1)
    assert not mixed["latency_met"]
    assert "warning: --target-latency 0.0001 is not met" in result.output
    assert [[layer["name"], layer["bits"]] for layer in mixed["layers"]] == found["recipe"]["exceptions"]
    assert all(layer["latency_ms"] > 0 for layer in mixed["layers"])


@pytest.mark.slow  # two searches and two tables of layers
def test_search_exceptions_and_sensitivity(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "ROUNDING_STEPS", 20)  # what is learned, tests/quantization/test_ptq.py knows
    out = tmp_path / "run"
    options = ["--ptq", "auto", "--keep-float", "auto:1", "--layer-bits", "blocks.0.*=w4a8"]
    result = qrobust(*(o for o in small_quantize(weights, out, *options) if o != "-q"))
    assert result.exit_code == 0, result.output
    # Once without and once with the layer in float.
    assert (result.output.count("  tried "), result.output.count("  kept ")) == (16, 2)
    found = json.loads((out / "stages" / "quantize.json").read_text())["quantization"]
    assert len(found["trials"]) == 8
    assert (
        min(t["divergence"] for t in found["trials"]) == [t for t in found["trials"] if t["kept"]][-1]["divergence"]
    )
    assert len(found["kept_in_float"]) == 1
    bought = found["keep_float_auto"]
    assert bought["kept"]["n"] == bought["without"]["n"] > 0
    assert 0 < bought["float_mac_share"] < 0.6
    assert len(found["layer_effects"]) == 10
    table = qrobust("sensitivity", out, "-q")
    assert table.exit_code == 0, table.output
    assert "blocks.2.conv2" in table.output
    torch.set_num_threads(2)
    layers = json.loads(qrobust("sensitivity", out, "-q", "--json", "--threads", 1).output)
    assert torch.get_num_threads() == 1
    assert len(layers) == 9
    # The layer that was left in float for its effect keeps it.
    again = json.loads((out / "stages" / "quantize.json").read_text())["quantization"]["layer_effects"]
    assert {e["name"] for e in again} == {e["name"] for e in found["layer_effects"]}
    (left,) = found["kept_in_float"]
    assert [e for e in again if e["name"] == left] == [e for e in found["layer_effects"] if e["name"] == left]
    assert all(layer["n"] > 0 and layer["divergence"] >= 0 for layer in layers)
    typed = RunFolder(out).need_result(QuantizationResult, "quantize", "quantize").quantization
    for effects in (typed.layer_effects, ()):
        record: Any = SimpleNamespace(quantization=replace(typed, layer_effects=effects))
        assert ("accuracy lost, points" in "".join(layers_plot(record))) == bool(effects)


@pytest.mark.slow  # three trainings
def test_trained_twin_resumes_after_a_kill(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrobust.quantization import qat

    options = ["--bits", "w4a4", "--qat-epochs", "2", "--qat-learning-rate", "0.001"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert qrobust(*small_quantize(weights, whole, *options)).exit_code == 0
    draw = qat._batch

    def kill(*arguments: object) -> object:
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return draw(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(qat, "_batch", kill)
    assert qrobust(*small_quantize(weights, killed, *options)).exit_code != 0
    monkeypatch.undo()
    assert list((killed / "checkpoints").glob("qat-*.pt"))
    # What fails while it goes on does not take the training with it.
    weights.rename(weights.with_suffix(".away"))
    assert qrobust(*small_quantize(weights, killed, *options, "--resume")).exit_code == 2
    weights.with_suffix(".away").rename(weights)
    assert list((killed / "checkpoints").glob("qat-*.pt"))
    refused = qrobust(*small_quantize(weights, killed, *options[:-1], "0.002", "--resume"))
    assert refused.exit_code == 2
    assert "--qat-learning-rate: expected 0.001, with which the run was begun, got 0.002" in refused.output
    assert qrobust(*small_quantize(weights, killed, *options, "--resume")).exit_code == 0
    assert (whole / "twin.safetensors").read_bytes() == (killed / "twin.safetensors").read_bytes()
    qat = json.loads((whole / "stages" / "quantize.json").read_text())["quantization"]["qat"]
    assert qat["steps"] > 0
    assert qat["shifts"] == []


@pytest.mark.slow  # two quantizations and a training
def test_training_that_gains_nothing_leaves_the_twin_as_it_was(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrobust.quantization import qat

    plain, trained = tmp_path / "plain", tmp_path / "trained"
    assert qrobust(*small_quantize(weights, plain)).exit_code == 0
    monkeypatch.setattr(qat, "beyond_luck", lambda *_: False)
    result = qrobust(*[o for o in small_quantize(weights, trained, "--qat-epochs", "0.5") if o != "-q"])
    assert "the gain of training is within the standard error on" in result.output
    assert json.loads((trained / "stages" / "quantize.json").read_text())["quantization"]["qat"]["best_step"] == 0
    assert (plain / "twin.safetensors").read_bytes() == (trained / "twin.safetensors").read_bytes()


@pytest.mark.slow  # three runs, two of which train
@pytest.mark.parametrize(
    ("remedy", "made", "graphs"),
    [
        ("none", {"quantize", "evaluate"}, {"float", "int8"}),
        ("scales", {"quantize", "scales", "evaluate"}, {"float", "int8", "scales"}),
        (
            "calibrator+second-look",
            {"quantize", "compensate", "export", "calibrator+second-look", "evaluate"},
            {"float", "int8", "compensated", "calibrator+second-look"},
        ),
    ],
)
def test_a_run_makes_the_remedy_that_it_is_told(
    remedy: str, made: set[str], graphs: set[str], weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    few = {"--steps": 10, "--test-images": 40, "--attack-images": 0, "--shifts": "contrast"}
    options = [str(word) for pair in few.items() for word in pair]
    command = ["run", "--model", "resnet8", "--weights", weights, *SMALL, *options, "--remedy", remedy, "--out", out]
    result = qrobust(*command)
    assert result.exit_code == 0, result.output
    assert {path.stem for path in (out / "stages").iterdir()} == made
    record = json.loads((out / "record.json").read_text())
    assert set(record["summary"]["shift_accuracy"]) == graphs
    assert record["config"]["remedy"] == remedy
    expected = record["start"]["expected_s"]
    assert ("train the calibrator" in expected) is False
    assert any("remedy" in part for part in expected) == (remedy != "none")


@pytest.mark.slow  # a quantization and a training
def test_the_classifier_learns_from_what_is_trained_on(weights: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ["--qat-epochs", "0.01", "--qat-shifts"]
    assert qrobust(*small_quantize(weights, run, *options)).exit_code == 0
    shifts = json.loads((run / "stages" / "quantize.json").read_text())["quantization"]["qat"]["shifts"]
    assert shifts == sorted(set(SUITES["generic"]) - {"generic_mixture"})
    # It does not stand in the way of a scene's real images.
    assert Run.open(run, Reporter(), target_images="imagefolder:x").config.qat.shifts


def test_a_scene_alone_has_no_shifts_to_train_the_twin_on(tmp_path: Path) -> None:
    target_images = ["--target-images", tmp_path, "--train-on", "none", "--qat-epochs", 1, "--qat-shifts"]
    one_line_error(
        ["run", "--model", "resnet8", "--data", "digits", "--out", tmp_path / "o", *target_images],
        tmp_path / "o",
        "--qat-shifts: expected shifts that can be rendered",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--keep-float", "blocks.9.conv1"],
            "no convolution or linear layer is called 'blocks.9.conv1'; the nearest",
        ),
        (
            ["--keep-float", "*"],
            "Error: --keep-float: expected at least one layer to be quantized, got all 10 left in float (edges and "
            "--layer-bits count, too)\n",
        ),
        (["--keep-float", "auto:99"], "auto:N with N from 1 to 9"),
        (["--keep-float", "auto:x"], "--keep-float: expected layer names or one auto:N"),
        (["--keep-float", "auto:²"], "--keep-float: expected layer names or one auto:N"),
        (["--seed", "4294967296"], "--seed: expected at most 4294967295, got 4294967296"),
        (
            ["--layer-bits", "fc=w4a8,fc=w8a8", "--rounding", "adaround"],
            "--rounding: adaround is for weights of fewer than 8 bits, and no layer has such",
        ),
        (["--layer-bits", "fc"], "--layer-bits: expected LAYER=BITS, got 'fc'"),
        (["--layer-bits", "fc=w5a5"], "--layer-bits: expected one of w8a8"),
        (["--qat-epochs", "-1"], "--qat-epochs: expected at least 0, got -1"),
        (
            ["--qat-epochs", "1", "--qat-distillation", "2"],
            "--qat-distillation: expected at most 1, got 2",
        ),
        (["--storage", "int4"], "--storage: int4 is for weights of 4 bits, bits are w8a8"),
        (["--rounding", "adaround"], "--rounding: adaround is for weights of fewer than 8 bits"),
        (["--qat-shifts"], "--qat-shifts: nothing is trained without --qat-epochs"),
        (["--qat-ranges", "frozen"], "--qat-ranges: nothing is trained without --qat-epochs"),
        (["--qat-learning-rate", "0.1"], "--qat-learning-rate: nothing is trained without --qat-epochs"),
        (
            ["--layer-bits", "fc=w4a8,fc=w8a8", "--storage", "int4"],
            "--storage: int4 is for weights of 4 bits, and no layer is left with such",
        ),
        (["--resume", "--overwrite"], "--resume: expected it or --overwrite, got both"),
        (["--target", "x87"], "--target: expected one of x86-vnni, x86-avx2, arm64, got 'x87'"),
    ],
)
def test_bad_quantization_choices_write_nothing(
    options: list[str], message: str, weights: Path, tmp_path: Path
) -> None:
    result = qrobust(*small_quantize(weights, tmp_path / "out", *options))
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
