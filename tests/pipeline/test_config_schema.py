"""The JSON schema of the configuration file says what the reader says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from conftest import qrobust

from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.config_file import as_toml, read_choices, read_limits
from qrobust.pipeline.config_schema import json_schema


def faults(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    return [error.message for error in validator.iter_errors(tomllib.loads(text))]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_it_takes_what_a_run_keeps() -> None:
    config = RunConfig.from_options(
        {"model": "resnet20", "data": "digits", "epsilons": (1 / 255,), "shifts": ("fog",)}
    )
    assert faults(as_toml(config)) == []


GOOD = (
    "seed = 3\ndevice = 'cpu'",
    "[shifts]\nseverities = [1, 5]\nnames = 'fog,contrast'",
    "[attacks]\nepsilons = ['8/255', 0.1]",
    "[check]\nmax_drop = 1\nmax-latency-ratio = 0.6\n[check.min_recall]\ncat = 0.9",
)
BAD = (
    "sede = 3",
    "seed = -1",
    "seed = 1.5",
    "[quantization]\nbits = 'w9a9'",
    "[quantization]\nbitz = 'w8a8'",
    "[calibrator]\nsteps = 'many'",
    "[calibrator]\nmac_budget = 0",
    "[shifts]\nseverities = [6]",
    "[shifts]\nscenario_share = 1.5",
    "[model]\npretrained = 1",
)


@pytest.mark.parametrize("text", GOOD)
def test_it_takes_what_the_reader_takes(text: str, tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(text)
    read_choices(tmp_path / "q.toml")
    if "[check]" in text:
        read_limits(tmp_path / "q.toml")
    assert faults(text) == []


@pytest.mark.parametrize("text", BAD)
def test_it_refuses_what_the_reader_refuses(text: str, tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(text)
    with pytest.raises(InputError):
        read_choices(tmp_path / "q.toml")
    assert faults(text)


def test_every_key_says_what_it_means() -> None:
    for name, table in json_schema()["properties"].items():
        assert table["description"] if "properties" not in table else name
        for key, value in table.get("properties", {}).items() if name != "check" else ():
            assert value["description"], f"{name}.{key}"


def test_a_file_names_the_schema_beside_it(tmp_path: Path) -> None:
    file, schema = tmp_path / "q.toml", tmp_path / "q.schema.json"
    assert qrobust("init", file, "--schema").exit_code == 0
    assert file.read_text().startswith("#:schema ./q.schema.json\n")
    assert json.loads(schema.read_text()) == json_schema()
    file.unlink()
    again = qrobust("init", file, "--schema")
    assert again.exit_code == 2
    assert f"{schema} exists" in again.output
    assert not file.exists()
