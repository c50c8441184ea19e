"""Plots of a record, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean

import markupsafe

from qrobust.record import Attacks, Classes, ConditionResult, Record
from qrobust.report.attacks import epsilon_text
from qrobust.report.charts import (
    Axis,
    Cell,
    Curve,
    Look,
    Point,
    Row,
    accuracy_shade,
    curves,
    dot_rows,
    gain_shade,
    heat_map,
    scatter,
)
from qrobust.report.classes import class_name, shown_classes
from qrobust.report.figures import bounds, percent, points

LABELS = {"float": "float", "int8": "INT8", "compensated": "INT8 + calibrator"}
LEVEL = 0.05
NUMBERS_BELOW = "The tables of this page have the numbers."
NO_TABLE = "The record has the numbers."
LAYER_SERIES = (
    ("weights", "c-calibrator", "square"),
    ("input alone", "c-int8", "circle"),
    ("output", "c-float", "diamond"),
)
# Colour and shape of every graph; what has a calibrator in front points up or down.
LOOKS = {
    "float": ("c-float", "circle"),
    "int8": ("c-int8", "square"),
    "compensated": ("c-calibrator", "triangle"),
    "scales": ("c-scales", "diamond"),
    "scales+calibrator": ("c-scales", "triangle"),
    "first-stage": ("c-stage", "diamond"),
    "first-stage+calibrator": ("c-stage", "triangle"),
    "finetune": ("c-tune", "diamond"),
    "finetune+calibrator": ("c-tune", "triangle"),
    "bn-reestimate": ("c-norm", "circle"),
    "calibrator+bn-reestimate": ("c-norm", "triangle"),
    "auto-contrast": ("c-other", "plus"),
    "denoise": ("c-other", "square"),
    "anti-adversary": ("c-other", "wedge"),
}


def look(graph: str, names: Mapping[str, str]) -> Look:
    """How a graph is drawn.

    Args:
        graph: its name.
        names: graphs to what they are called.
    """
    return Look(names[graph], *LOOKS[graph])


def shift_name(name: str) -> str:
    """A shift as it is read."""
    return name.replace("_", " ")


def gains_plot(record: Record, graphs: Sequence[str], names: Mapping[str, str] = LABELS) -> markupsafe.Markup:
    """Accuracy per shift, mean over its severities, a point per graph."""
    shifts = list(dict.fromkeys(row.shift for row in record.rows))
    rows = [
        Row(
            shift_name(name),
            tuple(100 * mean(row.accuracy[graph] for row in record.rows if row.shift == name) for graph in graphs),
        )
        for name in shifts
    ]
    label = f"Accuracy of {', '.join(names[graph] for graph in graphs)} under each shift. {NUMBERS_BELOW}"
    axis = Axis("accuracy, % (mean over severities)", 0, 100)
    return dot_rows(rows, [look(graph, names) for graph in graphs], axis, label)


def severity_plots(record: Record, graphs: Sequence[str], names: Mapping[str, str]) -> list[markupsafe.Markup]:
    """Accuracy against severity, a plot per shift; none where there is one severity. Severity 0 is clean."""
    severities = sorted({row.severity for row in record.rows})
    if len(severities) < 3:
        return []
    by_condition = {(row.shift, row.severity): row for row in record.rows}
    clean = next((row for row in record.rows if row.shift == "clean"), None)
    drawn = []
    for shift in dict.fromkeys(row.shift for row in record.rows if row.shift != "clean"):
        found = [by_condition.get((shift, severity), None if severity else clean) for severity in severities]
        lines = [
            Curve(look(graph, names), tuple(None if row is None else 100 * row.accuracy[graph] for row in found))
            for graph in graphs
        ]
        label = f"Accuracy against severity under {shift_name(shift)}. {NUMBERS_BELOW}"
        drawn.append(curves(shift_name(shift), [str(severity) for severity in severities], lines, label))
    return drawn


def heat_maps(
    record: Record, graphs: Sequence[str], names: Mapping[str, str], after: str | None
) -> list[markupsafe.Markup]:
    """Shift by severity: accuracy of INT8 and of what takes its place, then the gain of every remedy over INT8.

    Args:
        record: of a run.
        graphs: that were measured under every condition.
        names: graphs to what they are called.
        after: the graph that takes INT8's place, or None.
    """
    if not any(row.severity for row in record.rows):
        return []
    shown = ["int8", *(graph for graph in graphs if graph == after and graph not in ("float", "int8"))]
    drawn = [_heat_map(record, f"{names[graph]}: accuracy, %", partial(_accuracy, graph)) for graph in shown]
    for graph in graphs:
        if graph not in ("float", "int8"):
            drawn.append(_heat_map(record, f"{names[graph]}: gain over INT8, points", partial(_gain, graph)))
    return drawn


def _heat_map(record: Record, title: str, cell: Callable[[ConditionResult], Cell]) -> markupsafe.Markup:
    severities = sorted({row.severity for row in record.rows if row.severity})
    by_condition = {(row.shift, row.severity): row for row in record.rows}
    rows = []
    for shift in dict.fromkeys(row.shift for row in record.rows if row.shift != "clean"):
        found = [by_condition.get((shift, severity)) for severity in severities]
        rows.append((shift_name(shift), [None if row is None else cell(row) for row in found]))
    label = f"{title}, by shift and severity. {NUMBERS_BELOW}"
    return heat_map(title, [str(severity) for severity in severities], rows, label)


def _accuracy(graph: str, row: ConditionResult) -> Cell:
    value = row.accuracy[graph]
    told = f"{shift_name(row.shift)}, severity {row.severity}: {percent(value)} {bounds(row.interval[graph])}"
    return Cell(accuracy_shade(value), f"{100 * value:.0f}", told)


def _gain(graph: str, row: ConditionResult) -> Cell:
    gain = 100 * (row.accuracy[graph] - row.accuracy["int8"])
    own = graph == "compensated" and row.gain_p_adjusted is not None
    told = points(gain, row.gain_interval_pp if own else None)
    shown = f"{gain:+.0f}".replace("-0", "0").replace("+0", "0") if abs(gain) < 0.5 else f"{gain:+.0f}"
    strong = own and row.gain_p_adjusted is not None and row.gain_p_adjusted < LEVEL
    return Cell(gain_shade(gain), shown, f"{shift_name(row.shift)}, severity {row.severity}: {told}", strong)


def cost_plots(record: Record, names: Mapping[str, str]) -> list[markupsafe.Markup]:
    """Accuracy under shift of every graph, against its time for one image and against the size of its file."""
    s = record.summary
    drawn = []
    for title, axis, costs in (
        ("time", "time for one image, ms", {graph: latency.batch_1 for graph, latency in s.latency_ms.items()}),
        ("size", "size of the file, KiB", {graph: size / 1024 for graph, size in s.size_bytes.items()}),
    ):
        found = [
            Point(
                look(graph, names),
                costs[graph],
                100 * (s.clean_accuracy[graph] if shift is None else shift),
                y_interval=_hundred(s.shift_interval[graph] or s.clean_interval[graph]),
            )
            for graph, shift in s.shift_accuracy.items()
            if graph in costs
        ]
        where = "under shift" if s.n_conditions else "on clean images"
        label = f"Accuracy {where} against {title} of every graph. {NUMBERS_BELOW}"
        drawn.append(scatter(found, axis, f"accuracy {where}, %", label))
    return drawn


def _hundred(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]


def remedies_plot(record: Record, names: Mapping[str, str]) -> list[markupsafe.Markup]:
    """Gain under shift, in points, against what it costs: clean accuracy, and multiply-accumulates where known."""
    whole = record.summary.macs.classifier
    clean = [
        Point(
            look(row.remedy, names),
            -row.clean_cost_pp,
            row.gain_pp,
            (-row.clean_cost_interval_pp[1], -row.clean_cost_interval_pp[0]),
            row.gain_interval_pp,
        )
        for row in record.remedies
    ]
    work = [
        Point(look(row.remedy, names), 100 * row.macs / whole, row.gain_pp, y_interval=row.gain_interval_pp)
        for row in record.remedies
        if row.macs is not None
    ]
    gain, told = "gain under shift, points", "Gain under shift of every remedy against"
    drawn = [
        scatter(
            clean,
            "clean accuracy, points against INT8",
            gain,
            f"{told} its change of clean accuracy. {NUMBERS_BELOW}",
            zero=False,
        )
    ]
    if work:
        axis = "multiply-accumulates added, % of the classifier's"
        drawn.append(scatter(work, axis, gain, f"{told} multiply-accumulates added. {NUMBERS_BELOW}"))
    return drawn


def recall_plots(
    classes: Classes, class_names: Sequence[str], names: Mapping[str, str]
) -> list[tuple[str, markupsafe.Markup]]:
    """Recall per class on clean images and under shift, a point per classifier; each with what it is of.

    Args:
        classes: of a record.
        class_names: in index order.
        names: the classifiers to show, to what they are called.
    """
    drawn = []
    looks = [look(graph, names) for graph in names]
    for where in ("clean", "shift"):
        rows = []
        for index in shown_classes(classes, names):
            recalls = [classes.classifiers[graph].recall[index] for graph in names]
            shares = [recall.clean if where == "clean" else recall.shift for recall in recalls]
            values = tuple(None if share is None else 100 * share for share in shares)
            rows.append(Row(class_name(class_names, index), values))
        if any(value is not None for row in rows for value in row.values):
            told = "on clean images" if where == "clean" else "under shift"
            label = f"Recall of each class {told}. {NUMBERS_BELOW}"
            drawn.append((told, dot_rows(rows, looks, Axis(f"recall {told}, %", 0, 100), label, width=480)))
    return drawn


def attack_plots(attacks: Attacks, names: Mapping[str, str]) -> list[markupsafe.Markup]:
    """What the worst case of all attacks leaves of accuracy, against the budget; a plot per norm."""
    clean = {row.classifier: row.robust_accuracy for row in attacks.rows if row.kind == "clean"}
    drawn = []
    for norm in dict.fromkeys(row.norm for row in attacks.worst):
        left = {(row.classifier, row.epsilon): row.robust_accuracy for row in attacks.worst if row.norm == norm}
        budgets = sorted({epsilon for _, epsilon in left})
        lines = []
        for graph in dict.fromkeys(graph for graph, _ in left):
            shares = [clean.get(graph), *(left.get((graph, epsilon)) for epsilon in budgets)]
            values = tuple(None if share is None else 100 * share for share in shares)
            lines.append(Curve(look(graph, names), values))
        label = f"Accuracy left by the worst case of all attacks against the {norm} budget. {NUMBERS_BELOW}"
        places = ["0", *(epsilon_text(norm, epsilon) for epsilon in budgets)]
        drawn.append(curves(f"{norm}: accuracy left, %", places, lines, label, width=480, height=240))
    return drawn


def layers_plot(record: Record) -> list[markupsafe.Markup]:
    """Signal-to-noise ratio per layer and, where it was measured, what the layer alone does to the output."""
    quantization = record.quantization
    effects = {effect.name: effect for effect in quantization.layer_effects}
    ratios = [
        Row(layer.name, (layer.weight_sqnr_db, layer.input_sqnr_db, layer.output_sqnr_db))
        for layer in quantization.layer_noise
    ]
    looks = [Look(name, colour, shape) for name, colour, shape in LAYER_SERIES]
    axis = Axis("signal to quantization noise, dB")
    drawn = [dot_rows(ratios, looks, axis, f"Signal to quantization noise of every layer. {NO_TABLE}")]
    if effects:
        own = Look("only this layer quantized", "c-int8", "square")
        for title, values in (
            ("KL divergence from float, nats", {name: effect.divergence for name, effect in effects.items()}),
            ("accuracy lost, points", {name: 100 * effect.accuracy_drop for name, effect in effects.items()}),
        ):
            rows = [Row(layer.name, (values.get(layer.name),)) for layer in quantization.layer_noise]
            label = f"{title}, with only this layer quantized. {NO_TABLE}"
            drawn.append(dot_rows(rows, [own], Axis(f"{title}, only this layer quantized"), label))
    return drawn
