"""Folders that commands write in: which ones, by whom, and what a kill, a signal or a full disk leaves of them."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import qrobust, save_npz
from onnx_graphs import classifier_graph

from qrobust.errors import InputError
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.output_folder import (
    LOCK,
    MOVING,
    NEW,
    READY,
    claimed,
)
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import RunFolder
from qrobust.record import EVALUATION_SCHEMA, QuantizationResult
from qrobust.storage import atomic_write, scratch, write_json

RUN = json.dumps({"model": "resnet8", "data": "digits", "target": "x86-vnni", "calibration_images": 8})
EVALUATION = json.dumps({"schema": EVALUATION_SCHEMA})


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def like_a_run(folder: Path, config: str = RUN) -> Path:
    """A folder that passes for a finished run as far as its name and configuration go."""
    for name in ("stages", "predictions", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "record.json").write_text("{}")
    (folder / "predictions" / "clean-0.npz").touch()
    return folder


def quantize(data: Path, out: Path, *options: object) -> list[object]:
    return [
        "quantize",
        "--model",
        "resnet8",
        "--data",
        f"npz:{data}",
        "--calibration-images",
        16,
        "--out",
        out,
        "--threads",
        1,
        "-q",
        *options,
    ]


SCHEMA_1 = Path(__file__).parents[1] / "schema_1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return save_npz(folder / "d.npz")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantization that takes no time and leaves files that tell the seed."""

    def quantize(opened_run: Run) -> None:
        for name in ("float", "int8"):
            opened_run.require_folder().graph(name).write_text(str(opened_run.config.seed))
        opened_run.require_folder().finish(
            "quantize", RunFolder(SCHEMA_1 / "run").need_result(QuantizationResult, "quantize", "quantize")
        )

    monkeypatch.setattr("qrobust.pipeline.inputs.prepare_inputs", lambda *_, **__: None)
    monkeypatch.setattr("qrobust.pipeline.quantize._quantize", quantize)


# Which folders


COMMANDS = {
    "quantize": ["quantize", "--model", "resnet8", "--data", "digits", "--out"],
    "run": ["run", "--model", "resnet8", "--data", "digits", "--out"],
    "demo": ["demo", "--out"],
    "evaluate-onnx": ["evaluate-onnx", "m.onnx", "--data", "digits", "--out"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("overwrite", [True, False])
def test_the_current_folder_and_what_holds_it_are_not_replaced(
    command: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = like_a_run(tmp_path / "run", EVALUATION if command == "evaluate-onnx" else RUN)
    before = content(tmp_path)
    options = ["--overwrite"] if overwrite else []
    for here, out in (
        (run, "."),
        (run, "new/.."),
        (run, run),
        (run / "predictions", ".."),
        (run / "predictions", "../../run"),
        (run, ""),
        (tmp_path, "run/predictions/../.."),
    ):
        monkeypatch.chdir(here)
        result = qrobust(*COMMANDS[command], out, *options)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        said = (
            "got an empty string"
            if out == ""
            else "is the current folder or holds it"
            if overwrite
            else "is not empty"
        )
        assert ("nothing will remove" if here == tmp_path else said) in result.output
        assert content(tmp_path) == before
    assert not (run / "new").exists()


@pytest.mark.usefixtures("quick")
def test_an_empty_folder_is_used_in_place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the current one, a mount point with what its file system put there, and one that a link leads to."""
    folder, linked, link = tmp_path / "here", tmp_path / "volume", tmp_path / "link"
    (folder / "lost+found").mkdir(parents=True)
    link.symlink_to(linked)
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    for out in (Path("."), link):
        result = qrobust(*quantize(data, out))
        assert result.exit_code == 0, result.output
        assert (out / "int8.onnx").is_file()
        assert not (out / LOCK).exists()
    assert (folder.stat().st_ino, link.is_symlink(), link.resolve()) == (inode, True, linked)
    assert (folder / "lost+found").is_dir()
    # What replaces a run changes the folder's content, not the folder; what the user put there stays.
    inode, old = linked.stat().st_ino, content(linked)
    (linked / "notes.txt").write_text("mine")
    (linked / "predictions").mkdir()
    result = qrobust(*quantize(data, link, "--overwrite", "--seed", 1))
    assert result.exit_code == 0, result.output
    assert (linked.stat().st_ino, link.resolve()) == (inode, linked)
    new = content(linked)
    assert (new.pop("notes.txt"), new.keys(), new == old) == (b"mine", old.keys(), False)
    assert not (linked / "predictions").exists()


def test_what_is_refused_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert qrobust(*quantize(data, out, "--bits", "w9a9")).exit_code == 2
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    assert qrobust(*quantize(data, out, "--bits", "w9a9")).exit_code == 2
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "loop").symlink_to("loop")
    result = qrobust(*quantize(data, tmp_path / "loop"))
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output


# Folders that somebody else made


def test_a_link_that_lies_in_wait_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    run.mkdir()
    for name in ("record.json", "record.json.part"):
        (run / name).symlink_to(precious)
    write_json(run / "record.json", {})
    assert (precious.read_text(), (run / "record.json").is_symlink()) == ("mine", False)
    assert sorted(p.name for p in run.iterdir()) == ["record.json", "record.json.part"]
    # Nor one whose name was guessed.
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (run / f".record.json.{'0' * 16}.part").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="File exists"):
        write_json(run / "record.json", {})
    assert not (tmp_path / "made").exists()
    assert (run / f".record.json.{'0' * 16}.part").is_symlink()


@pytest.mark.parametrize("name", ["stages", "checkpoints/finished", "predictions/scene", NEW, READY, MOVING])
@pytest.mark.parametrize("command", ["report", "compensate", "quantize"])
def test_folders_behind_links_are_left_alone(name: str, command: str, tmp_path: Path) -> None:
    run, elsewhere = like_a_run(tmp_path / "run"), like_a_run(tmp_path / "elsewhere")
    if (run / name).is_dir():
        (run / name).rmdir()
    (run / name).symlink_to(elsewhere)
    before = content(elsewhere)
    arguments = [command, run] if command != "quantize" else [*COMMANDS["quantize"], run, "--resume"]
    result = qrobust(*arguments)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert f"{name} is a link" in result.output
    assert (content(elsewhere), (run / name).is_symlink()) == (before, True)


def test_names_from_files_stay_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrobust.pipeline import report as reporting

    run = like_a_run(tmp_path / "run")
    folder = RunFolder(run)
    for name in ("../up", "a/b", "/root", "a\\b", "C:x", "a\0b"):
        for named in (folder.file, folder.graph, folder.card):
            with pytest.raises(InputError, match="expected the name of a file"):
                named(name)
    for name in ("..", ".", ""):
        with pytest.raises(InputError, match="expected the name of a file"):
            folder.file(name)
    sets = [SimpleNamespace(name="stored:a", predictions=p, rows=[]) for p in ("x", "x/../../escaped")]
    record = SimpleNamespace(
        summary=SimpleNamespace(clean_accuracy={}),
        rows=[],
        corruption_sets=sets,
        compensation=None,
        classes=None,
        class_names=(),
    )
    monkeypatch.setattr(reporting, "build_record", lambda *_: record)
    for name in ("html_report", "markdown_report"):
        monkeypatch.setattr(reporting, name, lambda *_: "")
    (run / "results-x").mkdir()  # a path through what is not there leads nowhere
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"got 'results-x/\.\./\.\./escaped\.csv'"):
        reporting.write_report(folder, RunConfig())
    assert {p.name for p in tmp_path.iterdir()} == before


# Kills

KILLS = """
import os, shutil, signal, sys
from pathlib import Path

from qrobust.pipeline.output_folder import MOVING, NEW, READY, claimed, make_place, promote

top = Path(sys.argv[1])
out, kept = top / "out", ("notes.txt",)

def build(place, word):
    (place / "config.json").write_text(word)
    for folder in ("checkpoints", "predictions", "stages"):
        (place / folder).mkdir()
        (place / folder / "file").write_text(word)
    if word == "old":
        (place / "record.json").write_text(word)  # which the new one has not yet

def content():
    return {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}

def complete(place):
    (place / "stages" / "quantize.json").write_text(place.name)

def dies_at(number, work):
    # Runs in a process that kills itself before its so-manieth change of the file system; whether it did.
    child = os.fork()
    if not child:
        left = number
        def counted(real):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)
            return call
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0

def overwrite():
    with claimed(out, replacing=True):
        place = make_place(out)
        build(place, "new")
        complete(place)
        promote(place)

def only_claim():
    with claimed(out):
        pass

def start():
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    build(out, "old")
    (out / "notes.txt").write_text("mine")
    return content()

old = start()
overwrite()
new = content()
assert set(old) - set(new) == {"record.json"} and old["notes.txt"] == new["notes.txt"] == "mine"
assert new["config.json"] == "new"
tried, seen, again = 0, set(), 0
while True:
    start()
    if not dies_at(tried, overwrite):
        assert content() == new
        break
    tried += 1
    decided = any((out / NEW / "stages" / "quantize.json").exists() or (out / n).exists() for n in (READY, MOVING))
    expected = new if decided or content().get("config.json") == "new" else old
    if expected is old:  # it is not only given back: it never left
        assert {k: v for k, v in content().items() if not k.startswith(".qrobust")} == old
    seen.add(expected["config.json"])
    twice = 0
    state = top / "state"
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(out, state)
    while True:  # the command that settles it may be killed as well
        shutil.rmtree(out)
        shutil.copytree(state, out)
        died = dies_at(twice, only_claim)
        only_claim()
        found = {k: v for k, v in content().items() if not k.startswith(NEW)}
        assert found == expected, (tried, twice, found)
        if not died:
            break
        twice, again = twice + 1, again + 1
assert seen == {"old", "new"}, seen
print(tried, again)
"""


def test_after_any_kill_the_old_or_the_new_one_is_whole(tmp_path: Path) -> None:
    """The new one from the moment that it is complete; the command that finishes its way may be killed as well."""
    result = subprocess.run([sys.executable, "-c", KILLS, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    tried, again = map(int, result.stdout.split())
    assert tried > 15
    assert again > 50


def test_left_behind_parts_are_removed(tmp_path: Path) -> None:
    run = like_a_run(tmp_path / "run")
    before = content(run)
    script = "import os, sys, qrobust.storage as f\nwith f.replacement(f.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, run / "predictions" / "fog-1.npz"], check=False)
    assert len(content(run)) == len(before) + 1
    with claimed(run):
        assert content(run).keys() - {LOCK} == before.keys()
    assert content(run) == before


# One command at a time


@pytest.mark.parametrize(
    "command", [*COMMANDS, "compensate", "export", "evaluate", "sensitivity", "report", "run --resume"]
)
def test_a_second_command_is_refused_in_one_line(command: str, tmp_path: Path) -> None:
    out = like_a_run(tmp_path / "run", EVALUATION if command == "evaluate-onnx" else RUN)
    arguments = [*COMMANDS[command], out, "--overwrite"] if command in COMMANDS else [command, out]
    if command == "run --resume":
        arguments = [*COMMANDS["run"], out, "--resume"]
    before = content(out)
    with claimed(out):
        result = qrobust(*arguments)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert f"another qrobust command is at work in {out}" in result.output
    assert content(out) == before


def test_a_lock_ends_with_its_process_and_not_with_what_it_replaces(tmp_path: Path) -> None:
    out = like_a_run(tmp_path / "run")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom qrobust.pipeline.output_folder import *\n"
        "out = Path(sys.argv[1])\n"
        "with claimed(out, replacing=True):\n    place = make_place(out)\n    (place / 'config.json').touch()\n"
        "    (place / 'record.json').touch()\n    promote(place)\n    print('replaced', flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, out], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "replaced\n"
            with pytest.raises(InputError, match="another qrobust command"), claimed(out):
                pass
        finally:
            process.kill()
    assert (out / LOCK).exists()
    with claimed(out):
        assert set(content(out)) == {LOCK, "config.json", "record.json"}
    assert not (out / LOCK).exists()


# Signals


def stop(number: int) -> Callable[..., None]:
    def stopped(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not heard")

    return stopped


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (15, 143, "Terminated")])
def test_signals_say_what_is_kept(
    number: int, code: int, word: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a new run before it is worth going on with; all of the run that it was to replace."""
    out = tmp_path / "out"
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr("qrobust.pipeline.quantize._quantize", stop(number))
        result = qrobust(*quantize(data, out))
        assert (result.exit_code, result.output) == (code, f"{word}: nothing is kept\n")
        assert not out.exists()
        like_a_run(out)
        before = content(out)
        result = qrobust(*quantize(data, out, "--overwrite", "--seed", 1))
        assert (result.exit_code, result.output) == (code, f"{word}: {out} is as it was\n")
    assert content(out) == before
    monkeypatch.setattr("qrobust.pipeline.stages.compensate", stop(number))
    arguments = ["run", *quantize(data, out)[1:], "--seed", 1]
    result = qrobust(*arguments, "--overwrite")
    assert result.exit_code == code
    command = f"qrobust {shlex.join(map(str, arguments))} --resume"
    assert result.output == (
        f"{word}: {out} keeps the finished stages (quantize) and what was trained or measured so far; go on with: "
        f"{command}\n"
    )
    assert (out / "int8.onnx").read_text() == "1"
    result = qrobust("compensate", out, "-q")
    assert result.output.endswith(f"go on with: qrobust compensate {out} -q\n")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.usefixtures("quick")
def test_a_training_that_is_to_replace_a_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = like_a_run(tmp_path / "out")
    before = content(out)

    def train(opened_run: Run) -> None:
        folder = opened_run.require_folder().checkpoints
        folder.mkdir()
        (folder / "qat-0123.pt").touch()
        stop(signal.SIGTERM)()

    with monkeypatch.context() as patch:
        patch.setattr("qrobust.pipeline.quantize._quantize", train)
        result = qrobust(*quantize(data, out, "--seed", 1, "--overwrite"))
    assert (result.exit_code, f"{out} is as it was, and what was trained" in result.output) == (143, True)
    command = result.output.splitlines()[-1].partition("go on with: qrobust ")[2]
    assert {k: v for k, v in content(out).items() if not k.startswith(NEW)} == before
    assert (out / NEW / "checkpoints" / "qat-0123.pt").exists()
    # Other commands meet the run that is there; what goes on meets the one that was begun.
    assert "no finished 'quantize' stage" in qrobust("report", out).output
    refused = qrobust(*quantize(data, out, "--resume", "--seed", 3))
    assert refused.exit_code == 2
    assert f"what --overwrite began lies in {out / NEW}; remove it to go on with" in refused.output
    assert "--overwrite" not in command
    result = qrobust(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert set(content(out)) == {
        "config.json",
        "float.onnx",
        "int8.onnx",
        "stages/quantize.json",
        "checkpoints/qat-0123.pt",
    }
    assert json.loads((out / "config.json").read_text())["seed"] == 1


def test_an_evaluation_that_is_to_replace_another_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = like_a_run(tmp_path / "out", EVALUATION), classifier_graph(tmp_path / "m.onnx")
    before = content(out)
    arguments = ["evaluate-onnx", model, "--data", f"npz:{data}", "--out", out, "-q", "--threads", 1]
    arguments += ["--shifts", "contrast", "--severities", 5]
    with monkeypatch.context() as patch:
        patch.setattr("qrobust.evaluation.evaluate.attacked", stop(signal.SIGINT))
        result = qrobust(*arguments, "--overwrite")
    assert result.exit_code == 130
    command = result.output.splitlines()[-1].partition("go on with: qrobust ")[2]
    assert {k: v for k, v in content(out).items() if not k.startswith(NEW)} == before
    result = qrobust(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert {"record.json", "predictions/contrast-5.npz"} < set(content(out))
    assert (out / "record.json").read_text() != "{}"
    assert not (out / NEW).exists()


@pytest.mark.parametrize("seed", [(), ("--seed", 2)])
def test_a_demo_goes_on_as_a_run(seed: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.pipeline.demo.EPOCHS", 1)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("qrobust.pipeline.stages.compensate", stop(signal.SIGINT))
        result = qrobust("demo", "--out", out, *seed, "-q", "--threads", 1)
    assert result.exit_code == 130
    command = result.output.splitlines()[-1].partition("go on with: qrobust ")[2]

    def reached(opened_run: object) -> None:
        raise InputError("reached")

    monkeypatch.setattr("qrobust.pipeline.stages.compensate", reached)
    result = qrobust(*shlex.split(command))
    assert result.output.splitlines()[-1] == "Error: reached"


@pytest.mark.usefixtures("quick")
def test_a_signal_that_a_library_swallows_is_still_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(*_: object, **__: object) -> None:
        try:
            stop(signal.SIGINT)()
        except BaseException as error:
            raise RuntimeError("something went wrong") from error

    monkeypatch.setattr("qrobust.pipeline.quantize._quantize", swallowed)
    result = qrobust(*quantize(data, tmp_path / "out"))
    assert (result.exit_code, result.output.splitlines()[-1]) == (130, "Interrupted: nothing is kept")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_leaves_the_old_run(number: int, data: Path, tmp_path: Path) -> None:
    out = like_a_run(tmp_path / "out")
    before = content(out)
    script = (
        "import sys, time\nfrom qrobust.cli.main import main\nfrom qrobust.pipeline import inputs, quantize\n"
        "def wait(run):\n    print('quantizing', flush=True)\n    time.sleep(60)\n"
        "quantize._quantize = wait\n"
        "inputs.prepare_inputs = lambda *_, **__: None\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *map(str, quantize(data, out, "--overwrite"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "quantizing\n"
        assert (out / NEW / "config.json").exists()
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert told.splitlines()[-1].endswith(f": {out} is as it was")
    assert content(out) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_a_command_takes_nothing_back(number: int) -> None:
    script = (
        "import atexit, os, sys\nfrom qrobust.__main__ import start\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\nsys.argv[1:] = ['--version']\nstart()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


# Modes, and disks that are full


def test_files_have_the_mode_of_the_umask(data: Path, tmp_path: Path) -> None:
    umask = 0o027
    out, before = tmp_path / "out", os.umask(umask)
    try:
        assert qrobust(*quantize(data, out)).exit_code == 0
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in out.rglob("*") if p.is_file()}
    assert len(modes) > 5
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "f"):
            raise OSError(errno.ENOSPC, "No space left on device")  # what a write raises has no name

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'f'}'"):
        write()
    assert not list(tmp_path.iterdir())


@contextmanager
def full_scratch() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    usage = shutil.disk_usage
    patch.setattr("shutil.disk_usage", lambda path: usage(path)._replace(free=0))
    yield
    patch.undo()


def test_a_full_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("protobuf cannot serialize")

    with pytest.raises(RuntimeError), scratch():
        fail()
    monkeypatch.setattr("qrobust.deployment.audit.open_session", fail)
    with full_scratch():
        result = qrobust("audit", "m.onnx")
    expected = f"Error: {tmp_path / 'tmp'}: No space left on device; set TMPDIR to a folder with room\n"
    assert (result.exit_code, result.output) == (2, expected)
    assert not list((tmp_path / "tmp").iterdir())
