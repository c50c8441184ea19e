"""Quotes about what holds on data and machines that nobody foresaw."""

from __future__ import annotations

from figures import percent, record

REASONS = {
    "slow": "it takes as long as float",
    "few-steps": "it was trained for too few steps",
    "no-gain": "it gains nothing under the conditions that choose",
    "undecided": "whether it harms some class cannot be told",
}


def uneven_classes() -> str:
    """A network of one's own on few photographs: what was printed, deployed and recommended."""
    r = record("uneven_classes")
    start, (val, test) = r["start"]["float_validation"], r["plain_torch"].values()
    deployed, clean = r["deployed"], r["record_clean_accuracy"]
    classes = r["test_images_per_class"]
    calibrator = next(c for c in r["recommendation"]["candidates"] if c["graph"] == "compensated")
    int8 = next(g for g in r["effects"]["graphs"] if g["graph"] == "int8")
    first, *_ = int8["classes"]["undecided"]
    name = list(classes)[first["class_index"]]
    low, high = first["interval_pp"]
    return "\n".join(
        [
            "| float network | in plain torch | by qrobust |",
            "|---|---:|---:|",
            f"| validation images | {percent(val['accuracy'])} of {val['n']} | {percent(start['accuracy'])} of "
            f"{start['n']}, printed at the start |",
            f"| test images | {percent(test['accuracy'])} of {test['n']} | {percent(clean['float'])}, in the "
            "record |",
            "",
            f"- The deployed INT8 file, fed by its own metadata without qrobust, is right on "
            f"{percent(deployed['accuracy'], 2)} of {deployed['n']} test images; the record says "
            f"{percent(clean[deployed['graph']], 2)}.",
            f"- A calibrator that learned for 50 steps is not recommended: "
            f"{', '.join(REASONS[reason] for reason in calibrator['refused'])}.",
            f"- Class {name} has {first['n']} test images. INT8 changes its recall by {first['difference_pp']:+.1f} "
            f"points [{low:+.1f}, {high:+.1f}]: undecided, about {first['needed']} images are needed.",
        ]
    )


def malformed() -> str:
    """Malformed inputs by surface and seed."""
    seeds = record("malformed")["seeds"]
    lines = [
        "| surface | " + " | ".join(f"seed {seed}" for seed in seeds) + " |",
        "|---" + "|---:" * len(seeds) + "|",
    ]
    for surface in next(iter(seeds.values())):
        cells = []
        for found in seeds.values():
            counts = found[surface]
            good = counts.get("refused", 0) + counts.get("accepted", 0)
            cells.append(f"{good} of {good + counts.get('failed', 0)}")
        lines.append(f"| {surface} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interruptions() -> str:
    """Kills and signals."""
    seeds = record("interruptions")["seeds"].values()
    same, kills, intact, signals = (
        sum(found[key] for found in seeds) for key in ("same_records", "kills", "old_or_new_whole", "signals")
    )
    return (
        f"{same} of {kills} jobs that were killed went on to the record of an undisturbed one; after {intact} of "
        f"{signals} signals the old or the new run was whole."
    )


def same_figures() -> str:
    """What two versions agree in."""
    lines = [
        "| run | figures in both | equal, but for rounding | other | graphs | nodes, constants and metadata equal "
        "| outputs equal to the bit |",
        "|---|---:|---:|---|---:|---|---|",
    ]
    for name, found in record("same_figures")["runs"].items():
        graphs = found["graphs"].values()
        parts = ("same_nodes", "same_constants", "same_metadata")
        same = sum(all(graph[part] for part in parts) for graph in graphs)
        lines.append(
            f"| {name} | {found['n_figures']:,} | {found['n_figures'] - len(found['differing']):,} "
            f"| {', '.join(f'`{key}`' for key in found['differing']) or 'none'} | {len(graphs)} | {same} "
            f"| {sum(graph['same_outputs'] for graph in graphs)}, on {found['n_images']:,} images |"
        )
    return "\n".join(lines)


TRUST = (same_figures, uneven_classes, malformed, interruptions)
