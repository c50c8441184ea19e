"""Imports point down one list of rows, rooms of a row do not import each other, one adapter per heavy library."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qrobust"
ROWS = {
    "errors": 0,
    "text": 0,
    "device": 1,
    "stopwatch": 1,
    "choices": 1,
    "paths": 1,
    "user_code": 2,
    "storage": 2,
    "preprocessing": 2,
    "progress": 1,
    "record": 3,
    "remedies": 1,
    "training_loop": 3,
    "classifier": 3,
    "data": 4,
    "models": 4,
    "shifts": 4,
    "attacks": 4,
    "evaluation": 5,
    "report": 5,
    "comparison": 6,
    "quantization": 6,
    "deployment": 7,
    "compensation": 8,
    "pipeline": 9,
    "api": 10,
    "fleet": 10,
    "cli": 11,
    "__main__": 12,
    "guarded": 0,
    "__init__": 12,
}
ADAPTERS = {
    "torch.ao": {"quantization/torch_ao.py"},
    "torch.onnx": {"deployment/export.py"},
    "onnx": {
        "deployment/camera.py",
        "deployment/export.py",
        "deployment/front.py",
        "deployment/rescaled.py",
        "deployment/onnx_graph.py",
        "deployment/plain_graph.py",
        "models/onnx_import/file.py",
    },
    "onnxruntime": {"deployment/session.py", "deployment/infer.py"},
    "matplotlib": set(),
    "jinja2": {"report/html.py"},
    "sklearn": {"data/sources.py"},
    "scipy": {"evaluation/statistics.py"},
    "torchvision": {"data/sources.py", "models/registry.py", "models/cifar.py"},
    "timm": {"models/timm_networks.py"},
    "mlflow": {"pipeline/mlflow_log.py"},
    "ray": {"fleet/ray_cluster.py"},
    "submitit": {"fleet/slurm.py"},
    "click": {
        "cli/command.py",
        "cli/configuration_commands.py",
        "cli/console.py",
        "cli/file_commands.py",
        "cli/finished_commands.py",
        "cli/fleet_commands.py",
        "cli/interrupts.py",
        "cli/main.py",
        "cli/options.py",
        "cli/run_commands.py",
        "cli/run_folders.py",
        "cli/types.py",
    },
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def names_used(tree: ast.AST) -> set[str]:
    """Every dotted name that is imported, or reached by attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            parts, inner = [], node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value  # type: ignore[assignment]  # ends at another kind of node
            if isinstance(inner, ast.Name):
                found.add(".".join([inner.id, *reversed(parts)]))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qrobust")):
            continue
        assert node.module is not None
        assert node.level == 0
        parts = node.module.split(".")
        others = [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
        for other in others:
            if other in ROWS and other != own:
                assert ROWS[other] < ROWS[own], f"{own} (row {ROWS[own]}) imports {other} (row {ROWS[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_have_one_adapter(path: Path) -> None:
    used = names_used(ast.parse(path.read_text()))
    for library, adapters in ADAPTERS.items():
        if any(n == library or n.startswith(library + ".") for n in used):
            assert str(path.relative_to(ROOT)) in adapters, f"the only module that imports {library} is another"


def test_every_room_has_a_row() -> None:
    assert {room(p) for p in FILES} <= set(ROWS)


# What takes more than the rule allows, and why.
LONG = {
    "training_loop.fit": "one loop whose steps share their state",
    "calibrator.__init__": "one list of layers, in the order of the network",
}
LINES, POSITIONAL, PARAMETERS = 60, 8, 12


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node):
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        positional = len(node.args.posonlyargs) + len(node.args.args)
        found = (lines, positional, positional + len(node.args.kwonlyargs))
        name = f"{path.stem}.{node.name}"
        short = all(value <= most for value, most in zip(found, (LINES, POSITIONAL, PARAMETERS), strict=True))
        assert short or name in LONG, f"{name} has (lines, positional, parameters) {found}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) not in ("cli", "fleet", "pipeline")], ids=lambda p: p.stem
)
def test_algorithms_take_arguments_and_no_run(path: Path) -> None:
    """Nothing below `pipeline/` is handed a run, a run folder or a whole configuration, under any name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            assert argument.arg not in ("run", "bench", "run_folder", "workbench"), f"{node.name}({argument.arg})"
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            named = (
                {part.id for part in ast.walk(argument.annotation) if isinstance(part, ast.Name)}
                if annotation
                else set()
            )
            assert not named & {"Run", "RunFolder", "RunConfig"}, f"{node.name}({argument.arg}: {annotation})"


# What lets code in, or data out. Each that the package uses has its one place.
CODE = {
    "eval": set(),
    "exec": {"user_code.py"},
    "compile": {"user_code.py"},
    "__import__": set(),
    # A module that ends with whoever began it; a unit names it.
    "runpy": {"guarded.py"},
    "importlib": {"__init__.py", "user_code.py"},
    "ctypes": set(),
    # Another Python: it loads one graph to measure its memory; it makes one run of a fleet. Slurm's commands.
    "subprocess": {"deployment/footprint.py", "fleet/unit.py", "fleet/slurm.py"},
    "os.system": set(),
    "os.popen": set(),
    "os.startfile": set(),
    "pty": set(),
    "marshal": set(),
    "shelve": set(),
    # Between a run and its own worker processes.
    "pickle": {"evaluation/workers.py"},
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
    "yaml": set(),
    "torch.hub": set(),
    "torch.jit.load": set(),
    "torch.ops.load_library": set(),
    "torch.utils.cpp_extension": set(),
    "numpy.fromregex": set(),
    # Whether anything listens at the address that a user names; Ray itself would try for minutes.
    "socket": {"fleet/ray_cluster.py"},
    "ssl": set(),
    "http": set(),
    "ftplib": set(),
    "smtplib": set(),
    "requests": set(),
    "urllib.request": set(),
    "webbrowser": set(),
    "asyncio": set(),
    "onnx.hub": set(),
}
HARMLESS = {"importlib.metadata", "pickle.UnpicklingError"}
# Readers that could execute what they read, and the argument that forbids it.
READERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def code_or_data(path: str, text: str) -> list[str]:
    """What in a module lets code in or data out, and has its place elsewhere."""
    tree = ast.parse(text)
    used = {n for n in names_used(tree) if not any(n == h or n.startswith(h + ".") for h in HARMLESS)}
    used |= {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    if {"pickle.UnpicklingError"} & names_used(tree):
        used -= {"pickle"}  # imported for that name
    found = [
        name
        for name, places in CODE.items()
        if path not in places and any(n == name or n.startswith(name + ".") for n in used)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if name in READERS and given.get(READERS[name][0]) is not READERS[name][1]:
                found.append(name)
            if name == "Image.open" and ast.unparse(node).find("formats=FORMATS") < 0:
                found.append(name)
            if any(k.arg == "shell" for k in node.keywords):
                found.append("shell")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_else_runs_code_or_sends_data(path: Path) -> None:
    assert code_or_data(str(path.relative_to(ROOT)), path.read_text()) == []


def test_one_function_reads_the_home_folder_in_paths() -> None:
    assert [path.name for path in FILES if ".expanduser(" in path.read_text()] == ["paths.py"]


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(text)",
        "import runpy",
        "from importlib import util",
        "import pickle",
        "import subprocess",
        "import os\nos.system('ls')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "Image.open(path)",
        "from urllib.request import urlopen",
        "import requests",
        "import socket",
        "torch.hub.load('a')",
        "run('ls', shell=True)",
    ],
)
def test_what_runs_code_or_sends_data_is_seen(text: str) -> None:
    assert code_or_data("report/html.py", text)


# Per module, how often `dict[str, Any]` stands in it: where JSON, options or another library's values enter or leave.
UNTYPED = {
    "storage.py": 1,
    "record/run.py": 2,
    "record/typed_json.py": 1,
    "cli/parsing.py": 1,
    "pipeline/config_file.py": 1,
    "deployment/onnx_graph.py": 1,
    "quantization/rewrites/layers.py": 1,
}


def test_dictionaries_without_types_stand_at_borders_only() -> None:
    found = {str(p.relative_to(ROOT)): p.read_text().count("dict[str, Any]") for p in FILES}
    assert {name: count for name, count in found.items() if count} == UNTYPED
    assert sum(UNTYPED.values()) <= 10


PICTURE = (
    (ROOT.parent / "docs" / "architecture.md").read_text().partition("### The path of an image")[2].split("```")[1]
)
ARROWS = [
    (source.split()[-1], target.split()[0])
    for line in PICTURE.splitlines()
    for source, target in pairwise(line.split("─►"))
]


def test_the_picture_shows_both_paths() -> None:
    reached = {"cli/run_commands"}
    for source, target in ARROWS:
        assert source in reached, f"nothing leads to {source}"
        reached.add(target)
    assert {"pipeline/evaluate", "pipeline/compensate", "shifts/rendering", "deployment/session"} <= reached


@pytest.mark.parametrize(("source", "target"), ARROWS, ids=lambda name: name)
def test_arrows_of_the_picture_are_imports_that_point_down(source: str, target: str) -> None:
    imported = names_used(ast.parse((ROOT / f"{source}.py").read_text()))
    assert f"qrobust.{target.replace('/', '.')}" in imported
    rooms = source.split("/")[0], target.split("/")[0]
    assert rooms[0] == rooms[1] or ROWS[rooms[0]] > ROWS[rooms[1]]
