"""Quotes of what compensation gains and costs, for quote.py."""

from __future__ import annotations

from typing import Any

from figures import change, percent, record

# Of the reference networks, of other trainings of two of them, and of a smaller one that was asked everything.
REFERENCE, AGAIN, SMALL = "compensation", "compensation_scenes", "compensation_resnet20"
RESULTS = (REFERENCE, AGAIN, "compensation_mobilenet_v2", SMALL)


def _jobs(prefix: str, *results: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Network, job and what was kept of it, of all jobs whose name begins so."""
    return [
        (network, name, job)
        for result in results or RESULTS
        for network, found in record(result)["networks"].items()
        for name, job in found["jobs"].items()
        if name.startswith(prefix)
    ]


def _mean(name: str, result: str = REFERENCE) -> str:
    """A mean over runs, with its interval over images."""
    found = record(result)["means"][name]
    low, high = found["interval_pp"]
    return f"{found['pp']:+.2f} points [{low:+.2f}, {high:+.2f}]"


def _costs(job: dict[str, Any]) -> str:
    """Share of the multiply-accumulates, time over INT8 at batch 1, and under float at batch 1 and 32."""
    s = job["summary"]
    pair, narrow, wide = (s["latency_ms"][name] for name in ("compensated", "int8", "float"))
    faster = " / ".join(f"{wide[batch] / pair[batch]:.2f}x" for batch in ("batch_1", "batch_32"))
    return f"{percent(s['macs']['calibrator_share'])} | {pair['batch_1'] / narrow['batch_1']:.2f}x | {faster}"


COSTS = "| multiply-accumulates added | time over INT8, batch 1 | faster than float, batch 1 / 32 |"


def _machines(jobs: list[tuple[str, str, dict[str, Any]]]) -> str:
    """What their times were measured on."""
    found = set()
    for _, _, job in jobs:
        h = job["hardware"]
        without = "" if {"avx512_vnni", "avx_vnni"} & set(h["flags"]) else " without VNNI"
        found.add(f"{h['threads']} thread(s) of {h['processor']}{without}")
    return " and ".join(sorted(found))


def compensation_u13() -> str:
    """One calibrator per network for thirteen shifts at severity 5, of the reference networks."""
    return _u13(REFERENCE)


def compensation_u13_again() -> str:
    """The same of another training of some of them."""
    return _u13(AGAIN)


def compensation_u13_small() -> str:
    """The same of the smaller network."""
    return _u13(SMALL)


def _u13(result: str) -> str:
    found = _jobs("u13", result)
    lines = [
        "| network | clean, INT8 | with calibrator | clean cost | under shift, float | INT8 | with calibrator | gain "
        + COSTS,
        "|---|" + "---:|" * 10,
    ]
    for network, _, job in found:
        s = job["summary"]
        clean, shift = s["clean_accuracy"], s["shift_accuracy"]
        lines.append(
            f"| {network} | {percent(clean['int8'])} | {percent(clean['compensated'])} | {change(s, 'clean_cost')} | "
            f"{percent(shift['float'])} | {percent(shift['int8'])} | {percent(shift['compensated'])} | "
            f"{change(s, 'compensation_gain')} | {_costs(job)} |"
        )
    n = found[0][2]["summary"]["n_test"]
    minutes = ", ".join(f"{job['stages']['compensate']['duration_s'] / 60:.0f}" for _, _, job in found)
    lines += [
        "",
        f"Mean gain over {len(found)} network(s): {_mean('u13', result)}; n = {n:,} each. Minutes of training, by "
        f"network: {minutes}. Times with {_machines(found)}.",
    ]
    return "\n".join(lines)


def compensation_shifts() -> str:
    """Accuracy in each of the thirteen shifts."""
    lines = ["| network | shift | float | INT8 | with calibrator | gain |", "|---|---|---:|---:|---:|---:|"]
    for network, _, job in _jobs("u13", REFERENCE, SMALL):
        for row in job["rows"]:
            a = row["accuracy"]
            lines.append(
                f"| {network} | {row['shift']} | {percent(a['float'])} | {percent(a['int8'])} | "
                f"{percent(a['compensated'])} | {change(row, 'gain')} |"
            )
    return "\n".join(lines)


def compensation_remedies() -> str:
    """Every remedy on the same mix of shifts, and batch-norm re-estimation on single ones."""
    lines = [
        "| network | shifts | remedy | clean | under shift | gain | clean cost | time over INT8, batch 1 | n |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network, name, job in [*_jobs("u13", REFERENCE, SMALL), *_jobs("scene-")]:
        for row in job["remedies"]:
            time = f"{row['latency_ratio']['batch_1']:.2f}x" if row.get("latency_ratio") else "-"
            method = "calibrator" if row["remedy"] == "compensated" else row["remedy"]
            lines.append(
                f"| {network} | {name.removeprefix('scene-')} | {method} | {percent(row['clean_accuracy'])} | "
                f"{percent(row['shift_accuracy'])} | {change(row, 'gain')} | {change(row, 'clean_cost')} | {time} | "
                f"{row['n']:,} |"
            )
    return "\n".join(lines)


def _narrow(prefix: str, title: str, key: str) -> list[str]:
    lines = [f"| network | {title} | INT8 | with calibrator | gain | clean cost {COSTS}", "|---|---|" + "---:|" * 7]
    for network, name, job in _jobs(prefix):
        s = job["summary"]
        trained = job["compensation"]["trained_on"]
        rows = [
            r for r in job["rows"] if r["shift"] != "clean" and (key != "unseen_gain" or r["shift"] not in trained)
        ]
        before, after = (sum(r["accuracy"][k] for r in rows) / len(rows) for k in ("int8", "compensated"))
        lines.append(
            f"| {network} | {name.removeprefix(prefix)} | {percent(before)} | {percent(after)} | {change(s, key)} | "
            f"{change(s, 'clean_cost')} | {_costs(job)} |"
        )
    kind = prefix.removesuffix("-")
    lines.append("")
    for result in RESULTS:
        jobs = _jobs(prefix, result)
        networks = dict.fromkeys(network for network, _, _ in jobs)
        for network in networks:
            floating = percent(record(result)["networks"][network]["training"]["test_accuracy"])
            name = f"{kind} {network}"
            runs = record(result)["means"][name]["runs"]
            lines.append(
                f"{network} ({floating} in float): mean gain over {runs}, {_mean(name, result)}. "
                f"Times with {_machines(jobs)}."
            )
        if len(networks) > 1:
            lines.append(f"Over these {len(networks)}: {_mean(kind, result)}.")
    return lines


def single_shift_mean() -> tuple[float, tuple[float, float]]:
    """The mean gain of all networks whose calibrators are for one shift each, with its interval, in points.

    Runs of several files share test images, but their predictions do not lie side by side: the mean of the networks'
    interval bounds, which is as wide as that of their mean can be.
    """
    means = _single_shift_means()
    low, high = (sum(m["interval_pp"][side] for m in means) / len(means) for side in (0, 1))
    return sum(m["pp"] for m in means) / len(means), (low, high)


def _single_shift_means() -> list[dict[str, Any]]:
    return [
        record(result)["means"][f"scene {network}"]
        for result in RESULTS
        for network in dict.fromkeys(network for network, _, _ in _jobs("scene-", result))
    ]


def compensation_single() -> str:
    """One calibrator for one shift at severity 5, and the mean over networks."""
    mean, (low, high) = single_shift_mean()
    return "\n".join(
        [
            *_narrow("scene-", "shift", "compensation_gain"),
            f"Mean over these {len(_single_shift_means())} networks: {mean:+.2f} points [{low:+.2f}, {high:+.2f}].",
        ]
    )


def compensation_families() -> str:
    """What a calibrator does to a family of shifts it never saw."""
    return "\n".join(_narrow("without-", "family left out", "unseen_gain"))


def compensation_few() -> str:
    """Gains by the number of unlabelled images."""
    lines = _narrow("few-", "unlabelled images", "compensation_gain")
    rows = [line for line in lines if line.startswith("| ")][1:]
    rows.sort(key=lambda line: (line.split("|")[1], int(line.split("|")[2])))
    return "\n".join([*lines[:2], *rows])  # a mean over numbers of images says nothing


def compensation_bits() -> str:
    """W4A4 with a calibrator beside W8A8 without and float."""
    lines = [
        "| network | | clean | under shift |",
        "|---|---|---:|---:|",
    ]
    for result in RESULTS:
        for network, _, low in _jobs("w4a4", result):
            wide, narrow = record(result)["networks"][network]["jobs"]["u13"]["summary"], low["summary"]
            for label, s, graph in (
                ("float", wide, "float"),
                ("W8A8", wide, "int8"),
                ("W8A8 + calibrator", wide, "compensated"),
                ("W4A4", narrow, "int8"),
                ("W4A4 + calibrator", narrow, "compensated"),
            ):
                accuracies = f"{percent(s['clean_accuracy'][graph])} | {percent(s['shift_accuracy'][graph])}"
                lines.append(f"| {network} | {label} | {accuracies} |")
    for result in RESULTS:
        for network, _, _ in _jobs("w4a4", result):
            parts = [
                f"{name} is {_mean(f'{bits} cost {network}', result)} from float under shift, with its calibrator "
                f"{_mean(f'{bits} left {network}', result)}"
                for bits, name in (("u13", "W8A8"), ("w4a4", "W4A4"))
            ]
            against = _mean(f"w4a4 against w8a8 {network}", result)
            lines += ["", f"{network}: {'; '.join(parts)}. W4A4 with calibrator is {against} from W8A8 without."]
    return "\n".join(lines)


def compensation_risk() -> str:
    """What the worst attack leaves of INT8 and of the compensated classifier, by epsilon."""
    lines = ["| network | epsilon | float | INT8 | with calibrator |", "|---|---:|---:|---:|---:|"]
    flags, n, lost = 0, 0, []
    for result in RESULTS:
        for network, _, job in _jobs("u13", result):
            attacks, again = job["attacks"], " (again)" if result == AGAIN else ""
            left = {(w["epsilon"], w["classifier"]): w["robust_accuracy"] for w in attacks["worst"]}
            for epsilon in sorted({e for e, _ in left}):
                found = " | ".join(percent(left[epsilon, g]) for g in ("float", "int8", "compensated"))
                lost.append(left[epsilon, "int8"] - left[epsilon, "compensated"])
                lines.append(f"| {network}{again} | {255 * epsilon:g}/255 | {found} |")
            flags, n = flags + len(attacks["flags"]), attacks["n"]
    about = (
        f"n = {n} test images each; the compensated classifier is weaker than INT8 alone by at most "
        f"{100 * max(lost):.1f} points, or {round(n * max(lost))} images; contradictions flagged: {flags}."
    )
    return "\n".join([*lines, "", about])


def risk() -> str:
    """What stronger attacks on more images leave of each graph, and the difference the calibrator makes."""
    lines = [
        "| network | epsilon | float | INT8 | with calibrator | with calibrator minus INT8 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    networks = record("risk")["networks"]
    for network, found in networks.items():
        left = {(w["epsilon"], w["classifier"]): w["robust_accuracy"] for w in found["worst"]}
        for row in found["pair_minus_int8"]:
            epsilon, (low, high) = row["epsilon"], row["interval_pp"]
            each = " | ".join(percent(left[epsilon, g]) for g in ("float", "int8", "compensated"))
            lines.append(
                f"| {network} | {255 * epsilon:g}/255 | {each} | {row['pp']:+.1f} points [{low:+.1f}, {high:+.1f}] |"
            )
    about = ", ".join(
        f"{network}: n = {found['n']:,}, contradictions flagged: {len(found['flags'])}"
        for network, found in networks.items()
    )
    return "\n".join([*lines, "", f"{about}."])


def streams() -> str:
    """Batch norms that adapt at test time beside what is exported, on single shifts and on a mixed stream."""
    found = record("streams")
    lines = ["| network | classifier | batch | single shifts | mixed stream |", "|---|---|---:|---:|---:|"]
    for network, measured in found["networks"].items():
        for row in measured["rows"]:
            method = {
                "compensated": "INT8 + calibrator",
                "int8": "INT8",
                "adapted": "float, batch norms adapted",
            }.get(row["method"], row["method"])
            conditions = [
                f"{row[key]['pp']:.1f} % [{low:.1f}, {high:.1f}]"
                for key in ("single", "mixed")
                for low, high in [row[key]["interval_pp"]]
            ]
            lines.append(f"| {network} | {method} | {row['batch'] or 'any'} | {' | '.join(conditions)} |")
    n = next(iter(found["networks"].values()))["n"]
    return "\n".join(
        [*lines, "", f"n = {n:,} test images in each stream, severity 5, prior of {found['prior']} images."]
    )


def clothes() -> str:
    """What new scales win back on one's own photographs, and what they cost."""
    r = record("clothes")
    name, latency = r["remedy"], r["latency_ms"]
    before, after = r["effects"]["int8"], r["effects"][name]
    lines = [
        "| balanced accuracy | clean | under shift | gain under shift | clean cost | batch 1 |",
        "|---|---:|---:|---:|---:|---:|",
        f"| INT8 | {percent(before['clean'])} | {percent(before['shift'])} | | "
        f"| {latency['int8']['batch_1']:.1f} ms |",
        f"| INT8, `{name}` | {percent(after['clean'])} | {percent(after['shift'])} | {change(after, 'gain')} "
        f"| {change(after, 'clean_cost')} | {latency[name]['batch_1']:.1f} ms |",
    ]
    deployed, classes = r["deployed"], r["test_images_per_class"]
    return "\n".join(
        [
            *lines,
            "",
            f"n = {after['n']} test photographs, {min(classes.values())} to {max(classes.values())} a class, "
            f"{r['conditions']} combinations of shift and severity, none of which was learned from; 95 % intervals "
            f"over images. {r['training_images']:,} photographs to learn from. The deployed file alone, by "
            f"`infer.py`, is right on {percent(deployed['accuracy'])} of {deployed['n']}.",
        ]
    )


def imagenet_size() -> str:
    """One sentence on EfficientNet-Lite0 at 224 px."""
    r = record("imagenet_size")
    s = r["summary"]
    latency = {name: times["batch_1"] for name, times in s["latency_ms"].items()}
    return (
        f"EfficientNet-Lite0, {r['splits']['training']['n']} training and {s['n_test']} test photographs of other "
        f"classes: under shift {percent(s['shift_accuracy']['int8'])} becomes "
        f"{percent(s['shift_accuracy']['compensated'])} ({change(s, 'compensation_gain')}), clean "
        f"{percent(s['clean_accuracy']['int8'])} becomes {percent(s['clean_accuracy']['compensated'])} (cost "
        f"{change(s, 'clean_cost')}); {percent(s['macs']['calibrator_share'])} of the multiply-accumulates, "
        f"{latency['int8']:.1f} ms become {latency['compensated']:.1f} ms at batch 1 (float "
        f"{latency['float']:.1f} ms)."
    )


# Of the data set, what there is to observe, learn and choose from.
PHOTOGRAPHS = 5000
PHOTOGRAPHED = {"lite0": "EfficientNet-Lite0", "lite1": "EfficientNet-Lite1"}


def photographs() -> str:
    """What remedies gain on photographs at 224 px, and what clean images and images of other classes cost."""
    runs = record("photographs")
    lines = [
        "| network | learned from | remedy | suite | INT8, corrupted | gain | recovered | worst |",
        "|---|---:|---|---|---:|---:|---:|---:|",
    ]
    clean = [
        "| network | learned from | remedy | clean, of ten | of 1,000 | clean cost | time | as INT8, other classes |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for r in runs.values():
        learned = f"{r['images'] or PHOTOGRAPHS:,} photographs"
        for name in next(iter(r["suites"].values()))["remedies"]:
            begin = f"| {PHOTOGRAPHED[r['network']]} | {learned} | `{name}` "
            for suite, found in r["suites"].items():
                g = found["remedies"][name]
                lines.append(
                    f"{begin}| {suite} | {percent(g['int8_shift_accuracy'])} | {change(g, 'gain')} "
                    f"| {percent(g['recovered'], 0)} | {g['worst_pp']:+.1f} |"
                )
            ten, every = (f"{percent(r['clean'][k]['int8'])} → {percent(r['clean'][k][name])}" for k in r["clean"])
            others = r["others"]["graphs"][name]
            clean.append(
                f"{begin}| {ten} | {every} | {change(g, 'clean_cost')} "
                f"| {r['latency_ms'][name] / r['latency_ms']['int8']:.2f}x "
                f"| {percent(others['agreement_with_int8'])}, {others['in_the_ten']} in the ten |"
            )
    first = next(iter(runs.values()))
    return "\n".join(
        [
            *lines,
            "",
            *clean,
            "",
            f"224 px, n = {first['n']} photographs of ten classes that the networks were not trained on, "
            f"severities {', '.join(map(str, first['severities']))} (`imagenet-c`), 95 % intervals over images; "
            "answers among the ten classes, but where all 1,000 are named. Last column: "
            f"{first['others']['n']} photographs of other classes.",
        ]
    )


# Of the classifier, what each remedy of the ladder changes.
RUNS = {
    "w4a4": "W4A4, one epoch of quantization-aware training",
    "few-100": "100 images, no labels",
    "few-300": "300 images, no labels",
    "few-1000": "1,000 images, no labels",
    "few-100-scales": "100 images, no labels",
    "few-300-scales": "300 images, no labels",
    "few-1000-scales": "1,000 images, no labels",
    "seed-0": "seed 0",
    "seed-1": "seed 1",
    "seed-2": "seed 2",
    "seen-mix": "learned from random operations and u13",
    "single-contrast": "learned from contrast",
    "single-impulse_noise": "learned from impulse noise",
    "single-rotation": "learned from rotation",
    "single-scale": "learned from scale",
    "single-inversion": "learned from inversion",
}
CHANGES = {
    "calibrator": "nothing: a calibrator in front",
    "scales": "scales, activation ranges and biases; every integer weight stays",
    "scales+calibrator": "scales, ranges and biases, and a calibrator in front",
    "first-stage": "the first stage",
    "finetune": "everything",
    "second-look": "nothing: asked about each image's negative as well",
}


def ladder() -> str:
    """What each remedy gains under shifts that nothing was trained on, learned from random operations alone."""
    r = record("ladder")
    names = [name for name in CHANGES if name in r["graphs"]]
    before = r["graphs"]["int8"]
    lines = [
        "| what may change | steps | clean | time over INT8, batch 1 |",
        "|---|---:|---:|---:|",
        f"| INT8 as it is | | {percent(before['clean_accuracy'])} | 1 |",
    ]
    for name in names:
        g = r["graphs"][name]
        lines.append(
            f"| `{name}`: {CHANGES[name]} | {g['steps']:,} | {percent(g['clean_accuracy'])} "
            f"| {g['latency_ratio']:.2f} |"
        )
    lines += [
        "",
        "| suite | shifts | INT8 | remedy | accuracy | gain | recovered | of its own loss | worst shift |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for suite, found in r["suites"].items():
        for name in names:
            g, int8 = found["graphs"][name], found["graphs"]["int8"]["shift_accuracy"]
            lines.append(
                f"| {suite} | {found['conditions']} | {percent(int8)} | `{name}` "
                f"| {percent(g['shift_accuracy'])} | {change(g['gain'], 'gain')} | {percent(g['recovered'], 0)} "
                f"| {percent(g['recovered_of_own'], 0)} | {g['worst_pp']:+.1f} |"
            )
    h = r["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            f"n = {r['n']:,} test images, 95 % intervals over images; commit `{r['commit']}`, onnxruntime "
            f"{r['versions']['onnxruntime']} with {h['threads']} thread(s) of {h['processor']}.",
        ]
    )


def ladder_severities() -> str:
    """The same remedies under the 19 corruptions at every severity."""
    r = record("ladder_severities")
    graphs, errors = r["graphs"], r["corruption_errors"]
    severities = list(r["by_severity"])
    lines = [
        f"| remedy | clean | severity {' | '.join(severities)} | mean | gain | recovered | worst | mCE |",
        f"|---|{'---:|' * (len(severities) + 6)}",
    ]
    for name in graphs:
        each = " | ".join(percent(r["by_severity"][severity][name]) for severity in severities)
        gain = ["", "", ""]
        if "gain" in graphs[name]:
            g = graphs[name]
            gain = [change(g["gain"], "gain"), percent(g["recovered"], 0), f"{g['worst_pp']:+.1f}"]
        lines.append(
            f"| `{name}` | {percent(r['clean_accuracy'][name])} | {each} | {percent(graphs[name]['shift_accuracy'])} "
            f"| {' | '.join(gain)} | {percent(errors['value'][name])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"n = {r['n']:,} test images under {r['conditions']} combinations of corruption and severity, 95 % "
            f"intervals over images; mCE over ImageNet-C's {errors['corruptions']} corruptions, not normalised. "
            f"Trained anew on {r['hardware']['processor']}; commit `{r['commit']}`.",
        ]
    )


def unseen() -> str:
    """In a sentence each, what remedies win back under shifts that nothing was trained on."""
    suites = record("ladder")["suites"]
    worst = suites["transformations"]["graphs"]["calibrator"]["worst_pp"]
    remedies = {
        "calibrator": "a calibrator",
        "scales": "new scales and biases on the same integer weights",
        "scales+calibrator": "both",
        "finetune": "everything fine-tuned",
    }
    lines = [
        f"- {named}: {what}, {change(suites[suite]['graphs'][name]['gain'], 'gain')}, "
        f"{percent(suites[suite]['graphs'][name]['recovered'], 0)} of what INT8 loses."
        for suite, named in (
            ("corruptions-19", "The 19 corruptions"),
            ("c-bar", "Corruptions made to be unlike these"),
        )
        for name, what in remedies.items()
    ]
    before, after = (
        100 * record("ladder")["graphs"][name]["shifts"]["inversion"] for name in ("int8", "second-look")
    )
    lines.append(f"- Negatives: a second look, {before:.1f} % become {after:.1f} %, at twice the time.")
    return "\n".join(
        [*lines, f"- A calibrator can harm: {worst:+.1f} points under the worst of the transformations."]
    )


def unseen_runs() -> str:
    """What a remedy gains with another seed, with four bits, from few images."""
    lines = [
        "| run | remedy | clean, INT8 | with remedy | suite | INT8 | gain | recovered | worst shift |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    found = record("unseen_runs")["runs"]
    for run, r in found.items():
        clean = [percent(r["clean"][name]["accuracy"]) for name in ("int8", r["remedy"])]
        for suite, under in r["suites"].items():
            g = under["graphs"][r["remedy"]]
            lines.append(
                f"| {RUNS[run]} | `{r['remedy']}` | {' | '.join(clean)} | {suite} "
                f"| {percent(under['graphs']['int8']['shift_accuracy'])} | {change(g['gain'], 'gain')} "
                f"| {percent(g['recovered'], 0)} | {g['worst_pp']:+.1f} |"
            )
    n = next(iter(found.values()))["n"]
    single = [
        under["graphs"][r["remedy"]]["gain"]["gain_pp"]
        for run, r in found.items()
        for under in r["suites"].values()
        if run.startswith("single-")
    ]
    mean = f" Mean over the {len(single)} single shifts: {sum(single) / len(single):+.1f} points." if single else ""
    return "\n".join([*lines, "", f"n = {n:,} test images, severity 5, 95 % intervals over images.{mean}"])


def stability() -> str:
    """How often predictions flip from frame to frame."""
    r = record("stability")
    motions = list(r["steps"])
    lines = [
        f"| | {' | '.join(f'{motion}: flips | more than INT8' for motion in motions)} |",
        f"|---|{'---:|---:|' * len(motions)}",
    ]
    for name, graph in r["graphs"].items():
        cells = [f"{percent(graph[m]['flips'])} | {change(graph[m], 'more')}" for m in motions]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    steps = r["steps"]
    return "\n".join(
        [
            *lines,
            "",
            f"n = {r['n']:,} test images, {r['frames']} frames each, from one to the next {steps['translation']} "
            f"pixels, {steps['rotation']} degrees or {percent(steps['zoom'], 0)} of the size; 95 % intervals over "
            "images.",
        ]
    )


def quantized_file() -> str:
    """Remedies of a file that another tool quantized, against a calibrator trained with the float network."""
    found = [record(f"quantized_file{suffix}") for suffix in ("_16", "", "_nncf")]
    lines = ["| images a step | given | clean | under shift | gain | clean cost |", "|---:|---|---:|---:|---:|---:|"]
    for r in found:
        maker = "NNCF" if r.get("made_by", "") and r["made_by"].startswith("NNCF") else "`quantize_static`"
        told = {
            "file": f"the file alone, made by {maker}: a calibrator",
            "scales": f"the file alone, made by {maker}: other scales and biases",
            "run": "the float network, quantized by qrobust: a calibrator",
        }
        lines += [_of_file(r["batch_size"], what, r[name]) for name, what in told.items() if name in r]
    before, last = found[-2:]
    more = ", ".join(
        f"{r['difference_pp']:+.1f} points ({what})"
        for r, what in zip(
            found, ("`quantize_static`, 16 images", "`quantize_static`, 32 images", "NNCF, 32 images"), strict=True
        )
    )
    h = last["hardware"]
    agreement = min(r["file"]["compensation"]["file"]["parity"]["agreement"] for r in found)
    commits = " and ".join(dict.fromkeys(f"`{r['commit']}`" for r in (before, last)))
    return "\n".join(
        [
            *dict.fromkeys(lines),  # two files were compared with the same run
            "",
            f"With the float network a calibrator gains more by {more}. The files' integers in torch predict what "
            f"onnxruntime predicts on {percent(agreement)} of "
            f"{last['file']['compensation']['file']['parity']['n']:,} validation images or more. "
            f"{last['steps']:,} steps, n = {last['file']['n']:,} test images, 95 % intervals over images, one seed; "
            f"{last['made_by']}; commits {commits}, onnxruntime {last['versions']['onnxruntime']} with "
            f"{h['threads']} thread(s) of {h['processor']}.",
        ]
    )


def _of_file(batch: int, what: str, found: dict[str, Any]) -> str:
    """A row of what a remedy does to a file."""
    made = next(name for name in found["clean_accuracy"] if name not in ("float", "int8"))
    clean, shift = (
        " → ".join(percent(found[f"{where}_accuracy"][graph]) for graph in ("int8", made))
        for where in ("clean", "shift")
    )
    gain, cost = change(found, "gain"), change(found, "clean_cost")
    return f"| {batch} | {what} | {clean} | {shift} | {gain} | {cost} |"


def tensorflow_file() -> str:
    """Remedies of a file that came from TensorFlow."""
    r = record("tensorflow_file")
    told = {"calibrator": "a calibrator", "scales": "other scales and biases"}
    lines = ["| remedy | clean | under shift | gain | clean cost | batch 1 |", "|---|---:|---:|---:|---:|---:|"]
    for name, what in told.items():
        row = _of_file(0, what, r[name]).removeprefix("| 0 ")
        before, after = (found["batch_1"] for found in r[name]["latency_ms"].values())
        lines.append(f"{row} {before:.2f} → {after:.2f} ms |")
    shares, by, file = r["integer_mac_share"], r["made_by"], r["scales"]["compensation"]["file"]
    return "\n".join(
        [
            *lines,
            "",
            f"`audit`: {percent(shares['arm64'])} of its multiply-accumulates run on integers as on ARM, "
            f"{percent(shares['x86'])} on x86, where onnxruntime does not fuse all of TFLite's int8 activations. Its "
            f"integers in torch predict what onnxruntime predicts on {percent(file['parity']['agreement'])} of "
            f"{file['parity']['n']:,} validation images. {r['steps']} steps of {r['batch_size']} images, n = "
            f"{r['scales']['n']} test images, one seed: this shows that it works, not what can be gained; so short "
            f"a training left the calibrator's gate shut. Keras {by['keras']}, TensorFlow {by['tensorflow-cpu']}, "
            f"tf2onnx {by['tf2onnx']}; commit `{r['commit']}`.",
        ]
    )


# What each label of the results did.
TRAINED = {
    "shifted": "all branches; the gate opens for every shifted image (kept)",
    "shifted-seeds": "all branches; the gate opens for every shifted image (kept)",
    "shifted-noise": "all branches; the gate opens for every shifted image (kept)",
    "benefit": "all branches; the gate opens where the correction lowers the classifier's loss",
    "nogeometry": "no geometric branch; the gate opens for every shifted image",
    "nogeometry-seeds": "no geometric branch; the gate opens for every shifted image",
    "nogeometry-noise": "no geometric branch; the gate opens for every shifted image",
}


def withheld() -> str:
    """What ways of training a calibrator gain under families of random operations that it did not learn from."""
    lines = [
        "| trained so | families withheld | seed | clean | gain under these | least |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for label, found in record("withheld")["labels"].items():
        lines += [
            f"| {TRAINED[label]} | {', '.join(row['withheld'])} | {row['seed']} | {row['clean_pp']:+.1f} "
            f"| {row['gain_pp']:+.1f} | {min(row['gains_pp'].values()):+.1f} |"
            for row in found["rows"]
        ]
    n = {row["n"] for found in record("withheld")["labels"].values() for row in found["rows"]}
    return "\n".join([*lines, "", f"Points against INT8 on {max(n):,} validation images that chose nothing."])


def training_speed() -> str:
    """Images a second of a calibrator's training at 224 px, now and before, and where each phase stands."""
    r = record("training_speed")
    wall, cpu = r["images_per_second"], r["images_per_processor_second"]
    lines = ["| steps that | before | now | by processor time |", "|---|---:|---:|---:|"]
    phases = {
        "restore": "restore pixels",
        "float": "go through the classifier",
        "int8": "do so on the calibrator's grid",
        "all": "all",
    }
    for phase, told in phases.items():
        before, now = (wall[name][phase] for name in ("before", "now"))
        ratio = cpu["now"][phase] / cpu["before"][phase]
        lines.append(f"| {told} | {before:.1f} images/s | {now:.1f} images/s | {ratio:.2f}x |")
    kernels = "with" if r["bfloat16_kernels"] else "without"
    h = r["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            f"{r['network']} at {r['image_size']} px, {r['batch_size']} images a step, commit `{r['before']}` and "
            f"`{r['commit']}` in turn, {h['threads']} thread(s) of {h['processor']} {kernels} bfloat16 kernels.",
        ]
    )


def calibrator_latency() -> str:
    """Time over INT8 at 224 px behind calibrators, and over that of float."""
    r = record("calibrator_latency")
    lines = [
        "| network | threads | batch | INT8 | calibrator | time over INT8 | faster than float |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for network, found in r["networks"].items():
        for row in found["rows"]:
            ms = row["ms"]
            for name in (key for key in ms if key not in ("float", "int8")):
                taken = " (default)" if name == found["default"] else ""
                lines.append(
                    f"| {network} | {row['threads']} | {row['batch']} | {ms['int8']:.1f} ms | {name}{taken} "
                    f"| {ms[name] / ms['int8']:.2f} | {ms['float'] / ms[name]:.2f}x |"
                )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians on {r['hardware']['processor']}, onnxruntime {r['versions']['onnxruntime']}, "
            f"commit `{r['commit']}`.",
        ]
    )


COMPENSATION = (
    ladder,
    ladder_severities,
    withheld,
    unseen,
    unseen_runs,
    stability,
    quantized_file,
    tensorflow_file,
    compensation_u13,
    compensation_u13_again,
    compensation_u13_small,
    compensation_shifts,
    compensation_remedies,
    compensation_single,
    compensation_families,
    compensation_few,
    compensation_bits,
    compensation_risk,
    risk,
    streams,
    imagenet_size,
    photographs,
    clothes,
    calibrator_latency,
    training_speed,
)
