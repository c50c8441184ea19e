"""Plots of a record, as inline SVG; the only module that imports matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from functools import partial

import markupsafe
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qrobust.record import Record
from qrobust.text import printable

COLOURS = {"float": "#6b7280", "int8": "#d97706", "compensated": "#047857"}
LABELS = {"float": "float", "int8": "INT8", "compensated": "INT8 + calibrator"}


# Names are no formulas: a dollar sign in one begins none.
drawing = matplotlib.rc_context({"svg.hashsalt": "qrobust", "svg.fonttype": "none", "text.parse_math": False})


def _svg(figure: Figure) -> markupsafe.Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the text
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", transparent=True
        )
    text = buffer.getvalue()
    # Our own drawing of our own numbers; nothing of the user's text is in it unescaped.
    return markupsafe.Markup(re.sub(r"^.*?<svg", "<svg", text, flags=re.DOTALL))


@drawing
def remedies_plot(record: Record, names: dict[str, str]) -> markupsafe.Markup:
    """Gain under shift, in points, against what it costs: clean accuracy, time at batch 1, multiply-accumulates.

    What has no graph has no time or multiply-accumulates to show.
    """
    figure = Figure(figsize=(11, 3.8))
    clean = figure.add_subplot(1, 3, 1)
    time, macs = (figure.add_subplot(1, 3, column, sharey=clean) for column in (2, 3))
    whole = record.summary.macs.classifier
    for index, row in enumerate(record.remedies):
        x, y, (low, high) = -row.clean_cost_pp, row.gain_pp, row.gain_interval_pp
        cheap, dear = row.clean_cost_interval_pp
        limits = [[y - low], [high - y]]
        mark = partial(Axes.errorbar, y=y, yerr=limits, fmt="o", capsize=2, color=f"C{index}")
        mark(clean, x, xerr=[[x + dear], [-cheap - x]], label=names[row.remedy])
        if row.latency_ratio and row.macs is not None:
            mark(time, row.latency_ratio.batch_1)
            mark(macs, 100 * row.macs / whole)
    for axes, neutral, label in (
        (clean, 0, "clean accuracy, points against INT8"),
        (time, 1, "times INT8's time at batch 1"),
        (macs, 0, "multiply-accumulates added, % of the classifier's"),
    ):
        axes.axhline(0, color="#9ca3af", linewidth=0.8)
        axes.axvline(neutral, color="#9ca3af", linewidth=0.8)
        axes.margins(x=0.15, y=0.15)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=axes is clean)
    clean.set_ylabel("gain under shift, points")
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=4, frameon=False, fontsize=8)
    return _svg(figure)


@drawing
def gains_plot(record: Record, graphs: list[str]) -> markupsafe.Markup:
    """Accuracy per shift, mean over its severities, one bar per graph."""
    names = list(dict.fromkeys(r.shift for r in record.rows))
    figure = Figure(figsize=(9, 0.42 * len(names) + 1))
    axes = figure.add_subplot()
    height = 0.8 / len(graphs)
    for index, graph in enumerate(graphs):
        values = [100 * np.mean([r.accuracy[graph] for r in record.rows if r.shift == name]) for name in names]
        axes.barh(np.arange(len(names)) + index * height, values, height, color=COLOURS[graph], label=LABELS[graph])
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, [printable(n.replace("_", " ")) for n in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy, % (mean over severities)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return _svg(figure)


@drawing
def severity_plot(record: Record, graphs: list[str]) -> markupsafe.Markup:
    """Accuracy against severity, mean over the shifts measured at it; severity 0 is clean."""
    severities = sorted({r.severity for r in record.rows})
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for graph in graphs:
        values = [100 * np.mean([r.accuracy[graph] for r in record.rows if r.severity == s]) for s in severities]
        axes.plot(severities, values, marker="o", color=COLOURS[graph], label=LABELS[graph])
    axes.set_xticks(severities)
    axes.set_ylim(0, 100)
    axes.set_xlabel("severity (0: clean)")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _svg(figure)


@drawing
def layers_plot(record: Record) -> markupsafe.Markup:
    """Signal-to-noise ratio per layer and, where it was measured, what the layer alone does to the output."""
    quantization = record.quantization
    layers, effects = quantization.layer_noise, {e.name: e for e in quantization.layer_effects}
    rows = np.arange(len(layers))
    figure = Figure(figsize=(12 if effects else 9, 0.24 * len(layers) + 1))
    axes = figure.add_subplot(1, 3 if effects else 1, 1)
    for ratios, marker, label in (
        ([layer.weight_sqnr_db for layer in layers], "s", "weights"),
        ([layer.input_sqnr_db for layer in layers], "o", "input alone"),
        ([layer.output_sqnr_db for layer in layers], "D", "output"),
    ):
        axes.plot(ratios, rows, marker, markersize=4, label=label)
    axes.set_yticks(rows, [printable(layer.name) for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("signal to quantization noise, dB")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    alone_effects = [effects.get(layer.name) for layer in layers]
    panels = (
        ([e.divergence if e else 0.0 for e in alone_effects], "KL divergence from float, nats"),
        ([100 * e.accuracy_drop if e else 0.0 for e in alone_effects], "accuracy lost, points"),
    )
    for column, (values, label) in enumerate(panels if effects else (), 2):
        alone = figure.add_subplot(1, 3, column, sharey=axes)
        alone.barh(rows, values, color=COLOURS["int8"])
        alone.tick_params(labelleft=False)
        alone.set_xlabel(label)
        alone.set_title("only this layer quantized", fontsize=8)
    return _svg(figure)
