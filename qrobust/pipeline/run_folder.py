"""What lies in a run's folder, and which folders a command may make, replace or remove."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.output_folder import (
    NEW,
    configuration,
    content,
    discard,
    holds_current_folder,
    make_place,
)
from qrobust.record import StageResult, from_json, to_json
from qrobust.remedies import COMBINED, RETRAINED, SECOND_LOOKS
from qrobust.storage import read_json, remove, write_json, write_sealed

GRAPHS = ("float", "int8", "compensated")
# Other ways to win robustness back, each with a graph of its own; `anti-adversary` exists in torch only.
BASELINES = ("bn-reestimate", "calibrator+bn-reestimate", "auto-contrast", "denoise")
# Every remedy with a graph of its own, apart from the calibrator alone.
REMEDIES = (*RETRAINED, *COMBINED, *SECOND_LOOKS, *BASELINES)
TORCH_ONLY = "anti-adversary"
# The stage that makes a graph, where it is not called like it.
MADE_BY = {"float": "quantize", "int8": "quantize", "compensated": "export"}

R = TypeVar("R", bound=StageResult)


class RunFolder:
    """Names of what lies in a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.toml = path / "config.toml"
        self.weights = path / "float.safetensors"
        self.fake_quantized = path / "twin.safetensors"
        self.calibrator = path / "calibrator.safetensors"
        self.checkpoints = path / "checkpoints"
        self.finished = self.checkpoints / "finished"
        self.predictions = path / "predictions"
        self.attacks = path / "attacks.npz"
        self.stages = path / "stages"
        self.pictures = path / "pictures.npz"
        self.missed = path / "missed.npz"
        self.record = path / "record.json"
        self.html = path / "report.html"
        self.markdown = path / "report.md"

    def file(self, name: str) -> Path:
        """A file in the folder; its name may come from another file in it.

        Raises:
            InputError: the name leads out of the folder.
        """
        if name in ("", "..") or {name} != {PurePosixPath(name).name, PureWindowsPath(name).name} or "\0" in name:
            raise InputError(f"run folder: expected the name of a file in {self.path}, got {name!r}")
        return self.path / name

    def graph(self, name: str) -> Path:
        """The ONNX file of a graph."""
        return self.file(f"{name}.onnx")

    def is_done(self, name: str) -> bool:
        """Whether a stage is finished."""
        return self._stage(name) is not None

    def _stage(self, name: str) -> Mapping[str, object] | None:
        path = self.stages / f"{name}.json"
        found = read_json(path) if path.exists() else None
        if found is not None and not {"choices", "duration_s"} <= set(found):
            raise InputError(f"run folder: {path} is not what a stage left; remove it and run that stage again")
        return found

    def result(self, kind: type[R], name: str) -> R | None:
        """What a finished stage left, or None.

        Raises:
            InputError: the file is damaged; one line names the key.
        """
        found = self._stage(name)
        return None if found is None else from_json(kind, found, self.stages / f"{name}.json")

    def need_result(self, kind: type[R], name: str, command: str) -> R:
        """What a finished stage left.

        Raises:
            InputError: as for `result`, or it has not run; the message says which command to run.
        """
        result = self.result(kind, name)
        if result is None:
            raise InputError(f"run folder: {self.path} has no finished {name!r} stage; run `qrobust {command}` first")
        return result

    def integers(self, remedy: str) -> Path:
        """The integers of the classifier that a remedy trained."""
        return self.file(f"{remedy}.safetensors")

    def card(self, name: str) -> Path:
        """The model card of a graph."""
        return self.file(f"{name}.card.md")

    def graphs(self) -> list[str]:
        """Names of the graphs whose stages are done."""
        return [name for name in (*GRAPHS, *REMEDIES) if self.is_done(MADE_BY.get(name, name))]

    def finish(self, name: str, result: StageResult) -> None:
        """Record that a stage is done, last of all it writes."""
        self.stages.mkdir(exist_ok=True)
        write_sealed(self.stages / f"{name}.json", to_json(result))

    def keep_finished(self, paths: Iterable[Path]) -> None:
        """Keep the checkpoints of a calibrator's training that is done, in place of those of the one before."""
        kept = [path for path in paths if path.exists()]
        for path in set(self.finished.glob("*")) - {self.finished / path.name for path in kept}:
            remove(path)
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


def is_run(config: Mapping[str, object]) -> bool:
    """Whether a folder's `config.json` is a run's."""
    return {"model", "data", "target", "calibration_images"} <= set(config)


def refuse_file(path: Path) -> None:
    """Stages of a run cannot work on what was made of a quantized file.

    Raises:
        InputError: the folder holds just that.
    """
    if RunFolder(path).is_done("import"):
        raise InputError(
            f"run folder: {path} is of a file that was quantized before, of which `qrobust compensate FILE.onnx` "
            "makes everything; `qrobust evaluate-onnx` measures its graphs"
        )


def check_folder(
    path: Path,
    *,
    overwrite: bool,
    kind: str = "run",
    made: Callable[[Mapping[str, object]], bool] = is_run,
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
    if content(path) or (path / NEW).exists():
        try:
            config = read_json(configuration(path) or path / "config.json")
        except InputError:
            config = {}
        if not made(config):
            raise InputError(f"out: {path} holds files that no {kind} made, which nothing will remove; name another")
        if not overwrite:
            ways = "--resume goes on with it, " if resumable else ""
            raise InputError(f"out: {path} is not empty; {ways}--overwrite replaces it")
        if holds_current_folder(path):
            raise InputError(
                f"out: {path} is the current folder or holds it, which nothing replaces; call this from elsewhere"
            )
    try:
        real = path.resolve()  # of a link, where it leads
    except (OSError, RuntimeError) as error:
        raise InputError(f"out: {path} is a link that leads nowhere") from error
    parent = next(p for p in (real, *real.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"out: cannot write to {path} ({parent} is not a writable folder)")


def open_run(path: Path, **changes: object) -> tuple[RunFolder, RunConfig, RunConfig]:
    """A run's folder, its configuration, and that with some choices changed; needs no torch.

    Raises:
        InputError: the folder is not a run's.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise InputError(f"run folder: {path} is not a run's folder (no config.json); run `qrobust quantize` first")
    kept = read_json(folder.config)
    if not is_run(kept):
        raise InputError(f"run folder: {path} is not a run's folder (its config.json is of something else)")
    try:
        config = RunConfig.from_json(kept)
    except InputError as error:
        raise InputError(f"{folder.config}: {error}") from error
    # No target images is a choice; of others None means that nothing was said.
    given = {k: v for k, v in changes.items() if v is not None or k == "target_images"}
    if given.get("seed", config.seed) != config.seed:
        raise InputError(f"seed: the splits of {path} were drawn with {config.seed}, got {given['seed']}")
    return folder, config, RunConfig.from_options(config.as_json() | given)


def create_folder(path: Path, config: RunConfig, *, overwrite: bool) -> RunFolder:
    """A folder for a new run, with nothing but its configuration; what `check_folder` refuses is refused.

    A run that the claimed folder holds stays until the new one is quantized, see `qrobust.pipeline.output_folder`.
    """
    check_folder(path, overwrite=overwrite)
    return RunFolder(begin_folder(path, config.as_json()))


def begin_folder(path: Path, config: Mapping[str, object]) -> Path:
    """A place in the claimed folder with nothing but a configuration; what the folder held stays.

    Raises:
        InputError: it cannot be written.
    """
    try:
        place = make_place(path)
        try:
            write_json(place / "config.json", config)
        except BaseException:
            discard(place)
            raise
    except OSError as error:
        raise InputError(f"out: cannot write to {path} ({error.strerror or error})") from error
    return place


def other_unfinished(place: Path) -> str:
    """What to add to a refusal to go on there: what it began to replace may have been meant."""
    if place.name != NEW:
        return ""
    return f" (what --overwrite began lies in {place}; remove it to go on with what was there before)"


def discard_unfinished(folder: RunFolder) -> None:
    """Remove a run of which not even the first stage is done, nor any training begun; any other is kept."""
    done = folder.is_done("quantize") or folder.is_done("import")
    if not done and not (folder.checkpoints.is_dir() and any(folder.checkpoints.iterdir())):
        discard(folder.path)
