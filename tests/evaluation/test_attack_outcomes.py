"""Trials on small graphs whose answers are known: kept, resumed, counted, flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import qrobust

from qrobust.attacks.norms import L2Ball, LinfBall
from qrobust.data.sources import array_images
from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation import attack_plan as suite
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.attack_outcomes import Outcomes, kept_or_tried, read_outcomes
from qrobust.evaluation.attack_plan import (
    Graph,
    Trial,
    balls,
    plan,
)
from qrobust.evaluation.attack_summary import figures
from qrobust.evaluation.statistics import wilson_interval
from qrobust.preprocessing import Preprocessing
from qrobust.record import Attacks, to_json
from qrobust.report.attacks import attack_table, flag_sentences, pose_table
from qrobust.storage import read_json

SIDE, N = 8, 30
WEIGHT = torch.randn((3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
NAMES = {"float": "Float", "int8": "INT8"}


def half_space(images: torch.Tensor) -> torch.Tensor:
    side = ((images - 0.5) * WEIGHT).flatten(1).sum(1)
    return torch.stack([side, -side], 1)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """The plane moved: wrong on some images as they are."""
    return half_space(images) + torch.tensor([1.0, -1.0])


class Counted:
    """A session that knows how many images it was shown."""

    def __init__(self, classify: Any) -> None:
        self.classify, self.asked = classify, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        return self.classify(images).detach()


@pytest.fixture
def split() -> Split:
    pixels = np.random.default_rng(0).integers(40, 216, (N, SIDE, SIDE, 3)).astype(np.uint8)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2)) / 255
    source = array_images(pixels, half_space(images).argmax(1).numpy(), ["a", "b"], "test")
    source.prepare(Preprocessing(size=SIDE, resize="none"))
    return Split(source, torch.randperm(N, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def graphs() -> dict[str, Graph]:
    return {"float": Graph(half_space, Counted(half_space), "f"), "int8": Graph(shifted, Counted(shifted), "i")}


BUDGETS = balls(("linf", "l2"), (0.0, 2 / 255, 8 / 255), (), SIDE)


def tried(path: Path, graphs: dict[str, Graph], split: Split, level: str = "quick") -> Outcomes:
    planned = plan(level, BUDGETS, list(graphs), steps=5, side=SIDE, seed=0)
    return kept_or_tried(path, graphs, split, planned, about=("test",))


def found(outcomes: Outcomes) -> Attacks:
    return figures(outcomes, level="quick", classes=2)


def test_budgets_of_one_channel_are_a_root_of_three_smaller() -> None:
    (_, colour), (_, grey) = (balls(("l2",), (8 / 255,), (), 32, channels)[0] for channels in (3, 1))
    assert colour.epsilon == pytest.approx(0.5)
    assert grey.epsilon == pytest.approx(0.5 / 3**0.5)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "RESTARTS", 2)
    monkeypatch.setattr(suite, "APGD_STEPS", 5)
    monkeypatch.setattr(suite, "QUERIES", 120)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("level", ["quick", "full"])
def test_epsilon_zero_is_clean_accuracy_for_every_attack(
    level: str, tmp_path: Path, graphs: dict[str, Graph], split: Split
) -> None:
    rows = found(tried(tmp_path / "a.npz", graphs, split, level)).rows
    images = split.read(slice(None)).float() / 255
    for name, graph in graphs.items():
        clean = int((graph.deployed(images).argmax(1) == split.labels).sum()) / N
        zero = [r for r in rows if r.classifier == name and r.epsilon == 0]
        assert {r.kind for r in zero} >= {"clean", "white-box", "transfer", "noise"}
        assert {r.robust_accuracy for r in zero} == {clean}
    for row in rows:
        assert row.n == N
        assert row.interval == wilson_interval(round(row.robust_accuracy * N), N)
    attacks = {r.attack for r in rows}
    quick = {"none", "random-noise", "pgd-5"}
    full = {
        "none",
        "random-noise",
        "pgd-5x2",
        "fgsm",
        "apgd-ce-5",
        "apgd-dlr-5",
        "square-120",
        "hop-skip-jump-120",
        "rotations-11",
        "translations-25",
    }
    assert attacks == (full if level == "full" else quick)


def test_the_white_box_on_a_half_space_breaks_what_lies_within_the_ball(
    tmp_path: Path, graphs: dict[str, Graph], split: Split
) -> None:
    outcomes = tried(tmp_path / "a.npz", graphs, split)
    images = split.read(slice(None)).double() / 255
    # Distance to the plane times the norm of its normal, dual to the ball's; black and white are far at 8/255.
    distance = ((images - 0.5) * WEIGHT).flatten(1).sum(1).abs().numpy()
    for norm, dual, rounding in (("Linf", float(WEIGHT.abs().sum()), 0.0), ("L2", float(WEIGHT.norm()), 0.3)):
        for epsilon in {b.epsilon for n, b in BUDGETS if n == norm}:
            (right,) = [r for _, r in outcomes.of("white-box", classifier="float", norm=norm, epsilon=epsilon)]
            reach = epsilon * dual
            assert right[distance > reach + 1e-6].all()
            assert not right[distance < (1 - rounding) * reach - 1e-6].any()


def test_float_and_int8_are_compared_on_the_same_pixels(
    tmp_path: Path, graphs: dict[str, Graph], split: Split
) -> None:
    outcomes = tried(tmp_path / "a.npz", graphs, split)
    rows = found(outcomes).rows
    assert {r.differential_risk for r in rows if r.classifier == "float"} == {None}
    for row in rows:
        if row.classifier == "int8" and row.kind == "white-box":
            (other,) = [
                r
                for label, r in outcomes.of(
                    "transfer", classifier="float", source="int8", norm=row.norm, epsilon=row.epsilon
                )
            ]
            (own,) = [r for _, r in outcomes.of("white-box", classifier="int8", norm=row.norm, epsilon=row.epsilon)]
            assert row.differential_risk == pytest.approx(float((other & ~own).mean()))
    clean = next(r for r in rows if r.kind == "clean" and r.classifier == "int8")
    assert clean.differential_risk == pytest.approx(1 - clean.robust_accuracy)  # float is right on all


@pytest.mark.usefixtures("short")
def test_worst_case_is_no_better_than_any_attack_and_falls(
    tmp_path: Path, graphs: dict[str, Graph], split: Split
) -> None:
    attacks = found(tried(tmp_path / "a.npz", graphs, split, "full"))
    for worst in attacks.worst:
        budget = worst.classifier, worst.norm, worst.epsilon
        same = [r for r in attacks.rows if (r.classifier, r.norm, r.epsilon) == budget]
        assert worst.robust_accuracy <= min(r.robust_accuracy for r in same)
    for name in graphs:
        for norm in ("Linf", "L2"):
            left = [w.robust_accuracy for w in attacks.worst if (w.classifier, w.norm) == (name, norm)]
            assert left == sorted(left, reverse=True)
            assert left[-1] == 0
    assert all(f.startswith("UNRELIABLE: ") for f in attacks.flags)
    table = attack_table(attacks, NAMES)
    assert len(table) == 1 + 2 + len(attacks.worst)
    assert {len(row) for row in table} == {9}
    assert [row[:2] for row in pose_table(attacks, NAMES)[1:3]] == [
        ["Float", "rotations, 11"],
        ["INT8", "rotations, 11"],
    ]


def test_a_killed_suite_goes_on_where_it_stopped(tmp_path: Path, graphs: dict[str, Graph], split: Split) -> None:
    whole = tried(tmp_path / "whole.npz", graphs, split)
    planned = plan("quick", BUDGETS, list(graphs), steps=5, side=SIDE, seed=0)
    path = tmp_path / "killed.npz"

    def kill(*_: object) -> Any:
        raise KeyboardInterrupt

    stopped = [*planned[:6], replace(planned[6], judge=kill), *planned[7:]]
    with pytest.raises(KeyboardInterrupt):
        kept_or_tried(path, graphs, split, stopped, about=("test",))
    kept = read_outcomes(path)
    assert 0 < len(kept.right) < len(whole.right)
    retried: list[Trial] = []
    spied = [replace(t, judge=lambda *a, t=t: retried.append(t) or t.judge(*a)) for t in planned]
    resumed = kept_or_tried(path, graphs, split, spied, about=("test",))
    assert len(retried) == len(planned) - 6
    assert found(resumed) == found(whole) == found(read_outcomes(path))
    asked = graphs["int8"].deployed.asked  # type: ignore[attr-defined]  # a Counted
    tried(path, graphs, split)
    assert graphs["int8"].deployed.asked == asked  # type: ignore[attr-defined]  # nothing was asked again
    # Another graph, another seed, other images: nothing of it fits.
    retried.clear()
    other = {"float": graphs["float"], "int8": replace(graphs["int8"], digest="j")}
    kept_or_tried(path, other, split, spied, about=("test",))
    assert 0 < len(retried) < len(planned)
    retried.clear()
    kept_or_tried(path, other, split.first(20), spied, about=("test",))
    assert len(retried) == len(planned)


def test_masked_gradients_are_flagged(tmp_path: Path, split: Split) -> None:
    def stepped(images: torch.Tensor) -> torch.Tensor:
        return (20 * half_space(images)).round() / 20

    graphs = {
        "float": Graph(half_space, half_space, "f"),
        "int8": Graph(stepped, stepped, "i"),
    }
    attacks = found(tried(tmp_path / "a.npz", graphs, split))
    assert attacks.zero_gradients == {"float": 0.0, "int8": 1.0}
    masked = [f for f in attacks.flags if f.startswith("UNRELIABLE: int8")]
    for said in ("pgd-5 from float leaves", "the largest epsilon", "100.0% of the images have no gradient"):
        assert any(said in f for f in masked), said
    assert not any(f.startswith("UNRELIABLE: float") for f in attacks.flags)
    assert len(flag_sentences(replace(attacks, flags=tuple(masked * 4)))) == 6


def test_a_run_tells_of_its_attacks_and_rebuilds_them_without_inference(finished_run: Path) -> None:
    attacks = read_json(finished_run / "record.json")["attacks"]
    assert (attacks["level"], attacks["n"]) == ("quick", 12)
    names = ("float", "int8", "compensated")
    assert [r["classifier"] for r in attacks["rows"] if r["kind"] == "clean"] == list(names)
    transferred = {(r["source"], r["classifier"]) for r in attacks["rows"] if r["kind"] == "transfer"}
    assert transferred == {(a, b) for a in names for b in names if a != b}
    assert {r["epsilon"] for r in attacks["worst"]} == {2 / 255, 8 / 255, 128 / 255}
    rebuilt = figures(read_outcomes(finished_run / "attacks.npz"), level="quick", classes=10)
    assert to_json(rebuilt) == attacks
    for report in ("report.html", "report.md"):
        page = (finished_run / report).read_text()
        for said in (*attacks["flags"][:5], "only this wrong", "8/255", "withstand all of them"):
            assert said in page, (report, said)


def test_l2_budgets_are_in_proportion() -> None:
    assert balls(("l2",), (8 / 255,), (), 32) == [("L2", L2Ball(0.5))]
    assert balls(("l2",), (4 / 255,), (), 224) == [("L2", L2Ball(1.75))]
    both = balls(("linf", "l2"), (0.1, 0.05), (2.0,), 32)
    assert both == [("Linf", LinfBall(0.05)), ("Linf", LinfBall(0.1)), ("L2", L2Ball(2.0))]
    assert AttackConfig().tried_norms == ("linf",)
    assert AttackConfig("full").tried_norms == ("linf", "l2")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "attacks.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"attacks: cannot read .*attacks\.npz"):
        read_outcomes(tmp_path / "attacks.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilons", "-1/255"], "--epsilons: expected at least 0, got -0.0039"),
        (["--epsilons", "nan"], "--epsilons: expected a finite number, got nan"),
        (["--l2-epsilons", "-1"], "--l2-epsilons: expected at least 0, got -1.0"),
        (["--l2-epsilons", "0.5"], "--l2-epsilons: nothing is attacked in L2 without norm l2"),
        (["--norms", "l1"], "--norms: expected one of linf, l2, got 'l1'"),
    ],
)
def test_budgets_that_are_none_are_refused_in_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    result = qrobust("run", "--model", "resnet8", "--data", "digits", "--out", tmp_path / "o", *options)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert message in result.output
    assert not (tmp_path / "o").exists()
