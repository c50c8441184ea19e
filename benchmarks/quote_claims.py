"""Quotes that sum up: README's table, and the index of results, a row for each claim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from figures import percent, record
from quote_compensation import PHOTOGRAPHED, PHOTOGRAPHS, RUNS, single_shift_mean

NETWORKS = {"cifar_resnet18": "ResNet18", "cifar_vgg16_bn": "VGG16-BN", "cifar_mobilenet_v2": "MobileNetV2"}
MAIN = "ResNet-20"


@dataclass(frozen=True)
class Claim:
    """One figure and what is needed to judge it: interval, images, the script that repeats it, the page about it."""

    claim: str
    number: str
    interval: str
    n: int | str
    script: str
    page: str

    def row(self) -> str:
        n = f"{self.n:,}" if isinstance(self.n, int) else self.n
        page = f"[{self.page.removeprefix('../').removesuffix('.md')}]({self.page})"
        return f"| {self.claim} | {self.number} | {self.interval} | {n} | `{self.script}` | {page} |"


def _points(value: float, interval: tuple[float, float] | list[float], digits: int = 1) -> tuple[str, str]:
    return f"{value:+.{digits}f} points", f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}"


def _difference(summary: dict[str, Any], key: str) -> tuple[str, str]:
    return _points(summary[f"{key}_pp"], summary[f"{key}_interval_pp"])


def _ratio(of: dict[str, float], to: dict[str, float]) -> str:
    return f"{of['batch_1'] / to['batch_1']:.2f}x"


def readme() -> str:
    """A line for each network: accuracy without and with calibrator, on clean images and under shift."""
    lines = [
        "| INT8 network, without → with calibrator | clean images | under shift |",
        "|---|---|---|",
    ]
    ratios, minutes, counts = [], [], set()
    networks = record("compensation")["networks"]
    for key, name in NETWORKS.items():
        job = networks[key]["jobs"]["u13"]
        s = job["summary"]
        clean, shift, latency = s["clean_accuracy"], s["shift_accuracy"], s["latency_ms"]
        gain, interval = _difference(s, "compensation_gain")
        lines.append(
            f"| {name} | {percent(clean['int8'])} → {percent(clean['compensated'])} | "
            f"{percent(shift['int8'])} → {percent(shift['compensated'])} ({gain}, {interval}) |"
        )
        ratios.append(latency["compensated"]["batch_1"] / latency["int8"]["batch_1"])
        minutes.append(job["stages"]["compensate"]["duration_s"] / 60)
        counts.add(s["n_test"])
    return "\n".join(
        [
            *lines,
            "",
            f"n = {max(counts):,} test images each, 95 % intervals. With its calibrator a network takes "
            f"{min(ratios):.2f} to {max(ratios):.2f} times the time of INT8 alone at batch 1. Training a calibrator "
            f"took {min(minutes):.0f} to {max(minutes):.0f} minutes on two cores.",
        ]
    )


def _quantization() -> Iterator[Claim]:
    page, script = "quantization.md", "quantization.py"
    networks = record("quantization")["networks"]
    for key, name in NETWORKS.items():
        found = networks[key]
        for variant in ("w8a8", "w4a4-qat"):
            v = found["variants"][variant]
            drop = _points(v["drop_pp"], v["drop_interval_pp"], 2)
            yield Claim(f"{name}: accuracy lost by `{variant}`", *drop, found["n_test"], script, page)
    for key, name in NETWORKS.items():
        times = networks[key]["latency_ms"]["threads_2_batch_1"]
        speed = f"{times['float'] / times['w8a8']:.2f}x"
        yield Claim(f"{name}: `w8a8` faster than float, batch 1, 2 threads", speed, "-", "-", script, page)
    lite0 = record("efficientnet_lite0")
    agreement = lite0["variants"]["default"]
    low, high = (percent(v) for v in agreement["agreement_interval"])
    yield Claim(
        "EfficientNet-Lite0, pretrained, photographs: `w8a8` agrees with float",
        percent(agreement["agreement"]),
        f"{low} to {high}",
        lite0["n"],
        "efficientnet_lite0.py",
        page,
    )
    for package, name in (("torchvision", "zoo"), ("timm", "timm_table")):
        rows = record(name)["rows"].values()
        whole = sum("reason" not in row and row["integer_ops"] == row["quantizable_ops"] for row in rows)
        claim = f"{package}'s networks with every convolution and matrix product on integers"
        yield Claim(claim, f"{whole} of {len(rows)}", "-", "-", f"{name}.py", "../zoo.md")


def _robustness() -> Iterator[Claim]:
    page = "robustness.md"
    networks = record("robustness")["networks"]
    for key, name in NETWORKS.items():
        s = networks[key]["summary"]
        drop = _difference(s["versus"]["w8a8"], "shift_quantization_drop")
        yield Claim(f"{name}: accuracy lost by `w8a8` under corruption", *drop, s["n_test"], "robustness.py", page)
    s = record()["summary"]
    extra = _difference(s, "difference_in_differences")
    claim = f"{MAIN}: what INT8 loses under shift beyond what it loses on clean images"
    yield Claim(claim, *extra, s["n_test"], "main_job.py", page)
    attacks = record("attacks")
    claim = "Attacks: most accuracy that ours leave above Foolbox's and ART's"
    above = f"{attacks['most_above_library_pp']:.1f} points"
    yield Claim(claim, above, "-", attacks["rows"][0]["n"], "attacks.py", "../attacks.md")
    for network, found in record("risk")["networks"].items():
        about = "" if network == "resnet20" else f", {network.partition(', ')[2]}"
        worst = min(found["pair_minus_int8"], key=lambda row: row["pp"])
        left = _points(worst["pp"], worst["interval_pp"])
        budget = f"{255 * worst['epsilon']:g}/255"
        claim = f"{MAIN}: what attacks leave with calibrator{about}, minus without, at {budget}"
        yield Claim(claim, *left, found["n"], "risk.py", page)
    saturation = next(row for row in record("saturation")["networks"] if row["weights"] == "8 bit")
    lost = 100 * (saturation["accuracy"]["native"] - saturation["accuracy"]["emulated"])
    claim = f"{MAIN}: accuracy lost on a CPU without VNNI by the default target"
    yield Claim(claim, f"{lost:+.1f} points", "-", saturation["n"], "saturation.py", "../targets.md")


def _compensation() -> Iterator[Claim]:
    page, script = "compensation.md", "compensation.py"
    mean = record("compensation")["means"]["u13"]
    gain = _points(mean["pp"], mean["interval_pp"], 2)
    yield Claim("Gain under thirteen shifts, mean of three networks", *gain, mean["n"], script, page)
    networks = record("compensation")["networks"]
    for key, name in NETWORKS.items():
        s = networks[key]["jobs"]["u13"]["summary"]
        cost, latency = _difference(s, "clean_cost"), s["latency_ms"]
        yield Claim(f"{name}: clean accuracy that the calibrator costs", *cost, s["n_test"], script, page)
        time = _ratio(latency["compensated"], latency["int8"])
        yield Claim(f"{name}: time with calibrator over INT8, batch 1", time, "-", "-", script, page)
    s = record()["summary"]
    gain = _difference(s, "compensation_gain")
    yield Claim(
        f"{MAIN}, defaults: gain under 15 shifts at severities 3 and 5", *gain, s["n_test"], "main_job.py", page
    )
    cost = _difference(s, "clean_cost")
    yield Claim(
        f"{MAIN}, defaults: clean accuracy that the calibrator costs", *cost, s["n_test"], "main_job.py", page
    )
    yield Claim(
        "Gain under one shift, one calibrator each, mean of three networks",
        *_points(*single_shift_mean(), 2),
        5000,
        script,
        page,
    )
    for result, network, name in (
        ("compensation_scenes", "cifar_resnet18", "ResNet18"),
        ("compensation_resnet20", "resnet20", MAIN),
    ):
        found = record(result)
        mean = found["means"][f"without {network}"]
        gain = _points(mean["pp"], mean["interval_pp"], 2)
        yield Claim(
            f"{name}: gain under a family of shifts never trained on, mean of six", *gain, mean["n"], script, page
        )
        for images in (100, 1000):
            s = found["networks"][network]["jobs"][f"few-{images}"]["summary"]
            gain = _difference(s, "compensation_gain")
            yield Claim(f"{name}: gain from {images:,} unlabelled images", *gain, s["n_test"], script, page)
    mean = record("compensation_resnet20")["means"]["w4a4 against w8a8 resnet20"]
    gain = _points(mean["pp"], mean["interval_pp"], 2)
    yield Claim(f"{MAIN}: `w4a4` with calibrator against `w8a8` without, under shift", *gain, mean["n"], script, page)
    s = record("imagenet_size")["summary"]
    gain = _difference(s, "compensation_gain")
    yield Claim(
        "EfficientNet-Lite0 at 224 px: gain from 38 photographs", *gain, s["n_test"], "imagenet_size.py", page
    )
    for found in record("photographs").values():
        network, of = PHOTOGRAPHED[found["network"]], f"{found['images'] or PHOTOGRAPHS:,}"
        for suite, measured in found["suites"].items():
            for remedy, r in measured["remedies"].items():
                named = {"corruptions-15": "15 corruptions", "c-bar": "corruptions unlike these"}[suite]
                claim = f"{network} at 224 px: gain of `{remedy}` from {of} unlabelled photographs, under {named}"
                yield Claim(claim, *_difference(r, "gain"), found["n"], "photographs.py", page)


def _unseen() -> Iterator[Claim]:
    page, script, found = "compensation.md", "ladder.py", record("ladder")
    suites = {"corruptions-19": "the 19 corruptions", "c-bar": "corruptions made to be unlike these"}
    for suite, named in suites.items():
        graphs = found["suites"][suite]["graphs"]
        for name in (name for name in found["graphs"] if name not in ("float", "int8")):
            gain = _difference(graphs[name]["gain"], "gain")
            claim = f"{MAIN}: gain of `{name}` under {named}, learned from random operations"
            yield Claim(claim, *gain, found["n"], script, page)
    for run, r in record("unseen_runs")["runs"].items():
        suite, under = next(iter(r["suites"].items()))
        gain = _difference(under["graphs"][r["remedy"]]["gain"], "gain")
        measured = "the 19 corruptions" if suite == "corruptions-19" else suite.replace("_", " ")
        claim = f"{MAIN}, {RUNS[run]}: gain of `{r['remedy']}` under {measured}"
        yield Claim(claim, *gain, r["n"], "unseen_runs.py", page)
    stable = record("stability")
    for name, graph in stable["graphs"].items():
        if name not in ("float", "int8"):
            most = max(graph.values(), key=lambda motion: motion["more_pp"])
            claim = f"{MAIN}: flips from frame to frame with `{name}` beyond INT8's, worst of {len(graph)} motions"
            yield Claim(claim, *_difference(most, "more"), stable["n"], "stability.py", "robustness.md")


def _trust() -> Iterator[Claim]:
    page = "trust.md"
    for seed, surfaces in record("malformed")["seeds"].items():
        good = sum(counts.get("refused", 0) + counts.get("accepted", 0) for counts in surfaces.values())
        tried = good + sum(counts.get("failed", 0) for counts in surfaces.values())
        claim = f"Malformed inputs that are refused in one line or read as documented, seed {seed}"
        yield Claim(claim, f"{good} of {tried}", "-", tried, "malformed.py", page)
    seeds = record("interruptions")["seeds"].values()
    for claim, good, tried in (
        ("Killed jobs that go on to an undisturbed run's record", "same_records", "kills"),
        ("Signals during `--overwrite` that leave the old or the new run whole", "old_or_new_whole", "signals"),
    ):
        count, n = (sum(found[key] for found in seeds) for key in (good, tried))
        yield Claim(claim, f"{count} of {n}", "-", n, "interruptions.py", page)


def _cost() -> Iterator[Claim]:
    found = record("evaluation_cost")
    full, script = found["rows"][0], "evaluation_cost.py"
    claim = f"Evaluate {full['cells']} conditions on three graphs of {MAIN}"
    yield Claim(claim, f"{full['seconds'] / 60:.1f} minutes", "-", full["images"], script, "cost.md")
    none, *levels = found["attacks"]
    for row in levels:
        each = f"{(row['seconds'] - none['seconds']) / row['images']:.1f} s an image"
        yield Claim(
            f"`--attacks {row['level']}` on three graphs of {MAIN}", each, "-", row["images"], script, "cost.md"
        )
    most = max(record("quantize_cost")["rows"], key=lambda row: row["images"])
    claim = f"Quantize MobileNetV2 at 224 px on {most['images']:,} calibration images"
    yield Claim(claim, f"{most['quantize_s']:.0f} s", "-", most["images"], "quantize_cost.py", "cost.md")
    workers = record("workers")
    for key, what in (("rendering", "rendering alone"), ("rendering_and_mobilenet_v2", "with an INT8 MobileNetV2")):
        found = workers[key]
        claim = f"Two worker processes at {found['size']} px, {what}: time over that of shared memory by hand"
        yield Claim(claim, f"{found['wall']['ratio']:.2f}x", "-", found["n"], "workers.py", "cost.md")
    speed = record("corruptions")["speed"]
    for size in (k for k in speed if k.isdigit()):
        ratio = f"{speed[size]['mean_of_15']['ratio']:.1f}x"
        claim = f"Corruptions: faster than the reference at {size} px, mean of 15"
        yield Claim(claim, ratio, "-", "-", "corruptions.py", "../shifts.md")


def claims() -> str:
    """A row for each claim: number, interval, images, script and the page that discusses it."""
    parts = {
        "Quantization": _quantization(),
        "Robustness": _robustness(),
        "Compensation": _compensation(),
        "Shifts that nobody named": _unseen(),
        "Cost": _cost(),
        "Odd inputs and interruptions": _trust(),
    }
    head = ["| claim | number | 95 % interval | n | script | page |", "|---|---:|---:|---:|---|---|"]
    sections = [[f"### {title}", "", *head, *(claim.row() for claim in found)] for title, found in parts.items()]
    return "\n\n".join("\n".join(lines) for lines in sections)


CLAIMS = (readme, claims)
