"""Where a record comes from, as a table: data, weights, graphs, versions, and where they were measured."""

from __future__ import annotations

from qrobust.record import Record
from qrobust.report.verdict import NAMES


def provenance_table(record: Record) -> list[list[str]]:
    """A header, then a line per thing that a figure depends on, with hashes where the record has them."""
    rows = [["what", "is"]]
    rows.append(["made", f"{record.created} by qrobust {record.qrobust}"])
    rows.append(["weights", record.weights or "none given"])
    rows.append(["data", record.data])
    for name, split in record.splits.items():
        where = f" from {split.taken_from}" if split.taken_from else ""
        rows.append([f"{name} images", f"{split.n:,}{where}; indices {split.fingerprint}, files {split.listing}"])
    for graph, digest in (record.graph_sha256 or {}).items():
        rows.append([f"graph: {NAMES.get(graph, graph)}", f"SHA-256 {digest}"])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())])
    found = record.hardware
    rows.append(["CPU", f"{found.processor} ({', '.join(found.flags)}), {found.threads} thread(s) of {found.cores}"])
    rows.append(["took", ", ".join(f"{name} {stage.duration_s:.0f} s" for name, stage in record.stages.items())])
    return rows
