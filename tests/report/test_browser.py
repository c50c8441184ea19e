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
from qrobust.record import read_evaluation
from qrobust.report.comparison import comparison_html
from qrobust.report.evaluation_html import evaluation_html
from qrobust.report.html import html_report

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="needs chromium: apt-get install chromium")
WIDTHS = (1280, browser.PHONE)
needs_axe = pytest.mark.skipif(not browser.AXE.is_file(), reason=f"needs {browser.INSTALL_AXE}")
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


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(chromium: browser.Browser, file: Path, scheme: str) -> None:
    page = browser.Page(chromium, file, 1280)
    page.media("screen", scheme)
    page.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.barriers() == []


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluation of a file, and with a comparison of two such evaluations."""
    root = tmp_path_factory.mktemp("comparison")
    conditions = [CLEAN, *(("motion_blur", severity) for severity in range(1, 6))]
    folders = []
    for name, wrong in (("before-the-change", 5), ("after-the-change", 30)):
        predicted = {condition: {"int8": [0] * wrong + [1] * (100 - wrong)} for condition in conditions}
        folders.append(evaluation_folder(root / name, predicted, [1] * 100))
    found = compare([open_finished(folder, "runs") for folder in folders])
    record = read_evaluation(folders[0] / "record.json")
    (root / "comparison.html").write_text(comparison_html(found), encoding="utf-8")
    (root / "evaluation.html").write_text(evaluation_html(record), encoding="utf-8")
    return root


@pytest.mark.parametrize("name", ["comparison", "evaluation"])
@pytest.mark.parametrize("width", WIDTHS)
def test_other_pages_fit_and_fail_nowhere(chromium: browser.Browser, others: Path, name: str, width: int) -> None:
    page = browser.Page(chromium, others / f"{name}.html", width)
    assert page.value(FITS)
    assert page.requests() == []
    assert page.complaints() == []


@needs_axe
@pytest.mark.parametrize("name", ["comparison", "evaluation"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_barrier_in_other_pages(chromium: browser.Browser, others: Path, name: str, width: int) -> None:
    assert browser.Page(chromium, others / f"{name}.html", width).barriers() == []
