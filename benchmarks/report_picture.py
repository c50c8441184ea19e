"""Draw the main job's report again from its record, and its first screen for README.

    python benchmarks/report_picture.py

Needs Debian's chromium. The picture holds its figures as text, too: `quote.py --check` compares them with the record.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from qrobust.record import Record, read_record
from qrobust.report.html import html_report
from qrobust.report.markdown import markdown_report
from qrobust.report.tiles import compared, tiles
from qrobust.report.verdict import verdict

RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "main_job.json"
PICTURE = ROOT / "docs" / "report.png"
# In px. The height ends the picture between two lines of text.
WIDTH, HEIGHT = 1280, 708
# Grey edges of letters and a few hues: more colours look the same.
COLOURS = 128
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def first_screen(record: Record) -> str:
    """What the report's first screen says: verdict, and a line per tile."""
    found = tiles(record)
    told = [f"{tile.title}: {tile.before} -> {tile.after}, {tile.word}, {tile.change}" for tile in found]
    return "\n".join([verdict(record)[0], compared(record).sentence, *told])


def stale() -> bool:
    """Whether the picture shows other figures than the report has."""
    if not PICTURE.exists():
        return True
    with Image.open(PICTURE) as shown:
        return shown.info.get("Description") != first_screen(read_record(RECORD))


def picture() -> str:
    """README's picture, with its figures in words."""
    record = read_record(RECORD)
    told = [f"{tile.title.lower()} {tile.before} → {tile.after} ({tile.word})" for tile in tiles(record)]
    alternative = f"First screen of the report: {compared(record).sentence}: {', '.join(told)}"
    return f"![{alternative}]({PICTURE.relative_to(ROOT)})"


def photographed(page: Path) -> Image.Image:
    """The first screen of a page, light."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("no chromium; apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shot = Path(folder) / "shot.png"
        where = (f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}")
        command = [program, *OPTIONS, *where, page.as_uri()]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


def redraw() -> None:
    """Write the report as HTML and Markdown, and the picture."""
    record = read_record(RECORD)
    (RESULTS / "main_job.html").write_text(html_report(record, None))
    (RESULTS / "main_job.md").write_text(markdown_report(record))
    about = PngInfo()
    about.add_itxt("Description", first_screen(record))
    shot = photographed(RESULTS / "main_job.html").quantize(COLOURS, dither=Image.Dither.NONE)
    shot.save(PICTURE, optimize=True, pnginfo=about)


if __name__ == "__main__":
    redraw()
