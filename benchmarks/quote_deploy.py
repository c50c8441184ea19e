"""Quotes of one deployed file in several places, for quote.py."""

from __future__ import annotations

from typing import Any

from figures import percent, record

from qrobust.evaluation.statistics import wilson_interval

GRAPHS = {"int8": "INT8", "compensated": "INT8 + calibrator"}


def _row(graph: dict[str, Any], row: dict[str, Any]) -> str:
    name = f"{GRAPHS[graph['graph']]}, `{graph['target']}`"
    if "missing" in row:
        return f"| {name} | {row['place']} | not had: {row['missing']} |" + " |" * 6
    clear = row["beyond_ties"]
    cells = (
        percent(row["agreement"], 2),
        f"{percent(clear['agreement'], 2)} of {clear['n']:,}",
        percent(row["accuracy"]),
        percent(row["images_with_equal_logits"]),
        f"{row['logit_difference']['max']:.2g}",
        f"{row['load_s']:.2f} s",
        f"{row['peak_mib']:.0f} MiB",
    )
    return f"| {name} | {row['place']} | {' | '.join(cells)} |"


def _versions(row: dict[str, Any]) -> str:
    held = row["versions"]
    if "chromium" in held:
        return f"onnxruntime-web {held['onnxruntime-web']} in {held['chromium'].split(' built')[0]}, one thread"
    python = f"onnxruntime {held['onnxruntime']}, Python {held['python']}"
    if "cpu" not in row:
        return python
    return f"{python}, {row['cpu']} ({', '.join(row['flags'])}) by {row['qemu'].split(' (')[0]}"


def places() -> str:
    """A row per graph and place, and what was asked with what."""
    r = record("places")
    rows = [(graph, row) for graph in r["graphs"] for row in graph["places"]]
    every = [row for _, row in rows if "missing" not in row]
    had = {row["place"]: row for _, row in rows if "missing" not in row}
    lines = [
        "| graph | place | same class as here | beyond ties | accuracy | images with equal logits "
        "| largest difference of a logit | to load | peak memory |",
        "|---|---|" + "---:|" * 7,
        *(_row(graph, row) for graph, row in rows),
        "",
        f"ResNet-20 on CIFAR-10 (JPEG), n = {max(row['n'] for row in every):,} test images. A tie: the two "
        f"largest logits lie closer than {r['tie_in_logit_standard_deviations']} standard deviations of all logits, "
        f"which are {min(row['logit_std'] for row in every):.1f} or more. Here: {r['hardware']['processor']} "
        f"({', '.join(r['hardware']['flags'])}), busy with other work: times tell orders of magnitude.",
        "",
        *(f"- {place}: {_versions(row)}." for place, row in had.items()),
    ]
    inputs = all(row["same_input"] for row in every)
    least = min(
        wilson_interval(row["beyond_ties"]["agreement"] * row["beyond_ties"]["n"], row["beyond_ties"]["n"])[0]
        for row in every
    )
    lines.append(
        f"- Beyond ties every place agrees with here on at least {percent(least)} of such images (95 % confidence)."
    )
    lines.append(
        "- Where image files are decoded and resized, the network's input is "
        f"{'the same to the bit in every place' if inputs else 'not the same everywhere'}; the browser is given it."
    )
    return "\n".join(lines)


DEPLOY = (places,)
