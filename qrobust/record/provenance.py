"""Parts of a record that say where and with what it was made."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeAlias

from qrobust.record.typed_json import OneOf
from qrobust.record.units import Bytes, Positive, Seconds

Sums: TypeAlias = Annotated[str, OneOf("exact", "exact-by-request", "saturating")]
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The processor that figures were measured on.

    Attributes:
        processor: its name.
        flags: instruction sets that integer arithmetic gains by.
        cores: logical ones; null where the system does not say.
        threads: that were used.
        sums: how onnxruntime added integer products: `exact`, `exact-by-request` (this CPU's own kernels saturate and
            the target's do not, so slower ones that do not were asked for; times are of those) or `saturating`; see
            [targets](targets.md). Null where no classifier was measured.
    """

    processor: str
    flags: tuple[str, ...]
    cores: Positive | None
    threads: Positive
    sums: Sums | None = None


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What randomness was drawn from.

    Attributes:
        run: the seed of the run, of which all others are made.
    """

    run: int


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What a stage took.

    Attributes:
        duration_s: with what killed processes had trained before.
    """

    duration_s: Seconds


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """An ONNX file that was evaluated.

    Attributes:
        file: its path, as it was given.
        sha256: of the file.
        external_data: SHA-256 of each further file with weights.
        size_bytes: of all of them.
        layout: `NCHW` or `NHWC`.
        batch: images per call; null where it is open.
        pixels: type of the input.
        output: `logits`; `probabilities` or `percentages`, whose logarithms are taken for logits; or `scores` in
            [0, 1] that do not sum to 1, of whose confidence nothing is told.
    """

    file: str
    sha256: str
    external_data: dict[str, str]
    size_bytes: Bytes
    layout: Annotated[str, OneOf("NCHW", "NHWC")]
    batch: Positive | None
    pixels: str
    output: Annotated[str, OneOf("logits", "probabilities", "percentages", "scores")]


def hardware(threads: int, sums: str | None = None) -> Hardware:
    """The processor a figure is measured on; `sums` as `deployment.session.sums` says."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass  # not Linux: the platform's own word must do
    found = sorted(f for f in flags if f in {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    return Hardware(processor=name, flags=tuple(found), cores=os.cpu_count(), threads=threads, sums=sums)


def versions() -> dict[str, str]:
    """Of Python and the packages that a figure depends on, and `commit` where qrobust runs from a Git checkout."""
    own = commit(Path(__file__).parents[2])
    found = {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}
    return found | ({"commit": own} if own else {})


def commit(checkout: Path) -> str | None:
    """The commit that a Git checkout is at, read from its files; None where the folder is none.

    Changes that are not committed are not seen.
    """
    git = checkout / ".git"
    try:
        if git.is_file():  # a linked worktree: its own HEAD, branches beside the others
            git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        branch, linked = head.removeprefix("ref:").strip(), git / "commondir"
        common = git / linked.read_text(encoding="utf-8").strip() if linked.exists() else git
        if (common / branch).exists():
            return (common / branch).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {branch}")), None)
    except OSError:
        return None
