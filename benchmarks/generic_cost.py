"""What random operations cost beside a training step of a calibrator in front of an INT8 ResNet-20.

    python benchmarks/generic_cost.py

Steps with and without them alternate on one thread. A step without them renders nothing: it reads a batch of clean
images, and goes forward and back through calibrator and fake-quantized classifier. Results go to
`results/generic_cost.json`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit

from qrobust.classifier import Compensated, count_macs
from qrobust.compensation.batches import CLEAN_GROUPS, GROUPS, mixed_batch
from qrobust.compensation.calibrator import Calibrator, within_budget
from qrobust.compensation.config import CalibratorConfig
from qrobust.data.loading import open_data
from qrobust.data.splits import TrainingData
from qrobust.device import CPU, fast_arithmetic
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, to_json, versions
from qrobust.shifts.filters import to_unit
from qrobust.shifts.generic import FAMILIES
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results"
ROUNDS, BATCH, SIZE = 15, 128, 32


def timed_s(function: Any) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


@click.command()
@click.option("--threads", default=1, show_default=True)
def main(threads: int) -> None:
    """Measure and write."""
    torch.set_num_threads(threads)
    training = TrainingData(open_data("digits", seed=0).training, [], "cifar-c", families=FAMILIES)
    model = load_model(
        find_model("resnet20"),
        classes=10,
        image_size=SIZE,
        weights=None,
        pretrained=False,
        normalization="cifar10",
        seed=0,
    )
    images = to_unit(training.images.read(slice(0, 64)))
    fake_quantized = quantize(model, X86_VNNI, [images])
    width, branches = within_budget(SIZE, CalibratorConfig().mac_budget, count_macs(model, SIZE, 3), (), 3)[0]
    calibrator = Calibrator(SIZE, width, branches, 3)
    optimizer = torch.optim.Adam(calibrator.parameters())
    compensated, batch = Compensated(calibrator, fake_quantized), to_unit(training.images.read(slice(0, BATCH)))
    labels = training.images.labels[:BATCH]

    def step() -> None:
        optimizer.zero_grad()
        with fast_arithmetic(CPU):
            logits = compensated(batch.contiguous(memory_format=torch.channels_last))
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    numbers = itertools.count()

    def render() -> None:
        mixed_batch(training, torch.ones(0), batch_size=BATCH, step=next(numbers), seed=0)

    pairs = [(timed_s(step), timed_s(render)) for _ in range(ROUNDS)][1:]
    found = {
        "step_ms": 1000 * statistics.median(pair[0] for pair in pairs),
        "generic_ms": 1000 * statistics.median(pair[1] for pair in pairs),
        "share_of_step": statistics.median(pair[1] / pair[0] for pair in pairs),
        "batch": BATCH,
        "rendered": BATCH * (GROUPS - CLEAN_GROUPS) // GROUPS,
        "rounds": ROUNDS,
        "hardware": to_json(hardware(threads)),
        "versions": versions(),
        "commit": git_commit(),
        "command": "python benchmarks/generic_cost.py",
    }
    click.echo(found)
    write_json(RESULTS / "generic_cost.json", found)


if __name__ == "__main__":
    main()
