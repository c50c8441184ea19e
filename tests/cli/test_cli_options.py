"""Commands and options: their help, their errors, what each of them reaches."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sys
import textwrap
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import SMALL, qrobust, save_npz
from onnx_graphs import classifier_graph as graph

from qrobust.choices import option_of
from qrobust.cli.command import Command, Option
from qrobust.cli.finished_commands import LIMITS
from qrobust.cli.main import main
from qrobust.cli.options import CONFIG_OPTIONS
from qrobust.cli.parsing import FIELDS, choices, field_of
from qrobust.cli.run_folders import VERDICT_LINES, beginning
from qrobust.compensation.calibrator import BRANCHES
from qrobust.errors import InputError, RangeError, unknown
from qrobust.pipeline.config import SECTIONS, RunConfig
from qrobust.pipeline.evaluate_onnx import Choices
from qrobust.quantization.observers import RANGES
from qrobust.quantization.recipe import BITS, EDGES, ROUNDINGS
from qrobust.quantization.target import TARGETS
from qrobust.shifts.registry import TABLES

ORDER = [
    "demo",
    "init",
    "run",
    "quantize",
    "sensitivity",
    "compensate",
    "export",
    "evaluate",
    "report",
    "evaluate-onnx",
    "compare",
    "check",
    "fleet",
    "deploy",
    "predict",
    "audit",
]
COMMANDS: dict[str, Any] = main.commands  # type: ignore[attr-defined]  # a group, which the decorator hides


def options_of(command: str) -> list[Option]:
    return [p for p in COMMANDS[command].params if isinstance(p, Option)]


def one_line(*words: object) -> str:
    result = qrobust(*words)
    lines = result.output.strip().splitlines()
    assert (result.exit_code, len(lines)) == (2, 1), result.output
    return lines[0]


# Help


def test_commands_are_listed_in_working_order_with_whole_summaries() -> None:
    _, _, listed = qrobust("--help").output.partition("Commands:\n")
    lines = [line.split(maxsplit=1) for line in listed.splitlines()]
    assert [name for name, _ in lines] == ORDER
    for name, summary in lines:
        assert summary.endswith("."), name
        assert not summary.endswith("..."), f"{name}: its first sentence is too long for a line"


@pytest.mark.parametrize("command", ORDER)
def test_help_has_an_example_and_options_in_groups(command: str) -> None:
    shown = qrobust(command, "--help").output
    assert f"  qrobust {command}" in shown
    assert "\nOptions:" not in shown
    everything = qrobust(command, "--help-all").output
    for option in options_of(command):
        assert max(option.opts, key=len) in everything
        assert (max(option.opts, key=len) + " " in shown) or option.advanced or option.is_flag
    assert ("more option" in shown) == any(o.advanced for o in options_of(command))
    assert "more option" not in everything


def test_plain_help_is_short() -> None:
    for command in ORDER:
        assert sum(not option.advanced for option in options_of(command)) <= 23, command


@pytest.mark.parametrize("command", ORDER)
def test_options_with_a_value_have_a_unit_or_choices(command: str) -> None:
    ctx = click.Context(COMMANDS[command])
    for option in options_of(command):
        if not option.is_flag:
            metavar = option.make_metavar(ctx)
            assert metavar.strip("[]") not in ("TEXT", "INTEGER", "FLOAT", "NUMBER", "PATH", "CHOICE"), option.name


@pytest.mark.parametrize("command", ORDER)
def test_defaults_are_those_of_the_configuration(command: str) -> None:
    ctx = COMMANDS[command].make_context(command, [], resilient_parsing=True)
    for option in options_of(command):
        known = field_of(str(option.name))
        if known is None:
            continue
        assert ctx.params[str(option.name)] is None, f"{option.name}: what is not given must be seen not to be"
        said = option.get_help_record(ctx)
        assert said is not None
        if known.default and isinstance(known.default, int | str) and not option.unset and not option.is_flag:
            assert f"[default: {known.default}]" in said[1]


def test_choices_are_those_of_the_algorithms() -> None:
    for name, there in (("target", TARGETS), ("bits", BITS), ("edges", EDGES), ("observer", RANGES)):
        assert one_of(name) == tuple(there), name
    assert one_of("rounding") == ROUNDINGS
    assert one_of("severity_table") == ("auto", *TABLES)
    assert one_of("branches") == BRANCHES
    assert all(field_of(option) for option in FIELDS)


def one_of(option: str) -> tuple[str, ...]:
    known = field_of(option)
    assert known is not None
    return known.metadata["one_of"]


def test_files_are_measured_by_the_same_defaults() -> None:
    for entry in fields(Choices):
        of_runs = field_of(entry.name)
        if of_runs is not None and entry.name not in ("attacks", "data"):
            assert entry.default == of_runs.default, entry.name
    (attacks,) = (option for option in options_of("evaluate-onnx") if option.name == "attacks")
    assert attacks.unset == Choices.attacks


# Errors


def test_unknown_names_say_the_nearest_first() -> None:
    assert str(unknown("shift", "contrst", ("fog", "contrast"), "FILE.py:FUNCTION")) == (
        "shift: expected one of contrast, fog, FILE.py:FUNCTION, got 'contrst'; did you mean 'contrast'?"
    )
    assert (
        str(unknown("target", "x87", ("x86-vnni", "arm64"))) == "target: expected one of x86-vnni, arm64, got 'x87'"
    )
    assert "got 'FOG'; did you mean 'fog'?" in str(unknown("shift", "FOG", ("contrast", "fog")))
    many = str(unknown("model", "name7", [f"name{i}" for i in range(99)]))
    assert many.startswith("model: expected one of name7, ")
    assert "... (99 in all)" in many


RUN = ("run", "--model", "resnet8", "--data", "digits", "--out", "none")


@pytest.mark.parametrize(
    ("words", "option", "meant"),
    [
        (("sensitivty", "x"), "command", "'sensitivity'"),
        ((*RUN, "--calibration-image", 3), "--calibration-image: no such option", "--calibration-images"),
        ((*RUN, "--target", "x86-vni"), "--target", "'x86-vnni'"),
        ((*RUN, "--bits", "w8a4"), "--bits", "'w8a8'"),
        ((*RUN, "--model", "resnet-20"), "--model", "'resnet20'"),
        ((*RUN, "--model", "resnet18"), "--model", "'torchvision:resnet18'"),
        ((*RUN, "--model", "torchvision:mobilnet_v2"), "--model", "'mobilenet_v2'"),
        ((*RUN, "--data", "imagefoldr:x"), "--data", "'imagefolder:DIR'"),
        ((*RUN, "--data", "torchvision:CIFAR11"), "--data", "'CIFAR10'"),
        ((*RUN, "--shifts", "gausian_noise"), "--shifts", "'gaussian_noise'"),
        ((*RUN, "--scenario", "old_lens"), "--scenario", "'old-lens'"),
    ],
)
def test_a_typing_error_is_guessed(words: tuple[object, ...], option: str, meant: str) -> None:
    error = one_line(*words, *(["-q"] if words[0] == "run" else []))
    assert error.startswith(f"Error: {option}"), error
    assert f"id you mean {meant}?" in error


def test_a_folder_without_its_scheme_is_guessed(tmp_path: Path) -> None:
    assert f"did you mean 'imagefolder:{tmp_path}'?" in one_line(*RUN, "--data", tmp_path, "-q")


def test_a_remedy_is_guessed(run_copy: Path) -> None:
    error = one_line("compensate", run_copy, "--remedy", "finetun", "-q")
    assert error.startswith("Error: --remedy: expected one of finetune, calibrator, ")
    assert error.endswith("got 'finetun'; did you mean 'finetune'?")


def test_errors_name_options_as_they_are_typed() -> None:
    run: Command = COMMANDS["run"]
    for message, typed in (
        ("calibration_images: expected at least 1, got 0", "--calibration-images: expected at least 1, got 0"),
        ("steps: a; attack_images: b", "--steps: a; --attack-images: b"),
        (
            "qat_shifts: nothing is trained without qat_epochs",
            "--qat-shifts: nothing is trained without --qat-epochs",
        ),
        ("target_images: no folder x", "--target-images: no folder x"),
        ("severity: expected 1 to 5", "--severities: expected 1 to 5"),
        ("use_labels: no", "--labels: no"),
        # What is no option, or was written by somebody else, stays.
        ("config.json: use_labels: expected true", "config.json: use_labels: expected true"),
        ("onnx: expected steps", "onnx: expected steps"),
        ("data: no folder /x/test_images", "--data: no folder /x/test_images"),
        ("data: no class 'test_images'", "--data: no class 'test_images'"),
    ):
        assert run.as_typed(message) == typed
    error = one_line(*RUN, "--calibration-images", 0)
    assert error == "Error: --calibration-images: expected at least 1, got 0"
    with pytest.raises(InputError, match=r"^calibration_images: expected at least 1, got 0$"):
        RunConfig.from_options({"calibration_images": 0})


def test_input_errors_are_value_errors() -> None:
    for kind in (InputError, RangeError):
        with pytest.raises(ValueError, match="one line"):
            raise kind("one line")


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (("run", "--scene", "night"), "Error: --scene is now --scenario NAME, or --target-images DIR"),
        (("evaluate", "x", "--scene=imagefolder:x"), "Error: --scene is now --scenario NAME, or --target-images DIR"),
        (("compensate", "x", "--method", "finetune"), "Error: --method is now --remedy"),
        (("evaluate", "--model", "a.onnx", "--data", "digits"), "qrobust evaluate-onnx FILE..."),
        (("evaluate-onnx", "--model", "a.onnx"), "give the files as arguments"),
    ],
)
def test_old_names_say_the_new(words: tuple[object, ...], now: str) -> None:
    assert now in one_line(*words)


def test_the_long_name_of_run_still_works() -> None:
    assert qrobust("quantize-and-compensate", "--help").output.splitlines()[0].endswith(" run [OPTIONS]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--severities", "3,x"), "--severities: expected comma-separated integers, got '3,x'"),
        (("--steps", "many"), "--steps: expected an integer, got 'many'"),
        (("--mac-budget", "1/0"), "--mac-budget: expected a number or a fraction such as 8/255, got '1/0'"),
    ],
)
def test_values_that_cannot_be_read_are_said(words: tuple[str, ...], message: str) -> None:
    assert message in one_line(*RUN, *words)


def test_what_is_learned_from_and_what_is_measured_are_two_choices() -> None:
    for given, names in (("none", ()), ("generic, contrast", ("generic", "contrast"))):
        params = COMMANDS["compensate"].make_context("compensate", ["x", "--train-on", given]).params
        assert choices({"train_on": params["train_on"]})["train_on"] == names
    assert choices({"shifts": ("fog",), "train_on": None}) == {"shifts": ("fog",)}
    night = choices({"scenario": ("night",), "train_on": None, "shifts": None})
    assert night["train_on"] == ("generic", *night["shifts"])
    assert "low_light" in night["shifts"]
    assert "train_on" not in choices({"scenario": ("night",)})  # a command that only measures
    for other in ("shifts", "train_on"):
        with pytest.raises(InputError, match=f"either --scenario or --{other.replace('_', '-')}"):
            choices({"scenario": ("night",), other: ("fog",)})


def test_target_images_are_added() -> None:
    assert choices({"target_images": "x"}) == {"target_images": "imagefolder:x"}
    night = choices({"target_images": "imagefolder:x", "scenario": ("night",), "train_on": None})
    assert (night["target_images"], night["train_on"][0]) == ("imagefolder:x", "generic")
    # What is chosen to learn from takes the place of the target images that a run had.
    assert choices({"train_on": ("fog",)})["target_images"] is None


# Resuming, and the end of a run


def test_resume_needs_nothing_else(finished_run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished_run, tmp_path / "out")
    result = qrobust("run", "--resume", "--out", out, "-q")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"Report: {out / 'report.html'}"
    assert qrobust("quantize", "--resume", "--out", out, "-q").exit_code == 0
    error = one_line("run", "--resume", "--out", out, "--steps", 7)
    assert error == "Error: --steps: expected 200, with which the run was begun, got 7"
    assert "--model: expected one for a new run, got none" in one_line("run", "--resume", "--out", tmp_path / "new")
    assert "--data: expected one for a new run" in one_line("run", "--model", "resnet8", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_demo_resumes_what_it_began(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrobust.pipeline import demo

    out = shutil.copytree(finished_run, tmp_path / "out")
    assert "--model" not in one_line("demo", "--out", out, "--resume", "--overwrite")
    # Another's run is none that the demo began.
    assert "with which the run was begun" in one_line("demo", "--out", out, "--resume")
    config = json.loads((out / "config.json").read_text())
    monkeypatch.setattr(demo, "OPTIONS", {name: config[name] for name in demo.OPTIONS})
    error = one_line("demo", "--out", out, "--resume", "--seed", 3)
    assert error == "Error: --seed: expected 0, with which the run was begun, got 3"
    result = qrobust("demo", "--out", out, "--resume", "-q")
    assert result.exit_code == 0, result.output
    assert "Report: " in result.output


def test_a_demo_that_kept_no_network_begins_anew(
    finished_run: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from qrobust.pipeline import demo, stages

    out = tmp_path / "out"
    out.mkdir()
    config = json.loads((finished_run / "config.json").read_text()) | {"seed": 5}
    (out / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(demo, "OPTIONS", {name: config[name] for name in demo.OPTIONS})
    asked: list[object] = []

    def trained(seed: int, *_: object) -> nullcontext[Path]:
        asked.append(seed)
        return nullcontext(weights)

    def stop(bench: Any, *, resume: bool) -> None:
        asked.extend([bench.config.seed, resume])
        raise InputError("stopped here")

    monkeypatch.setattr(demo, "weights_file", trained)
    monkeypatch.setattr(stages, "run_all", stop)
    assert "stopped here" in one_line("demo", "--out", out, "--resume", "-q")
    assert asked == [5, 5, False]


def test_the_end_of_a_run_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = ["First of all this. " * 8, "Then that. " * 9, "And so on. " * 30, "Short."]
    for columns in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = beginning(sentences)
        assert len(lines) <= VERDICT_LINES
        assert max(map(len, lines)) <= columns
        assert " ".join(lines).startswith("First of all this.")
        assert ("Short." in lines) == (columns == 200), "no later sentence without those before it"
    assert len(beginning(["word " * 300])) > VERDICT_LINES


def test_an_option_at_the_end_of_a_line_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert beginning(["word " * 10 + "--accept-undecided"])[1] == "--accept-undecided"


# What options reach


@pytest.mark.parametrize("command", ORDER)
def test_every_parameter_of_a_command_is_used(command: str) -> None:
    function = inspect.unwrap(COMMANDS[command].callback)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    named = {a.arg for a in [*tree.args.args, *tree.args.kwonlyargs]}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert named <= used
    passed_on = {str(p.name) for p in options_of(command) if p.expose_value} - named
    if passed_on:
        assert tree.args.kwarg is not None
        assert tree.args.kwarg.arg in used
    # What is passed on sets a field of a run, or says how it reports; the fields are followed below.
    others = {n for n in passed_on if field_of(n) is None} - {
        "verbose",
        "quiet",
        "allow_code",
        "input_range",
        "output",
        "layout",
        "feed",
        "budget",
        "anyway",
        *CONFIG_OPTIONS,
        *(flag.lstrip("-").replace("-", "_") for flag, *_ in LIMITS),
        *(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)),
    }
    assert not others


SKIPPED = (
    "__post_init__",
    "mistakes",
    "well_typed",
    "as_json",
    "from_json",
    "from_options",
    "check_same_config",
    "__eq__",
    "replace",
    "_replace",
)


def recorded(patch: pytest.MonkeyPatch, *kinds: type) -> set[str]:
    """Collects which fields of dataclasses, by option, are read, other than to check, copy or store them all."""
    read: set[str] = set()

    def watch(kind: type) -> None:
        options = {entry.name: option_of(entry) for entry in fields(kind) if entry.default is not MISSING}

        def get(self: object, name: str) -> object:
            if name in options:
                frame = sys._getframe(1)
                while frame is not None and frame.f_code.co_name not in SKIPPED:
                    frame = frame.f_back  # type: ignore[assignment]  # ends at None
                if frame is None:
                    read.add(options[name])
            return object.__getattribute__(self, name)

        patch.setattr(kind, "__getattribute__", get)

    for kind in kinds:
        watch(kind)
    return read


def fields_set_by(command: str) -> set[str]:
    names = [str(option.name) for option in options_of(command)]
    found = {FIELDS.get(name, name) for name in names if field_of(name)}
    # A scenario is a name for shifts; only what is trained is told apart by it.
    return {"shifts" if name == "scenarios" else name for name in found}


@pytest.mark.slow  # it quantizes, trains and measures, as what is read is what counts
def test_every_option_of_a_command_is_read(
    weights: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = recorded(monkeypatch, RunConfig, *SECTIONS.values())
    run, all_read = shutil.copytree(finished_run, tmp_path / "run"), set()
    new = ("--model", "resnet8", "--weights", weights, *SMALL[:10], "--out", tmp_path / "new", "--qat-epochs", 0.01)
    for command, words in (
        ("quantize", new),
        ("sensitivity", (run,)),
        ("compensate", (run, "--steps", 5)),
        ("export", (run,)),
        ("evaluate", (run, "--attack-images", 0)),
        ("report", (run,)),
    ):
        read.clear()
        quiet = () if command == "report" else ("-q",)
        result = qrobust(command, *words, *quiet)
        assert result.exit_code == 0, result.output
        # Attacks are made with --compare only, which evaluates.
        late = fields_set_by("evaluate") & {"attacks", "norms", "epsilons", "l2_epsilons", "attack_images"}
        ignored = fields_set_by(command) - read - (late if command == "compensate" else set())
        assert not ignored, f"{command} ignores {', '.join(sorted(ignored))}"
        all_read |= read
    assert fields_set_by("run") <= all_read


def test_every_option_for_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = recorded(monkeypatch, Choices)  # of which two have no default, for they must be given
    model, data = graph(tmp_path / "m.onnx"), f"npz:{save_npz(tmp_path / 'd.npz')}"
    words = (model, "--data", data, "--shifts", "inversion", "--severities", 5, "--threads", 1, "-q")
    result = qrobust("evaluate-onnx", *words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = {str(option.name) for option in options_of("evaluate-onnx") if option.expose_value}
    of_the_call = {"out", "resume", "overwrite", "workers", "runner_name", "mixed_hosts"}
    of_the_call |= {"threads", "verbose", "quiet"}
    assert names - of_the_call - {"scenario", "data"} <= read


def test_compensate_attacks_only_to_compare(finished_run: Path) -> None:
    error = one_line("compensate", finished_run, "--epsilons", "0.1")
    assert error.startswith("Error: --epsilons: expected with --compare only")


def test_a_device_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = qrobust("quantize", "--model", "resnet8", "--data", "digits", "--device", "tpu", "--out", out)
    assert (result.exit_code, result.stdout, out.exists()) == (2, "", False)
    assert re.fullmatch(r"Error: --device: expected auto or one that is here, .*cpu, got 'tpu'\n", result.stderr)
