"""Configuration files: the template is the default, what a run keeps can be fed back, mistakes come all at once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import qrobust

from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.config_file import as_toml, check_named, read_choices, template
from qrobust.pipeline.run_folder import open_run


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_template_chooses_model_and_data_alone(tmp_path: Path) -> None:
    found = read_choices(written(tmp_path / "q.toml", template("resnet20", "digits")))
    assert found == {"model": "resnet20", "data": "digits"}


def test_defaults_in_the_template_are_the_defaults(tmp_path: Path) -> None:
    """Every `# key = value` uncommented, those without a default left out."""
    text = re.sub(r"^# (\w+ = .+)$", r"\1", template("", "").partition("\n# Bounds")[0], flags=re.MULTILINE)
    found = read_choices(written(tmp_path / "q.toml", text))
    assert len(found) > 40
    assert RunConfig.from_options(found) == RunConfig()


def test_a_configuration_is_fed_back_as_it_was(tmp_path: Path) -> None:
    config = RunConfig.from_options(
        {
            "model": 'my "own"\\net\x7f',
            "data": "npz:a b.npz",
            "shifts": ("fog", "contrast"),
            "epsilons": (1 / 255, 0.1),
            "qat_epochs": 0.5,
            "pretrained": True,
            "seed": 7,
        }
    )
    again = read_choices(written(tmp_path / "q.toml", as_toml(config)))
    assert RunConfig.from_options(again) == config


def test_a_run_keeps_its_configuration_as_a_file(finished_run: Path) -> None:
    _, config, _ = open_run(finished_run)
    assert RunConfig.from_options(read_choices(finished_run / "config.toml")) == replace(config, code={})


def test_settings_go_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "q.toml", "seed = 1\n[quantization]\nbits = 'w4a8'\nobserver = 'mse'\n")
    found = read_choices(file, ["quantization.bits=w6a8", "shifts.names=fog,contrast", "attacks.epsilons=2/255"])
    assert found == {
        "seed": 1,
        "bits": "w6a8",
        "observer": "mse",
        "shifts": ("fog", "contrast"),
        "epsilons": (2 / 255,),
    }


def test_bounds_of_check_are_passed_over(tmp_path: Path) -> None:
    assert read_choices(written(tmp_path / "q.toml", "[check]\nmax_drop = 1\n[check.min_recall]\ncat = 0.9\n")) == {}


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = "sead = 1\n[quantization]\nbitz = 'w8a8'\nptq = 'atuo'\n[qat]\nepochs = 'all'\n[calibrater]\nsteps = 1\n"
    with pytest.raises(InputError) as raised:
        read_choices(written(tmp_path / "q.toml", text))
    for said in (
        "sead: no such key; did you mean 'seed'?",
        "quantization.bitz: no such key; did you mean 'quantization.bits'?",
        "did you mean 'auto'",
        "qat_epochs: expected a number, got 'all'",
        "calibrater.steps: no such key; did you mean 'calibrator.steps'?",
    ):
        assert said in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["quantization.bits"], "settings: expected a key and a value, such as quantization.bits=w8a8"),
        (["=w8a8"], "settings: expected a key and a value"),
        (["bits=w4a8"], "bits: no such key; did you mean 'quantization.bits'?"),
    ],
)
def test_settings_that_make_no_sense(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_choices(None, settings)


def test_code_that_only_a_file_names_does_not_run() -> None:
    found: dict[str, object] = {"model": "net.py:net", "shifts": ("fog", "own.py:wet")}
    with pytest.raises(InputError, match=r"config: net\.py:net would run a Python file that only the configuration"):
        check_named(found, ["own.py:wet"])
    with pytest.raises(InputError, match=r"own\.py:wet would run .* \(--shifts\)"):
        check_named(found, ["net.py:net"])
    check_named(found, ["model.spec=net.py:net", "own.py:wet"])


def test_init_writes_toml_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    assert qrobust("init", file, "--data", "digits").exit_code == 0
    assert tomllib.loads(file.read_text())["data"] == {"spec": "digits"}
    result = qrobust("init", file)
    assert (result.exit_code, "exists; --overwrite replaces it" in result.output) == (2, True)
    assert qrobust("init", file, "--overwrite").exit_code == 0


def test_a_command_tells_mistakes_of_its_file_in_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "q.toml", "[model]\nspecs = 'resnet20'\n")
    result = qrobust("quantize", "--config", file, "--out", tmp_path / "out")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert "model.specs: no such key; did you mean 'model.spec'?" in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_is_quantized_from_a_file(weights: Path, tmp_path: Path) -> None:
    text = (
        f"threads = 1\n[model]\nspec = 'resnet8'\nweights = '{weights}'\n[preprocessing]\nnormalization = 'cifar10'\n"
        "[data]\nspec = 'digits'\ncalibration_images = 16\ntrain_images = 32\n[quantization]\nbits = 'w4a8'\n"
    )
    file = written(tmp_path / "q.toml", text)
    options = ("--bits", "w8a8", "--set", "seed=3", "--out", tmp_path / "run", "-q")
    result = qrobust("quantize", "--config", file, *options)
    assert result.exit_code == 0, result.output
    _, config, _ = open_run(tmp_path / "run")
    assert (config.quantization.bits, config.seed, config.data.train_images, config.threads) == ("w8a8", 3, 32, 1)
