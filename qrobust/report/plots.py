"""Plots of a record, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import TypeAlias

import markupsafe

from qrobust.record import Attacks, Classes, ConditionComparison, ConditionResult, Overview, Record
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
    "float": ("c-float", "ring"),
    "int8": ("c-int8", "square"),
    "compensated": ("c-calibrator", "triangle"),
    "scales": ("c-scales", "diamond"),
    "scales+calibrator": ("c-scales", "triangle"),
    "first-stage": ("c-stage", "diamond"),
    "first-stage+calibrator": ("c-stage", "triangle"),
    "finetune": ("c-tune", "diamond"),
    "finetune+calibrator": ("c-tune", "triangle"),
    "second-look": ("c-other", "ring"),
    "calibrator+second-look": ("c-other", "triangle"),
    "bn-reestimate": ("c-norm", "circle"),
    "calibrator+bn-reestimate": ("c-norm", "triangle"),
    "auto-contrast": ("c-other", "plus"),
    "denoise": ("c-other", "square"),
    "anti-adversary": ("c-other", "wedge"),
}


# Of classifiers that are told apart by their files' names, in turn.
IN_TURN = tuple(dict.fromkeys(LOOKS.values()))

# Classifiers by name, in the order in which they are drawn.
Looks: TypeAlias = Mapping[str, Look]
# A row of a record.
Condition: TypeAlias = ConditionResult | ConditionComparison


def looks_of(graphs: Iterable[str], names: Mapping[str, str]) -> dict[str, Look]:
    """How graphs of a run are drawn.

    Args:
        graphs: their names.
        names: graphs to what they are called.
    """
    return {graph: Look(names[graph], *LOOKS[graph]) for graph in graphs}


def looks_in_turn(names: Iterable[str]) -> dict[str, Look]:
    """How classifiers of any names are drawn."""
    return {name: Look(name, *IN_TURN[index % len(IN_TURN)]) for index, name in enumerate(names)}


def listed(looks: Looks) -> str:
    """What classifiers are called, for a sentence."""
    return ", ".join(look.name for look in looks.values())


def shift_name(name: str) -> str:
    """A shift as it is read."""
    return name.replace("_", " ")


def gains_plot(rows: Sequence[Condition], looks: Looks) -> markupsafe.Markup:
    """Accuracy per shift, mean over its severities, a point per classifier.

    Args:
        rows: of a record.
        looks: classifiers to show.
    """
    shifts = list(dict.fromkeys(row.shift for row in rows))
    drawn = [
        Row(
            shift_name(name),
            tuple(100 * mean(row.accuracy[graph] for row in rows if row.shift == name) for graph in looks),
        )
        for name in shifts
    ]
    label = f"Accuracy of {listed(looks)} under each shift. {NUMBERS_BELOW}"
    return dot_rows(drawn, list(looks.values()), Axis("accuracy, % (mean over severities)", 0, 100), label)


def severity_plots(rows: Sequence[Condition], looks: Looks) -> list[markupsafe.Markup]:
    """Accuracy against severity, a plot per shift; none where there is one severity. Severity 0 is clean.

    Args:
        rows: of a record.
        looks: classifiers to show.
    """
    severities = sorted({row.severity for row in rows})
    if len(severities) < 3:
        return []
    by_condition = {(row.shift, row.severity): row for row in rows}
    clean = next((row for row in rows if row.shift == "clean"), None)
    drawn = []
    for shift in _shifts(rows):
        found = [by_condition.get((shift, severity), None if severity else clean) for severity in severities]
        lines = [
            Curve(look, tuple(None if row is None else 100 * row.accuracy[graph] for row in found))
            for graph, look in looks.items()
        ]
        label = f"Accuracy of {listed(looks)} against severity under {shift_name(shift)}. {NUMBERS_BELOW}"
        drawn.append(curves(shift_name(shift), [str(severity) for severity in severities], lines, label))
    return drawn


def _shifts(rows: Sequence[Condition]) -> list[str]:
    return list(dict.fromkeys(row.shift for row in rows if row.shift != "clean"))


def heat_maps(
    rows: Sequence[Condition], looks: Looks, reference: str, after: str, without: Collection[str] = ()
) -> list[markupsafe.Markup]:
    """Shift by severity: accuracy of a classifier and of what takes its place, then the gain of every other one.

    Args:
        rows: of a record.
        looks: classifiers that were measured under every condition.
        reference: the classifier that others gain over.
        after: the one that takes its place.
        without: those whose gain is not shown.
    """
    if not _shifts(rows):
        return []
    shown = [graph for graph in looks if graph in (reference, after)]
    drawn = [_heat_map(rows, f"{looks[graph].name}: accuracy, %", partial(_accuracy, graph)) for graph in shown]
    for graph, look in looks.items():
        if graph != reference and graph not in without:
            title = f"{look.name}: gain over {looks[reference].name}, points"
            drawn.append(_heat_map(rows, title, partial(_gain, graph, reference)))
    return drawn


def _heat_map(rows: Sequence[Condition], title: str, cell: Callable[[Condition], Cell]) -> markupsafe.Markup:
    severities = sorted({row.severity for row in rows if row.severity})
    by_condition = {(row.shift, row.severity): row for row in rows}
    cells = []
    for shift in _shifts(rows):
        found = [by_condition.get((shift, severity)) for severity in severities]
        cells.append((shift_name(shift), [None if row is None else cell(row) for row in found]))
    label = f"{title}, by shift and severity. {NUMBERS_BELOW}"
    return heat_map(title, [str(severity) for severity in severities], cells, label)


def _accuracy(graph: str, row: Condition) -> Cell:
    value = row.accuracy[graph]
    told = f"{shift_name(row.shift)}, severity {row.severity}: {percent(value)} {bounds(row.interval[graph])}"
    return Cell(accuracy_shade(value), f"{100 * value:.0f}", told)


def _gain(graph: str, reference: str, row: Condition) -> Cell:
    gain = 100 * (row.accuracy[graph] - row.accuracy[reference])
    interval, p = _sureness(graph, row)
    told = f"{shift_name(row.shift)}, severity {row.severity}: {points(gain, interval)}"
    return Cell(gain_shade(gain), "0" if abs(gain) < 0.5 else f"{gain:+.0f}", told, p is not None and p < LEVEL)


def _sureness(graph: str, row: Condition) -> tuple[tuple[float, float] | None, float | None]:
    """Interval and adjusted p-value of a gain, where the row has them."""
    if isinstance(row, ConditionComparison):
        found = row.versus[graph]
        low, high = found.drop_interval_pp
        return (0.0 - high, 0.0 - low), found.drop_p_adjusted
    return (row.gain_interval_pp, row.gain_p_adjusted) if graph == "compensated" else (None, None)


def cost_plots(
    summary: Overview, looks: Looks, times_ms: Mapping[str, float], sizes: Mapping[str, int]
) -> list[markupsafe.Markup]:
    """Accuracy under shift of every classifier, against its time for one image and against the size of its file.

    Args:
        summary: of a record.
        looks: classifiers to show.
        times_ms: of those that were timed.
        sizes: in bytes, of those that are files.
    """
    where = "under shift" if summary.n_conditions else "on clean images"
    drawn = []
    for title, axis, costs in (
        ("time", "time for one image, ms", times_ms),
        ("size", "size of the file, KiB", {graph: size / 1024 for graph, size in sizes.items()}),
    ):
        found = []
        for graph, look in looks.items():
            if graph in costs:
                shift, interval = summary.shift_accuracy[graph], summary.shift_interval[graph]
                value = summary.clean_accuracy[graph] if shift is None else shift
                shown = summary.clean_interval[graph] if interval is None else interval
                found.append(Point(look, costs[graph], 100 * value, y_interval=_hundred(shown)))
        label = f"Accuracy {where} against {title}: {listed(looks)}. {NUMBERS_BELOW}"
        drawn += [scatter(found, axis, f"accuracy {where}, %", label)] if found else []
    return drawn


def _hundred(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]


def remedies_plot(record: Record, looks: Looks) -> list[markupsafe.Markup]:
    """Gain under shift, in points, against what it costs: clean accuracy, and multiply-accumulates where known."""
    whole = record.summary.macs.classifier
    clean = [
        Point(
            looks[row.remedy],
            -row.clean_cost_pp,
            row.gain_pp,
            (-row.clean_cost_interval_pp[1], -row.clean_cost_interval_pp[0]),
            row.gain_interval_pp,
        )
        for row in record.remedies
    ]
    work = [
        Point(looks[row.remedy], 100 * row.macs / whole, row.gain_pp, y_interval=row.gain_interval_pp)
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


def recall_plots(classes: Classes, class_names: Sequence[str], looks: Looks) -> list[markupsafe.Markup]:
    """Recall per class on clean images and under shift, a point per classifier.

    Args:
        classes: of a record.
        class_names: in index order.
        looks: classifiers to show.
    """
    drawn = []
    for where in ("on clean images", "under shift"):
        rows = []
        for index in shown_classes(classes, looks):
            recalls = [classes.classifiers[graph].recall[index] for graph in looks]
            shares = [recall.shift if where == "under shift" else recall.clean for recall in recalls]
            values = tuple(None if share is None else 100 * share for share in shares)
            rows.append(Row(class_name(class_names, index), values))
        if any(value is not None for row in rows for value in row.values):
            label = f"Recall of each class {where}: {listed(looks)}. {NUMBERS_BELOW}"
            axis = Axis(f"recall {where}, %", 0, 100)
            drawn.append(dot_rows(rows, list(looks.values()), axis, label, width=480))
    return drawn


def attack_plots(attacks: Attacks, looks: Looks) -> list[markupsafe.Markup]:
    """What the worst case of all attacks leaves of accuracy, against the budget; a plot per norm.

    Args:
        attacks: of a record.
        looks: classifiers to show.
    """
    clean = {row.classifier: row.robust_accuracy for row in attacks.rows if row.kind == "clean"}
    drawn = []
    for norm in dict.fromkeys(row.norm for row in attacks.worst):
        left = {(row.classifier, row.epsilon): row.robust_accuracy for row in attacks.worst if row.norm == norm}
        budgets = sorted({epsilon for _, epsilon in left})
        lines = []
        for graph, look in looks.items():
            shares = [clean.get(graph), *(left.get((graph, epsilon)) for epsilon in budgets)]
            lines.append(Curve(look, tuple(None if share is None else 100 * share for share in shares)))
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
