"""Rank how calibrators are trained, under random operations of two families that they did not learn from.

    python benchmarks/withheld.py --data imagefolder:DIR --weights weights.pt --label NAME --out ~/runs/x

In front of a ResNet-20 in W8A8 calibrators learn from four of the six families of random operations, as this
checkout trains them. They are measured under the two others, on validation images that chose nothing. The results
keep what was measured under other labels, so that checkouts can be compared; no test image and no named corruption
has a part in it.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit
from ladder import SIZE, Ladder

from qrobust.classifier import Classifier
from qrobust.compensation.fit import CalibratorData, Checkpoints, fit_calibrator
from qrobust.data.splits import TrainingData
from qrobust.evaluation.evaluate import evaluate
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.generic import FAMILIES
from qrobust.shifts.registry import generic_conditions

RESULTS = Path(__file__).parent / "results" / "withheld.json"
# Every family once; one of what moves pixels or mixes neighbours and one of what does not, each.
WITHHELD = (("tone", "warp"), ("filters", "light"), ("noise", "resampling"))
CHOOSING = 2500


def ranked(ladder: Ladder, withheld: tuple[str, ...], seed: int, label: str) -> dict[str, Any]:
    """What a calibrator gains under families that it did not learn from."""
    learned = tuple(family for family in FAMILIES if family not in withheld)
    images, classifier = ladder.images, ladder.quantized.module
    training = TrainingData(images.training.images, [], ladder.table, families=learned)
    every, began = images.validation, time.perf_counter()
    data = CalibratorData(training, every.first(CHOOSING), images.calibration)
    places = (ladder.out / f"{label}-{'-'.join(withheld)}-{seed}.{what}" for what in ("float.pt", "int8.pt", "json"))
    frozen = ladder.frozen(classifier)
    fit = fit_calibrator(frozen, data, ladder.config, checkpoints=Checkpoints(*places), seed=seed)
    trained_s = time.perf_counter() - began + fit.earlier_s
    deployed = frozen.deploy(classifier)

    def calibrated(pixels: torch.Tensor) -> torch.Tensor:
        return deployed(fit.calibrator(pixels))

    graphs: dict[str, Classifier] = {"int8": deployed, "calibrated": calibrated}
    rest, conditions = replace(every, indices=every.indices[CHOOSING:]), generic_conditions(withheld)
    found = evaluate(graphs, rest, conditions, severity_table=ladder.table, seed=1)
    gains = {
        f"{name}-{severity}": 100
        * (found.accuracy("calibrated", (name, severity)) - found.accuracy("int8", (name, severity)))
        for name, severity in conditions
    }
    return {
        "withheld": list(withheld),
        "seed": seed,
        "n": len(rest),
        "clean_pp": 100 * (found.accuracy("calibrated") - found.accuracy("int8")),
        "gain_pp": statistics.mean(gains.values()),
        "gains_pp": gains,
        "gate": fit.gate._asdict(),
        "training_s": trained_s,
    }


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="Of a resnet20.")
@click.option("--normalization", default="imagenet", show_default=True)
@click.option("--label", required=True, help="What this checkout does.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of checkpoints.")
@click.option("--seeds", default="0", show_default=True)
@click.option("--first-pair", default=0, show_default=True, help="Leave out the pairs of families before this one.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--branches", default="", help="Of the calibrator; all unless given.")
@click.option("--threads", default=1, show_default=True)
def main(**options: Any) -> None:
    """Train, measure, and write results/withheld.json."""
    torch.set_num_threads(options["threads"])
    ladder = Ladder({**options, "validation_images": 2 * CHOOSING, "test_images": SIZE})
    if options["branches"]:
        ladder.config = replace(ladder.config, branches=tuple(options["branches"].split(",")))
    rows: list[dict[str, Any]] = []
    for seed in map(int, options["seeds"].split(",")):
        for withheld in WITHHELD[options["first_pair"] :]:
            rows.append(ranked(ladder, withheld, seed, options["label"]))
            click.echo(json.dumps(rows[-1]), err=True)
            note(options, rows)


def note(options: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what is known of a label beside what is known of others."""
    known = json.loads(RESULTS.read_text())["labels"] if RESULTS.exists() else {}
    known[options["label"]] = {
        "rows": rows,
        "command": "python benchmarks/withheld.py --data imagefolder:DIR --weights WEIGHTS --out OUT "
        f"--label {options['label']} --seeds {options['seeds']} --steps {options['steps']}"
        + (f" --first-pair {options['first_pair']}" if options["first_pair"] else "")
        + (f" --branches {options['branches']}" if options["branches"] else ""),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "hardware": to_json(hardware(options["threads"])),
    }
    RESULTS.write_text(
        json.dumps({"what": "gains under families that were withheld", "labels": known}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
