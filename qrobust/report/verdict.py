"""What the numbers of a record say, in sentences; used by every form of report."""

from __future__ import annotations

from qrobust.record import Audit, MeanCorruptionError, Record, TargetImages, ValidationAgreement
from qrobust.report.attacks import flag_sentences
from qrobust.report.classes import balanced_sentence, evenness, primary_sentence
from qrobust.report.figures import bounds, footprint_cells, percent, points
from qrobust.report.mixed_precision import mixed_precision_sentence, unmet_sentences
from qrobust.report.recommendation import recommendation_sentences

NAMES = {
    "float": "Float",
    "int8": "INT8",
    "compensated": "INT8 + calibrator",
    "bn-reestimate": "batch norm re-estimated",
    "calibrator+bn-reestimate": "batch norm re-estimated + calibrator",
    "scales": "scales and biases learned",
    "scales+calibrator": "scales and biases learned + calibrator",
    "first-stage": "first stage fine-tuned",
    "first-stage+calibrator": "first stage fine-tuned + calibrator",
    "finetune": "fine-tuned",
    "finetune+calibrator": "fine-tuned + calibrator",
    "second-look": "INT8 + second look",
    "calibrator+second-look": "INT8 + calibrator + second look",
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


def validation_sentence(measured: ValidationAgreement) -> str:
    """What both graphs do on validation images, which is known before anything else is measured."""
    figures = [
        f"{NAMES[name]} {percent(measured.accuracy[name])} {bounds(measured.interval[name])}"
        for name in ("float", "int8")
    ]
    primary = measured.primary or {}
    decides = ", ".join(f"{NAMES[name]} {percent(primary[name])}" for name in ("float", "int8") if name in primary)
    return (
        f"Validation images (n = {measured.n:,}, onnxruntime): {', '.join(figures)}; INT8 predicts what float "
        f"does on {percent(measured.agreement)}.{f' In the measure that decides: {decides}.' if decides else ''}"
    )


def corruption_error(mce: MeanCorruptionError | None, names: dict[str, str]) -> list[str]:
    """Sentences about the mean corruption error; none where no corruption of the benchmark was measured.

    Args:
        mce: of a summary.
        names: classifiers to what they are called.
    """
    if not mce:
        return []
    by = "divided by AlexNet's" if mce.normalizer == "alexnet" else "not normalised"
    relative = {k: f" (relative {percent(v)})" for k, v in (mce.relative or {}).items()}
    values = ", ".join(
        f"{name} {percent(mce.value[k])}{relative.get(k, '')}" for k, name in names.items() if k in mce.value
    )
    return [f"Mean corruption error over {mce.corruptions} corruptions, {by}: {values}."]


def significance(p_values: list[float | None], what: str) -> str:
    """How many rows differ significantly, and how many comparisons that was corrected for.

    Args:
        p_values: adjusted, one per row.
        what: what the rows compare.
    """
    found = sum(p is not None and p < LEVEL for p in p_values)
    return (
        f"{what} differ significantly in {found} of {len(p_values)} rows (McNemar's exact test at {LEVEL:g}, Holm's "
        "correction over the rows)."
    )


def times_elsewhere(record: Record) -> list[str]:
    """That times are not the target's, where this CPU took slower kernels to add as the target does."""
    if record.hardware.sums != "exact-by-request":
        return []
    return [
        "Times are of a CPU without VNNI, which adds as the target does by slower kernels: on the device they and "
        "their ratios are others."
    ]


def verdict(record: Record) -> list[str]:
    """The verdict, most important sentence first."""
    s, compensated = record.summary, "compensated" in record.summary.shift_accuracy
    sentences = recommendation_sentences(record, NAMES) if record.remedies else []
    if leading := primary_sentence(record, NAMES):
        sentences.append(leading)
    if record.target_images:
        sentences.append(target_sentence(record.target_images))
    if compensated:
        sentences += _gain_sentences(record)
    sentences += times_elsewhere(record)
    diverged = [NAMES[row.remedy] for row in record.remedies if row.diverged]
    if diverged:
        sentences.append(
            f"Training of {', '.join(diverged)} diverged, and the best state before that was kept: a smaller "
            "--learning-rate may do better."
        )
    sentences += _quantization_sentences(record)
    sentences += corruption_error(s.mce, {k: NAMES[k] for k in ("float", "int8", "compensated")})
    sentences.append(significance([row.drop_p_adjusted for row in record.rows], "Float and INT8"))
    if compensated:
        gains = [row.gain_p_adjusted for row in record.rows]
        sentences.append(significance(gains, "INT8 with and without calibrator"))
    sentences += class_sentences(record)
    return sentences + flag_sentences(record.attacks)


def class_sentences(record: Record) -> list[str]:
    """How even classes are, and balanced accuracy unless it led; nothing where classes were not measured."""
    if record.classes is None:
        return []
    led = record.primary == "balanced"
    balanced = [] if led else [balanced_sentence(record.classes, NAMES)]
    return [evenness(record.classes, record.class_names), *balanced]


def _gain_sentences(record: Record) -> list[str]:
    """What the calibrator gains under shift, what it costs on clean images, and its work and time."""
    s, sentences = record.summary, []
    all_unseen = s.unseen_gain_pp is not None and s.n_unseen_conditions == s.n_conditions
    if s.unseen_gain_pp is not None and not all_unseen:
        sentences.append(
            f"On shifts that neither classifier nor calibrator saw in training: "
            f"{points(s.unseen_gain_pp, s.unseen_gain_interval_pp)} "
            f"over {s.n_unseen_conditions} of {s.n_conditions} conditions."
        )
    if s.compensation_gain_pp is not None:
        under = "Under rendered shift" if learned_target(record) else "Under shift"
        unseen = ", none of it seen in training by classifier or calibrator," if all_unseen else ""
        sentences.append(
            f"{under}{unseen} the INT8 graph goes from {percent(s.shift_accuracy['int8'])} to "
            f"{percent(s.shift_accuracy['compensated'])} "
            f"({points(s.compensation_gain_pp, s.compensation_gain_interval_pp)}), clean accuracy "
            f"from {percent(s.clean_accuracy['int8'])} to {percent(s.clean_accuracy['compensated'])} "
            f"(cost {points(s.clean_cost_pp, s.clean_cost_interval_pp)})."
        )
    if s.far_gain_pp is not None:
        sentences.append(
            f"On the {s.n_far_conditions} conditions that are far from all random operations: from "
            f"{percent(s.far_accuracy['int8'])} to {percent(s.far_accuracy['compensated'])} "
            f"({points(s.far_gain_pp, s.far_gain_interval_pp)})."
        )
    times = {name: latency.batch_1 for name, latency in s.latency_ms.items()}
    sentences.append(
        f"It costs {percent(s.macs.calibrator_share)} of the classifier's multiply-accumulates: at batch 1 "
        f"{times['int8']:.2f} ms become {times['compensated']:.2f} ms (float {times['float']:.2f} ms). "
        f"{float_operators(record.audit['compensated'])}"
    )
    return sentences


def _quantization_sentences(record: Record) -> list[str]:
    """What quantization costs, what of it runs on integers, and what other CPUs make of it."""
    s, audit, saturation = record.summary, record.audit["int8"], record.quantization.saturation
    under_shift = points(s.shift_quantization_drop_pp, s.shift_quantization_drop_interval_pp)
    sentences = [
        f"Quantization itself costs {points(s.quantization_drop_pp, s.quantization_drop_interval_pp)} on "
        f"clean images{f' and {under_shift} under shift' if under_shift else ''}; float and INT8 agree on "
        f"{percent(s.agreement)} of clean predictions.",
        f"onnxruntime runs {audit.integer_ops} of {audit.quantizable_ops} convolutions and matrix products of "
        f"the INT8 graph on integers.",
    ]
    if mixed := record.quantization.mixed_precision:
        measure = {"balanced": "balanced accuracy"}.get(record.primary, record.primary)
        sentences += [mixed_precision_sentence(mixed, measure), *(f"{told}." for told in unmet_sentences(mixed))]
    if saturation and not saturation.proven:
        sentences.append(
            f"On an x86 CPU without VNNI expect {percent(saturation.accuracy_without_vnni)} "
            f"{bounds(saturation.accuracy_without_vnni_interval)} instead of {percent(saturation.accuracy)} "
            f"(simulated on {saturation.n} validation images); --target x86-avx2 is for those."
        )
    return sentences


def float_operators(audited: Audit) -> str:
    """One sentence: which operators of a graph compute in float, and what share of the time each kind takes.

    Args:
        audited: of a graph. What only moves values, or has them on integers, is left out.
    """
    counts = audited.float_compute | audited.other_ops
    kinds = [k for k in counts if not k.startswith(("Q", "DequantizeLinear")) and k not in MOVING]
    share = {k: audited.time_share.get(k, 0.0) for k in kinds}
    listed = ", ".join(f"{counts[k]} {k} {percent(share[k])}" for k in sorted(kinds, key=lambda k: -share[k]))
    total = percent(sum(share.values()))
    return f"{sum(counts[k] for k in kinds)} operators in float take {total} of its time on one thread ({listed})."


def learned_target(record: Record) -> TargetImages | None:
    """The target images that compensation learned from, where it learned from nothing else."""
    known = [row.provenance for row in record.remedies if row.provenance]
    return record.target_images if known and all(found.target_images_only for found in known) else None


def comparison(record: Record) -> list[list[str]]:
    """The table of remedies: a header, then a row for each, highest gain first."""
    gains = ("gain", "on unseen shifts", "on seen shifts", "on far shifts")
    header = ("", "clean", "under shift", *gains, "clean cost", "multiply-accumulates", "time over INT8, batch 1")
    rows, whole = [[*header, "batch 32", "n"]], record.summary.macs.classifier
    for row in record.remedies:
        ratio = row.latency_ratio
        rows.append(
            [
                NAMES[row.remedy],
                percent(row.clean_accuracy),
                percent(row.shift_accuracy),
                points(row.gain_pp, row.gain_interval_pp),
                points(row.unseen_gain_pp, row.unseen_gain_interval_pp) or "-",
                points(row.seen_gain_pp, row.seen_gain_interval_pp) or "-",
                points(row.far_gain_pp, row.far_gain_interval_pp) or "-",
                points(row.clean_cost_pp, row.clean_cost_interval_pp),
                "-" if row.macs is None else percent(row.macs / whole),
                *((f"{ratio.batch_1:.2f}x", f"{ratio.batch_32:.2f}x") if ratio else ("-", "-")),
                str(row.n),
            ]
        )
    return rows


def target_sentence(target: TargetImages) -> str:
    """What the graphs make of real images of the place of use."""
    where = f"On {target.n} test images of {target.images}"
    if target.accuracy is None or target.interval is None:
        sure = ", ".join(f"{NAMES[k]} {percent(v)}" for k, v in target.confidence.items())
        return f"{where}, which have no labels, accuracy is not known; mean confidence: {sure}."
    right = ", ".join(f"{NAMES[k]} {percent(v)} {bounds(target.interval[k])}" for k, v in target.accuracy.items())
    gains = "".join(
        f"; {NAMES[k]} gains {points(g.gain_pp, g.gain_interval_pp)}" for k, g in (target.gain or {}).items()
    )
    return f"{where}: {right}{gains}."


def headline(record: Record) -> list[list[str]]:
    """The table of a run: a header, then a row per graph."""
    s, by_class = record.summary, record.classes.classifiers if record.classes else {}
    accuracy, balanced = ["clean", "under shift"], ["balanced, clean", "balanced, under shift"] if by_class else []
    leads = record.primary != "accuracy"
    rows = [["", *(balanced + accuracy if leads else accuracy + balanced), "batch 1", "batch 32", "size"]]
    rows[0] += ["memory", "load"] if s.footprint else []
    for key, name in NAMES.items():
        if key in s.clean_accuracy:
            plain = [percent(s.clean_accuracy[key]), percent(s.shift_accuracy[key])]
            even = [percent(by_class[key].clean_balanced), percent(by_class[key].shift_balanced)] if by_class else []
            rows.append(
                [
                    name,
                    *(even + plain if leads else plain + even),
                    f"{s.latency_ms[key].batch_1:.2f} ms",
                    f"{s.latency_ms[key].batch_32:.1f} ms",
                    f"{s.size_bytes[key] / 1024:.0f} KiB",
                    *footprint_cells(s.footprint, key),
                ]
            )
    return rows
