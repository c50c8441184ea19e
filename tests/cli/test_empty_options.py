"""An empty option is a shell variable that is not set: refused, whatever the option."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from conftest import qrobust, save_npz

from qrobust.cli.main import main
from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.evaluate_onnx import Choices

TEXTS = sorted(
    {
        (name, param.opts[0])
        for name, command in main.commands.items()
        for param in command.params
        if isinstance(param, click.Option) and not param.is_flag and param.expose_value
    }
)


@pytest.mark.parametrize(("command", "option"), TEXTS)
@pytest.mark.parametrize("empty", ["", " "])
def test_every_option_refuses_to_be_empty(
    command: str, option: str, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([option, empty], [f"{option}={empty}"]):
        result = qrobust(command, *words)
        assert result.exit_code == 2, result.output
        assert result.output == (
            f"Error: {option}: expected a value, got an empty string; is a variable of the shell unset?\n"
        )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("words", [["audit", ""], ["evaluate", ""], ["report", " "]])
def test_arguments_refuse_to_be_empty(words: list[str]) -> None:
    result = qrobust(*words)
    assert (result.exit_code, "expected a value, got an empty string" in result.output) == (2, True)


@pytest.mark.parametrize("text", [",", "fog,", ",fog", "fog,,snow"])
def test_lists_have_no_empty_part(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = qrobust("run", "--model", "resnet8", "--data", "digits", "--out", out, "--shifts", text)
    assert result.exit_code == 2
    assert f"--shifts: expected comma-separated names, got {text!r}" in result.output
    assert not out.exists()


def test_a_stored_set_has_a_folder(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz')}"
    result = qrobust(
        "run",
        *("--model", "resnet8", "--data", data, "--calibration-images", 16),
        *("--out", tmp_path / "out", "--shifts", "fog,stored:"),
    )
    assert (result.exit_code, "expected a folder after stored:" in result.output) == (2, True), result.output


def test_configurations_hold_nothing_empty() -> None:
    with pytest.raises(InputError, match="weights: expected a value, got an empty string"):
        RunConfig.from_options({"model": "resnet8", "data": "digits", "weights": ""})
    with pytest.raises(InputError, match="shifts: expected a value, got an empty string"):
        RunConfig.from_options({"model": "resnet8", "data": "digits", "shifts": ("fog", "")})
    with pytest.raises(InputError, match="class_names: expected a value, got an empty string"):
        Choices(("a.onnx",), "digits", class_names=" ")
