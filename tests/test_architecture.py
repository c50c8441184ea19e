"""Imports point down one list of rows, siblings do not import each other, one door per heavy library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qrobust"
ROWS = {
    "errors": -1, "text": -1,
    "files": 0, "inputs": 0, "__init__": 0,
    "classifier": 1, "config": 1, "results": 1, "integer": 1, "statistics": 1, "metrics": 1, "fitting": 1,
    "processes": 1,
    "data": 2, "models": 2, "shifts": 2, "attacks": 2, "folders": 2,
    "quantization": 3, "compensation": 3, "deployment": 3, "predictions": 3,
    "evaluation": 4, "adversarial": 4, "stored": 4,
    "report": 5, "workbench": 5,
    "pipeline": 6, "standalone": 6,
    "demo": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
DOORS = {
    "torch.ao": {"quantization/backend.py"},
    "torch.onnx": {"deployment/graph.py"},
    "onnx": {"deployment/graph.py"},
    "onnxruntime": {"deployment/runtime.py"},
    "matplotlib": {"report/plots.py"},
    "jinja2": {"report/html.py"},
    "sklearn": {"data/sources.py"},
    "torchvision": {"data/sources.py", "models/__init__.py", "models/cifar.py"},
    "click": {"cli/__init__.py", "cli/options.py", "cli/console.py", "cli/runs.py"},
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
def test_heavy_libraries_have_one_door(path: Path) -> None:
    used = names_used(ast.parse(path.read_text()))
    for library, doors in DOORS.items():
        if any(n == library or n.startswith(library + ".") for n in used):
            assert str(path.relative_to(ROOT)) in doors, f"{library} has its door elsewhere"


def test_every_room_has_a_row() -> None:
    assert {room(p) for p in FILES} <= set(ROWS)
