"""Write the figures of `results/` into README and docs, between `<!-- quote: NAME -->` and `<!-- end -->`.

    python benchmarks/quote.py            # rewrite the quotes
    python benchmarks/quote.py --check    # exit with 1 if a quote is not what the results say

Tables and lists of figures are never typed by hand; a test runs the check, of the figures in README's picture, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from figures import ROOT, change, percent, record
from quote_claims import CLAIMS
from quote_compensation import COMPENSATION
from quote_deploy import DEPLOY
from quote_fleets import FLEETS
from quote_quantization import QUANTIZATION
from quote_robustness import ROBUSTNESS
from quote_shifts import SHIFTS
from quote_targets import TARGETS
from quote_testing import TESTING
from quote_trust import TRUST
from quote_zoo import ZOO
from report_picture import picture, stale

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
            f"ResNet-20 on CIFAR-10 (JPEG), {r['n_test']:,} test images, {s['n_conditions']} combinations of shift "
            f"and severity, onnxruntime {r['versions']['onnxruntime']} with {r['hardware']['threads']} thread(s) of "
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
    parity, audit = r["parity"], r["audit"]
    fit = r["compensation"]["training"]
    minutes = {k: v["duration_s"] / 60 for k, v in r["stages"].items()}
    return "\n".join(
        [
            f"- Integer convolutions and matrix products: {audit['int8']['integer_ops']} of "
            f"{audit['int8']['quantizable_ops']} in INT8, {audit['compensated']['integer_ops']} of "
            f"{audit['compensated']['quantizable_ops']} with the calibrator.",
            f"- Torch and onnxruntime agree on {percent(parity['int8']['agreement'], 2)} of predictions in INT8, "
            f"{percent(parity['compensated']['agreement'], 2)} with the calibrator (n = {parity['int8']['n']:,}).",
            f"- Training and choosing took {minutes['compensate']:.0f} minutes, measuring {minutes['evaluate']:.0f}. "
            f"On validation images the calibrator went from {percent(fit['float']['start_shift_accuracy'])} to "
            f"{percent(r['compensation']['validation']['shift_accuracy'])} under shift.",
        ]
    )


MAIN = (headline, shifts, facts, picture)
GROUPS = (CLAIMS, MAIN, TARGETS, ZOO, SHIFTS, QUANTIZATION, COMPENSATION, ROBUSTNESS, TRUST, DEPLOY, FLEETS, TESTING)
QUOTES: dict[str, Callable[[], str]] = {function.__name__: function for group in GROUPS for function in group}


def quoted(text: str) -> str:
    """The text with every quote as the results say it."""
    return QUOTE.sub(lambda m: f"{m[1]}{QUOTES[m[2]]()}\n{m[4]}", text)


def pages() -> list[Path]:
    """Every page that may quote a figure."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    wanted = {path: quoted(path.read_text()) for path in pages()}
    differing = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" not in sys.argv:
        for path in differing:
            path.write_text(wanted[path])
    said = [f"quotes of {path.name} differed" for path in differing]
    if stale():
        said.append("docs/report.png shows other figures than the record: python benchmarks/report_picture.py")
    print("\n".join(said) or "all quotes are what the results say")
    return 1 if stale() or (differing and "--check" in sys.argv) else 0


if __name__ == "__main__":
    sys.exit(main())
