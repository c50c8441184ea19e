"""Quotes of what becomes of torchvision's and timm's networks, for quote.py."""

from __future__ import annotations

import statistics
from typing import Any

from figures import percent, record

from qrobust.evaluation.statistics import wilson_interval


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


def timm_trained() -> str:
    """A line per trained network of timm."""
    lines = [
        "| network | float | INT8 | INT8 predicts as float | onnxruntime predicts as torch | logits | integer |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in record("timm_trained")["rows"].items():
        if "reason" in row:
            lines.append(f"| {name} | stopped: {row['reason']} | - | - | - | - | - |")
            continue
        n, parity = row["n"], row["parity"]
        accuracy = {}
        for key, hits in row["correct"].items():
            low, high = wilson_interval(hits, n)
            accuracy[key] = f"{percent(hits / n)} [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(
            f"| {name} | {accuracy['float']} | {accuracy['int8']} | {percent(row['agreeing'] / n)} | "
            f"{percent(parity['agreement'])} | {parity['mean_logit_difference'] / row['logit_std']:.4f} | "
            f"{row['integer_ops']} of {row['quantizable_ops']} |"
        )
    return "\n".join(lines)


def timm_trained_summary() -> str:
    """How the trained networks of timm were made."""
    r = record("timm_trained")
    rows = [row for row in r["rows"].values() if "reason" not in row]
    above = sum(row["correct"]["float"] > 0.3 * row["n"] for row in rows)
    seconds = [row["training_s"] for row in rows]
    return (
        f"*Trained*: {len(rows)} networks, each of another family, for {r['epochs']} epochs on "
        f"{rows[0]['training_images']:,} photographs of ten classes at {r['image_size']} px, {min(seconds):.0f} to "
        f"{max(seconds):.0f} s each. {above} are right on more than 30 % of {rows[0]['n']:,} test images, three "
        f"times chance. *logits* as above; intervals are at 95 %.\n\n"
        + _circumstances(r | {"test_images": f"{rows[0]['n']:,}"}, "timm")
    )


def onnx_files() -> str:
    """A line per ONNX file."""
    lines = [
        "| file | made by | opset | input | accuracy | read, against the file | integer | with other scales |",
        "|---|---|---:|---|---:|---|---:|---|",
    ]
    for name, row in sorted(record("onnx_files")["rows"].items(), key=lambda item: item[0].partition("-")[0]):
        accuracy = f"{percent(row['correct'] / row['n'])} of {row['n']:,}" if "n" in row else "-"
        share = f"{row['integer_ops']} of {row['quantizable_ops']}" if "integer_ops" in row else "-"
        lines.append(
            f"| {name} | {row['maker']} | {row['opset']} | {row['layout']} {row['pixels']} | {accuracy} | "
            f"{_as_read(row)} | {share} | {_in_front(row)} |"
        )
    return "\n".join(lines)


def _as_read(row: dict[str, Any]) -> str:
    if "reason" in row:
        return f"refused: {row['reason'].removeprefix('model: ')}"
    read = row["import"]
    if "largest_difference" in read:
        return f"outputs differ by up to {read['largest_difference']:.0e}"
    return f"agrees on {percent(read['agreement'])}, ties apart on {percent(read['agreement_beyond_ties'])}"


def _in_front(row: dict[str, Any]) -> str:
    if "reason" in row.get("compensated", {}):
        return (
            "refused: a bias that stands alone"
            if "is of no convolution" in row["compensated"]["reason"]
            else "failed"
        )
    if "gain_pp" not in row.get("compensated", {}):
        return "" if row.get("integer") else "a float file"
    made = row["compensated"]
    low, high = made["gain_interval_pp"]
    return f"{made['gain_pp']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def onnx_files_summary() -> str:
    """How many ONNX files are read, and how many makers they have."""
    r = record("onnx_files")
    rows = r["rows"]
    read = [n for n, row in rows.items() if "reason" not in row]
    trained = [n for n in read if rows[n]["correct"] > 3 * rows[n]["chance"] * rows[n]["n"]]
    fronts = [n for n in read if "gain_pp" in rows[n].get("compensated", {})]
    won = [n for n in fronts if rows[n]["compensated"]["gain_interval_pp"][0] > 0]
    opsets = sorted({row["opset"] for row in rows.values()})
    makers = {row["maker"] for row in rows.values()}
    front = rows[fronts[0]]["compensated"]
    return (
        f"Of {len(rows)} files by {len(makers)} makers, of opset {opsets[0]} to {opsets[-1]}, {len(read)} are read, "
        f"with the file's own outputs; {len(trained)} of these are right more than three times as often as chance. "
        f"{len(fronts)} learned other scales from random operations, {r['steps']} steps of {r['batch_size']} images "
        f"with the file itself as teacher; {len(won)} of these gained beyond their interval. Gains are means over "
        f"the 19 corruptions at severity {r['severity']} on {front['n']} test images, with 95 % intervals.\n\n"
        + _circumstances(
            r
            | {
                "calibration_images": 128,
                "test_images": "up to 1,000",
                "commit": ", ".join(sorted({row["commit"] for row in rows.values()})),
            },
            "onnx",
        )
    )


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
    timm_trained,
    timm_trained_summary,
    onnx_files,
    onnx_files_summary,
)
