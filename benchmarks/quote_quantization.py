"""Quotes of what INT8 and fewer bits cost, for quote.py."""

from __future__ import annotations

from typing import Any

from figures import change, percent, record

from qrobust.quantization.qat import beyond_luck
from qrobust.quantization.quantize import QAT_IMAGES


def _best_peer(found: dict[str, Any]) -> str:
    peer = found["best_peer"]
    return peer.replace("quantize_static-", "quantize_static, ").replace("nncf", "NNCF")


def quantization() -> str:
    """A line per network and variant: accuracy on onnxruntime and the drop from float, with intervals."""
    return _accuracies("quantization")


def quantization_again() -> str:
    """The same, peers and times of another training of some of them."""
    again = "quantization_again"
    machines = {found["hardware"]["processor"] for found in record(again)["networks"].values()}
    where = f"Times on {' and '.join(sorted(machines))}."
    return "\n\n".join([_accuracies(again), _peers(again), _speed(again, ("float", "w8a8")), where])


def _accuracies(results: str) -> str:
    lines = [
        "| network | variant | accuracy | drop, points | integer | file | agreement with PyTorch "
        "| largest logit difference |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network, found in record(results)["networks"].items():
        for name, v in found["variants"].items():
            drop = "" if name == "float" else _drop(v)
            parity = v.get("parity")
            own = f"{percent(parity['agreement'], 2)} | {parity['max_logit_difference']:.2f}" if parity else " | "
            lines.append(
                f"| {network} | {name} | {percent(v['accuracy'], 2)} | {drop} | {v['integer_ops']} of "
                f"{v['quantizable_ops']} | {v['size_bytes'] / 2**20:.2f} MiB | {own} |"
            )
    return "\n".join(lines)


def quantization_luck() -> str:
    """Today's rule of training on the figures of trainings of before it: which network each would leave."""
    n = QAT_IMAGES
    lines = [
        "| network | at the start | best, trained | divergence | standard error | kept today | drop then | drop |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for network, found in record("quantization")["networks"].items():
        trained = found["variants"]["w8a8-qat"]
        qat = trained["quantization"]["qat"]
        start, best = ((qat[f"{when}accuracy"], qat[f"{when}divergence"]) for when in ("start_", ""))
        won = beyond_luck(best, start, n)
        kept = trained if won else found["variants"]["w8a8"]
        error = (start[0] * (1 - start[0]) / n) ** 0.5
        lines.append(
            f"| {network} | {percent(start[0], 2)} | {percent(best[0], 2)} | {start[1]:.5f} to {best[1]:.5f} "
            f"| {100 * error:.2f} points | {'the trained one' if won else 'as it was: `w8a8`'} "
            f"| {_drop(trained)} | {_drop(kept)} |"
        )
    return "\n".join(lines)


def _drop(variant: dict[str, Any]) -> str:
    low, high = variant["drop_interval_pp"]
    return f"{variant['drop_pp']:+.2f} [{low:+.2f}, {high:+.2f}]"


def quantization_peers() -> str:
    """W8A8 against the best peer, in accuracy and in time."""
    return _peers("quantization")


def _peers(results: str) -> str:
    lines = []
    for network, found in record(results)["networks"].items():
        peer, times = found["best_peer"], found["latency_ms"]
        ratios = [t["w8a8"] / min(t[p] for p in found["peers"]) for t in times.values()]
        lines.append(
            f"- {network}: {found['against_best_peer_pp']:+.2f} points against {_best_peer(found)} "
            f"({percent(found['variants'][peer]['accuracy'], 2)}), n = {found['n_test']:,}; time by that of the "
            f"fastest peer: {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} combinations of "
            f"threads and batch."
        )
    return "\n".join(lines)


def quantization_speed() -> str:
    """Milliseconds per batch and how many times faster than float."""
    return _speed("quantization", ("float", "w8a8", "w4a8", "w4a4"))


def _speed(results: str, graphs: tuple[str, ...]) -> str:
    names = " | ".join(name.upper() if name != "float" else name for name in graphs)
    lines = [
        f"| network | threads | batch | {names} | W8A8 over float |",
        "|---|---:|---:|" + "---:|" * (len(graphs) + 1),
    ]
    for network, found in record(results)["networks"].items():
        for key, t in found["latency_ms"].items():
            _, threads, _, batch = key.split("_")
            conditions = " | ".join(f"{t[n]:.2f} ms" for n in graphs)
            lines.append(f"| {network} | {threads} | {batch} | {conditions} | {t['float'] / t['w8a8']:.2f} |")
    return "\n".join(lines)


def efficientnet_lite0() -> str:
    """The pretrained network on real photographs."""
    r = record("efficientnet_lite0")
    lines = ["| EfficientNet-Lite0 | agreement with float | accuracy | integer |", "|---|---:|---:|---:|"]
    lines.append(f"| float | | {percent(r['accuracy'])} | |")
    for name, found in r["variants"].items():
        low, high = found["agreement_interval"]
        lines.append(
            f"| {name} | {percent(found['agreement'])} [{percent(low)}, {percent(high)}] | "
            f"{percent(found['accuracy'])} | {found['integer_ops']} of {found['quantizable_ops']} |"
        )
    more = r["default_with_validation"]
    about = (
        f"Published weights, W8A8, on {r['n']} photographs of ImageNet classes on which nothing was observed or "
        f"chosen. `auto` is `--ptq auto`. With the images on which that chooses, `default` agrees on "
        f"{percent(more['agreement'])} of {more['n']}."
    )
    fake_quantized, lead = r["twin_of_default"], "largest_lead_where_unlike"
    itself, session = fake_quantized["itself_one_by_one"], fake_quantized["session"]
    beside = (
        f"On {session['unlike']} of these {fake_quantized['n']} the fake-quantized model of `default` predicts "
        "another class than the exported graph; asked one by one instead of in batches of 32, it differs from "
        f"itself on {itself['unlike']}. Logits differ by {session['mean_difference']:.3f} and "
        f"{itself['mean_difference']:.3f} on average; where classes differ, the first leads by at most "
        f"{max(session[lead], itself[lead]):.2f}."
    )
    return "\n".join([*lines, "", about, "", beside])


def first_convolution() -> str:
    """Times with and without the fourth channel."""
    r = record("first_convolution")
    lines = [
        "| network | px | batch 1 | with it | batch 32 | with it | outputs differ by |",
        "|---|---:|" + "---:|" * 5,
    ]
    for row in r["rows"]:
        times = (t for batch in row["times"].values() for t in (batch["plain_ms"], batch["wide_ms"]))
        conditions = " | ".join(f"{t:.2f} ms" for t in times)
        lines.append(f"| {row['network']} | {row['size']} | {conditions} | {row['largest_difference']:g} |")
    where = f"{r['hardware']['threads']} thread(s) of {r['hardware']['processor']}"
    return "\n".join([*lines, "", f"W8A8, random weights, onnxruntime {r['versions']['onnxruntime']}, {where}."])


def storage() -> str:
    """Size and time of four-bit weights, stored as int8 and as int4."""
    r = record("storage")
    lines = [
        "| network | px | file, int8 | int4 | load, int8 | int4 | batch 1, int8 | int4 | batch 32, int8 | int4 "
        "| outputs differ by |",
        "|---|---:|" + "---:|" * 9,
    ]
    for row in r["rows"]:
        conditions = [f"{row['size_bytes'][s] / 2**20:.2f} MiB" for s in ("int8", "int4")]
        times = (row["load_ms"], row["times_ms"]["batch_1"], row["times_ms"]["batch_32"])
        conditions += [f"{t[s]:.2f} ms" for t in times for s in ("int8", "int4")]
        lines.append(
            f"| {row['network']} | {row['size']} | {' | '.join(conditions)} | {row['largest_difference']:g} |"
        )
    where = f"{r['hardware']['threads']} thread(s) of {r['hardware']['processor']}"
    return "\n".join([*lines, "", f"W4A8, random weights, onnxruntime {r['versions']['onnxruntime']}, {where}."])


def quantize_cost() -> str:
    """Time and memory by number of calibration images."""
    r = record("quantize_cost")
    lines = ["| calibration images | quantize | export | peak memory above imports |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {row['images']:,} | {row['quantize_s']:.1f} s | {row['export_s']:.1f} s "
        f"| {row['peak_with_export_above_imports_mib']:.0f} MiB |"
        for row in r["rows"]
    ]
    whole = r["whole_command"]
    first, other, again = whole["runs"]
    if not whole["same_graph"]:
        raise ValueError("quantize_cost: with ranges from the cache the graph is another one")
    return "\n".join(
        [
            *lines,
            "",
            f"MobileNetV2 at {r['image_size']} px, {r['hardware']['threads']} threads. The command "
            f"`qrobust quantize` with its defaults takes {first['command_s']:.0f} s on "
            f"{whole['hardware']['threads']} thread, {first['observe_s']:.1f} s of which are observing ranges on "
            f"{whole['images']} images. With `--calibration-cache` ({whole['kept_bytes'] / 1e6:.1f} MB) another run "
            f"for the same target takes {again['command_s']:.0f} s, one for {other['target']} "
            f"{other['command_s']:.0f} s; {again['observe_s']:.1f} s and {other['observe_s']:.1f} s of them are "
            "tracing and reading what was observed. The graph is the same to the byte.",
        ]
    )


def agreement() -> str:
    """How often INT8 answers as float on photographs on which nothing was observed."""
    r = record("agreement")
    lines = [
        "| network | agreement | float | INT8 | drop | integer |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in r["rows"].items():
        network, _, variant = name.partition("-")
        low, high = (100 * end for end in row["agreement_interval"])
        lines.append(
            f"| EfficientNet-{network.capitalize()}{', `--ptq auto`' if variant == 'auto' else ''} "
            f"| {percent(row['agreement'])} [{low:.1f}, {high:.1f}] | {percent(row['accuracy']['float'])} "
            f"| {percent(row['accuracy']['int8'])} | {change(row, 'drop')} "
            f"| {row['integer_ops']} of {row['quantizable_ops']} |"
        )
    first = next(iter(r["rows"].values()))
    h = r["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            f"{first['n']:,} photographs of ten classes at {r['image_size']} px, answered among all 1,000 classes; "
            f"ranges observed on {first['calibration_images']} others. 95 % intervals over images; onnxruntime "
            f"{r['versions']['onnxruntime']} on {h['processor']}, commit `{r['commit']}`.",
        ]
    )


QUANTIZATION = (
    agreement,
    quantization,
    quantization_again,
    quantization_luck,
    quantization_peers,
    quantization_speed,
    efficientnet_lite0,
    quantize_cost,
    first_convolution,
    storage,
)
