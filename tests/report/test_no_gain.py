"""Where INT8 buys nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import main_record

from qrobust.cli.run_folders import finish
from qrobust.errors import ExportCheckError
from qrobust.pipeline.run_folder import RunFolder
from qrobust.record import Latency, Record
from qrobust.report.no_gain import mostly_float, slower_than_float


def timed(latencies: dict[str, float], intervals: dict[str, tuple[float, float]] | None, **hardware: Any) -> Record:
    record = main_record()
    latency = {name: Latency(batch_1=value, batch_32=value) for name, value in latencies.items()}
    summary = replace(record.summary, latency_ms=latency, latency_interval=intervals)
    return replace(record, summary=summary, hardware=replace(record.hardware, **hardware))


@pytest.mark.parametrize(("share", "told"), [(0.49, True), (0.5, False), (1.0, False), (None, False)])
def test_half_of_the_work_must_be_on_integers(share: float | None, told: bool) -> None:
    audits = main_record().audit
    audits = {"float": replace(audits["float"], integer_mac_share=0.0)} | {
        "int8": replace(audits["int8"], integer_mac_share=share)
    }
    found = mostly_float(audits, {"int8": "INT8"})
    assert (set(found) == {"int8"}) == told
    assert not told or found["int8"].startswith("INT8 does 49.0 % of its multiply-accumulates on integers, less")


@pytest.mark.parametrize(
    ("latencies", "intervals", "told"),
    [
        ({"float": 1.0, "int8": 1.2}, {"float": (0.8, 0.9)}, {"int8"}),
        ({"float": 1.0, "int8": 1.2}, {"float": (0.7, 1.1)}, set()),  # float may be the slower one
        ({"float": 1.0, "int8": 0.5}, {"float": (1.9, 2.1)}, set()),
        (
            {"float": 1.0, "int8": 0.5, "compensated": 1.25},
            {"float": (1.9, 2.1), "compensated": (2.4, 2.6)},
            {"compensated"},
        ),
        ({"float": 1.0, "int8": 0.5, "compensated": 1.25}, None, {"compensated"}),  # of an earlier version
        ({"float": 1.0, "int8": 0.5, "compensated": 1.02}, {"float": (1.9, 2.1), "compensated": (2.0, 2.1)}, set()),
    ],
)
def test_a_graph_that_takes_longer_than_float_is_told_of(
    latencies: dict[str, float], intervals: dict[str, tuple[float, float]] | None, told: set[str]
) -> None:
    found = slower_than_float(timed(latencies, intervals, sums="exact"), {"compensated": "INT8 + calibrator"})
    assert set(found) == told
    if "compensated" in told:
        assert found["compensated"] == "INT8 + calibrator takes 1.25 times the time of float for one image"


def test_times_of_slower_kernels_tell_nothing() -> None:
    assert slower_than_float(timed({"float": 1.0, "int8": 2.0}, None, sums="exact-by-request"), {}) == {}


@pytest.mark.parametrize("strict", [False, True])
def test_strict_ends_with_the_code_of_a_failed_check(
    strict: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = timed({"float": 1.0, "int8": 1.2, "compensated": 1.3}, None, sums="exact")
    with pytest.raises(ExportCheckError, match=r"strict: INT8 takes 1\.20 times") if strict else nullcontext():
        finish(RunFolder(tmp_path), record, strict=strict)
    said = capsys.readouterr()
    assert "warning: INT8 takes 1.20 times the time of float for one image" in said.err
    assert said.out.splitlines()[-1].startswith("Report: ")
