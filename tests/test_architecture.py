"""Imports point down one list of rows, rooms of a row do not import each other, one adapter per heavy library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qrobust"
ROWS = {
    "errors": 0,
    "__init__": 0,
    "choices": 1,
    "storage": 1,
    "progress": 1,
    "record": 2,
    "training_loop": 2,
    "classifier": 2,
    "data": 3,
    "models": 3,
    "shifts": 3,
    "attacks": 3,
    "evaluation": 4,
    "report": 4,
    "quantization": 5,
    "deployment": 6,
    "compensation": 7,
    "pipeline": 8,
    "api": 9,
    "cli": 9,
    "__main__": 10,
}
ADAPTERS = {
    "torch.ao": {"quantization/torch_ao.py"},
    "torch.onnx": {"deployment/export.py"},
    "onnx": {"deployment/export.py", "deployment/onnx_graph.py"},
    "onnxruntime": {"deployment/session.py"},
    "matplotlib": {"report/plots.py"},
    "jinja2": {"report/html.py"},
    "sklearn": {"data/sources.py"},
    "torchvision": {"data/sources.py", "models/registry.py", "models/cifar.py"},
    "click": {
        "cli/command.py",
        "cli/console.py",
        "cli/file_commands.py",
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


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in ("cli", "pipeline")], ids=lambda p: p.stem)
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
