"""What README and docs say is true: figures, links, commands, options."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import qrobust

from qrobust.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_figures_are_those_of_the_results() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "quote.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    for line in re.findall(r"^(?:.*&& )?qrobust (.+)$", page.read_text(), re.MULTILINE):
        words = line.split()
        shown = qrobust(words[0], "--help-all")
        assert shown.exit_code == 0, line
        for option in (w for w in words if w.startswith("--")):
            assert option in shown.output, f"{option} in {line!r}"


def test_every_option_that_a_page_names_exists() -> None:
    commands = main.commands  # type: ignore[attr-defined]  # a group, which the decorator hides
    known = "".join(qrobust(name, "--help-all").output for name in commands)
    known += "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py")) + "pip install --target"
    former = {option for command in commands.values() for option in command.former}
    for page in PAGES:
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text())):
            assert option in known or (page.name == "changelog.md" and option in former), f"{option} in {page.name}"
