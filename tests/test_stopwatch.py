"""Time is told by parts, each once, and only where a step is made."""

from __future__ import annotations

import pytest

from qrobust import stopwatch
from qrobust.stopwatch import BACKWARD, DECODING, FORWARD, RENDERING, part, timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_time_counts_once_for_the_inner_part(clock: list[float]) -> None:
    with timing() as watch:
        for _ in range(2):
            with part(FORWARD):
                with part(RENDERING):
                    with part(DECODING):
                        clock[0] += 1
                    clock[0] += 2
                clock[0] += 3
            clock[0] += 50  # between a step's parts
            with part(BACKWARD):
                clock[0] += 4
    assert watch.seconds == {DECODING: 2, RENDERING: 4, FORWARD: 6, BACKWARD: 8}
    assert str(watch) == "0.1 steps a second (decoding 10%, rendering 20%, forward 30%, backward 40%)"


def test_what_is_decoded_outside_a_step_does_not_count(clock: list[float]) -> None:
    with timing() as watch, part(DECODING):
        clock[0] += 1
    assert str(watch) == "no step was made"


def test_an_error_ends_its_parts(clock: list[float]) -> None:
    def fail() -> None:
        with part(FORWARD), part(RENDERING):
            clock[0] += 1
            raise ValueError("of the work")

    with timing() as watch:
        with pytest.raises(ValueError, match="of the work"):
            fail()
        clock[0] += 9
        with part(BACKWARD):
            clock[0] += 2
    assert watch.seconds == {RENDERING: 1, BACKWARD: 2, FORWARD: 0}


def test_parts_cost_nothing_without_a_stopwatch() -> None:
    with part(FORWARD), part(DECODING):
        pass
    assert stopwatch._running.get() is None
