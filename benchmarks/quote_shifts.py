"""Quotes of how faithful and how fast the corruptions are, for quote.py."""

from __future__ import annotations

from figures import percent, record

from qrobust.shifts import c_bar as c_bar_corruptions
from qrobust.shifts.registry import SUITES


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


def c_bar() -> str:
    """Strengths of c-bar per table, and how often the reference networks err."""
    found = record("c_bar")
    lines = [
        "| corruption | strength | " + " | ".join(f"`{table}`, severity 1 to 5" for table in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    for name in c_bar_corruptions.CORRUPTIONS:
        unit = c_bar_corruptions.UNITS[c_bar_corruptions.CORRUPTIONS[name]]
        figures = (", ".join(f"{x:.2g}" for x in one["corruptions"][name]["strengths"]) for one in found.values())
        lines.append(f"| {name} | {unit} | {' | '.join(figures)} |")
    said = []
    for table, one in found.items():
        errors = [corruption["errors"] for corruption in one["corruptions"].values()]
        means = [sum(at) / len(at) for at in zip(*errors, strict=True)]
        farthest = max(abs(e - aim) for error in errors for e, aim in zip(error, one["suite_errors"], strict=True))
        said.append(
            f"- `{table}`: {one['network']} errs on {percent(one['clean_error'])} of {one['n']:,} validation images, "
            f"at severity 1 to 5 on {', '.join(percent(e) for e in one['suite_errors'])} under the 19, on "
            f"{', '.join(percent(e) for e in means)} under these, of which none is more than "
            f"{100 * farthest:.0f} points from that."
        )
    return "\n".join([*lines, "", *said])


def near_far() -> str:
    """Which shifts are near and which far, nearest first."""
    found = record("near_far")
    ordered = sorted(found["shifts"].items(), key=lambda item: item[1]["distance"])
    lines = ["| of | near | far |", "|---|---|---|"]
    for suite in ("corruptions-19", "transformations", "c-bar"):
        own = [(name, one) for name, one in ordered if name in SUITES[suite]]
        near, far = (
            ", ".join(f"{name} {one['distance']:.2f}" for name, one in own if one["far"] == is_far)
            for is_far in (False, True)
        )
        lines.append(f"| `{suite}` | {near or '-'} | {far or '-'} |")
    left_out = ", ".join(f"{family} {value:.2f}" for family, value in found["left_out_distance"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Distances in the features of {found['network']}, {found['n']} validation images, {found['draws']:,} "
            f"random operations, table `{found['severity_table']}`. Families left out: {left_out}; the threshold is "
            f"their mean, {found['threshold']:.3f}.",
        ]
    )


SHIFTS = (
    c_bar,
    near_far,
    corruption_fidelity,
    corruption_speed,
    corruption_processes,
)
