"""Where INT8 buys nothing: graphs that are mostly float, and graphs that take longer than float."""

from __future__ import annotations

from collections.abc import Mapping

from qrobust.record import Audit, Record
from qrobust.report.figures import percent

# Share of the multiply-accumulates that are on integers below which a graph is called a float one.
LEAST_INTEGER = 0.5


def mostly_float(audits: Mapping[str, Audit], names: Mapping[str, str]) -> dict[str, str]:
    """A sentence for each quantized graph of which less than half of the work is on integers.

    Args:
        audits: of graphs; that of `float` is left out, and so are those whose work is unknown.
        names: of graphs for readers.
    """
    return {
        name: f"{names.get(name, name)} does {percent(audited.integer_mac_share)} of its multiply-accumulates on "
        "integers, less than half; qrobust audit names what is in float and why"
        for name, audited in audits.items()
        if name != "float" and audited.integer_mac_share is not None and audited.integer_mac_share < LEAST_INTEGER
    }


def slower_than_float(record: Record, names: Mapping[str, str]) -> dict[str, str]:
    """A sentence for each graph that takes longer than float for one image, as far as this CPU's times can tell.

    Times against that of INT8 have intervals where the record has them: the graph's must lie above float's. Times of
    a CPU that adds as the target does by slower kernels tell nothing.
    """
    latency, known = record.summary.latency_ms, record.summary.latency_interval or {}
    if record.hardware.sums == "exact-by-request":
        return {}
    found: dict[str, str] = {}
    for name in latency:
        ratio = latency[name].over(latency["float"]).batch_1
        low = known[name][0] if name in known else latency[name].over(latency["int8"]).batch_1
        high = known["float"][1] if "float" in known else latency["float"].over(latency["int8"]).batch_1
        if name != "float" and ratio > 1 and low > high:
            found[name] = f"{names.get(name, name)} takes {ratio:.2f} times the time of float for one image"
    return found
