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
        f"n = {kept['summary']['n_test']:,} test images, {kept['summary']['n_conditions']} conditions (shift and "
        f"severity), severity table `{kept['severity_table']}`, onnxruntime {kept['versions']['onnxruntime']}. Drops "
        "are float minus quantized.",
    ]
    return "\n".join(lines)


def attack_libraries() -> str:
    """A line per attack and budget: what our attack and a library's leave of the same network."""
    found = record("attacks")
    lines = ["| attack | budget | library | it leaves | ours leaves |", "|---|---:|---|---:|---:|"]
    for row in found["rows"]:
        budget = f"{255 * row['epsilon']:g}/255" if row["norm"] == "Linf" else f"{row['epsilon']:g} (L2)"
        left = row["robust_accuracy"]
        library = {"art": "ART", "foolbox": "Foolbox"}[row["library"]]
        lines.append(
            f"| {row['attack'].replace('_', '-')} | {budget} | {library} | {percent(left['library'])} | "
            f"{percent(left['qrobust'])} |"
        )
    versions = found["versions"]
    widest = max(high - low for row in found["rows"] for low, high in row["interval"].values()) / 2
    about = (
        f"Accuracy left of ResNet-20 in float ({percent(found['clean_accuracy'])} clean), "
        f"n = {found['rows'][0]['n']} test images: intervals at 95 % reach up to {100 * widest:.0f} points to either "
        "side, but both sides attack the same images. Ours leaves at most "
        f"{found['most_above_library_pp']:.1f} points more. "
        f"Foolbox {versions['foolbox']}, ART {versions['adversarial-robustness-toolbox']}."
    )
    return "\n".join([*lines, "", about])


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


def attack_cost() -> str:
    """What the levels of attacks take."""
    r = record("evaluation_cost")
    none, *levels = r["attacks"]
    each = (
        f"`{row['level']}` takes {(row['seconds'] - none['seconds']) / row['images']:.1f} s an image "
        f"(measured on {row['images']})"
        for row in levels
    )
    return f"{', '.join(each)}: three graphs of a ResNet-20 at 32 px, {r['hardware']['threads']} threads."


def adaptive_attacks() -> str:
    """What attacks leave of INT8 and of the repaired classifier, by who knows what it decides by."""
    lines = ["| budget | graph | clean | by each way | stands against all |", "|---:|---|---:|---|---:|"]
    differences = []
    for remedy, r in record("adaptive_attacks").items():
        for budget, found in r["budgets"].items():
            for graph, ways in found["ways"].items():
                each = ", ".join(f"{way} {percent(left['accuracy'])}" for way, left in ways.items())
                low, high = (100 * end for end in found["stand"][graph]["interval"])
                stands = f"{percent(found['stand'][graph]['accuracy'])} [{low:.1f}, {high:.1f}]"
                clean = percent(r["clean"][graph]["accuracy"])
                lines.append(f"| {budget}/255 | `{graph}` | {clean} | {each} | {stands} |")
        each = "; ".join(f"{budget}/255 {change(found, 'difference')}" for budget, found in r["budgets"].items())
        differences.append(
            f"`{remedy}` less INT8, of what stands against all: {each}. n = {r['n']:,} test images, PGD of "
            f"{r['steps']} steps from {r['restarts']} random starts, 95 % intervals over images."
        )
    return "\n\n".join(["\n".join(lines), *differences])


ROBUSTNESS = (robustness, robustness_summary, attack_libraries, adaptive_attacks, evaluation_cost, attack_cost)
