"""A record as one self-contained HTML page: verdict first, then the tables, plots and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import NamedTuple

import jinja2
import markupsafe
import numpy as np
from PIL import Image

from qrobust.record import ConditionResult, Record, to_json
from qrobust.report.approval import approval_table
from qrobust.report.attacks import NOTE, attack_table, pose_table
from qrobust.report.charts import Look
from qrobust.report.classes import confusion_tables, recall_note, recall_table
from qrobust.report.confidence import confidence_note, confidence_table
from qrobust.report.corruption_sets import stored_tables
from qrobust.report.data import duplicates_sentence, left_out_sentence
from qrobust.report.figures import percent, points
from qrobust.report.next_steps import next_steps
from qrobust.report.plots import (
    LABELS,
    LAYER_SERIES,
    attack_plots,
    cost_plots,
    gains_plot,
    heat_maps,
    layers_plot,
    looks_of,
    recall_plots,
    remedies_plot,
    severity_plots,
    shift_name,
)
from qrobust.report.provenance import provenance_table
from qrobust.report.saturation import saturation_table
from qrobust.report.svg import SHAPES
from qrobust.report.tiles import compared, tiles, time_interval
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
# In a sentence.
CODE = re.compile(r"(`[^`]+`|(?<!\S)--[a-z][a-z-]*)")
# Of the page, in its order, by id.
SECTIONS = {
    "found": "What was found",
    "next": "What to do next",
    "gains": "Where it gains and where it does not",
    "graphs": "The graphs",
    "remedies": "Which way to compensate",
    "shifts": "Every shift",
    "classes": "Every class",
    "confidence": "What confidence is worth",
    "missed": "Images that are wrong most often",
    "pictures": "What the calibrator changes",
    "attacks": "Attacks: a risk figure, not a defence claim",
    "integer": "Is it really integer, and does it say what torch says?",
    "layers": "Which layers quantization costs",
    "provenance": "Provenance",
}


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
        "is_loss": _is_loss,
        "prose": _prose,
    }
    return made


def html_report(
    record: Record,
    pictures: dict[str, np.ndarray] | None,
    missed: np.ndarray | None = None,
    folder_name: str = "RUN",
) -> str:
    """Render a record.

    Args:
        record: of a run.
        pictures: `clean`, and `SHIFT.SEVERITY.before` / `.after`, each uint8 `(n, C, H, W)`.
        missed: the record's missed images, uint8 `(n, C, H, W)`.
        folder_name: of the run, for commands to copy.
    """
    every = [k for k in NAMES if k in record.summary.clean_accuracy]
    graphs = [k for k in every if k in LABELS]
    shown = {g: NAMES[g] for g in graphs}
    page = environment().get_template("report.html")
    rows = _picture_rows(pictures) if pictures else []
    wrong = _missed_pictures(record, missed) if missed is not None else []
    stored = stored_tables(record, NAMES)
    return page.render(
        record=record,
        summary=record.summary,
        contents=_contents(record, bool(rows), bool(wrong), [name for name, *_ in stored]),
        graphs=graphs,
        every=every,
        names=NAMES,
        level=LEVEL,
        shapes=SHAPES,
        looks=list(looks_of(graphs, NAMES).values()),
        headline=headline(record),
        left_out=left_out_sentence(record.left_out),
        duplicates=duplicates_sentence(record.duplicates),
        stored_tables=stored,
        provenance=provenance_table(record),
        pictures=rows,
        missed=wrong,
        **_first_screen(record, folder_name),
        **_remedies(record),
        **_shifts(record, graphs),
        **_classes(record, shown),
        **_attacks(record),
        **_layers(record),
    )


def _contents(record: Record, pictures: bool, missed: bool, sets: list[str]) -> dict[str, str]:
    """The page's sections that have something to show, by id."""
    optional = {
        "remedies": len(record.remedies) > 1,
        "classes": record.classes is not None,
        "confidence": record.confidence is not None,
        "missed": missed,
        "pictures": pictures,
        "attacks": bool(record.attacks.rows),
    }
    found: dict[str, str] = {}
    for key, title in SECTIONS.items():
        if key == "pictures":  # data sets stand before them
            found |= {f"set-{index}": f"Corruption data set: {name}" for index, name in enumerate(sets, 1)}
        if optional.get(key, True):
            found[key] = title
    return found


def _first_screen(record: Record, folder_name: str) -> dict[str, object]:
    found = compared(record)
    outcome = {"recommended": "", "not recommended": "bad"}.get(found.status, "open")
    return {
        "verdict": verdict(record),
        "outcome": outcome,
        "tiles": tiles(record),
        "compared_sentence": found.sentence,
        "time_interval": time_interval(record, found),
        "steps": next_steps(record, folder_name),
    }


def _remedies(record: Record) -> dict[str, object]:
    compare, looks = len(record.remedies) > 1, looks_of((row.remedy for row in record.remedies), NAMES)
    return {
        "comparison": comparison(record) if compare else [],
        "approval": approval_table(record, NAMES) if compare else [],
        "remedies": remedies_plot(record, looks) if compare else [],
    }


def _shifts(record: Record, graphs: list[str]) -> dict[str, object]:
    rows, s, shown = record.rows, record.summary, looks_of(graphs, NAMES)
    measured = looks_of((graph for graph in NAMES if all(graph in row.accuracy for row in rows)), NAMES)
    times = {graph: latency.batch_1 for graph, latency in s.latency_ms.items()}
    known = looks_of((graph for graph in NAMES if graph in s.clean_accuracy), NAMES)
    return {
        "gains": gains_plot(rows, shown),
        "severities": severity_plots(rows, shown),
        "heat_maps": heat_maps(rows, measured, "int8", compared(record).after, without=("float",)),
        "costs": cost_plots(s, known, times, s.size_bytes),
    }


def _classes(record: Record, shown: dict[str, str]) -> dict[str, object]:
    classes, names = record.classes, record.class_names
    return {
        "recalls": recall_table(classes, names, shown) if classes else [],
        "recall_note": recall_note(classes) if classes else "",
        "recall_plots": recall_plots(classes, names, looks_of(shown, NAMES)) if classes else [],
        "confusions": confusion_tables(classes, names, shown) if classes else [],
        "confidences": confidence_table(record.confidence, NAMES),
        "confidence_note": confidence_note(record.confidence) if record.confidence else "",
    }


def _attacks(record: Record) -> dict[str, object]:
    looks = looks_of(dict.fromkeys(worst.classifier for worst in record.attacks.worst), NAMES)
    return {
        "attack_tables": [attack_table(record.attacks, NAMES), pose_table(record.attacks, NAMES)],
        "attack_note": NOTE,
        "attack_plots": attack_plots(record.attacks, looks),
        "attack_looks": list(looks.values()),
    }


def _layers(record: Record) -> dict[str, object]:
    validation = record.quantization.validation
    return {
        "layers": layers_plot(record),
        "saturation": saturation_table(record),
        "layer_looks": [Look(*series) for series in LAYER_SERIES],
        "validation": validation_sentence(validation) if validation else "",
    }


def _is_loss(row: ConditionResult) -> bool:
    """Whether INT8, or the calibrator, is significantly worse than what it takes the place of."""
    lost = row.drop_pp > 0 and row.drop_p_adjusted < LEVEL
    return lost or (row.gain_pp is not None and row.gain_pp < 0 and (row.gain_p_adjusted or 0.0) < LEVEL)


def _pretty(value: object) -> markupsafe.Markup:
    return markupsafe.escape(json.dumps(to_json(value), indent=1))  # ASCII, and the only text of several lines


def _prose(sentence: str) -> markupsafe.Markup:
    """A sentence whose `commands` and --options are code."""
    parts = (markupsafe.escape(part) for part in CODE.split(printable(sentence)))
    marked = [f"<code>{part.strip('`')}</code>" if index % 2 else part for index, part in enumerate(parts)]
    return markupsafe.Markup("".join(marked))  # each part is escaped


class PictureRow(NamedTuple):
    """Images clean, shifted and calibrated, of one shift, as data URLs: a trio for each image."""

    caption: str
    images: list[list[str]]


def _picture_rows(pictures: dict[str, np.ndarray]) -> list[PictureRow]:
    rows = []
    for key in pictures:
        if key.endswith(".before"):
            name, severity, _ = key.rsplit(".", 2)  # a user's own shift has a dot in its name
            trio = zip(pictures["clean"], pictures[key], pictures[f"{name}.{severity}.after"], strict=True)
            rows.append(
                PictureRow(
                    f"{shift_name(name)}, severity {severity}", [[_data_url(image) for image in one] for one in trio]
                )
            )
    return rows


class MissedPicture(NamedTuple):
    """An image that is wrong most often, as a data URL, and what is to be said of it."""

    url: str
    caption: str
    wrong: str


def _missed_pictures(record: Record, images: np.ndarray) -> list[MissedPicture]:
    """Nothing where the images are of another evaluation than the record."""
    if len(images) != len(record.missed_images):
        return []
    names, conditions = record.class_names, len(record.rows)
    return [
        MissedPicture(
            _data_url(pixels),
            f"{names[one.label]}, taken for {names[one.predicted]}",
            f"wrong in {one.conditions} of {conditions}",
        )
        for one, pixels in zip(record.missed_images, images, strict=True)
    ]


def _data_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    if image.width < PICTURE_SIDE:
        factor = PICTURE_SIDE // image.width
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
