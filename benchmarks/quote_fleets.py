"""Quotes about fleets."""

from __future__ import annotations

import statistics

from figures import percent, record

KEPT = "stages and checkpoints"


def fleet_simulation() -> str:
    """Efficiency by number of runs, and what the rest is."""
    r = record("fleet_simulation")
    lines = [
        "| runs | order of the plan | efficiency | done again | slow workers | beginnings, failed workers "
        "| waiting at the end | hours |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for found in r["fleets"]:
        if found["goes_on_from"] != KEPT or not found["lost_at_front"]:
            continue
        parts = ("done_again", "slowness", "beginnings_and_failed_workers", "waiting_at_the_end")
        lines.append(
            f"| {found['runs']:,} | {'longest first' if found['longest_first'] else 'any'} "
            f"| {percent(found['efficiency'])} ± {100 * found['efficiency_standard_error']:.1f} "
            f"| {' | '.join(percent(found[part]) for part in parts)} | {found['hours']:.1f} |"
        )
    return "\n".join(lines)


def fleet_assumptions() -> str:
    """What was simulated."""
    r = record("fleet_simulation")
    jobs, a = r["jobs"], r["assumed"]
    return (
        f"{r['workers']} workers, jobs drawn from {jobs['n']} that were measured ({jobs['shortest_s'] / 60:.0f} to "
        f"{jobs['longest_s'] / 60:.0f} minutes, mean {jobs['mean_s'] / 60:.0f}); assumed are a failure per "
        f"worker and {a['fails_every_s'] / 3600:.0f} hour, back after {a['back_after_s']:.0f} s, one attempt in "
        f"{1 / a['slow_share']:.0f} at {percent(1 / a['slowness'], 0)} of the speed, {a['begins_s']:.0f} s to "
        f"begin, and {a['checkpoints']} checkpoints a training. Mean and standard error of up to "
        f"{max(found['n'] for found in r['fleets'])} fleets."
    )


def fleet_memory() -> str:
    """Memory and time of what leads a fleet."""
    least, *_, middle, most = record("fleet_simulation")["memory"]
    told = ", ".join(f"{one['peak_mib']:.0f} MiB with {one['runs']:,} runs" for one in (least, middle, most))
    return f"The process that leads a fleet took {told}, and {most['seconds']:.0f} s for the last."


WHAT = {
    "local": "processes",
    "ray": "two Ray nodes",
    "ray-killed": "two Ray nodes, the second killed, a third joins",
    "slurm": "Slurm, one job cancelled",
}


def fleet_runners() -> str:
    """The same six runs by each runner."""
    lines = [
        "| runner | runs done | begun again | records, graphs and predictions equal to those of processes |",
        "|---|---:|---:|---|",
    ]
    for name, found in record("fleet_runners")["runners"].items():
        same = [found.get(f"equal_{part}") for part in ("records", "graphs", "predictions")]
        equal = "-" if None in same else ", ".join(map(str, same))
        lines.append(
            f"| {WHAT[name]} | {found['done']} of {found['n']} | {found['lost_and_begun_again']} | {equal} |"
        )
    return "\n".join(lines)


def fleet_without_resume() -> str:
    """What checkpoints are worth."""
    found = {
        one["goes_on_from"]: one["efficiency"]
        for one in record("fleet_simulation")["fleets"]
        if one["runs"] == 1000 and one["longest_first"] and one["lost_at_front"]
    }
    return (
        f"Of 1,000 runs, longest first: {percent(found['nothing'])} if a lost run began from nothing, "
        f"{percent(found['stages'])} from its finished stages; {percent(found[KEPT])} as it is, from a checkpoint."
    )


def evaluation_assumptions() -> str:
    """What evaluation was simulated."""
    r = record("evaluation_simulation")
    block, a = r["block_s"], r["assumed"]
    return (
        f"{r['images']:,} images of 224 px, {r['conditions']} conditions, {len(r['graphs'])} graphs of "
        f"EfficientNet-Lite0, {r['workers']} workers. Measured: a block of {r['block_images']} images takes "
        f"{block['shortest']:.0f} to {block['longest']:.0f} s to render and infer, all of it "
        f"{r['one_core_hours']:.0f} hours on one core; the leading process takes {r['decoding_s']:.1f} s to decode a "
        f"block, and {1000 * r['joining_s']:.0f} ms to put what was said of it under a condition into the file "
        f"of the condition. "
        f"Assumed: a failure per worker and {a['fails_every_s'] / 3600:.0f} hour, back after "
        f"{a['back_after_s']:.0f} s; one unit in {1 / a['slow_share']:.0f} at {percent(1 / a['slowness'], 0)} of the "
        f"speed; {a['begins_s']:.0f} s to begin. Mean and standard error of {r['evaluations']['all']['n']}."
    )


def evaluation_simulation() -> str:
    """Efficiency of an evaluation, and what the rest is."""
    lines = [
        "| with | efficiency | done again | slow units | beginnings, failed workers | joining | waiting | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in record("evaluation_simulation")["evaluations"].items():
        parts = ("done_again", "slowness", "beginnings_and_failed_workers", "joining", "waiting")
        lines.append(
            f"| {name} | {percent(found['efficiency'])} ± {100 * found['efficiency_standard_error']:.1f} "
            f"| {' | '.join(percent(found[part]) for part in parts)} | {found['minutes']:.0f} |"
        )
    return "\n".join(lines)


def evaluation_memory() -> str:
    """Memory of what leads an evaluation."""
    less, more = record("evaluation_simulation")["memory"]
    return (
        f"The process that leads an evaluation, with torch, took {less['peak_mib']:.0f} MiB with {less['units']:,} "
        f"units, {more['peak_mib']:.0f} MiB with {more['units']:,} units, and {more['seconds']:.0f} s for the latter."
    )


WAYS = {
    "one": "one process",
    "two": "two processes",
    "ray": "two Ray nodes",
    "killed": "two Ray nodes, the second killed",
    "slurm": "Slurm, one job cancelled",
}
# A load before the measurement above which other work took part in the times.
BUSY = 1.0


def evaluation_runners() -> str:
    """The same evaluation in every way; times only where nothing else was at work."""
    r = record("evaluation_runners")
    quiet = r["load_before"][0] < BUSY
    lines = [
        "| by | seconds | files of predictions equal to those of one process | all figures equal |",
        "|---|---:|---:|---|",
    ]
    there = [name for name in WAYS if name in r or name in r["rounds"][0]]
    for name, shown in ((name, WAYS[name]) for name in there):
        seconds = [r[name]["seconds"]] if name in r else [one[name]["seconds"] for one in r["rounds"]]
        alone = quiet if name != "slurm" else r[name].get("load_before", [BUSY])[0] < BUSY
        took, files, figures = f"{statistics.median(seconds):.0f}" if alone else "-", "-", "-"
        if same := r["equal_to_one"].get(name):
            files = f"{same['equal_files']} of {same['files']}"
            figures = "yes" if same["equal_figures"] and same["no_others"] else "no"
        lines.append(f"| {shown} | {took} | {files} | {figures} |")
    return "\n".join(lines)


def evaluation_runners_sizes() -> str:
    """What was evaluated, when the node was killed, and how ways compare in time."""
    r = record("evaluation_runners")
    killed, two, ray = r["killed"], r["two_processes_over_one"], r["ray_over_two_processes"]
    told = (
        f"{r['n']:,} images of CIFAR-10, {r['conditions']} conditions, {r['graphs']} graphs of ResNet-20. The node "
        f"was killed when {killed['blocks_then']} of {killed['blocks']} blocks were answered."
    )
    if slurm := r.get("slurm"):
        told += f" The job was cancelled when {slurm['blocks_then']} were."
    if r["load_before"][0] >= BUSY:
        return f"{told} Other work kept the machine busy (load {r['load_before'][0]:.1f}), so times say nothing."
    return (
        f"{told} Two processes are {two['ratio']:.2f} times as fast as one, two Ray nodes take "
        f"{percent(ray['ratio'] - 1)} more time than two processes (median of {len(ray['ratios'])})."
    )


FLEETS = (
    evaluation_runners,
    evaluation_runners_sizes,
    fleet_runners,
    fleet_simulation,
    fleet_assumptions,
    fleet_memory,
    fleet_without_resume,
    evaluation_assumptions,
    evaluation_simulation,
    evaluation_memory,
)
