"""What an x86 CPU without VNNI would make of each layer, as a table."""

from __future__ import annotations

from qrobust.record import Record
from qrobust.report.figures import percent


def saturation_table(record: Record) -> list[list[str]]:
    """A header, then a line per layer whose sums can overflow, most changed first; nothing where none can.

    Args:
        record: of a run.
    """
    found = record.quantization.saturation
    layers = [layer for layer in found.layers if not layer.proven] if found else []
    rows = [
        [
            layer.name,
            percent(layer.risky_pairs),
            percent(layer.saturated_sums),
            percent(layer.changed_outputs),
            f"{layer.mean_error:.3g}",
            f"{layer.largest_error:.3g}",
        ]
        for layer in sorted(layers, key=lambda layer: -layer.changed_outputs)
    ]
    header = [
        "layer",
        "weight pairs that could overflow",
        "pair sums that did",
        "outputs that changed",
        "mean error",
        "largest error",
    ]
    return [header, *rows] if rows else []
