"""Write the figures of `results/` into README and docs, between `<!-- quote: NAME -->` and `<!-- end -->`.

The plot at README's head is the main job's.

    python benchmarks/quote.py            # rewrite the quotes
    python benchmarks/quote.py --check    # exit with 1 if a quote is not what the results say

Tables and lists of figures are never typed by hand; a test runs the check.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from figures import ROOT, change, percent, record
from quote_compensation import COMPENSATION
from quote_robustness import ROBUSTNESS

from qrobust.quantization.qat import beyond_luck
from qrobust.quantization.quantize import QAT_IMAGES as QAT_VALIDATION_IMAGES

PLOT = ROOT / "docs" / "report.svg"
QUOTE = re.compile(r"(<!-- quote: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NAMES = {"float": "float", "int8": "INT8", "compensated": "INT8 + calibrator"}


def headline() -> str:
    """The table of the main job."""
    r = record()
    s, rows = r["summary"], []
    for key, name in NAMES.items():
        latency = s["latency_ms"][key]
        rows.append(
            f"| {name} | {percent(s['clean_accuracy'][key])} | {percent(s['shift_accuracy'][key])} "
            f"| {latency['batch_1']:.2f} ms | {latency['batch_32']:.1f} ms | {s['size_bytes'][key] / 1024:.0f} KiB |"
        )
    return "\n".join(
        [
            "| | clean | under shift | batch 1 | batch 32 | size |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"ResNet-20 on CIFAR-10 (JPEG), {r['n_test']:,} test images, {s['n_cells']} combinations of shift and "
            f"severity, onnxruntime {r['versions']['onnxruntime']} with {r['hardware']['threads']} thread(s) of "
            f"{r['hardware']['processor']}. Gain under shift {change(s, 'compensation_gain')}, clean cost "
            f"{change(s, 'clean_cost')}, cost of quantization {change(s, 'quantization_drop')} on clean images; the "
            f"calibrator has {percent(s['macs']['calibrator_share'])} of the classifier's multiply-accumulates. "
            f"Intervals are at 95 %.",
        ]
    )


def shifts() -> str:
    """A line per shift: mean over its severities."""
    r = record()
    lines = ["| shift | float | INT8 | INT8 + calibrator |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(row["shift"] for row in r["rows"]):
        own = [row["accuracy"] for row in r["rows"] if row["shift"] == name]
        means = [percent(sum(a[k] for a in own) / len(own)) for k in NAMES]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(means)} |")
    return "\n".join(lines)


def facts() -> str:
    """What else the main job measured."""
    r = record()
    training, parity, audit = r["benchmark"]["training"], r["parity"], r["audit"]
    fit = r["compensation"]["training"]
    minutes = {k: v["duration_s"] / 60 for k, v in r["stages"].items()}
    return "\n".join(
        [
            f"- The float network reaches {percent(training['test_accuracy'])} on the test images after "
            f"{training['recipe']['epochs']} epochs ({training['training_seconds'] / 60:.0f} minutes).",
            f"- Integer convolutions and matrix products: {audit['int8']['integer_ops']} of "
            f"{audit['int8']['quantizable_ops']} in INT8, {audit['compensated']['integer_ops']} of "
            f"{audit['compensated']['quantizable_ops']} with the calibrator.",
            f"- Torch and onnxruntime agree on {percent(parity['int8']['agreement'], 2)} of predictions in INT8, "
            f"{percent(parity['compensated']['agreement'], 2)} with the calibrator (n = {parity['int8']['n']:,}).",
            f"- Measuring took {minutes['evaluate']:.0f} minutes. On "
            f"validation images the calibrator went from {percent(fit['float']['start_shift_accuracy'])} to "
            f"{percent(r['compensation']['validation']['shift_accuracy'])} under shift.",
        ]
    )


def saturation_operators() -> str:
    """One sentence on the single operators, under emulation."""
    return _operators(record("saturation"), "emulation")


def saturation_native_operators() -> str:
    """The same on a CPU without VNNI."""
    return _operators(record("saturation_native"), "this CPU")


def _operators(r: dict[str, Any], where: str) -> str:
    rows = r["operators"]
    total, changed, wrong = (
        sum(row[k] for row in rows) for k in ("outputs", "changed_by_saturation", "emulated_unlike_simulation")
    )
    return (
        f"{len(rows)} single operators with {total:,} integer outputs, of which saturation changes {changed:,}: "
        f"{wrong} differ between simulation and {where}."
    )


def _by_author(name: str) -> str:
    """A layer as commands name it; the results are of a version that named the wrapper of the network, too."""
    return name.replace("network.", "")


def saturation_networks() -> str:
    """A line per network and bit-width: logits, correlation, agreement, accuracy on the emulated images."""
    r = record("saturation")
    about = (
        f"natively on {r['hardware']['processor']} with AVX512-VNNI, without VNNI on {r['emulator']['version']}, "
        f"`{r['emulator']['command']}`."
    )
    return _networks(r, "emulated", about)


def saturation_native_networks() -> str:
    """The same on a CPU without VNNI, where the sums of one that has it were asked for."""
    r = record("saturation_native")
    flags = ", ".join(r["hardware"]["flags"])
    trained = [row for row in r["networks"] if "accuracy" in row]
    agreed = [row["simulated_and_emulated"]["agreement"] for row in trained]
    fake_quantized_models = ", ".join(
        f"{percent(row['accuracy']['twin'])} ({row['network']}, {row['weights']})" for row in trained
    )
    about = (
        f"all on {r['hardware']['processor']} ({flags}), with VNNI by `session.x64quantprecision`. Simulation and "
        f"this CPU agree on {percent(min(agreed))} or more of the predictions of each trained network. "
        f"Accuracy of the fake-quantized model itself, where nothing saturates either: {fake_quantized_models}."
    )
    return _networks(r, "measured", about)


def _networks(r: dict[str, Any], how: str, about: str) -> str:
    lines = [
        "| network | weights | n | error without VNNI | left after simulation | fake-quantized model to session, with VNNI "
        f"| correlation | accuracy with VNNI | without, {how} | without, simulated |",
        "|---|---|" + "---:|" * 8,
    ]
    for row in r["networks"]:
        accuracy, correlation = row.get("accuracy", {}), row["error_correlation"]
        means = [
            row[k]["mean_difference"] for k in ("native_and_emulated", "simulated_and_emulated", "twin_and_native")
        ]
        shown = [percent(accuracy[k]) if k in accuracy else "" for k in ("native", "emulated", "simulated")]
        lines.append(
            f"| {row['network'].removeprefix('torchvision:')}{'' if accuracy else ', random weights'} "
            f"| {_by_author(row['weights'])} | {row['n']:,} "
            f"| {' | '.join(f'{m:.4f}' for m in means)} "
            f"| {'' if correlation is None else f'{correlation:.4f}'} | {' | '.join(shown)} |"
        )
    lines += [
        "",
        f"Differences are means over all logits. onnxruntime {r['versions']['onnxruntime']}; {about}",
    ]
    return "\n".join(lines)


def without_vnni() -> str:
    """Milliseconds of each form in which INT8 runs on a CPU without VNNI, and how many times faster than float."""
    r = record("without_vnni")
    forms = ("saturating", "seven_bits", "by_request", "signed")
    lines = [
        "| network | px | threads | batch | float | 8 bit, saturating | 7 bit | 8 bit, exact by request "
        "| signed activations |",
        "|---|" + "---:|" * 8,
    ]
    for row in r["rows"]:
        ms = row["latency_ms"]
        conditions = " | ".join(f"{ms[form]:.1f} ms ({ms['float'] / ms[form]:.2f}x)" for form in forms)
        lines.append(
            f"| {row['network'].removeprefix('torchvision:')} | {row['image_size']} | {row['threads']} "
            f"| {row['batch']} | {ms['float']:.1f} ms | {conditions} |"
        )
    flags = ", ".join(r["hardware"]["flags"])
    about = f"Random weights; {r['hardware']['processor']} ({flags}), onnxruntime {r['versions']['onnxruntime']}."
    return "\n".join([*lines, "", f"In brackets how many times as fast as float. {about}"])


def saturation_risks() -> str:
    """What the estimate says of each trained network on validation images, and of its worst layers."""
    lines = []
    for row in record("saturation")["networks"]:
        if "risk" not in row:
            continue
        risk, name = row["risk"], f"{row['network']}, {_by_author(row['weights'])}"
        if risk["proven"]:
            lines.append(f"- {name}: proven, no layer can saturate on any image.")
            continue
        low, high = risk["accuracy_without_vnni_interval"]
        worst = max(risk["layers"], key=lambda layer: layer["mean_error"])
        others = max(layer["mean_error"] for layer in risk["layers"] if layer is not worst)
        lines.append(
            f"- {name}: {percent(risk['accuracy'])} with VNNI, expected "
            f"{percent(risk['accuracy_without_vnni'])} [{percent(low)}, {percent(high)}] without, agreement "
            f"{percent(risk['agreement'])} (n = {risk['n']:,}, {row['risk_seconds']:.0f} s). Worst layer "
            f"`{_by_author(worst['name'])}`: {percent(worst['saturated_sums'], 2)} of its pair sums saturate, which "
            f"changes {percent(worst['changed_outputs'])} of its outputs by {worst['mean_error']:.3f} standard "
            f"deviations on average; no other layer's mean error is above {others:.5f}."
        )
    return "\n".join(lines)


def zoo() -> str:
    """A line per network of torchvision's zoo."""
    lines = [
        "| network | parameters | side | integer | float operators left | agreement | logits | pixels | file |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, row in record("zoo")["rows"].items():
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
    hardware, versions = r["hardware"], r["versions"]
    return "\n".join(
        [
            *lines,
            "",
            f"onnxruntime {versions['onnxruntime']}, torch {versions['torch']}, torchvision "
            f"{versions['torchvision']}, {hardware['threads']} thread of {hardware['processor']}; "
            f"{r['calibration_images']} images for ranges, {r['test_images']} to compare, seed {r['seed']}, commit "
            f"{r['commit']}, `{r['command']}`.",
        ]
    )


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
        "| network | variant | accuracy | drop, points | integer | file | agreement with fake-quantized model "
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
    n = QAT_VALIDATION_IMAGES
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
        f"On {session['unlike']} of these {fake_quantized['n']} the fake-quantized model of `default` says another class than its session; "
        f"asked one by one instead of in batches of 32, it says another than itself on {itself['unlike']}. Logits "
        f"differ by {session['mean_difference']:.3f} and {itself['mean_difference']:.3f} on average; where classes "
        f"differ, the first leads by at most {max(session[lead], itself[lead]):.2f}."
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
    return "\n".join([*lines, "", f"MobileNetV2 at {r['image_size']} px, {r['hardware']['threads']} threads."])


def corruption_fidelity() -> str:
    """How far each corruption is from the reference implementation."""
    part = record("corruptions")["faithful"]
    lines = [
        "| corruption | largest difference of pixels, of 255 | of the mean distortion | of its spread | |",
        "|---|---:|---:|---:|---|",
    ]
    notes = []
    for name, found in part["corruptions"].items():
        if found["random"]:
            changes = (percent(found[f"worst_{k}_change"]) for k in ("distortion", "spread"))
            figures = "| " + " | ".join(("", *changes))
        else:
            figures = f"| {found['worst_pixel_difference']:.2f} | |"
        word = "agrees" if found["agrees"] else "differs"
        lines.append(f"| {name.replace('_', ' ')} {figures} | {word} |")
        if not found["agrees"]:
            notes.append(f"- {name.replace('_', ' ')}: {found['exception'] or 'no reason known.'}")
    about = (
        f"n = {part['n']} photographs at {part['size']} px, the worst of five severities of the table "
        f"`{part['table']}`; imagecorruptions-imaug {part['versions']['imagecorruptions-imaug']}."
    )
    return "\n".join([*lines, "", about, "", *notes])


def corruption_speed() -> str:
    """Milliseconds per image and severity, ours and the reference's."""
    part = record("corruptions")["speed"]
    sizes = [k for k in part if k.isdigit()]
    lines = [
        "| corruption | " + " | ".join(f"reference, {s} px | ours | ratio" for s in sizes) + " |",
        "|---" + "|---:" * 3 * len(sizes) + "|",
    ]
    rows = {**part[sizes[0]]["corruptions"], "mean of the 15": None}
    for name in rows:
        conditions = [part[s]["mean_of_15"] if rows[name] is None else part[s]["corruptions"][name] for s in sizes]
        figures = (f"{c['reference_ms']:.3f} ms | {c['ours_ms']:.3f} ms | {c['ratio']:.1f}" for c in conditions)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(figures)} |")
    tables = {part[s]["table"] for s in sizes}
    named = (
        f"table `{tables.pop()}`"
        if len(tables) == 1
        else ("tables " + " and ".join(f"`{part[s]['table']}` ({s} px)" for s in sizes))
    )
    about = (
        f"Processor time per image and severity on one thread of {part['hardware']['processor']}, mean of five "
        f"severities of the {named}, medians of {part[sizes[0]]['rounds']} rounds."
    )
    return "\n".join([*lines, "", about])


def corruption_processes() -> str:
    """Two processes against one, and rendering against inference."""
    both, against = record("corruptions")["workers"], record("corruptions")["inference"]
    least, most = min(both["ratios"]), max(both["ratios"])
    return (
        f"Two processes (`--workers 2`) render the fifteen {both['ratio']:.2f} times as fast as one at "
        f"{both['size']} px ({both['n']:,} images; {least:.2f} to {most:.2f} in {both['rounds']} rounds on a machine "
        "that others use, too). "
        f"On one thread rendering takes {against['rendering_ms']:.2f} ms an image, mean of the fifteen at five "
        f"severities, INT8 inference of ResNet18 takes {against['inference_ms']:.2f} ms."
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


MAIN = (headline, shifts, facts)
ZOO = (zoo, zoo_summary)
SHIFTS = (corruption_fidelity, corruption_speed, corruption_processes)
EVALUATION = (attack_cost,)
SATURATION = (
    saturation_operators,
    saturation_networks,
    saturation_risks,
    saturation_native_operators,
    saturation_native_networks,
    without_vnni,
)
QUANTIZATION = (
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
GROUPS = (MAIN, SATURATION, ZOO, SHIFTS, EVALUATION, QUANTIZATION, COMPENSATION, ROBUSTNESS)
QUOTES: dict[str, Callable[[], str]] = {function.__name__: function for group in GROUPS for function in group}


def quoted(text: str) -> str:
    """The text with every quote as the results say it."""
    return QUOTE.sub(lambda m: f"{m[1]}{QUOTES[m[2]]()}\n{m[4]}", text)


def plot() -> str:
    """The first plot of the main job's report, on white."""
    page = (ROOT / "benchmarks" / "results" / "main_job.html").read_text()
    found = re.search(r"<svg (.*?</svg>)", page, re.DOTALL)
    assert found
    return f'<svg style="background: white" {found[1]}\n'


def main() -> int:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    wanted = {path: quoted(path.read_text()) for path in pages} | {PLOT: plot()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(wanted[path])
    print("\n".join(f"quotes of {path.name} differed" for path in stale) or "all quotes are what the results say")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
