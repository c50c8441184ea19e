"""A user's Python files: found, called, never run unless somebody names them, and one line when they fail."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import qrobust, save_npz

from qrobust import user_code as usercode
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.predictions import predict
from qrobust.evaluation.workers import processes
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.pipeline.run import Run
from qrobust.preprocessing import Preprocessing
from qrobust.progress import Reporter
from qrobust.shifts.rendering import render
from qrobust.user_code import load, loaded

# Each time it runs it adds a line to `ran` beside it.
TELLING = "from pathlib import Path\nwith (Path(__file__).parent / 'ran').open('a') as file: file.write('x')\n"
NET = TELLING + (
    "from torch import nn\nfrom layers import block\n"
    "def make(classes):\n"
    "    return nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
)
LAYERS = "from torch import nn\ndef block(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())\n"
SHIFT = TELLING + "def dim(images, strength, generators):\n    return images * (1 - strength)\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has run no file yet."""
    for name in ("_terms", "_ran", "_beside"):
        monkeypatch.setattr(usercode, name, {})


# -- how a file is run


@pytest.mark.parametrize(
    ("files", "spec"),
    [
        ({"net.py": "from layers import x\ndef f(): return x\n", "layers.py": "x = 7\n"}, "net.py:f"),
        ({"net.py": "from parts.deep import x\ndef f(): return x\n", "parts/deep.py": "x = 7\n"}, "net.py:f"),
        ({"net.py": "def f():\n    from late import x\n    return x\n", "late.py": "x = 7\n"}, "net.py:f"),
        (
            {
                "pkg/__init__.py": "",
                "pkg/a.py": "x = 7",
                "pkg/net.py": "from .a import x\nimport pkg.a\ndef f(): return x\n",
            },
            "pkg/net.py:f",
        ),
    ],
    ids=["module", "package", "inside", "relative"],
)
def test_a_file_finds_what_lies_beside_it_and_leaves_no_trace(
    files: dict[str, str], spec: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    search, known, argv = sys.path.copy(), set(sys.modules), sys.argv
    file = load(f"{tmp_path / spec}", "model")
    with usercode.running(file.path, "failed"):
        assert file.names["f"]() == 7
    assert (sys.path, sys.argv) == (search, argv)
    assert {name for name in set(sys.modules) - known if not name.startswith("qrobust_user_")} == set()


def test_two_files_have_modules_of_one_name_each_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "layers.py", f"x = '{name}'\n")
        write(tmp_path / name / "net.py", "import layers\ndef f():\n    import layers as again\n    return again.x\n")
    files = [load(f"{tmp_path / name}/net.py:f", "model") for name in ("one", "two")]
    said = []
    for file in files:
        with usercode.running(file.path, "failed"):
            said.append(file.names["f"]())
    assert said == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import sys\nsys.exit(0)\n", r"net\.py:2: it called sys\.exit\(0\)"),
        ("\n1 / 0\n", r"net\.py:2: ZeroDivisionError: division by zero"),
        ("def f(:\n", r"net\.py:1: SyntaxError: invalid syntax"),
        ("import nothing_of_this_name\n", r"net\.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("import broken\n", r"broken\.py:2: KeyError: 'k'"),
        ("raise Exception\n", r"net\.py:1: Exception\)"),
    ],
)
def test_what_a_file_raises_is_one_line_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    write(tmp_path / "broken.py", "\n{}['k']\n")
    path = write(tmp_path / "net.py", text)
    with pytest.raises(InputError, match=f"model: {path} cannot be imported .*{told}"):
        find_model(f"{path}:make")
    with pytest.raises(InputError, match=told):
        render(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), f"{path}:dim", 5, table="cifar-c", seed=0)


def test_a_file_reads_no_arguments_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "net.py",
        "import argparse, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--out')\n"
        "assert parser.parse_args().out is None\ndef f(): return sys.argv\n",
    )
    monkeypatch.setattr(sys, "argv", ["qrobust", "run", "--out", "x"])
    file = load(f"{path}:f", "model")
    with usercode.running(path, "failed"):
        assert file.names["f"]() == [str(path)]
    assert sys.argv == ["qrobust", "run", "--out", "x"]


EXITS = """
import sys
import torch
from torch import nn
def factory():
    sys.exit(0)
class Net(nn.Module):
    def forward(self, images):
        sys.exit(0)
def dim(images, strength, generators):
    sys.exit(0)
"""


def test_an_exit_while_it_is_called_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", EXITS)
    for name, line in (("factory", 6), ("Net", 9)):
        with pytest.raises(InputError, match=rf"net\.py:{line}: it called sys\.exit\(0\)"):
            load_model(
                find_model(f"{path}:{name}"),
                classes=3,
                image_size=16,
                weights=None,
                pretrained=False,
                normalization="none",
                seed=0,
            )
    with pytest.raises(InputError, match=r"shift: .*net\.py:dim failed \(net\.py:11: it called sys\.exit\(0\)"):
        render(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), f"{path}:dim", 5, table="cifar-c", seed=0)


def test_an_exit_ends_a_command_with_code_2_and_names_the_file(tmp_path: Path) -> None:
    data = f"npz:{save_npz(tmp_path / 'd.npz')}"
    base = ["quantize", "--data", data, "--calibration-images", 16, "--image-size", 16, "--out", tmp_path / "out"]
    later = "import sys\nfrom torch import nn\nclass Late(nn.Module):\n    asked = 0\n    def forward(self, x):\n"
    later += "        Late.asked += 1\n        if Late.asked > 1: sys.exit(0)\n        return x.mean((2, 3))\n"
    for name, text in (("now", "raise SystemExit(0)\n"), ("late", later)):
        path = write(tmp_path / f"{name}.py", text)
        result = qrobust(*base, "--model", f"{path}:Late", "--normalization", "none")
        assert result.exit_code == 2, result.output
        last = result.output.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert f"{name}.py:" in last
        assert "sys.exit(0)" in last
        assert not (tmp_path / "out").exists()


FACTORIES = """
from torch import nn
def any_name(k): return nn.Linear(1, k)
def keyword(*, outputs): return nn.Linear(1, outputs)
def positional(n, /): return nn.Linear(1, n)
def options(width=2, num_classes=1000): return nn.Linear(1, num_classes)
def anything(**kwargs): return nn.Linear(1, kwargs["num_classes"])
def both(n, **kwargs): return nn.Linear(1, n + len(kwargs))
def nothing(width=5): return nn.Linear(1, width)
def two(width, depth): ...
class Net(nn.Linear):
    def __init__(self, outputs): super().__init__(1, outputs)
"""


def test_what_a_factory_is_called_with(tmp_path: Path) -> None:
    path = write(tmp_path / "nets.py", FACTORIES)
    for name in ("any_name", "keyword", "positional", "options", "anything", "both", "nothing", "Net"):
        assert find_model(f"{path}:{name}").build(5).out_features == 5, name
    with pytest.raises(InputError, match="at most one required argument, the class count, got width, depth"):
        find_model(f"{path}:two").build(5)


# -- on whose word


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network and shift, and in `run` a run of both."""
    folder = tmp_path_factory.mktemp("user")
    write(folder / "net.py", NET)
    write(folder / "layers.py", LAYERS)
    write(folder / "shift" / "mine.py", SHIFT)
    result = qrobust(
        "quantize",
        "--model",
        f"{folder}/net.py:make",
        "--data",
        f"npz:{save_npz(folder / 'd.npz')}",
        "--calibration-images",
        16,
        "--image-size",
        16,
        "--normalization",
        "none",
        "--out",
        folder / "run",
        "--threads",
        1,
    )
    assert result.exit_code == 0, result.output
    assert f"the weights are those that {folder}/net.py:make set" in result.output
    assert "random weights" not in result.output
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["code"] == {
        f"{folder}/net.py": {"net.py": sha256(folder / "net.py"), "layers.py": sha256(folder / "layers.py")}
    }
    return folder


@pytest.fixture
def user(quantized: Path, tmp_path: Path) -> Path:
    """A copy of it, in which nothing has run."""
    folder = Path(shutil.copytree(quantized, tmp_path / "user"))
    config = folder / "run" / "config.json"
    config.write_text(config.read_text().replace(str(quantized), str(folder)))
    for file in folder.rglob("ran"):
        file.unlink()
    return folder


def ran(folder: Path) -> bool:
    return any(folder.rglob("ran"))


def choose_shift(folder: Path) -> None:
    """Let the configuration name the user's shift, as if it had been measured before."""
    config = folder / "run" / "config.json"
    choices = json.loads(config.read_text()) | {"shifts": [f"{folder}/shift/mine.py:dim"], "severities": [3]}
    choices["code"][f"{folder}/shift/mine.py"] = {"mine.py": sha256(folder / "shift" / "mine.py")}
    config.write_text(json.dumps(choices))


COMMANDS: dict[str, list[object]] = {
    "sensitivity": [],
    "evaluate": ["--attack-images", 0],
    "compensate": ["--remedy", "bn-reestimate"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_only_a_run_names_does_not_run(command: str, user: Path) -> None:
    call, net = [command, user / "run", "-q", *COMMANDS[command]], user / "net.py"
    refused = qrobust(*call)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1), refused.output
    assert not ran(user)
    for told in (str(net), f"--model {net}:make", f"--allow-code {sha256(net)}"):
        assert told in refused.output
    for wrong in (["--allow-code", "0" * 64], ["--allow-code", "abc"], ["--model", f"{net}:other"]):
        result = qrobust(*call, *wrong)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert not ran(user)


@pytest.mark.parametrize("way", ["named", "named otherwise", "allowed"])
def test_code_runs_where_the_command_names_it(way: str, user: Path) -> None:
    net = user / "net.py"
    words = ["--allow-code", sha256(net).upper()] if way == "allowed" else ["--model", f"{net}:make"]
    if way == "named otherwise":
        words = ["--model", f"{user}/shift/../net.py:make"]
    result = qrobust("sensitivity", user / "run", "-q", "--json", *words)
    assert result.exit_code == 0, result.output
    assert ran(user)
    again = qrobust("sensitivity", user / "run", "-q")  # nothing is remembered
    assert again.exit_code == 2


def test_code_of_a_shift_does_not_run_either(user: Path) -> None:
    choose_shift(user)
    model, shift = ["--model", f"{user}/net.py:make"], user / "shift" / "mine.py"
    call = ["evaluate", user / "run", "-q", "--attack-images", 0, *model]
    refused = qrobust(*call)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1), refused.output
    assert not ran(user / "shift")
    for told in (str(shift), f"--shifts {shift}:dim", f"--allow-code {sha256(shift)}"):
        assert told in refused.output
    for words in (["--allow-code", sha256(shift)], ["--shifts", f"{shift}:dim", "--severities", 3]):
        result = qrobust(*call, *words)
        assert result.exit_code == 0, result.output
    # A report runs nothing, and so needs nobody's word.
    (user / "ran").unlink()
    (shift.parent / "ran").unlink()
    assert qrobust("report", user / "run").exit_code == 0
    assert not ran(user)
    record = json.loads((user / "run" / "record.json").read_text())
    assert record["config"]["code"][str(shift)] == {"mine.py": sha256(shift)}


def test_resume_runs_only_what_its_command_names(user: Path) -> None:
    choose_shift(user)
    net, shift = user / "net.py", user / "shift" / "mine.py"
    (user / "run" / "stages" / "quantize.json").unlink()
    call = [
        "quantize",
        "--model",
        f"{net}:make",
        "--data",
        f"npz:{user / 'd.npz'}",
        "--calibration-images",
        16,
        "--image-size",
        16,
        "--normalization",
        "none",
        "--out",
        user / "run",
        "--threads",
        1,
        "-q",
        "--resume",
    ]
    edited = net.read_text()
    net.write_text(edited + "# changed\n")
    refused = qrobust(*call)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1), refused.output
    assert f"--allow-code {sha256(net)}" in refused.output
    assert not ran(user)
    allowed = qrobust(*call, "--allow-code", sha256(net))
    assert allowed.exit_code == 0, allowed.output
    assert f"warning: {net} has changed since" in allowed.output
    assert not ran(shift.parent)  # quantization has no use for it


@pytest.mark.parametrize("name", ["net.py", "layers.py"])
def test_a_changed_file_is_noticed(name: str, user: Path) -> None:
    file = user / name
    file.write_text(file.read_text() + "# changed\n")
    call = ["sensitivity", user / "run", "-q", "--model", f"{user}/net.py:make"]
    refused = qrobust(*call)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1), refused.output
    assert f"{file} has changed since" in refused.output
    assert f"--allow-code {sha256(file)}" in refused.output
    assert not ran(user)
    allowed = qrobust(*call, "--allow-code", sha256(file))
    assert allowed.exit_code == 0, allowed.output
    assert f"warning: {file} has changed since" in allowed.output


def test_a_changed_shift_that_is_chosen_again_is_measured_again(user: Path) -> None:
    choose_shift(user)
    shift = user / "shift" / "mine.py"
    shift.write_text(shift.read_text() + "# changed\n")
    base = ["evaluate", user / "run", "-q", "--attack-images", 0, "--model", f"{user}/net.py:make"]
    result = qrobust(*base, "--shifts", f"{shift}:dim", "--severities", 3)
    assert result.exit_code == 0, result.output
    assert f"warning: {shift} has changed since" in result.output
    code = json.loads((user / "run" / "config.json").read_text())["code"]
    assert code[str(shift)] == {"mine.py": sha256(shift)}


def test_in_python_the_caller_names_it(user: Path) -> None:
    net = f"{user}/net.py:make"
    with pytest.raises(InputError, match="--allow-code"):
        _ = Run.open(user / "run", Reporter()).model_spec
    assert not ran(user)
    opened_run = Run.open(user / "run", Reporter(), named=[net])
    assert opened_run.model_spec.version
    (user / "ran").unlink()
    assert Run(opened_run.config).model_spec.version
    assert ran(user)


def test_workers_run_the_file_that_was_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", SHIFT)
    name = f"{path}:dim"
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8).numpy()
    images = array_images(pixels, torch.arange(8).numpy(), None, "test")
    images.prepare(Preprocessing(size=16, resize="none"))
    split, ask = (
        Split(images, torch.arange(8)),
        partial(predict, {"mean": Means()}, condition=(name, 3), table="cifar-c"),
    )
    loaded(name, "shift")
    path.write_text(SHIFT + "# changed\n")
    (tmp_path / "ran").unlink()
    with processes(2) as by, pytest.raises(InputError, match=r"mine\.py has changed while it was in use"):
        ask(split, seed=0, by=by)
    assert not ran(tmp_path)


class Means(torch.nn.Module):
    """Logits that are the channels' means."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))
