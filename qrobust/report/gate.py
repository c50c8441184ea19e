"""What `qrobust check` found, for the terminal, a pull request, and the forms that CI systems read."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

from qrobust.record import BoundResult, GateResult
from qrobust.text import markdown, printable

# What a figure of a unit looks like, with and without its unit.
FORMS: dict[str, tuple[Callable[[float], str], str]] = {
    "points": (lambda value: f"{value:+.2f}", " points"),
    "share": (lambda value: f"{100 * value:.2f}", " %"),
    "ratio": (lambda value: f"{value:.3g}", "x"),
}


def measured(bound: BoundResult) -> str:
    """The figure with its interval and n, or that there is none."""
    if bound.value is None:
        return f"not measured: {bound.missing}"
    form, unit = FORMS[bound.unit]
    text = form(bound.value) + unit
    if bound.interval is None:
        return text
    return f"{text} [{form(bound.interval[0])}, {form(bound.interval[1])}], n = {bound.n:,}"


def wanted(bound: BoundResult) -> str:
    """The bound in words."""
    form, unit = FORMS[bound.unit]
    return f"at {'most' if bound.at_most else 'least'} {form(bound.limit).lstrip('+')}{unit}"


def remedy(bound: BoundResult) -> str:
    """How an undecided bound could be decided; nothing for others."""
    if bound.outcome != "undecided":
        return ""
    if bound.decided_by is None:
        return "the figure is the bound itself, no number of images decides"
    return f"about {bound.decided_by:,} images would decide"


def sentence(bound: BoundResult) -> str:
    """What was bounded, what was found, and what would decide."""
    return "; ".join(filter(None, (f"{bound.figure}: {measured(bound)}, expected {wanted(bound)}", remedy(bound))))


def conclusion(result: GateResult) -> str:
    """The outcome of the whole in one sentence."""
    counts = ", ".join(f"{n} {word}" for word in ("pass", "breach", "undecided") if (n := result.count(word)))
    told = {0: "Pass", 1: "Breach", 3: "Export check failed", 4: "Undecided"}[result.exit_code]
    return f"{told}: {counts}, by intervals at {100 * result.confidence:g} %."


def gate_lines(result: GateResult) -> list[str]:
    """A line for each failed export check and each bound, then the conclusion."""
    lines = [f"failed     export check: {failed}" for failed in result.failed_checks]
    return [*lines, *(f"{bound.outcome:10s} {sentence(bound)}" for bound in result.bounds), conclusion(result)]


def gate_markdown(result: GateResult) -> str:
    """A heading with the outcome, and a table."""
    rows = ["| | figure | measured | bound |", "|---|---|---|---|"]
    rows += [f"| failed | export check | {markdown(failed)} | |" for failed in result.failed_checks]
    for bound in result.bounds:
        found = "; ".join(filter(None, (measured(bound), remedy(bound))))
        outcome = bound.outcome if bound.outcome == "pass" else f"**{bound.outcome}**"
        rows.append(f"| {outcome} | {markdown(bound.figure)} | {markdown(found)} | {wanted(bound)} |")
    title = f"## qrobust check: {markdown(result.graph)} in {markdown(result.run)}"
    return "\n".join([title, "", conclusion(result), "", *rows, ""])


def gate_annotations(result: GateResult) -> list[str]:
    """GitHub's workflow commands: an error for what fails, a warning for what is undecided and passes."""
    lines = [_annotation("error", "export check", failed) for failed in result.failed_checks]
    for bound in result.bounds:
        if bound.outcome != "pass":
            lenient = bound.outcome == "undecided" and result.undecided_passes
            lines.append(_annotation("warning" if lenient else "error", bound.bound, sentence(bound)))
    return lines


def _annotation(level: str, title: str, message: str) -> str:
    def escaped(text: str, also: str = "") -> str:
        return "".join(f"%{ord(c):02X}" if c in f"%\r\n{also}" else c for c in printable(text))

    return f"::{level} title=qrobust {escaped(title, ':,')}::{escaped(message)}"


def gate_junit(result: GateResult) -> str:
    """JUnit's XML: a test case per export check and bound; undecided ones that pass are skipped."""
    cases = [("export check", failed, "failed") for failed in result.failed_checks]
    cases += [(bound.bound, sentence(bound), bound.outcome) for bound in result.bounds]
    suite = ElementTree.Element("testsuite", name=printable(f"qrobust check {result.run}"), tests=str(len(cases)))
    counts = {"failure": 0, "skipped": 0}
    for name, text, outcome in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=printable(result.graph), name=printable(name))
        if outcome == "pass":
            ElementTree.SubElement(case, "system-out").text = printable(text)
            continue
        kind = "skipped" if outcome == "undecided" and result.undecided_passes else "failure"
        counts[kind] += 1
        ElementTree.SubElement(case, kind, message=printable(text), type=outcome)
    suite.set("failures", str(counts["failure"]))
    suite.set("skipped", str(counts["skipped"]))
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'
