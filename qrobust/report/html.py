"""A record as one self-contained HTML page: verdict first, then the tables, plots and pictures."""

from __future__ import annotations

import base64
import io
import json
from typing import NamedTuple

import jinja2
import markupsafe
import numpy as np
from PIL import Image

from qrobust.record import Record, to_json
from qrobust.report.approval import approval_table
from qrobust.report.attacks import NOTE, attack_table, pose_table
from qrobust.report.classes import confusion_tables, recall_note, recall_table
from qrobust.report.confidence import confidence_note, confidence_table
from qrobust.report.corruption_sets import stored_tables
from qrobust.report.data import duplicates_sentence, left_out_sentence
from qrobust.report.figures import percent, points
from qrobust.report.plots import (
    LABELS,
    gains_plot,
    layers_plot,
    remedies_plot,
    severity_plot,
)
from qrobust.report.verdict import (
    LEVEL,
    NAMES,
    comparison,
    headline,
    validation_sentence,
    verdict,
)
from qrobust.text import printable

PICTURE_SIDE = 112


def environment() -> jinja2.Environment:
    """Templates whose values are escaped, and shown as `printable` text."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("qrobust.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # markup has no names as they are
    )
    made.filters |= {
        "percent": percent,
        "points": points,
        "pretty": _pretty,
    }
    return made


def html_report(record: Record, pictures: dict[str, np.ndarray] | None) -> str:
    """Render a record.

    Args:
        record: of a run.
        pictures: `clean`, and `SHIFT.SEVERITY.before` / `.after`, each uint8 `(n, C, H, W)`.
    """
    every = [k for k in NAMES if k in record.summary.clean_accuracy]
    graphs = [k for k in every if k in LABELS]
    compared = len(record.remedies) > 1
    validation, classes = record.quantization.validation, record.classes
    shown = {g: NAMES[g] for g in graphs}
    page = environment().get_template("report.html")
    return page.render(
        record=record,
        summary=record.summary,
        graphs=graphs,
        every=every,
        names=NAMES,
        level=LEVEL,
        verdict=verdict(record),
        headline=headline(record),
        comparison=comparison(record) if compared else [],
        approval=approval_table(record, NAMES) if compared else [],
        remedies=remedies_plot(record, NAMES) if compared else "",
        recalls=recall_table(classes, record.class_names, shown) if classes else [],
        recall_note=recall_note(classes) if classes else "",
        confusions=confusion_tables(classes, record.class_names, shown) if classes else [],
        confidences=confidence_table(record.confidence, NAMES),
        confidence_note=confidence_note(record.confidence) if record.confidence else "",
        stored_tables=stored_tables(record, NAMES),
        attack_tables=[attack_table(record.attacks, NAMES), pose_table(record.attacks, NAMES)],
        attack_note=NOTE,
        left_out=left_out_sentence(record.left_out),
        duplicates=duplicates_sentence(record.duplicates),
        gains=gains_plot(record, graphs),
        severity=severity_plot(record, graphs),
        layers=layers_plot(record),
        validation=validation_sentence(validation) if validation else "",
        pictures=_picture_rows(pictures) if pictures else [],
    )


def _pretty(value: object) -> markupsafe.Markup:
    return markupsafe.escape(json.dumps(to_json(value), indent=1))  # ASCII, and the only text of several lines


class PictureRow(NamedTuple):
    """Images clean, shifted and calibrated, of one shift, as data URLs: a trio for each image."""

    name: str
    severity: str
    images: list[list[str]]


def _picture_rows(pictures: dict[str, np.ndarray]) -> list[PictureRow]:
    rows = []
    for key in pictures:
        if key.endswith(".before"):
            name, severity, _ = key.rsplit(".", 2)  # a user's own shift has a dot in its name
            trio = zip(pictures["clean"], pictures[key], pictures[f"{name}.{severity}.after"], strict=True)
            rows.append(PictureRow(name, severity, [[_data_url(image) for image in one] for one in trio]))
    return rows


def _data_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    if image.width < PICTURE_SIDE:
        factor = PICTURE_SIDE // image.width
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
