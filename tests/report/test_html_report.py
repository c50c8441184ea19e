"""What the page says of a record: tiles, next steps, figures; how large it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from finished_folders import evaluation_folder
from reports import main_record, many_conditions

from qrobust.cli.main import main
from qrobust.record import Candidate, EvaluationRecord, MissedImage, Recommendation, Record, read_evaluation
from qrobust.record.recommendation import CLEAN_COST, DIVERGED, FEW_STEPS, HARM, NO_GAIN, RISING, SLOW, UNDECIDED
from qrobust.report.evaluation_html import evaluation_html, evaluation_tiles
from qrobust.report.html import html_report
from qrobust.report.next_steps import next_steps
from qrobust.report.tiles import compared, tiles

LARGEST_BYTES = 5_000_000


def gaining(points: float, low: float, high: float) -> Record:
    """The real run, with another gain of its calibrator."""
    record = main_record()
    effects = record.effects
    assert effects is not None
    (found,) = (effect for effect in effects.graphs if effect.graph == "compensated")
    found = replace(found, test=replace(found.test, gain_pp=points, gain_interval_pp=(low, high)))
    row = replace(record.remedies[0], gain_pp=points, gain_interval_pp=(low, high))
    return replace(record, remedies=(row,), effects=replace(effects, graphs=(found,)))


def recommending(graph: str | None, *refused: str) -> Record:
    """The real run, with this said of its calibrator."""
    candidate = Candidate(graph="compensated", refused=refused)
    found = Recommendation(graph=graph, chosen="compensated", accept_undecided=False, candidates=(candidate,))
    return replace(main_record(), recommendation=found)


@pytest.mark.parametrize(
    ("interval", "outcome"), [((1.0, 3.0), "better"), ((-3.0, -1.0), "worse"), ((-1.0, 1.0), "same")]
)
def test_a_tile_is_coloured_by_its_interval(interval: tuple[float, float], outcome: str) -> None:
    record = gaining(sum(interval) / 2, *interval)
    # Records of earlier versions hold no effects.
    assert {tiles(known)[0].outcome for known in (record, replace(record, effects=None))} == {outcome}


def test_a_tile_holds_both_figures_and_their_difference() -> None:
    shift, clean, time = tiles(main_record())
    assert (shift.before, shift.after, shift.change) == ("52.0 %", "63.4 %", "+11.4 points [+10.9, +11.7]")
    assert (clean.before, clean.after) == ("81.1 %", "82.7 %")
    assert (time.before, time.after, time.outcome) == ("0.76 ms", "1.15 ms", "worse")


@pytest.mark.parametrize(
    ("interval", "outcome"), [((1.5, 1.8), "worse"), ((0.7, 0.9), "better"), ((0.9, 1.1), "same")]
)
def test_a_time_is_judged_by_its_interval(interval: tuple[float, float], outcome: str) -> None:
    summary = replace(main_record().summary, latency_interval={"float": (1.3, 1.4), "compensated": interval})
    time = tiles(replace(main_record(), summary=summary))[2]
    assert (time.outcome, time.change) == (outcome, f"1.52 times [{interval[0]:.2f}, {interval[1]:.2f}]")


def test_the_time_of_int8_over_that_of_float_is_the_other_way_round() -> None:
    summary = replace(main_record().summary, latency_interval={"float": (1.25, 2.0), "compensated": (1.0, 2.0)})
    time = tiles(replace(main_record(), summary=summary, remedies=()))[2]
    assert time.change == "0.52 times [0.50, 0.80]"


def test_a_tile_has_a_sign_and_a_word_beside_its_colour() -> None:
    tile = tiles(gaining(2.0, 1.0, 3.0))[0]
    assert (tile.sign, tile.word) == ("▲", "better")


def test_without_remedies_tiles_compare_float_and_int8() -> None:
    found = compared(replace(main_record(), remedies=()))
    assert (found.before, found.after) == ("float", "int8")


def test_tiles_say_whether_the_graph_is_recommended() -> None:
    assert compared(recommending("compensated")).status == "recommended"
    assert compared(recommending(None, HARM)).status == "not recommended"
    assert compared(recommending(None, HARM, UNDECIDED)).status == "not recommended"
    assert compared(recommending(None, UNDECIDED)).status == "undecided"


def test_int8_that_is_recommended_is_compared_with_float() -> None:
    found = compared(recommending("int8"))
    assert (found.before, found.after, found.status) == ("float", "int8", "recommended")


def commands(record: Record) -> list[str]:
    return [command for step in next_steps(record, "runs/a b") for command in step.commands]


REASONS = (UNDECIDED, FEW_STEPS, RISING, DIVERGED, SLOW, CLEAN_COST, HARM, NO_GAIN)


@pytest.mark.parametrize("graph", [None, "compensated", "int8"])
def test_next_steps_are_commands_that_exist(graph: str | None) -> None:
    record = recommending(graph, *REASONS)
    found = [*commands(record), *commands(replace(record, remedies=(), recommendation=None))]
    for line in found:
        program, name, *words = line.split()
        command = main.get_command(click.Context(main), name)
        assert program == "qrobust"
        assert command, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_next_steps_name_the_folder_for_a_shell() -> None:
    assert "qrobust deploy 'runs/a b' --graph compensated --out deployed" in commands(recommending("compensated"))


def test_a_training_that_was_still_learning_is_to_go_on_twice_as_long() -> None:
    assert "qrobust compensate 'runs/a b' --steps 8000" in commands(recommending(None, RISING))


def test_one_training_answers_all_reasons() -> None:
    assert commands(recommending(None, FEW_STEPS, SLOW, HARM, CLEAN_COST))[0] == (
        "qrobust compensate 'runs/a b' --steps 16000 --latency-budget 1.25 --clean-budget 0.1"
    )


def test_what_is_undecided_may_be_accepted() -> None:
    assert "qrobust report 'runs/a b' --accept-undecided" in commands(recommending(None, UNDECIDED))


def test_the_page_asks_for_nothing() -> None:
    page = html_report(main_record(), None)
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "default-src 'none'" in page


def test_a_name_is_shown_and_never_obeyed() -> None:
    page = html_report(replace(main_record(), model="<script>alert(1)</script>"), None)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_images_that_are_wrong_most_often_have_label_and_prediction() -> None:
    missed = (MissedImage(image=5, label=0, predicted=1, conditions=3),)
    record = replace(main_record(), missed_images=missed)
    page = html_report(record, None, np.zeros((1, 3, 32, 32), np.uint8))
    first, second = record.class_names[:2]
    assert f"{first}, taken for {second}<br>wrong in 3 of {len(record.rows)}" in page
    assert 'href="#missed"' in page


def test_images_of_another_evaluation_are_not_shown() -> None:
    assert 'id="missed"' not in html_report(main_record(), None, np.zeros((1, 3, 32, 32), np.uint8))


def test_many_conditions_and_graphs_stay_below_five_megabytes() -> None:
    assert len(html_report(many_conditions(), None).encode()) < LARGEST_BYTES


def test_every_entry_of_the_contents_leads_somewhere() -> None:
    page = html_report(many_conditions(), None)
    wanted = re.findall(r'href="#([^"]+)"', page)
    assert len(wanted) > 8
    assert all(page.count(f'id="{name}"') == 1 for name in wanted)


@pytest.fixture
def evaluation(tmp_path: Path) -> EvaluationRecord:
    """Two files on 100 images: right on 95 and 70 clean ones, on 90 and 95 in fog."""
    right = {("clean", 0): (95, 70), ("fog", 3): (90, 95)}
    predicted = {
        condition: {name: [1] * n + [0] * (100 - n) for name, n in zip(("first", "<b>"), counts, strict=True)}
        for condition, counts in right.items()
    }
    return read_evaluation(evaluation_folder(tmp_path / "e", predicted, [1] * 100) / "record.json")


def test_tiles_of_an_evaluation_compare_the_last_file_with_the_first(evaluation: EvaluationRecord) -> None:
    shift, clean = evaluation_tiles(evaluation)
    assert (shift.before, shift.after) == ("90.0 %", "95.0 %")
    assert (clean.before, clean.after, clean.outcome) == ("95.0 %", "70.0 %", "worse")


def test_an_evaluation_is_shown_and_no_name_is_obeyed(evaluation: EvaluationRecord) -> None:
    page = evaluation_html(evaluation)
    assert "&lt;b&gt; against first: -25.0 points" in page
    assert "<b>" not in page
    assert page.count('data-loss="1"') == 1


def test_a_single_file_has_no_tiles(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "e", {("clean", 0): {"only": [1, 1, 0]}}, [1, 1, 1])
    record = read_evaluation(folder / "record.json")
    assert evaluation_tiles(record) == []
    assert "only: 66.7 %" in evaluation_html(record)
