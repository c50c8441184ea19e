"""What the numbers of a record say, in sentences; used by every form of report."""

from __future__ import annotations

from typing import Any

from qrobust.report.attacks import flag_sentences

NAMES = {
    "float": "Float",
    "int8": "INT8",
    "compensated": "INT8 + calibrator",
    "bn-reestimate": "batch norm re-estimated",
    "calibrator+bn-reestimate": "batch norm re-estimated + calibrator",
    "finetune": "fine-tuned",
    "auto-contrast": "auto-contrast + INT8",
    "denoise": "3x3 mean + INT8",
    "anti-adversary": "anti-adversary (torch)",
}
# Operators that move values and compute nothing; Resize is a copy, the upsampling being nearest.
MOVING = frozenset(
    {
        "Reshape",
        "Transpose",
        "Unsqueeze",
        "Squeeze",
        "Split",
        "Slice",
        "Concat",
        "Flatten",
        "DepthToSpace",
        "Resize",
        "Gather",
        "Shape",
        "Identity",
        "Pad",
        "Cast",
        "NhwcMaxPool",
        "MaxPool",
    }
)
LEVEL = 0.05
# A method is worth shipping if it costs at most so much clean accuracy, in points.
MOST_CLEAN_COST = 0.5


def percent(value: float | None) -> str:
    """A fraction as a percentage; nothing where nothing was measured."""
    return "" if value is None else f"{100 * value:.1f} %"


def points(value: float | None, interval: list[float] | None = None) -> str:
    """A difference in percentage points, with its 95 % interval; nothing where nothing was measured."""
    if value is None:
        return ""
    text = f"{value:+.1f} points"
    return text if interval is None else f"{text} [{interval[0]:+.1f}, {interval[1]:+.1f}]"


def corruption_error(summary: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Sentences about the mean corruption error; none where no corruption of the benchmark was measured.

    Args:
        summary: of a record.
        names: classifiers to what they are called.
    """
    mce = summary["mce"]
    if not mce:
        return []
    by = "divided by AlexNet's" if mce["normalizer"] == "alexnet" else "not normalised"
    relative = {k: f" (relative {percent(v)})" for k, v in mce.get("relative", {}).items()}
    values = ", ".join(
        f"{name} {percent(mce['value'][k])}{relative.get(k, '')}" for k, name in names.items() if k in mce["value"]
    )
    return [f"Mean corruption error over {mce['corruptions']} corruptions, {by}: {values}."]


def significance(record: dict[str, Any], key: str, what: str) -> str:
    """How many rows differ significantly, and how many comparisons that was corrected for.

    Args:
        record: of a run.
        key: `drop` or `gain`.
        what: what the rows compare.
    """
    rows = record["rows"]
    found = sum(row[f"{key}_p_adjusted"] < LEVEL for row in rows)
    return (
        f"{what} differ significantly in {found} of {len(rows)} rows (McNemar's exact test at {LEVEL:g}, Holm's "
        "correction over the rows)."
    )


def times_elsewhere(record: dict[str, Any]) -> list[str]:
    """That times are not the target's, where this CPU took slower kernels to add as the target does."""
    if record["hardware"].get("sums") != "exact-by-request":
        return []
    return [
        "Times are of a CPU without VNNI, which adds as the target does by slower kernels: on the device they and "
        "their ratios are others."
    ]


def verdict(record: dict[str, Any]) -> list[str]:
    """The verdict, most important sentence first."""
    s = record["summary"]
    shift, clean = s["shift_accuracy"], s["clean_accuracy"]
    sentences, target_images = [], learned_scene(record)
    if record["methods"]:
        sentences.append(recommendation(record))
    if record["scene"]:
        sentences.append(scene_sentence(record["scene"]))
    if "compensated" in shift and s["compensation_gain_pp"] is not None:
        gain, cost = s["compensation_gain_pp"], s["clean_cost_pp"]
        won = "Under rendered" if target_images else "Under"
        sentences.append(
            f"{won} shift the INT8 graph goes from {percent(shift['int8'])} to "
            f"{percent(shift['compensated'])} ({points(gain, s['compensation_gain_interval_pp'])}), clean accuracy "
            f"from {percent(clean['int8'])} to {percent(clean['compensated'])} "
            f"(cost {points(cost, s['clean_cost_interval_pp'])})."
        )
        if "unseen_gain_pp" in s:
            sentences.append(
                f"On shifts the calibrator never saw in training: "
                f"{points(s['unseen_gain_pp'], s['unseen_gain_interval_pp'])} "
                f"over {s['n_unseen_cells']} of {s['n_cells']} cells."
            )
    if "compensated" in shift:
        latency, macs = s["latency_ms"], s["macs"]
        sentences.append(
            f"It costs {percent(macs['calibrator_share'])} of the classifier's multiply-accumulates: at batch 1 "
            f"{latency['int8']['batch_1']:.2f} ms become {latency['compensated']['batch_1']:.2f} ms "
            f"(float {latency['float']['batch_1']:.2f} ms). {float_operators(record['audit']['compensated'])}"
        )
    sentences += times_elsewhere(record)
    diverged = [NAMES[row["method"]] for row in record["methods"] if row["diverged"]]
    if diverged:
        sentences.append(
            f"Training of {', '.join(diverged)} diverged, and the best state before that was kept: a smaller "
            "--learning-rate may do better."
        )
    under_shift = points(s["shift_quantization_drop_pp"], s["shift_quantization_drop_interval_pp"])
    sentences.append(
        f"Quantization itself costs {points(s['quantization_drop_pp'], s['quantization_drop_interval_pp'])} on "
        f"clean images{f' and {under_shift} under shift' if under_shift else ''}; float and INT8 agree on "
        f"{percent(s['agreement'])} of clean predictions."
    )
    audit = record["audit"]["int8"]
    sentences.append(
        f"onnxruntime runs {audit['integer_ops']} of {audit['quantizable_ops']} convolutions and matrix products of "
        f"the INT8 graph on integers."
    )
    saturation = record["quantization"]["saturation"]
    if saturation and not saturation["proven"]:
        low, high = saturation["accuracy_without_vnni_interval"]
        sentences.append(
            f"On an x86 CPU without VNNI expect {percent(saturation['accuracy_without_vnni'])} "
            f"[{100 * low:.1f}, {100 * high:.1f}] instead of {percent(saturation['accuracy'])} (simulated on "
            f"{saturation['n']} validation images); `--target x86-avx2` is for those."
        )
    sentences += corruption_error(s, {k: NAMES[k] for k in ("float", "int8", "compensated")})
    sentences.append(significance(record, "drop", "Float and INT8"))
    if "compensated" in shift:
        sentences.append(significance(record, "gain", "INT8 with and without calibrator"))
    return sentences + flag_sentences(record["attacks"])


def float_operators(audited: dict[str, Any]) -> str:
    """One sentence: which operators of a graph compute in float, and what share of the time each kind takes.

    Args:
        audited: of a graph, from a record's `audit`. What only moves values, or has them on integers, is left out.
    """
    counts = audited["float_compute"] | audited["other_ops"]
    kinds = [k for k in counts if not k.startswith(("Q", "DequantizeLinear")) and k not in MOVING]
    share = {k: audited["time_share"].get(k, 0.0) for k in kinds}
    listed = ", ".join(f"{counts[k]} {k} {percent(share[k])}" for k in sorted(kinds, key=lambda k: -share[k]))
    total = percent(sum(share.values()))
    return f"{sum(counts[k] for k in kinds)} operators in float take {total} of its time on one thread ({listed})."


def learned_scene(record: dict[str, Any]) -> dict[str, Any] | None:
    """The scene whose real images compensation learned from, where it learned from nothing else."""
    training_images = [row["lessons"] for row in record["methods"] if row["lessons"]]
    return record["scene"] if training_images and all(found["scene_alone"] for found in training_images) else None


def recommendation(record: dict[str, Any]) -> str:
    """Which method to ship: the highest gain under shift among those that cost little clean accuracy; or none.

    Where methods learned from a scene's real images alone, the gain is that on the scene's test images. Where the
    best is slower than float, the best of those that are not is named, too; where all that gain cost more, the one of
    highest gain. The choice is made on the images that it is measured on.

    Args:
        record: of a run with at least one method.
    """
    target_images, methods = learned_scene(record), record["methods"]
    if target_images and not target_images["labelled"]:
        return "Which method to ship is not known: the scene's images have no labels."
    if target_images:
        methods = [
            row | target_images["gain"][row["method"]] for row in methods if row["method"] in target_images["gain"]
        ]
    where = "on the scene" if target_images else "under shift"
    gaining = [r for r in methods if r["runtime"] == "onnxruntime" and r["gain_interval_pp"][0] > 0]
    gaining.sort(key=lambda row: -row["gain_pp"])
    if not gaining:
        return f"Ship the INT8 graph as it is: no gain {where} has its interval above zero."
    worth = [row for row in gaining if row["clean_cost_pp"] <= MOST_CLEAN_COST]
    if not worth:
        cost = points(gaining[0]["clean_cost_pp"], gaining[0]["clean_cost_interval_pp"])
        return (
            f"What gains {where} costs more than {MOST_CLEAN_COST:g} points of clean accuracy. Where a cost of "
            f"{cost} is too much, ship the INT8 graph as it is; where it is not, ship {_praise(gaining[0], where)}."
        )
    best, fast = worth[0], next((r for r in worth if r["float_latency_ratio"]["batch_1"] >= 1), None)
    text = f"Ship {_praise(best, where)}."
    if best is not fast:
        text += " At batch 1 it takes longer than the float classifier"
        text += f"; where time decides, ship {_praise(fast, where)}." if fast else "."
    return text


def _praise(row: dict[str, Any], where: str) -> str:
    return (
        f"{NAMES[row['method']]} ({points(row['gain_pp'], row['gain_interval_pp'])} {where}, clean accuracy "
        f"{points(-row['clean_cost_pp'])}, {row['latency_ratio']['batch_1']:.2f} times the INT8 graph's time)"
    )


def comparison(record: dict[str, Any]) -> list[list[str]]:
    """The table of methods: a header, then a row for each, highest gain first."""
    header = ("", "clean", "under shift", "gain", "clean cost", "multiply-accumulates", "time over INT8, batch 1")
    rows = [[*header, "batch 32", "n"]]
    for row in record["methods"]:
        times = [
            f"{row['latency_ratio'][b]:.2f}x" if "latency_ratio" in row else "-" for b in ("batch_1", "batch_32")
        ]
        rows.append(
            [
                NAMES[row["method"]],
                percent(row["clean_accuracy"]),
                percent(row["shift_accuracy"]),
                points(row["gain_pp"], row["gain_interval_pp"]),
                points(row["clean_cost_pp"], row["clean_cost_interval_pp"]),
                percent(row["macs"] / record["summary"]["macs"]["classifier"]) if "macs" in row else "-",
                *times,
                str(row["n"]),
            ]
        )
    return rows


def scene_sentence(target_images: dict[str, Any]) -> str:
    """What the graphs make of the real images of a new scene."""
    where = f"On {target_images['n']} test images of {target_images['images']}"
    if not target_images["labelled"]:
        sure = ", ".join(f"{NAMES[k]} {percent(v)}" for k, v in target_images["confidence"].items())
        return f"{where}, which have no labels, accuracy is not known; mean confidence: {sure}."
    right = ", ".join(
        f"{NAMES[k]} {percent(v)} [{100 * target_images['interval'][k][0]:.1f}, {100 * target_images['interval'][k][1]:.1f}]"
        for k, v in target_images["accuracy"].items()
    )
    gains = "".join(
        f"; {NAMES[k]} gains {points(g['gain_pp'], g['gain_interval_pp'])}" for k, g in target_images["gain"].items()
    )
    return f"{where}: {right}{gains}."


def headline(record: dict[str, Any]) -> list[list[str]]:
    """The table of a run: a header, then a row per graph."""
    s = record["summary"]
    rows = [["", "clean", "under shift", "batch 1", "batch 32", "size"]]
    for key, name in NAMES.items():
        if key in s["clean_accuracy"]:
            latency = s["latency_ms"][key]
            rows.append(
                [
                    name,
                    percent(s["clean_accuracy"][key]),
                    percent(s["shift_accuracy"][key]),
                    f"{latency['batch_1']:.2f} ms",
                    f"{latency['batch_32']:.1f} ms",
                    f"{s['size_bytes'][key] / 1024:.0f} KiB",
                ]
            )
    return rows
