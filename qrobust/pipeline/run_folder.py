"""What lies in a run's folder, and which folders a command may make, replace or remove."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.storage import backup_dir, read_json, restore_backup, write_json

GRAPHS = ("float", "int8", "compensated")
# Other ways to win robustness back, each with a graph of its own; `anti-adversary` exists in torch only.
BASELINES = ("bn-reestimate", "calibrator+bn-reestimate", "finetune", "auto-contrast", "denoise")
TORCH_ONLY = "anti-adversary"
# The stage that makes a graph, where it is not called like it.
MADE_BY = {"float": "quantize", "int8": "quantize", "compensated": "export"}


class RunFolder:
    """Names of what lies in a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.weights = path / "float.safetensors"
        self.fake_quantized = path / "twin.safetensors"
        self.calibrator = path / "calibrator.safetensors"
        self.checkpoints = path / "checkpoints"
        self.finished = self.checkpoints / "finished"
        self.predictions = path / "predictions"
        self.attacks = path / "attacks.npz"
        self.stages = path / "stages"
        self.pictures = path / "pictures.npz"
        self.record = path / "record.json"
        self.html = path / "report.html"
        self.markdown = path / "report.md"

    def graph(self, name: str) -> Path:
        """The ONNX file of a graph."""
        return self.path / f"{name}.onnx"

    def stage(self, name: str) -> Any | None:
        """What a finished stage left, or None."""
        path = self.stages / f"{name}.json"
        found = read_json(path) if path.exists() else None
        if found is not None and not {"choices", "duration_s"} <= set(found):
            raise InputError(f"run folder: {path} is not what a stage left; remove it and run that stage again")
        return found

    def card(self, name: str) -> Path:
        """The model card of a graph."""
        return self.path / f"{name}.card.md"

    def graphs(self) -> list[str]:
        """Names of the graphs whose stages are done."""
        return [name for name in (*GRAPHS, *BASELINES) if self.stage(MADE_BY.get(name, name))]

    def need_stage(self, name: str, command: str) -> Any:
        """What a finished stage left.

        Raises:
            InputError: it has not run; the message says which command to run.
        """
        result = self.stage(name)
        if result is None:
            raise InputError(f"run folder: {self.path} has no finished {name!r} stage; run `qrobust {command}` first")
        return result

    def finish(self, name: str, result: object) -> None:
        """Record that a stage is done, last of all it writes."""
        self.stages.mkdir(exist_ok=True)
        write_json(self.stages / f"{name}.json", result)

    def keep_finished(self, paths: Iterable[Path]) -> None:
        """Keep the checkpoints of a calibrator's training that is done, in place of those of the one before."""
        kept = [path for path in paths if path.exists()]
        for path in set(self.finished.glob("*")) - {self.finished / path.name for path in kept}:
            path.unlink()
        self.finished.mkdir(parents=True, exist_ok=True)
        for path in kept:
            path.replace(self.finished / path.name)

    def drop_checkpoints(self, paths: Iterable[Path]) -> None:
        """Training is done and its result kept; what others left there stays."""
        for path in list(paths):
            path.unlink(missing_ok=True)
        for folder in (self.finished, self.checkpoints):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def delete_stages(self, *names: str) -> None:
        """Stages whose inputs changed are not done any more."""
        for name in names:
            (self.stages / f"{name}.json").unlink(missing_ok=True)


def is_run(config: dict[str, Any]) -> bool:
    """Whether a folder's `config.json` is a run's."""
    return {"model", "data", "target", "calibration_images"} <= set(config)


def check_folder(
    path: Path,
    *,
    overwrite: bool,
    kind: str = "run",
    made: Callable[[dict[str, Any]], bool] = is_run,
    resumable: bool = True,
) -> None:
    """Whether a new run may have this folder.

    Args:
        path: the folder.
        overwrite: whether it may replace one of its kind.
        kind: what will be made, in a word.
        made: whether a folder's `config.json` is of this kind.
        resumable: whether the command has `--resume`, which an error may then recommend.

    Raises:
        InputError: it cannot be written, or it holds something and `overwrite` is not given; only a
            folder of the same kind is ever emptied.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"out: {path} is a file, expected a folder")
    if path.is_dir() and any(path.iterdir()):
        try:
            config = read_json(path / "config.json")
        except InputError:
            config = {}
        if not made(config):
            raise InputError(f"out: {path} holds files that no {kind} made, which nothing will remove; name another")
        if not overwrite:
            ways = "--resume goes on with it, " if resumable else ""
            raise InputError(f"out: {path} is not empty; {ways}--overwrite replaces it")
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"out: cannot write to {path} ({parent} is not a writable folder)")


def create_folder(path: Path, config: RunConfig, *, overwrite: bool) -> RunFolder:
    """A folder for a new run, with nothing but its configuration; what `check_folder` refuses is refused.

    A run that it held is set aside until the new one is quantized.
    """
    check_folder(path, overwrite=overwrite)
    begin_folder(path, config.as_json())
    return RunFolder(path)


def begin_folder(path: Path, config: dict[str, Any]) -> None:
    """A folder with nothing but a configuration; what it held is set aside.

    Raises:
        InputError: it cannot be written.
    """
    try:
        backup_dir(path)
        try:
            write_json(path / "config.json", config)
        except OSError:
            restore_backup(path)
            raise
    except OSError as error:
        raise InputError(f"out: cannot write to {path} ({error.strerror or error})") from error


def discard_unfinished(folder: RunFolder) -> None:
    """Remove a folder in which not even the first stage is done, nor any training begun; any other is kept.

    A run that it was to replace is there again.
    """
    if not folder.stage("quantize") and not (folder.checkpoints.is_dir() and any(folder.checkpoints.iterdir())):
        restore_backup(folder.path)
