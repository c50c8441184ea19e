"""Quotes of what quantization costs under corruption, for quote.py."""

from __future__ import annotations

from figures import change, percent, record


def robustness() -> str:
    """A line per network and corruption: accuracy of every graph, mean over five severities."""
    found = record("robustness")["networks"]
    graphs = list(next(iter(found.values()))["summary"]["clean_accuracy"])
    lines = [f"| network | corruption | {' | '.join(graphs)} |", "|---|---|" + "---:|" * len(graphs)]
    for network, kept in found.items():
        for shift in dict.fromkeys(row["shift"] for row in kept["rows"]):
            rows = [row["accuracy"] for row in kept["rows"] if row["shift"] == shift]
            means = [percent(sum(row[g] for row in rows) / len(rows)) for g in graphs]
            lines.append(f"| {network} | {shift.replace('_', ' ')} | {' | '.join(means)} |")
    return "\n".join(lines)


def robustness_summary() -> str:
    """A line per network and graph: drops from float and the difference in differences."""
    lines = [
        "| network | graph | clean drop | drop under corruption | difference in differences | agreement with float |",
        "|---|---|---:|---:|---:|---:|",
    ]
    networks = record("robustness")["networks"]
    for network, kept in networks.items():
        for graph, versus in kept["summary"]["versus"].items():
            lines.append(
                f"| {network} | {graph} | {change(versus, 'quantization_drop')} | "
                f"{change(versus, 'shift_quantization_drop')} | {change(versus, 'difference_in_differences')} | "
                f"{percent(versus['agreement'])} |"
            )
    kept = next(iter(networks.values()))
    lines += [
        "",
        f"n = {kept['summary']['n_test']:,} test images, {kept['summary']['n_cells']} cells, severity table "
        f"`{kept['severity_table']}`, onnxruntime {kept['versions']['onnxruntime']}. Drops are float minus "
        "quantized.",
    ]
    return "\n".join(lines)


def evaluation_cost() -> str:
    """What a full evaluation takes."""
    found = record("evaluation_cost")
    full, *growing = found["rows"]
    above = [f"{row['peak_mib'] - found['imports_mib']:.0f} MiB with {row['images']:,}" for row in growing]
    return (
        f"All {full['cells']} combinations of shift and severity, {full['images']:,} test images, "
        f"{len(found['graphs'])} graphs of ResNet-20: {full['seconds'] / 60:.1f} minutes on "
        f"{found['hardware']['threads']} threads of {found['hardware']['processor']}, with {found['workers']} "
        f"processes that render. Peak memory, all processes together: "
        f"{full['peak_mib'] - found['imports_mib']:.0f} MiB above one that only imports "
        f"({found['imports_mib']:.0f} MiB); by images, on fewer shifts: {', '.join(above)}."
    )


ROBUSTNESS = (robustness, robustness_summary, evaluation_cost)
