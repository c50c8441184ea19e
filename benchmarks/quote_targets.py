"""Quotes of what other CPUs make of the same INT8 file, for quote.py."""

from __future__ import annotations

from typing import Any

from figures import percent, record


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
        f"Accuracy of the fake-quantized model, where nothing saturates either: {fake_quantized_models}."
    )
    return _networks(r, "measured", about)


def _networks(r: dict[str, Any], how: str, about: str) -> str:
    lines = [
        "| network | weights | n | error without VNNI | left after simulation | PyTorch to ONNX Runtime, with VNNI "
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


TARGETS = (
    saturation_operators,
    saturation_networks,
    saturation_risks,
    saturation_native_operators,
    saturation_native_networks,
    without_vnni,
)
