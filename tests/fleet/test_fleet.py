"""Fleets: a plan and its runs, what is made, tried again, gone on with, and how runs stand beside each other."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import qrobust

from qrobust.errors import InputError, QRobustError
from qrobust.fleet import fleet as fleets
from qrobust.fleet.fleet import arguments, exit_code, make_fleet
from qrobust.fleet.local import LocalRunner
from qrobust.fleet.plan import Plan, read_plan
from qrobust.fleet.runners import split
from qrobust.fleet.unit import Ending, Expected, Host, Process, Unit, begin, run_unit
from qrobust.pipeline.config_file import read_choices
from qrobust.record import FleetFigures, FleetRecord, FleetRun
from qrobust.report.fleet import best, fleet_csv, fleet_html, runs_table, seeds_table

SHARED = '[model]\nspec = "resnet8"\n[data]\nspec = "digits"\n'
FIGURES = FleetFigures(
    graph="compensated",
    recommended=None,
    n_test=100,
    clean_accuracy=0.9,
    clean_interval=(0.83, 0.94),
    shift_accuracy=0.5,
    shift_interval=(0.4, 0.6),
    gain_pp=12.0,
    gain_interval_pp=(8.0, 16.0),
    unseen_gain_pp=10.0,
    unseen_gain_interval_pp=(6.0, 14.0),
    clean_cost_pp=0.5,
    clean_cost_interval_pp=(-0.5, 1.5),
    latency_ms=1.25,
    size_bytes=2048,
)


def planned(folder: Path, text: str, *, threads: int = 2, named: Sequence[str] = ()) -> Plan:
    file = folder / "plan.toml"
    file.write_text(SHARED + text)
    return read_plan(file, threads=threads, named=named)


class Scripted:
    """A runner that makes nothing: each command ends as the next of its codes says; None: its host is lost."""

    def __init__(self, *codes: int | None, then: Callable[[Path], None] = lambda _: None) -> None:
        self.codes, self.given, self.stopped, self.then = list(codes), list[list[str]](), False, then

    def room(self) -> int:
        return 1

    def per_host(self) -> int:
        return 1

    def submit(self, unit: Unit) -> Future[Ending | None]:
        self.given.append(list(unit.arguments))
        code = self.codes.pop(0)
        unit.log.write_text(f"working\nended with {code}\n")
        if code == 0:
            self.then(unit.folder)
        future: Future[Ending | None] = Future()
        future.set_result(Ending(-9, 0.0, lost="the host is gone") if code is None else Ending(code, 2.0))
        return future

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs have these figures, whatever their folders hold."""
    monkeypatch.setattr(fleets, "figures", lambda folder, plan: FIGURES)


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, '[fleet.matrix]\nseed = [0, 1]\nquantization.bits = ["w8a8", "w4a8", "w4a4"]\n')
    assert plan.axes == ("seed", "quantization.bits")
    found = [(run.config.seed, run.config.quantization.bits) for run in plan.runs]
    assert found == [(seed, bits) for seed in (0, 1) for bits in ("w8a8", "w4a8", "w4a4")]


@pytest.mark.parametrize("form", ['"quantization.bits" = ["w4a8"]', '[fleet.matrix.quantization]\nbits = ["w4a8"]'])
def test_a_key_may_be_quoted_or_have_a_table(form: str, tmp_path: Path) -> None:
    (run,) = planned(tmp_path, f"[fleet.matrix]\n{form}\n").runs
    assert run.config.quantization.bits == "w4a8"


def test_what_changes_together_has_a_name(tmp_path: Path) -> None:
    text = '[[fleet.matrix.network]]\nname = "small"\nmodel.spec = "resnet8"\nqat.epochs = 1\n'
    text += '[[fleet.matrix.network]]\nname = "large"\nmodel.spec = "resnet32"\n'
    plan = planned(tmp_path, text)
    assert [(run.values, run.config.model.spec, run.config.qat.epochs) for run in plan.runs] == [
        ({"network": "small"}, "resnet8", 1),
        ({"network": "large"}, "resnet32", 0),
    ]


def test_another_configuration_is_another_run(tmp_path: Path) -> None:
    matrix = "[fleet.matrix]\nseed = [0]\n"
    (first,) = planned(tmp_path, matrix).runs
    (again,) = planned(tmp_path, matrix).runs
    (other,) = planned(tmp_path, f"[calibrator]\nsteps = 7\n{matrix}").runs
    assert first.name == again.name
    assert other.name != first.name


def test_a_fleet_goes_on_with_other_threads_unless_the_plan_chooses_them(tmp_path: Path) -> None:
    matrix = "[fleet.matrix]\nseed = [0]\n"
    assert planned(tmp_path, matrix, threads=2).runs[0].name == planned(tmp_path, matrix, threads=4).runs[0].name
    one, two = (planned(tmp_path, f"[fleet.matrix]\nthreads = [{n}]\n").runs[0].name for n in (1, 2))
    assert one.rpartition("-")[2] != two.rpartition("-")[2]


def test_runs_at_the_same_time_share_the_threads(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[fleet]\nat_once = 2\n[fleet.matrix]\nseed = [0]\n", threads=8)
    assert plan.runs[0].config.threads == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"expected a table \[fleet.matrix\]"),
        ("[fleet.matrix]\n", r"expected a table \[fleet.matrix\]"),
        ("[fleet.matrix]\nseed = 1\n", "matrix.seed: expected a list of values, got 1"),
        ("[fleet.matrix]\nseed = []\n", r"matrix.seed: expected a list of values, got \[\]"),
        ("[fleet.matrix]\nsede = [1]\n", "sede: no such key; did you mean 'seed'"),
        ('[fleet.matrix]\nquantization.bits = ["w9a9"]\n', "w9a9"),
        ("[fleet.matrix]\nseed = [-1]\n", "seed: expected at least 0, got -1"),
        ("[fleet.matrix]\nseed = [1, 1]\n", "the same configuration"),
        ("[[fleet.matrix.network]]\nseed = 1\n", "matrix.network: expected a name"),
        (
            "[fleet]\natempts = 2\n[fleet.matrix]\nseed = [1]\n",
            "did you mean 'fleet.attempts'",
        ),
        ("[fleet]\nattempts = 0\n[fleet.matrix]\nseed = [1]\n", "attempts: expected at least 1, got 0"),
        ("[fleet]\nhours = -1\n[fleet.matrix]\nseed = [1]\n", "hours: expected at least 0, got -1"),
        (
            f"[fleet.matrix]\nseed = {list(range(40))}\ncalibrator.steps = {list(range(1, 41))}\n",
            "at most 1,000 runs",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        planned(tmp_path, text)


def test_a_mistake_of_several_runs_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        planned(tmp_path, "[calibrator]\nstpes = 1\n[fleet.matrix]\nseed = [1, 2]\n")
    assert str(told.value).count("stpes") == 1


def test_code_that_only_the_plan_names_does_not_run(tmp_path: Path) -> None:
    text = '[[fleet.matrix.network]]\nname = "own"\nmodel.spec = "net.py:make"\n'
    with pytest.raises(InputError, match=r"net\.py:make would run a Python file .* \(--code\)"):
        planned(tmp_path, text)
    plan = planned(tmp_path, text, named=("net.py:make",))
    (tmp_path / "configs").mkdir()
    assert arguments(plan.runs[0], tmp_path)[-2:] == ["--model", "net.py:make"]


def test_a_run_is_made_of_its_configuration(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, '[fleet.matrix]\nquantization.bits = ["w4a8"]\n').runs
    (tmp_path / "configs").mkdir()
    given = arguments(run, tmp_path)
    assert given[:2] == ["run", "--config"]
    assert read_choices(given[2])["bits"] == "w4a8"


@pytest.mark.parametrize(("told", "where"), [("", "ranges"), ('[quantization]\ncalibration_cache = "mine"', "mine")])
def test_runs_share_the_ranges_that_they_observe(tmp_path: Path, told: str, where: str) -> None:
    plan = planned(tmp_path, f"{told}\n[fleet.matrix]\nseed = [0, 1]\n")
    (tmp_path / "configs").mkdir()
    shared = {str(read_choices(arguments(run, tmp_path)[2])["calibration_cache"]) for run in plan.runs}
    assert shared == {str(tmp_path / where) if not told else where}


@pytest.mark.usefixtures("unread")
def test_what_is_finished_stays_and_what_was_begun_goes_on(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[fleet.matrix]\nseed = [0, 1, 2]\n")
    done, begun, new = (tmp_path / "runs" / run.name for run in plan.runs)
    for folder, file in ((done, "record.json"), (begun, "config.json")):
        folder.mkdir(parents=True)
        (folder / file).write_text("{}")
    runner = Scripted(0, 0)
    record = make_fleet(plan, tmp_path, runner)
    assert [given[1] for given in runner.given] == ["--resume", "--config"]
    assert [given[given.index("--out") + 1] for given in runner.given] == [str(begun), str(new)]
    assert record.count("done") == 3


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("codes", "state", "attempts"),
    [((-9, 0), "done", 2), ((-9, 1), "failed", 2), ((2,), "failed", 1), ((3,), "failed", 1), ((0,), "done", 1)],
)
def test_what_its_input_did_not_end_is_tried_again(
    codes: tuple[int, ...], state: str, attempts: int, tmp_path: Path
) -> None:
    plan = planned(tmp_path, "[fleet]\nattempts = 2\n[fleet.matrix]\nseed = [0]\n")
    (run,) = make_fleet(plan, tmp_path, Scripted(*codes)).runs
    assert (run.state, run.attempts, run.duration_s, run.exit_code) == (state, attempts, 2.0 * attempts, codes[-1])
    assert run.message == (None if state == "done" else f"ended with {codes[-1]}")


def test_a_run_without_a_record_is_not_done(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[fleet]\nattempts = 1\n[fleet.matrix]\nseed = [0]\n")
    (run,) = make_fleet(plan, tmp_path, Scripted(0)).runs
    assert run.state == "failed"
    assert "holds no finished run" in str(run.message)


@pytest.mark.usefixtures("unread")
def test_when_hours_are_up_no_run_is_begun(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[fleet]\nhours = 1\n[fleet.matrix]\nseed = [0, 1]\n")
    times = iter([0.0, 10.0, 3601.0, 3602.0])
    record = make_fleet(plan, tmp_path, Scripted(0), clock=lambda: next(times))
    assert [run.state for run in record.runs] == ["done", "waiting"]
    assert exit_code(record.runs) == 4


@pytest.mark.usefixtures("unread")
def test_what_is_known_is_written_after_every_run(tmp_path: Path) -> None:
    plan, written = planned(tmp_path, "[fleet.matrix]\nseed = [0, 1]\n"), list[FleetRecord]()
    make_fleet(plan, tmp_path, Scripted(0, 2), written=written.append)
    states = [[run.state for run in record.runs] for record in written]
    assert states[:3] == [["waiting", "waiting"], ["done", "waiting"], ["done", "failed"]]


def test_an_interruption_stops_what_runs(tmp_path: Path) -> None:
    plan, runner = planned(tmp_path, "[fleet.matrix]\nseed = [0]\n"), Scripted()
    runner.submit = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make_fleet(plan, tmp_path, runner)
    assert runner.stopped


def asking(folder: Path, *arguments: str) -> Unit:
    """A unit that asks qrobust for something short."""
    (folder / "needed").touch()
    return Unit("one", arguments, folder / "out", folder / "needed", folder / "log", folder)


def sleeping(folder: Path) -> Unit:
    """A unit that is at work until something ends it."""
    (folder / "sleeping.py").write_text("import time\nprint('at work', flush=True)\ntime.sleep(600)\n")
    return replace(asking(folder), module="sleeping")


def at_work(unit: Unit) -> None:
    while not unit.log.is_file() or "at work" not in unit.log.read_text():
        time.sleep(0.01)


def test_a_local_runner_keeps_what_a_command_says(tmp_path: Path) -> None:
    runner = LocalRunner(1)
    ending = runner.submit(asking(tmp_path, "--version")).result()
    runner.stop()
    assert ending is not None
    assert ending.exit_code == 0
    assert "qrobust" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("modules_here")
def test_a_stopped_runner_ends_its_commands_and_begins_none(tmp_path: Path) -> None:
    runner, unit = LocalRunner(1), sleeping(tmp_path)
    going, waiting = runner.submit(unit), runner.submit(unit)
    at_work(unit)
    runner.stop()
    ending = going.result()
    assert ending is not None
    assert ending.exit_code < 0
    assert waiting.cancelled() or waiting.result() is None


@pytest.mark.usefixtures("modules_here")
def test_a_command_ends_with_whoever_began_it(tmp_path: Path) -> None:
    """A host's share of a fleet may be killed; what it began must not go on writing."""
    unit = sleeping(tmp_path)
    process = begin(unit)
    at_work(unit)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == -signal.SIGKILL


def test_a_command_takes_nothing_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('a stranger')\n")
    assert run_unit(asking(tmp_path, "--version")).exit_code == 0


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("codes", "state", "attempts"),
    [((None, 0), "done", 1), ((None, None, None, 1, 0), "done", 2), ((None,) * fleets.MOST_LOSSES, "failed", 1)],
)
def test_a_lost_host_costs_no_attempt(
    codes: tuple[int | None, ...], state: str, attempts: int, tmp_path: Path
) -> None:
    plan = planned(tmp_path, "[fleet]\nattempts = 2\n[fleet.matrix]\nseed = [0]\n")
    (run,) = make_fleet(plan, tmp_path, Scripted(*codes)).runs
    assert (run.state, run.attempts) == (state, attempts)


@pytest.mark.usefixtures("unread")
def test_a_lost_run_begins_again_before_others(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[fleet.matrix]\nseed = [0, 1, 2]\n")
    runner = Scripted(None, 0, 0, 0)
    make_fleet(plan, tmp_path, runner)
    first, again, *_ = (given[given.index("--out") + 1] for given in runner.given)
    assert first == again


def test_a_host_that_is_refused_ends_the_fleet(tmp_path: Path) -> None:
    plan, runner = planned(tmp_path, "[fleet.matrix]\nseed = [0]\n"), Scripted()
    refused: Future[Ending | None] = Future()
    refused.set_result(Ending(2, 0.0, refused="expected torch 2 here"))
    runner.submit = lambda unit: refused  # type: ignore[method-assign]
    with pytest.raises(InputError, match="runner: expected torch 2 here"):
        make_fleet(plan, tmp_path, runner)


def test_a_unit_is_all_that_another_host_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = planned(tmp_path, "[fleet.matrix]\nseed = [0]\n").runs
    (tmp_path / "configs").mkdir()
    unit = fleets.unit(run, Path("."))
    assert (unit.threads, unit.gpus, unit.place) == (2, 0, tmp_path)
    assert all(path.is_absolute() for path in (unit.folder, unit.needed, unit.log))
    assert unit.needed.is_file()


HERE = Host("here", ("avx2",), {"qrobust": "1", "onnxruntime": "2"})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"versions": {"qrobust": "0", "onnxruntime": "2"}},
            "expected qrobust 1 .* got 0 on there",
        ),
        ({"versions": {"qrobust": "1"}}, "expected onnxruntime 2 as here on every host, got none on there"),
        ({"flags": ("amx_int8", "avx2")}, r"CPU flags of here \(avx2\).* got amx_int8, avx2 on there.*--mixed-hosts"),
    ],
)
def test_a_host_of_another_kind_is_refused(changed: dict[str, object], told: str, tmp_path: Path) -> None:
    expected = Expected(HERE.versions, tmp_path / "hosts.json")
    assert not expected.refusal(HERE)
    assert re.search(told, expected.refusal(replace(HERE, name="there", **changed)))  # type: ignore[arg-type]  # its fields
    assert not expected.refusal(replace(HERE, name="there"))


def test_cpus_may_differ_if_the_user_says_so() -> None:
    assert not Expected(HERE.versions, None).refusal(replace(HERE, flags=()))


def test_a_damaged_file_of_hosts_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text("[]")
    with pytest.raises(QRobustError, match="expected what the first host was"):
        Expected(HERE.versions, tmp_path / "hosts.json").refusal(HERE)


def test_a_host_without_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.fleet.unit.SEEN_AFTER_S", 0.0)
    unit = asking(tmp_path)
    unit.needed.unlink()
    assert f"does not see {unit.needed}" in run_unit(unit).refused


@pytest.mark.usefixtures("modules_here")
def test_a_unit_that_was_told_to_end_is_lost(tmp_path: Path) -> None:
    """A cluster ends jobs by a signal: that is no fault of the run."""
    (tmp_path / "ending.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    ending = run_unit(replace(asking(tmp_path), module="ending"))
    assert ending.exit_code == -signal.SIGTERM
    assert "told to end" in ending.lost


@pytest.mark.usefixtures("modules_here")
def test_an_interrupted_unit_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, began = sleeping(tmp_path), list[Process]()

    def noted(unit: Unit) -> Process:
        began.append(begin(unit))
        return began[0]

    monkeypatch.setattr("qrobust.fleet.unit.begin", noted)
    monkeypatch.setattr("qrobust.fleet.unit.time.sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_unit(unit)
    assert began[0].poll() is not None


@pytest.mark.parametrize(
    ("name", "found"),
    [("local", ("local", None)), ("ray", ("ray", None)), ("ray://a:1", ("ray", "a:1")), ("slurm", ("slurm", None))],
)
def test_a_runner_has_a_name_and_may_have_an_address(name: str, found: tuple[str, str | None]) -> None:
    assert split(name) == found


@pytest.mark.parametrize("name", ["rya", "ray://", "slurm://x", "local://", ""])
def test_another_name_is_no_runner(name: str) -> None:
    with pytest.raises(InputError, match="runner: expected one of"):
        split(name)


def made(**of: FleetFigures | None) -> FleetRecord:
    runs = tuple(
        FleetRun(name=name, values={"seed": name[-1], "bits": name[:-1]}, state="done" if f else "failed", figures=f)
        for name, f in of.items()
    )
    return FleetRecord(qrobust="0", created="now", axes=("seed", "bits"), at_once=1, runs=runs)


def test_the_best_of_a_column_breaks_no_bound() -> None:
    record = made(
        a0=replace(FIGURES, shift_accuracy=0.7, size_bytes=10, gate="breach"),
        b0=replace(FIGURES, shift_accuracy=0.6, size_bytes=30, gate="pass"),
        c0=replace(FIGURES, shift_accuracy=0.5, size_bytes=20, gate="undecided"),
    )
    found = best(record)
    assert (found["under shift"], found["size"]) == ("b0", "c0")
    assert [row[-1] for row in runs_table(record)] == ["bounds", "breach", "pass", "undecided"]


def test_seeds_have_mean_and_standard_deviation() -> None:
    two = [replace(FIGURES, shift_accuracy=share, unseen_gain_pp=gain) for share, gain in ((0.5, 8.0), (0.6, 12.0))]
    rows = seeds_table(made(a0=two[0], a1=two[1], b0=two[0]))
    assert rows[1:] == [["a", "2", "55.0 ± 7.1 %", "10.0 ± 2.8 points", "90.0 ± 0.0 %"]]


def test_a_spreadsheet_has_a_line_per_run_and_computes_nothing() -> None:
    record = made(a0=FIGURES, b1=None)
    record = replace(record, runs=(replace(record.runs[0], values={"seed": "0", "bits": "=1+1"}), record.runs[1]))
    header, first, second = csv.reader(io.StringIO(fleet_csv(record)))
    assert dict(zip(header, first, strict=True))["clean_interval_low"] == "0.83"
    assert not first[2].startswith("=")
    assert dict(zip(header, second, strict=True))["clean_accuracy"] == ""


def test_a_page_links_what_is_done_and_escapes_names() -> None:
    record = made(a0=FIGURES, b1=None)
    record = replace(record, runs=(record.runs[0], replace(record.runs[1], message="<script>")))
    page = fleet_html(record)
    assert 'href="runs/a0/report.html"' in page
    assert 'href="runs/b1/report.html"' not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("figures", "code"),
    [
        ([FIGURES], 0),
        ([FIGURES, None], 1),
        ([replace(FIGURES, gate="breach")], 1),
        ([replace(FIGURES, gate="failed")], 1),
        ([replace(FIGURES, gate="undecided")], 4),
        ([replace(FIGURES, gate="pass")], 0),
    ],
)
def test_exit_codes(figures: list[FleetFigures | None], code: int) -> None:
    assert exit_code(made(**{f"a{index}": one for index, one in enumerate(figures)}).runs) == code


def test_a_fleet_of_a_finished_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the command: figures of the run's record, bounds, page and table; the second call makes nothing."""
    (tmp_path / "plan.toml").write_text(
        SHARED + "[check]\nmin_accuracy = 0.999999\n[fleet]\nattempts = 1\n[fleet.matrix]\nseed = [3]\n"
    )

    def copied(out: Path) -> None:
        shutil.copytree(finished_run, out, symlinks=True)

    runner = Scripted(0, then=copied)
    monkeypatch.setattr("qrobust.fleet.local.LocalRunner", lambda *_: runner)
    out = tmp_path / "fleet"
    result = qrobust("fleet", tmp_path / "plan.toml", "--out", out)
    record = json.loads((finished_run / "record.json").read_text())
    (run,) = json.loads((out / "fleet.json").read_text())["runs"]
    assert run["figures"]["clean_accuracy"] == record["summary"]["clean_accuracy"]["compensated"]
    assert run["figures"]["unseen_gain_pp"] == record["summary"]["unseen_gain_pp"]
    assert run["figures"]["gate"] in ("breach", "undecided")
    assert result.exit_code in (1, 4)
    assert (out / "index.html").is_file()
    assert "1 of 1 runs are finished already" in qrobust("fleet", tmp_path / "plan.toml", "--out", out).output


def test_a_list_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SHARED + "[fleet.matrix]\nseed = [3]\n")
    result = qrobust("fleet", tmp_path / "plan.toml", "--out", tmp_path / "fleet", "--list")
    assert result.exit_code == 0
    assert "seed 3" in result.output
    assert not (tmp_path / "fleet").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SHARED + "[fleet.matrix]\nseed = [3]\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.txt").write_text("")
    result = qrobust("fleet", tmp_path / "plan.toml", "--out", tmp_path / "mine")
    assert result.exit_code == 2
    assert "--out: expected a new or empty folder" in result.output
