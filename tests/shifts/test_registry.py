"""What names of shifts, suites and scenarios stand for, and which are refused where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qrobust.errors import InputError
from qrobust.shifts.generic import FAMILIES
from qrobust.shifts.registry import (
    GENERIC_SEVERITIES,
    SCENARIOS,
    SHIFTS,
    SUITES,
    defined_conditions,
    expand,
    find_shift,
    generic_conditions,
    recommendation_conditions,
    refuse_measured_alone,
    register_shift,
    scenarios,
    selection_conditions,
    stored_folders,
    table_for,
    training_sets,
    with_mixture,
)


def dimmed(images: torch.Tensor, strength: float, generators: object) -> torch.Tensor:
    return images * (1 - strength)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The shifts, to which a test may add."""
    own = dict(SHIFTS)
    monkeypatch.setattr("qrobust.shifts.registry.SHIFTS", own)
    return own


def test_a_shift_of_ones_own_is_measured_by_its_name(registry: dict) -> None:
    register_shift("dim", dimmed, version="2")
    found = find_shift("dim")
    assert found is registry["dim"]
    assert (found.name, found.family, found.function, found.version) == ("dim", "own", dimmed, "2")
    assert (found.is_custom, found.keeps_pixels) == (True, False)
    assert found.strengths == dict.fromkeys(("cifar-c", "imagenet-c"), ((0.2,), (0.4,), (0.6,), (0.8,), (1.0,)))
    register_shift("dimmer", dimmed, (1, 2, 3, 4, 5))
    assert find_shift("dimmer").strengths["cifar-c"] == ((1,), (2,), (3,), (4,), (5,))
    assert (find_shift("dimmer").version, find_shift("dimmer").unit) == ("", "as its author says")


@pytest.mark.parametrize("name", ["", "fog", "default", "night", "clean", "a:b"])
def test_a_name_that_is_taken_or_unusable_is_refused(name: str, registry: dict) -> None:
    with pytest.raises(InputError, match=f"^name: expected one that is not taken, without a colon, got '{name}'$"):
        register_shift(name, dimmed)
    assert registry == SHIFTS


@pytest.mark.parametrize("count", [4, 6])
def test_a_shift_has_five_strengths(count: int, registry: dict) -> None:
    with pytest.raises(InputError, match=f"^strengths: expected 5, one per severity, got {count}$"):
        register_shift("dim", dimmed, (0.1,) * count)


def test_folders_of_stored_images_go_by_their_names(tmp_path: Path) -> None:
    names = ("fog", f"stored:{tmp_path}", "stored:b")
    assert stored_folders(names) == {f"stored:{tmp_path}": tmp_path, "stored:b": Path("b")}
    assert expand(("fog", "stored:b")) == ("fog",)
    with pytest.raises(InputError, match=r"^shift: expected a folder after stored:, got 'stored:'$"):
        stored_folders(("fog", "stored:"))


def test_scenarios_are_several_shifts_and_shifts_stay_themselves() -> None:
    assert scenarios(("night",)) == SCENARIOS["night"]
    # `fog` is a scenario here, though a shift has that name, too; each shift comes once.
    assert scenarios(("fog", "contrast", "saturation")) == ("fog", "contrast", "brightness", "saturation")
    assert scenarios(("transformations",)) == SUITES["transformations"]
    assert scenarios(("stored:x", "rotation")) == ("rotation",)
    assert scenarios(("mine.py:f",)) == ("mine.py:f",)
    with pytest.raises(InputError, match=r"^scenario: expected one of night, .*or what shifts take, got 'nigth'"):
        scenarios(("nigth",))


def test_a_file_of_ones_own_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"^shift: .*nowhere\.py"):
        find_shift("nowhere.py:dim")


def test_nothing_and_each_name_once() -> None:
    assert expand(()) == SUITES["default"]
    assert expand(("fog", "default"))[0] == "fog"
    assert sorted(expand(("fog", "default"))) == sorted(SUITES["default"])
    with pytest.raises(InputError, match=r"^shift: expected one of gaussian_noise, .*stored:DIR, got 'smog'"):
        expand(("smog",))


def test_what_is_learned_from_is_families_and_shifts() -> None:
    family, other = FAMILIES[:2]
    assert training_sets(()) == ((), ())
    assert training_sets((f"generic_{family}", "fog", "fog")) == ((family,), ("fog",))
    assert training_sets((f"generic_{other}", f"generic_{family}", f"generic_{other}")) == ((other, family), ())
    assert training_sets(("generic_mixture",)) == (FAMILIES, ())
    assert training_sets(("generic",))[0] == FAMILIES
    # A name that is a shift and a scenario, too, means the shift.
    assert training_sets(("fog", "night")) == ((), ("fog", *SCENARIOS["night"]))
    assert training_sets(("mine.py:f",)) == ((), ("mine.py:f",))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("fog", "stored:x"),
            "^train_on: expected what can be rendered, got stored:x; it can be measured by --shifts$",
        ),
        (("smog",), r"^train_on: expected one of default, .*a shift, a scenario or FILE.py:FUNCTION, got 'smog'"),
        (("c-bar",), "^train_on: expected shifts to learn from, got c-bar, which is for measuring alone: --shifts$"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        training_sets(names)


def test_what_is_for_measuring_alone_is_named_with_its_suite() -> None:
    name = SUITES["c-bar"][0]
    refuse_measured_alone("--x", ("fog", "default"))
    with pytest.raises(
        InputError, match=f"^--x: expected shifts to learn from, got {name} of c-bar, which is for measuring alone"
    ):
        refuse_measured_alone("--x", ("fog", name))


def test_a_near_name_is_suggested_but_none_that_is_for_measuring_alone() -> None:
    with pytest.raises(InputError, match=r"did you mean .*gaussian_noise"):
        training_sets(("gausian_noise",))
    with pytest.raises(InputError, match=r"did you mean .*night"):
        scenarios(("nigt",))


def test_mixtures_are_measured_with_all_families_alone() -> None:
    some = FAMILIES[:2]
    assert generic_conditions(some) == [(f"generic_{f}", s) for f in some for s in GENERIC_SEVERITIES]
    assert generic_conditions(FAMILIES)[-1] == ("generic_mixture", GENERIC_SEVERITIES[-1])
    with pytest.raises(InputError, match=r"^generic: expected one of "):
        generic_conditions(("mixture",))
    assert with_mixture(("fog",)) == ("fog",)
    assert with_mixture(("fog", f"generic_{some[0]}")) == ("fog", f"generic_{some[0]}", "generic_mixture")


def test_a_choice_is_made_by_what_was_not_learned_from() -> None:
    learned, withheld = FAMILIES[:-2], FAMILIES[-2:]
    assert selection_conditions([("fog", 5)], ()) == [("fog", 5)]
    assert selection_conditions([("fog", 5)], learned) == [("fog", 5), *generic_conditions(withheld)]
    assert selection_conditions([], FAMILIES) == generic_conditions(FAMILIES)
    names = [f"generic_{family}" for family in learned]
    assert recommendation_conditions([*names, "fog"]) == (generic_conditions(withheld), True)
    assert recommendation_conditions([f"generic_{family}" for family in FAMILIES]) == (
        generic_conditions(FAMILIES),
        False,
    )


def test_conditions_are_those_that_are_defined() -> None:
    assert defined_conditions(("fog", "inversion"), (1, 5), "cifar-c") == [
        ("fog", 1),
        ("fog", 5),
        *[("inversion", s) for s in (1, 5) if find_shift("inversion").strengths["cifar-c"][s - 1] is not None],
    ]
    for severity in (0, 6):
        with pytest.raises(InputError, match=f"^severity: expected an integer from 1 to 5, got {severity}$"):
            defined_conditions(("fog",), (severity,), "cifar-c")
    with pytest.raises(InputError, match=r"^severity_table: expected one of cifar-c, imagenet-c, got 'x'"):
        defined_conditions(("fog",), (1,), "x")


def test_the_table_goes_by_the_side() -> None:
    assert [table_for(side) for side in (32, 63, 64, 224)] == ["cifar-c", "cifar-c", "imagenet-c", "imagenet-c"]
