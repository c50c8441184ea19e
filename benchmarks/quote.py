"""Write the figures of `results/` into README and docs, between `<!-- quote: NAME -->` and `<!-- end -->`.

    python benchmarks/quote.py            # rewrite the quotes
    python benchmarks/quote.py --check    # exit with 1 if a quote is not what the results say

No figure in README or docs is typed by hand; a test runs the check.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUOTE = re.compile(r"(<!-- quote: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NAMES = {"float": "float", "int8": "INT8", "compensated": "INT8 + calibrator"}


def record() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / "main_job.json").read_text())


def corruptions() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / "corruptions.json").read_text())


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def change(summary: dict[str, Any], key: str) -> str:
    low, high = summary[f"{key}_interval_pp"]
    return f"{summary[f'{key}_pp']:+.1f} points [{low:+.1f}, {high:+.1f}]"


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
            f"severity, onnxruntime {r['versions']['onnxruntime']} with {r['hardware']['threads']} threads of "
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


def corruption_fidelity() -> str:
    """How far each corruption is from the reference implementation."""
    part = corruptions()["faithful"]
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
    part = corruptions()["speed"]
    sizes = [k for k in part if k.isdigit()]
    lines = [
        "| corruption | " + " | ".join(f"reference, {s} px | ours | ratio" for s in sizes) + " |",
        "|---" + "|---:" * 3 * len(sizes) + "|",
    ]
    rows = {**part[sizes[0]]["corruptions"], "mean of the 15": None}
    for name in rows:
        cells = [part[s]["mean_of_15"] if rows[name] is None else part[s]["corruptions"][name] for s in sizes]
        figures = (f"{c['reference_ms']:.3f} ms | {c['ours_ms']:.3f} ms | {c['ratio']:.1f}" for c in cells)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(figures)} |")
    about = (
        f"Processor time per image and severity on one thread of {part['hardware']['processor']}, mean of five "
        f"severities of the table `{part[sizes[0]]['table']}`, medians of {part[sizes[0]]['rounds']} rounds."
    )
    return "\n".join([*lines, "", about])


QUOTES: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (headline, shifts, facts, corruption_fidelity, corruption_speed)
}


def quoted(text: str) -> str:
    """The text with every quote as the results say it."""
    return QUOTE.sub(lambda m: f"{m[1]}{QUOTES[m[2]]()}\n{m[4]}", text)


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if quoted(text) != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(quoted(text))
    print("\n".join(f"quotes of {name} differed" for name in stale) or "all quotes are what the results say")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
