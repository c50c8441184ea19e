"""The public API: its examples run, its names exist, importing it takes no time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import qrobust
from qrobust.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.mark.slow  # fits a calibrator
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrobust.shifts.registry import SHIFTS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qrobust.shifts.registry.SHIFTS", SHIFTS)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, "docs/api.md", "exec"), names)
            assert len(block.strip().splitlines()) <= 12
    finally:
        SHIFTS.pop("dim", None)
    fitted, quantized = names["fitted"], names["quantized"]
    assert fitted.hash_before == fitted.hash_after  # type: ignore[attr-defined]  # whatever the example made
    agreement = qrobust.parity(quantized, names["classifiers"]["int8"], names["test"]).agreement  # type: ignore
    assert agreement >= 0.98


def test_every_public_name_exists_and_says_what_it_is() -> None:
    for name in qrobust.__all__:
        assert (getattr(qrobust, name).__doc__ or "").strip(), name
    assert set(qrobust.__all__) <= set(dir(qrobust))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qrobust.quantise


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, qrobust; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(qrobust.__file__).parent / "py.typed").is_file()


def test_wrong_arguments_are_value_errors_that_name_them() -> None:
    with pytest.raises(ValueError, match=r"^normalization: expected one for a network of your own"):
        qrobust.load_classifier(torch.nn.Flatten(), num_classes=3, image_size=8)
    for name in ("fog", "default", "a:b", "", "clean"):
        with pytest.raises(InputError, match=r"^name: expected one that is not taken"):
            qrobust.register_shift(name, lambda images, *_: images)
    with pytest.raises(InputError, match=r"^strengths: expected 5, one per severity, got 1"):
        qrobust.register_shift("mine", lambda images, *_: images, strengths=(1.0,))


def test_a_script_beside_a_clone_finds_the_package(tmp_path: Path) -> None:
    """An editable install is a path: setuptools' finder comes after the folder `qrobust` beside the script."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "qrobust", tmp_path / "qrobust", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "built"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".pth"))
    assert Path(path.strip()).samefile(tmp_path)
