"""Quotes of what becomes of torchvision's and timm's networks, for quote.py."""

from __future__ import annotations

import statistics
from typing import Any

from figures import percent, record


def zoo() -> str:
    """A line per network of torchvision's zoo."""
    return _table(record("zoo")["rows"])


def timm_table() -> str:
    """A line per network of timm."""
    return _table(dict(sorted(record("timm_table")["rows"].items())))


def _table(rows: dict[str, Any]) -> str:
    lines = [
        "| network | parameters | side | integer | float operators left | agreement | logits | pixels | file |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        side = f"{row['image_size']} px" if "image_size" in row else "-"
        if "reason" in row:
            lines.append(f"| {name} | - | {side} | - | stopped ({row['step']}): {row['reason']} | - | - | - | - |")
            continue
        left = _left_in_float(row)
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(left.items(), key=lambda x: -x[1])) or "none"
        spread, parity = row["logit_std"], row["parity"]
        lines.append(
            f"| {name} | {row['parameters_millions']:.1f} M | {side} | {row['integer_ops']} of "
            f"{row['quantizable_ops']} | {listed} | {percent(parity['agreement'], 0)} | "
            f"{parity['mean_logit_difference'] / spread:.4f} | {row['mean_change_by_rounded_pixels'] / spread:.4f} | "
            f"{row['size_bytes'] / 2**20:.1f} MiB |"
        )
    return "\n".join(lines)


def _left_in_float(row: dict[str, Any]) -> dict[str, int]:
    """Operators that compute in float, without the normalisation of the pixels and the pool that is integer."""
    left = row["float_compute"] | row["other_float"]
    left = {kind: n - (kind in ("Sub", "Div")) for kind, n in left.items() if kind != "NhwcMaxPool"}
    return {kind: n for kind, n in left.items() if n}


def zoo_summary() -> str:
    """How many networks are integer, what keeps the others from it, and which were not measured."""
    r = record("zoo")
    rows = r["rows"]
    whole = [n for n, row in rows.items() if "reason" not in row and row["integer_ops"] == row["quantizable_ops"]]
    nothing = [n for n in whole if not _left_in_float(rows[n])]
    lines = [
        f"Of {len(rows)} networks measured, {len(whole)} run every convolution and matrix product on integers, and "
        f"{len(nothing)} of these leave no other operator in float either. The others:",
        "",
    ]
    for name, row in rows.items():
        if "reason" in row:
            lines.append(f"- {name} stopped at step {row['step']!r}: {row['reason']}.")
        elif name not in whole:
            # What a leading underscore hides pads or looks something up, and multiplies nothing.
            layers = ", ".join(f"{n} {kind}" for kind, n in row["float_layers"].items() if kind[0] != "_")
            lines.append(
                f"- {name}: {row['quantizable_ops'] - row['integer_ops']} of {row['quantizable_ops']} convolutions "
                f"and matrix products stay in float, inside {layers}, which is not taken apart."
            )
    alike: dict[str, list[str]] = {}
    for bigger, sister in r["sisters"].items():
        alike.setdefault(sister, []).append(bigger)
    lines += ["", "Not measured, and of the same operators as which network above:", ""]
    alone = alike.pop("", [])
    lines += [f"- like {sister}: {', '.join(names)}." for sister, names in alike.items()]
    lines += [f"- like none above: {', '.join(alone)}."] if alone else []
    return "\n".join([*lines, "", _circumstances(r, "torchvision")])


def timm_summary() -> str:
    """How many of timm's networks come through, and how much of them is integer."""
    r = record("timm_table")
    rows = r["rows"]
    done = {n: row for n, row in rows.items() if "reason" not in row}
    traced = [n for n, row in rows.items() if row["step"] != "trace"]
    whole = [n for n, row in done.items() if row["integer_ops"] == row["quantizable_ops"]]
    nothing = [n for n in whole if not _left_in_float(done[n])]
    median = statistics.median(row["parity"]["agreement"] for row in done.values())
    lines = [
        f"*Random weights*: of {len(rows)} networks, {len(traced)} are traced and {len(done)} quantized and "
        f"exported. Of these, {len(whole)} run every convolution and matrix product on integers, and {len(nothing)} "
        f"of them leave no other operator in float. Torch and onnxruntime predict the same on {percent(median, 0)} "
        "of the images (median over the networks). The others:",
        "",
    ]
    for name, row in rows.items():
        if "reason" in row:
            lines.append(f"- {name} stopped at step {row['step']!r}: {row['reason']}.")
        elif name not in whole:
            left = ", ".join(f"{n} {kind}" for kind, n in sorted(row["float_compute"].items()))
            lines.append(f"- {name}: {row['integer_ops']} of {row['quantizable_ops']} on integers; in float {left}.")
    commits = ", ".join(sorted({row["commit"] for row in rows.values()}))
    return "\n".join([*lines, "", _circumstances(r | {"commit": commits}, "timm")])


def timm_least() -> str:
    """The networks on which torch and onnxruntime differ most, and what more bits change in torch alone."""
    rows = {n: row for n, row in record("timm_table")["rows"].items() if "mean_change_by_precision" in row}
    least = [n for n, row in rows.items() if row["parity"]["agreement"] < LEAST_SHOWN]
    lines = [
        "| network | INT8 predicts as float | logits, onnxruntime against torch | torch, 64 bits against 32 |",
        "|---|---:|---:|---:|",
    ]
    for name in least:
        row = rows[name]
        spread = row["logit_std"]
        lines.append(
            f"| {name} | {percent(row['float_agreement'], 0)} | "
            f"{row['parity']['mean_logit_difference'] / spread:.3f} | "
            f"{row['mean_change_by_precision'] / spread:.3f} |"
        )
    return "\n".join(lines)


def _circumstances(r: dict[str, Any], package: str) -> str:
    hardware, versions = r["hardware"], r["versions"]
    return (
        f"onnxruntime {versions['onnxruntime']}, torch {versions['torch']}, {package} {versions[package]}, "
        f"{hardware['threads']} thread of {hardware['processor']}; {r['calibration_images']} images for ranges, "
        f"{r['test_images']} to compare, seed {r['seed']}, commit {r['commit']}, `{r['command']}`."
    )


# Networks on which torch and onnxruntime agree less are looked at more closely.
LEAST_SHOWN = 0.8

ZOO = (
    zoo,
    zoo_summary,
    timm_table,
    timm_summary,
    timm_least,
)
