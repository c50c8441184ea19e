"""A model card for each exported graph: what it is, what it learned, how it was measured, where it ends.

After Mitchell et al., "Model Cards for Model Reporting", arXiv 1810.03993.
"""

from __future__ import annotations

from qrobust.record import Record, Remedy
from qrobust.report.approval import approval_sentence
from qrobust.report.classes import evenness, recall_note, recall_table
from qrobust.report.confidence import confidence_note, confidence_table
from qrobust.report.figures import bounds, percent, points
from qrobust.report.markdown import table
from qrobust.report.recommendation import refusal
from qrobust.report.verdict import (
    NAMES,
    float_operators,
    times_elsewhere,
)
from qrobust.text import code, markdown

WORST = 5


def model_card(record: Record, graph: str) -> str:
    """Markdown for one graph of a run.

    Args:
        record: of the run.
        graph: its name, as in `summary.clean_accuracy`.
    """
    s = record.summary
    remedy = next((r for r in record.remedies if r.remedy == graph), None)
    lines = [f"# {graph}.onnx: {NAMES[graph]}", "", *_what(record, graph), "", "## Learned from", ""]
    splits, weights = record.splits, markdown(record.weights or "that it came with")
    lines.append(
        f"The classifier: {code(record.model)}, weights {weights}; how it was trained is its owner's to say. "
        f"Ranges were observed on {splits['calibration'].n} calibration images of {code(record.data)}; choices "
        f"were made on {splits['validation'].n} validation images."
        if graph != "float"
        else f"The float network {code(record.model)} as it was given, batch norms folded."
    )
    if remedy:
        lines += ["", f"{NAMES[graph]}: {_provenance(remedy, record.data)}"]
    lines += [
        "",
        "## Measured",
        "",
        f"On {s.n_test} test images by onnxruntime {record.versions['onnxruntime']} "
        f"({record.hardware.processor}, {record.hardware.threads} threads); intervals are at 95 %.",
        "",
        f"- clean: {percent(s.clean_accuracy[graph])} {bounds(s.clean_interval[graph])}",
        *_under_shift(record, graph),
        *_balanced(record, graph),
        f"- batch 1 in {s.latency_ms[graph].batch_1:.2f} ms, {s.size_bytes[graph] / 1024:.0f} KiB",
        *(f"- {sentence}" for sentence in times_elsewhere(record)),
    ]
    if remedy:
        lines.append(f"- {float_operators(record.audit[graph])}")
    lines += _on_target(record, graph)
    if remedy:
        lines.append(
            f"- against INT8: {points(remedy.gain_pp, remedy.gain_interval_pp)} under shift{_parts(remedy)}, "
            f"clean cost {points(remedy.clean_cost_pp, remedy.clean_cost_interval_pp)}"
        )
        lines += [f"- {sentence}" for sentence in [approval_sentence(remedy)] if sentence]
    lines += _worst(record, graph) + _by_class(record, graph) + _confidence(record, graph)
    return "\n".join([*lines, "", "## Limits", "", *_limits(record, graph, remedy), ""])


def _worst(record: Record, graph: str) -> list[str]:
    """The conditions of lowest accuracy."""
    rows = [row for row in record.rows if row.shift != "clean"]
    worst = sorted(rows, key=lambda row: row.accuracy[graph])[:WORST]
    if not worst:
        return []
    listed = ([row.shift, str(row.severity), percent(row.accuracy[graph])] for row in worst)
    return ["", "Where it is worst:", "", *table([["shift", "severity", "accuracy"], *listed])]


def _by_class(record: Record, graph: str) -> list[str]:
    """The recall of every class, or of the worst ones."""
    if record.classes is None or graph not in record.classes.classifiers:
        return []
    recalls = recall_table(record.classes, record.class_names, {graph: NAMES[graph]})
    return ["", "By class:", "", *table(recalls), "", recall_note(record.classes)]


def _confidence(record: Record, graph: str) -> list[str]:
    """What its confidence is worth."""
    rows = confidence_table(record.confidence, {graph: NAMES[graph]})
    if record.confidence is None or not rows[1:]:
        return []
    return ["", "Its confidence:", "", *table(rows), "", confidence_note(record.confidence)]


def _parts(remedy: Remedy) -> str:
    """The gain on unseen shifts and on seen ones, where both were measured."""
    if remedy.unseen_gain_pp is None or remedy.seen_gain_pp is None:
        return ""
    unseen = points(remedy.unseen_gain_pp, remedy.unseen_gain_interval_pp)
    return f" ({unseen} on unseen shifts, {points(remedy.seen_gain_pp, remedy.seen_gain_interval_pp)} on seen ones)"


def unmeasured_card(graph: str) -> str:
    """Markdown beside a graph that was just made: what it is; an older one's figures are not its own."""
    return (
        f"# {graph}.onnx: {NAMES[graph]}\n\nNot measured yet. `qrobust evaluate` measures it and `qrobust report` "
        "then writes here what it learned from, how accurate it is and where it ends.\n"
    )


def _on_target(record: Record, graph: str) -> list[str]:
    """What the graph makes of real images of the new surroundings, if there are any."""
    target = record.target_images
    if target and target.accuracy and target.interval and graph in target.accuracy:
        return [
            f"- on {target.n} test images of {code(target.images)}: {percent(target.accuracy[graph])} "
            f"{bounds(target.interval[graph])}"
        ]
    if target and not target.labelled:
        sure = target.confidence
        return [
            f"- on {target.n} test images of {code(target.images)}, which have no labels: accuracy is not known; "
            f"mean confidence {percent(sure[graph])}, of INT8 {percent(sure['int8'])}"
        ]
    return []


def _provenance(remedy: Remedy, data: str) -> str:
    """What a remedy learned from, as it was when it learned."""
    known = remedy.provenance
    if not known:
        return "nothing, it is not trained."
    named = f"scenario {', '.join(known.scenarios)}: " if known.scenarios else ""
    labels = "with labels" if known.labels else "without labels"
    target = " and on the target images" if known.target_images else ""
    severities = f" at severity {', '.join(map(str, known.severities))}" if known.severities else ""
    budget = known.clean_budget
    gate = "" if budget is None else f" It was to cost at most {budget:g} points of clean validation accuracy."
    if cost := remedy.validation and remedy.validation.clean_cost:
        how = f", in {cost.folds} folds of which each judged what the others chose," if cost.folds else ""
        gate += (
            f" On {cost.n} validation images{how} it cost {cost.cost_pp:.1f}, with 95 % confidence at most "
            f"{cost.bound_pp:.1f} points."
        )
    drawn = f"{known.batch_norm_images} images drawn from " if known.batch_norm_images else ""
    shifts = markdown(named + ", ".join(remedy.trained_on))
    return (
        f"{shifts}{severities}; on {drawn}{known.images} training images of "
        f"{code(data)} {labels}{target}, disjoint from those below.{gate}"
    )


def _under_shift(record: Record, graph: str) -> list[str]:
    s, interval = record.summary, record.summary.shift_interval[graph]
    if interval is None:
        return []
    return [
        f"- under shift, mean over {s.n_conditions} conditions of severity table `{record.severity_table}`: "
        f"{percent(s.shift_accuracy[graph])} {bounds(interval)}",
        *(
            [f"- of these, {s.n_far_conditions} far from all random operations: {percent(s.far_accuracy[graph])}"]
            if s.n_far_conditions
            else []
        ),
    ]


def _balanced(record: Record, graph: str) -> list[str]:
    """Balanced accuracy, clean and under shift, and what it is worth more than."""
    found = record.classes.classifiers.get(graph) if record.classes else None
    if record.classes is None or found is None or found.clean_balanced_interval is None:
        return []
    shifted = found.shift_balanced_interval
    under = f", under shift {percent(found.shift_balanced)} {bounds(shifted)}" if shifted else ""
    return [
        f"- balanced accuracy: clean {percent(found.clean_balanced)} {bounds(found.clean_balanced_interval)}{under}",
        f"- {markdown(evenness(record.classes, record.class_names))}",
    ]


def _what(record: Record, graph: str) -> list[str]:
    audit, seed = record.audit[graph], record.seeds.run
    size, channels = record.image_size, record.channels
    return [
        f"An image classifier of {len(record.class_names)} classes. Input `(N, {channels}, {size}, {size})`, "
        f"{'RGB' if channels == 3 else 'luma'} in [0, 1], normalisation inside; output logits. Class names, "
        "preprocessing and provenance are in the file's metadata.",
        "",
        *([f"Images: {record.preprocessing}.", ""] if record.preprocessing else []),
        f"{audit.integer_ops} of {audit.quantizable_ops} convolutions and matrix products run on integers "
        f"(target `{record.quantization.target}`); made by qrobust {record.qrobust}, seed {seed}.",
    ]


def _unseen(record: Record, remedy: Remedy) -> str:
    """What of the record neither the remedy nor the classifier was trained on, and what was."""
    known = {row.shift for row in record.rows if row.seen_by_classifier} | set(remedy.trained_on)
    measured = dict.fromkeys(row.shift for row in record.rows if row.shift != "clean")
    unseen, seen = ([s for s in measured if (s in known) == trained] for trained in (False, True))
    if not unseen:
        return "Its gain is for the shifts it learned from; beyond them it is not measured."
    rest = f"; seen: {markdown(', '.join(seen))}" if seen else ""
    return f"Measured on shifts never seen in training: {markdown(', '.join(unseen))}{rest}."


def _limits(record: Record, graph: str, remedy: Remedy | None) -> list[str]:
    limits = [f"- {markdown(sentence)}" for sentence in [refusal(record, graph, NAMES)] if sentence]
    limits += [
        "- Accuracy holds for images like those it was measured on. A shift that is not in the record is not known.",
        "- No robustness against attacks is claimed. The record has the figures of those that were tried.",
    ]
    if remedy:
        if remedy.diverged:
            limits.append("- Its training diverged; this is the best state before that.")
        if remedy.trained_on:
            limits.append(f"- {_unseen(record, remedy)}")
        losing = [r for r in record.rows if r.accuracy[graph] < r.accuracy["int8"]]
        if losing:
            names = ", ".join(f"{r.shift} {r.severity}".removesuffix(" 0") for r in losing)
            limits.append(f"- Below the INT8 graph without it, if only by an image, on: {markdown(names)}.")
    limits += [f"- {markdown(flag)}" for flag in record.attacks.flags if flag.startswith(f"UNRELIABLE: {graph},")]
    return limits
