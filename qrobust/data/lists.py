"""A list of image files: `path,label[,split]` a line, as CSV or text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qrobust.data.folders import SPLITS_ARE, listed_images, readable, split_kind
from qrobust.data.sources import MOST_UNNAMED, Images
from qrobust.errors import InputError
from qrobust.paths import check_file

# What columns may be called in a header, in any letter case.
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "filepaths"),
    "label": ("label", "labels", "class", "class_name", "target", "category"),
    "split": ("split", "set", "subset", "data set", "dataset", "partition"),
}
DELIMITERS = ("\t", ",", ";")


@dataclass(frozen=True)
class _Row:
    """A line of the list."""

    line: int
    path: Path
    label: str
    kind: str | None


def list_images(
    file: Path, class_names: Sequence[str] | None = None, *, skip_bad: bool = False
) -> tuple[dict[str, Images], dict[str, str]]:
    """Open the images that a file lists.

    Args:
        file: a line per image: path, label and, if all have one, split, separated by tabs, commas, semicolons or
            (path and label alone) blanks. A header may name the columns (`COLUMNS`), then in any order and beside
            others. Paths are relative to the file. Labels are names, which become classes in sorted order, or, all
            of them, numbers from 0.
        class_names: in index order; labels are then these names or their indices.
        skip_bad: decode every file now and leave out those that cannot be; they are listed in `skipped`.

    Returns:
        Images by kind of split (`train`, `val`, `test`), or all by "" where the list has no splits; and what the
        list calls each kind.

    Raises:
        InputError: the list is empty or not text; or a line is not as it must be, which the message names.
    """
    rows = list(_rows(file))
    if not rows:
        raise InputError(f"data: expected a line path,label per image in {file}, got none")
    names, labels = _classes(file, rows, class_names)
    _refuse_contradictions(file, rows, labels)
    pools: dict[str, Images] = {}
    called: dict[str, str] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        chosen = [i for i, row in enumerate(rows) if row.kind == kind]
        paths = [rows[i].path for i in chosen]
        good, skipped = readable(paths) if skip_bad else (paths, [])
        kept = set(good)
        images = listed_images(file.parent, good, [labels[i] for i in chosen if rows[i].path in kept], names)
        images.skipped = tuple(map(str, skipped))
        pools[kind or ""] = images
        if kind:
            called[kind] = kind
    return pools, called


def _rows(file: Path) -> Iterator[_Row]:
    """The lines that list an image."""
    check_file(file, "data")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"data: cannot read {file} ({error.strerror})") from error
    lines = list(_cells(text))
    columns = _header(lines[0][1]) if lines else None
    places = columns or {"path": 0, "label": 1, "split": 2}
    divided = "split" in places if columns else bool(lines) and len(lines[0][1]) > 2
    width = max(places[name] for name in places if name != "split" or divided) + 1 if lines else 0
    for line, cells in lines[1:] if columns else lines:
        if len(cells) < width or (not columns and len(cells) > width):
            raise InputError(
                f"data: line {line} of {file}: expected {'path,label,split' if divided else 'path,label'}, "
                f"got {len(cells)} of {width} columns"
            )
        yield _row(file, line, cells, places, divided=divided)


def _row(file: Path, line: int, cells: list[str], places: dict[str, int], *, divided: bool) -> _Row:
    """One line's image.

    Raises:
        InputError: a column is empty or has no meaning, or there is no such file.
    """
    path, label = cells[places["path"]], cells[places["label"]]
    if not path or not label or set(path + label) & {"\0", "\n", "\r"}:
        raise InputError(f"data: line {line} of {file}: expected a path and a label, got {path!r} and {label!r}")
    full = check_file(file.parent / path, f"data: line {line} of {file}")
    kind = split_kind(cells[places["split"]]) if divided else None
    if divided and kind is None:
        raise InputError(
            f"data: line {line} of {file}: expected a split ({SPLITS_ARE}), got {cells[places['split']]!r}"
        )
    return _Row(line, full, label, kind)


def _cells(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line that is not empty."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in DELIMITERS if mark in first), None)
    if delimiter is None:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, line.strip().rsplit(maxsplit=1)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"data: line {reader.line_num} of the list cannot be read ({error})") from error


def _header(cells: list[str]) -> dict[str, int] | None:
    """Where each column is, if this line names path and label."""
    words = [cell.casefold() for cell in cells]
    found = {
        column: next((i for i, word in enumerate(words) if word in names), None) for column, names in COLUMNS.items()
    }
    places = {column: place for column, place in found.items() if place is not None}
    return places if {"path", "label"} <= places.keys() else None


def _classes(file: Path, rows: list[_Row], given: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """Class names, and the index of each row's class."""
    numbered = all(row.label.isascii() and row.label.isdigit() for row in rows)
    if given is None and not numbered:
        names = sorted({row.label for row in rows})
    elif given is None:
        largest = max(rows, key=lambda row: int(row.label))
        if int(largest.label) > MOST_UNNAMED:
            raise InputError(
                f"data: line {largest.line} of {file}: expected a label of at most {MOST_UNNAMED} where classes have "
                f"no names, got {largest.label}"
            )
        names = [str(i) for i in range(int(largest.label) + 1)]
    else:
        names = list(given)
    index = {name: i for i, name in enumerate(names)}
    if given is not None and numbered and not any(row.label in index for row in rows):
        index = {str(i): i for i in range(len(names))}
    elif numbered and given is None:
        index |= {row.label: int(row.label) for row in rows}  # 007 is 7
    for row in rows:
        if row.label not in index:
            raise InputError(
                f"data: line {row.line} of {file}: label {row.label!r} is none of the {len(names)} class names"
            )
    return names, [index[row.label] for row in rows]


def _refuse_contradictions(file: Path, rows: list[_Row], labels: list[int]) -> None:
    """Refuse a path that is listed with two labels, or twice in a split."""
    seen: dict[Path, int] = {}
    for i, row in enumerate(rows):
        first = seen.setdefault(row.path, i)
        if first == i:
            continue
        if labels[first] != labels[i] or rows[first].kind == row.kind:
            what = "with another label" if labels[first] != labels[i] else "already"
            raise InputError(
                f"data: line {row.line} of {file}: {row.path} is listed {what} on line {rows[first].line}"
            )
