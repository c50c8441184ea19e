"""The commit of a checkout, read from Git's files; Git itself is the reference."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qrobust.record.provenance import commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def test_the_commit_of_a_branch(checkout: Path) -> None:
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_the_commit_of_a_packed_branch(checkout: Path) -> None:
    wanted = git(checkout, "rev-parse", "HEAD")
    git(checkout, "pack-refs", "--all")
    assert commit(checkout) == wanted


def test_the_commit_of_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "-q", "--detach")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_the_commit_of_a_linked_worktree(checkout: Path) -> None:
    git(checkout, "worktree", "add", "-q", "-b", "other", "../linked")
    git(checkout.parent / "linked", "commit", "-q", "--allow-empty", "-m", "two")
    assert commit(checkout.parent / "linked") == git(checkout, "rev-parse", "other")


def test_a_folder_that_is_no_checkout_has_none(tmp_path: Path) -> None:
    assert commit(tmp_path) is None


def test_a_checkout_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) is None
