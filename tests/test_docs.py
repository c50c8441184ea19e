"""What README and docs say is true: figures, links, commands, options."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import qrobust
from qrobust.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Of pip, pytest, ruff and ray.
OTHERS = ("--target", "--durations", "--config", "--head", "--address")
CONTEXT = click.Context(main)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks, in which a `#` opens a comment."""
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, as GitHub and GitLab make it from the heading."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in plain}


def test_figures_are_those_of_the_results() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "quote.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", prose(page)):
        assert (page.parent / target).exists(), target
        if anchor:
            assert anchor in anchors((page.parent / target).resolve() if target else page), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_import_what_exists(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qrobust"):
                module = importlib.import_module(str(node.module))
                assert [a.name for a in node.names if not hasattr(module, a.name)] == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"`((?:qrobust|tests|benchmarks)/[a-z\d_/]+\.\w+)`", page.read_text()):
        assert (ROOT / path).exists(), path
    for dotted in re.findall(r"`(qrobust\.(?!toml)[a-z_.]+)[`(]", page.read_text()):
        folder = ROOT / "qrobust" / dotted.split(".")[1]
        assert folder.is_dir() or folder.with_suffix(".py").exists() or dotted.split(".")[1] in qrobust.__all__, (
            dotted
        )


def commands() -> dict[str, set[str]]:
    """Every command that can be typed, with its options, hidden ones too."""
    found = main.commands | {"quantize-and-compensate": main.commands["run"]}  # type: ignore[attr-defined]  # a group
    return {
        str(name): {o for p in command.get_params(CONTEXT) for o in (*p.opts, *p.secondary_opts)}
        for name, command in found.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    code = "\n".join(BLOCK.findall(page.read_text())).replace("\\\n", " ")
    for line in re.findall(r"^(?:.*&& )?qrobust (.+)$", code, re.MULTILINE):
        command, *words = line.partition("#")[0].split()
        assert command in commands(), line
        for option in (w for w in words if w.startswith("--")):
            assert option in commands()[command], f"{option} in {line!r}"


def test_every_option_that_a_page_names_exists() -> None:
    known = {option for options in commands().values() for option in options} | {*OTHERS}
    former = {option for command in main.commands.values() for option in command.former}  # type: ignore[attr-defined]
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    for page in PAGES:
        for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text())):
            assert option in known or option in scripts or (page.name == "changelog.md" and option in former), option


def test_every_benchmark_and_result_is_listed() -> None:
    scripts, results = (ROOT / "benchmarks").glob("*.py"), (ROOT / "benchmarks" / "results").iterdir()
    listed = re.findall(r"`([\w/.]+)`", (ROOT / "benchmarks" / "README.md").read_text())
    assert sorted({p.name for p in [*scripts, *results]} - set(listed)) == []


def test_every_benchmark_that_leaves_results_can_be_repeated() -> None:
    repeat = (ROOT / "docs" / "results" / "repeat.md").read_text()
    for path in (ROOT / "benchmarks").glob("*.py"):
        if re.search(r'^RESULTS? = Path\(__file__\).parent / "results"', path.read_text(), re.MULTILINE):
            assert f"benchmarks/{path.name}" in repeat, path.name


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text() + (ROOT / "docs" / "results" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"]({page.name}" in index or f"/{page.name}" in index or page.name == "index.md", page.name


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in commands():
        if command != "quantize-and-compensate":  # listed as `run`
            assert f"`qrobust {command}" in page, command
