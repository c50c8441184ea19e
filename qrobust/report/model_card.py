"""A model card for each exported graph: what it is, what it learned, how it was measured, where it ends.

After Mitchell et al., "Model Cards for Model Reporting", arXiv 1810.03993.
"""

from __future__ import annotations

from typing import Any

from qrobust.report.markdown import table
from qrobust.report.verdict import (
    NAMES,
    float_operators,
    percent,
    points,
    times_elsewhere,
)

WORST = 5


def model_card(record: dict[str, Any], graph: str) -> str:
    """Markdown for one graph of a run.

    Args:
        record: of the run.
        graph: its name, as in `summary.clean_accuracy`.
    """
    s, config = record["summary"], record["config"]
    method = next((m for m in record["methods"] if m["method"] == graph), None)
    lines = [f"# {graph}.onnx: {NAMES[graph]}", "", *_what(record, graph), "", "## Learned from", ""]
    splits = record["splits"]
    lines.append(
        f"The classifier: `{config['model']}`, weights {config['weights'] or 'that it came with'}; how it was "
        f"trained is its owner's to say. Ranges were observed on {splits['calibration']['n']} calibration images of "
        f"`{config['data']}`; choices were made on {splits['validation']['n']} validation images."
        if graph != "float"
        else f"The float network `{config['model']}` as it was given, batch norms folded."
    )
    if method:
        lines += ["", f"{NAMES[graph]}: {_lessons(method, config['data'])}"]
    low, high = s["clean_interval"][graph]
    lines += [
        "",
        "## Measured",
        "",
        f"On {s['n_test']} test images by onnxruntime {record['versions']['onnxruntime']} "
        f"({record['hardware']['processor']}, {record['hardware']['threads']} threads); intervals are at 95 %.",
        "",
        f"- clean: {percent(s['clean_accuracy'][graph])} [{100 * low:.1f}, {100 * high:.1f}]",
        *_under_shift(record, graph),
        f"- batch 1 in {s['latency_ms'][graph]['batch_1']:.2f} ms, {s['size_bytes'][graph] / 1024:.0f} KiB",
        *(f"- {sentence}" for sentence in times_elsewhere(record)),
    ]
    if method:
        lines.append(f"- {float_operators(record['audit'][graph])}")
    target_images = record["scene"]
    if target_images and graph in target_images.get("accuracy", {}):
        low, high = target_images["interval"][graph]
        lines.append(
            f"- on {target_images['n']} test images of `{target_images['images']}`: {percent(target_images['accuracy'][graph])} "
            f"[{100 * low:.1f}, {100 * high:.1f}]"
        )
    elif target_images and not target_images["labelled"]:
        sure = target_images["confidence"]
        lines.append(
            f"- on {target_images['n']} test images of `{target_images['images']}`, which have no labels: accuracy is not known; "
            f"mean confidence {percent(sure[graph])}, of INT8 {percent(sure['int8'])}"
        )
    if method:
        lines.append(
            f"- against INT8: {points(method['gain_pp'], method['gain_interval_pp'])} under shift, clean cost "
            f"{points(method['clean_cost_pp'], method['clean_cost_interval_pp'])}"
        )
    rows = [row for row in record["rows"] if row["shift"] != "clean"]
    worst = sorted(rows, key=lambda row: row["accuracy"][graph])[:WORST]
    if worst:
        lines += ["", "Where it is worst:", ""]
        lines += table(
            [
                ["shift", "severity", "accuracy"],
                *([row["shift"], str(row["severity"]), percent(row["accuracy"][graph])] for row in worst),
            ]
        )
    return "\n".join([*lines, "", "## Limits", "", *_limits(record, graph, method), ""])


def unmeasured_card(graph: str) -> str:
    """Markdown beside a graph that was just made: what it is; an older one's figures are not its own."""
    return (
        f"# {graph}.onnx: {NAMES[graph]}\n\nNot measured yet. `qrobust evaluate` measures it and `qrobust report` "
        "then writes here what it learned from, how accurate it is and where it ends.\n"
    )


def _lessons(method: dict[str, Any], data: str) -> str:
    """What a method learned from, as it was when it learned."""
    training_images = method["lessons"]
    if not training_images:
        return "nothing, it is not trained."
    named = f"scene {', '.join(training_images['scene_names'])}: " if training_images["scene_names"] else ""
    labels = "with labels" if training_images["labels"] else "without labels"
    target_images = " and on the scene's own images" if training_images["scene_images"] else ""
    how_strong = training_images.get("severities")
    severities = f" at severity {', '.join(map(str, how_strong))}" if how_strong else ""
    budget = training_images.get("clean_budget")
    gate = "" if budget is None else f" Its gate was to cost at most {budget:g} points of clean validation accuracy."
    drawn = f"{training_images['drawn']} images drawn from " if "drawn" in training_images else ""
    return (
        f"{named}{', '.join(method['trained_on'])}{severities}; on {drawn}{training_images['images']} training images of "
        f"`{data}` {labels}{target_images}, disjoint from those below.{gate}"
    )


def _under_shift(record: dict[str, Any], graph: str) -> list[str]:
    s = record["summary"]
    if not s["n_cells"]:
        return []
    low, high = s["shift_interval"][graph]
    return [
        f"- under shift, mean over {s['n_cells']} cells of severity table `{record['severity_table']}`: "
        f"{percent(s['shift_accuracy'][graph])} [{100 * low:.1f}, {100 * high:.1f}]"
    ]


def _what(record: dict[str, Any], graph: str) -> list[str]:
    audit, seed = record["audit"][graph], record["seeds"]["run"]
    size, channels = record["image_size"], record["channels"]
    return [
        f"An image classifier of {len(record['class_names'])} classes. Input `(N, {channels}, {size}, {size})`, "
        f"{'RGB' if channels == 3 else 'luma'} in [0, 1], normalisation inside; output logits. Class names, "
        "preprocessing and provenance are in the file's metadata.",
        "",
        f"{audit['integer_ops']} of {audit['quantizable_ops']} convolutions and matrix products run on integers "
        f"(target `{record['config']['target']}`); made by qrobust {record['qrobust']}, seed {seed}.",
    ]


def _limits(record: dict[str, Any], graph: str, method: dict[str, Any] | None) -> list[str]:
    limits = [
        "- Accuracy holds for images like those it was measured on. A shift that is not in the record is not known.",
        "- No robustness against attacks is claimed. The record has the figures of those that were tried.",
    ]
    if method:
        if method["diverged"]:
            limits.append("- Its training diverged; this is the best state before that.")
        unseen = {row["shift"] for row in record["rows"]} - {"clean", *method["trained_on"]}
        if method["trained_on"]:
            known = f"measured on shifts it never saw: {', '.join(sorted(unseen))}" if unseen else "not measured"
            limits.append(f"- Its gain is for the shifts it learned from; beyond them it is {known}.")
        losing = [r for r in record["rows"] if r["accuracy"][graph] < r["accuracy"]["int8"]]
        if losing:
            names = ", ".join(f"{r['shift']} {r['severity']}".removesuffix(" 0") for r in losing)
            limits.append(f"- Below the INT8 graph without it, if only by an image, on: {names}.")
    limits += [f"- {flag}" for flag in record["attacks"]["flags"] if flag.startswith(f"UNRELIABLE: {graph},")]
    return limits
