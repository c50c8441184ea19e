"""The report in a browser: nothing overflows, nothing is asked for, nothing fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from finished_folders import evaluation_folder
from reports import main_record, many_conditions

from qrobust.comparison.compare import compare
from qrobust.evaluation.kept import CLEAN
from qrobust.pipeline.finished import open_finished
from qrobust.report.comparison import comparison_html
from qrobust.report.html import html_report

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="needs chromium: apt-get install chromium")
WIDTHS = (1280, browser.PHONE)
# Of an A4 sheet in landscape between its margins, in px.
SHEET = 1031
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
# What is wider than the sheet that holds it, and would be cut off.
CUT_OFF = """[...document.querySelectorAll("table, pre, svg, .tile, p")]
    .filter(part => part.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(part => part.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.opened(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module", params=["a run", "many conditions"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a record, as a file."""
    record = main_record() if request.param == "a run" else many_conditions()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html_report(record, None), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(chromium: browser.Browser, file: Path, width: int) -> None:
    page = browser.Page(chromium, file, width)
    assert page.value(FITS)


def test_no_request_leaves_and_nothing_fails(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, 1280)
    page.value("document.querySelectorAll('th button').forEach(button => button.click())")
    assert page.requests() == []
    assert page.complaints() == []


def test_print_keeps_all_columns(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, SHEET)
    page.media("print")
    page.value("dispatchEvent(new Event('beforeprint'))")
    assert page.value(CUT_OFF) == []
    assert page.pdf().startswith(b"%PDF-")


def test_every_figure_has_an_alternative(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, 1280)
    unnamed = 'svg:not([aria-label]):not([aria-hidden]), svg[aria-label=""], img:not([alt])'
    assert page.value(f"document.querySelectorAll('{unnamed}').length") == 0
    assert page.value("document.querySelectorAll('svg[role=img]').length") > 10


def test_a_table_is_sorted_by_its_numbers(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, 1280)
    column = (
        "[...document.querySelectorAll('#every-shift tbody tr')].map(row => parseFloat(row.cells[3].textContent))"
    )
    click = "document.querySelectorAll('#every-shift th button')[3].click()"
    page.value(click)
    assert page.value(column) == sorted(page.value(column), reverse=True)
    page.value(click)
    assert page.value(column) == sorted(page.value(column))


def test_only_significant_losses_are_left(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, 1280)
    page.value("document.querySelector('.controls input[type=checkbox]').click()")
    left = "[...document.querySelectorAll('#every-shift tbody tr')].filter(row => !row.hidden).length"
    assert page.value(left) == page.value("document.querySelectorAll('#every-shift [data-loss]').length")


def test_dark_follows_the_reader(chromium: browser.Browser, file: Path) -> None:
    page = browser.Page(chromium, file, 1280)
    found = []
    for scheme in ("light", "dark"):
        page.media("screen", scheme)
        found.append(page.value("getComputedStyle(document.body).backgroundColor"))
    assert found == ["rgb(255, 255, 255)", "rgb(18, 21, 26)"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of two evaluations, as a file."""
    root = tmp_path_factory.mktemp("comparison")
    conditions = [CLEAN, *(("motion_blur", severity) for severity in range(1, 6))]
    folders = []
    for name, wrong in (("before-the-change", 5), ("after-the-change", 30)):
        predicted = {condition: {"int8": [0] * wrong + [1] * (100 - wrong)} for condition in conditions}
        folders.append(evaluation_folder(root / name, predicted, [1] * 100))
    path = root / "comparison.html"
    path.write_text(comparison_html(compare([open_finished(f, "runs") for f in folders])), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_and_fails_nowhere(chromium: browser.Browser, comparison: Path, width: int) -> None:
    page = browser.Page(chromium, comparison, width)
    assert page.value(FITS)
    assert page.requests() == []
    assert page.complaints() == []
