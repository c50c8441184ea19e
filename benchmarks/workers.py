"""Two worker processes: whole batches for each, against parts of every batch as there were before.

    python benchmarks/workers.py --before CHECKOUT --images imagefolder:DIR

`--before` is a checkout of commit 221fa58, whose worker processes shared memory and each took its part of every
batch. Both measure the same images, clean and under three shifts, at 224 px: without a classifier, where the way of
the pixels weighs most, and with an INT8 MobileNetV2 of random weights. Each runs in a process of its own; rounds
alternate, and the medians of their ratios, of time on the wall and of the processors' time, go to
`results/workers.json`. Linux only.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit

from qrobust.data.loading import open_test
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.evaluation import predictions
from qrobust.evaluation.workers import processes
from qrobust.record import hardware, versions
from qrobust.shifts.registry import table_for
from qrobust.storage import write_json

RESULTS = Path(__file__).parent / "results" / "workers.json"
CONDITIONS = [("clean", 0), ("contrast", 3), ("gaussian_noise", 3), ("fog", 3)]
WORKERS = 2


def cpu_seconds() -> float:
    """That this process and its workers have computed."""
    pids = [os.getpid(), *(child.pid for child in active_children())]
    ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
    return sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


def serve(images: str, size: int, count: int, model: str) -> None:
    """For each line that comes in, measure, and say how many seconds that took."""
    torch.set_num_threads(1)
    split = open_test(images, seed=0, image_size=size, test_images=count)
    for _ in split.batches(predictions.BATCH):
        pass  # decoded and kept
    asked = {"int8": OnnxClassifier(Path(model), 1)} if model else {}
    table, each = table_for(size), getattr(predictions, "predict_each", None)
    with processes(WORKERS) as by:
        for _ in sys.stdin:
            start, busy = time.perf_counter(), cpu_seconds()
            if each:
                found = list(each([(asked, predictions.Task(c, split, table)) for c in CONDITIONS], seed=0, by=by))
            else:
                found = [predictions.predict(asked, split, c, table=table, seed=0, by=by) for c in CONDITIONS]
            taken = {"wall": time.perf_counter() - start, "cpu": cpu_seconds() - busy}
            said = b"".join(p.prediction.tobytes() for of_one in found for p in of_one.values())
            print(
                json.dumps({"taken": taken, "said": hashlib.sha256(said).hexdigest()}),
                flush=True,
            )


def compare(roots: dict[str, Path], images: str, size: int, count: int, model: str, rounds: int) -> dict[str, Any]:
    """Seconds and their ratio, now to before; in the first round processes and sessions start."""
    command = [sys.executable, __file__, "--serve", "--images", images, "--size", str(size), "--count", str(count)]
    servers = {
        name: subprocess.Popen(
            [*command, "--model", model],
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, root in roots.items()
    }
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for index in range(rounds + 1):
        for name in list(servers)[:: 1 if index % 2 else -1]:
            stdin, stdout = servers[name].stdin, servers[name].stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write("\n")
            stdin.flush()
            answers[name].append(json.loads(stdout.readline()))
    for server in servers.values():
        server.communicate()
    said = {answer["said"] for found in answers.values() for answer in found}
    assert len(said) == 1, "predictions differ"
    result: dict[str, Any] = {"n": count, "size": size, "conditions": len(CONDITIONS), "rounds": rounds}
    for kind in ("wall", "cpu"):
        seconds = {name: [answer["taken"][kind] for answer in found[1:]] for name, found in answers.items()}
        ratios = [now / before for now, before in zip(seconds["now"], seconds["before"], strict=True)]
        result[kind] = {
            "seconds": {name: statistics.median(found) for name, found in seconds.items()},
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return result


def int8_file(folder: Path, images: str, size: int) -> Path:
    """An INT8 MobileNetV2 of random weights."""
    from qrobust.deployment.export import export
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model
    from qrobust.quantization.ptq import quantize
    from qrobust.quantization.target import X86_VNNI
    from qrobust.shifts.filters import to_unit

    spec = find_model("torchvision:mobilenet_v2")
    model = load_model(
        spec, classes=1000, image_size=size, weights=None, pretrained=False, normalization=None, seed=0
    )
    some = open_test(images, seed=0, image_size=size, test_images=16).read(slice(None))
    export(quantize(model, X86_VNNI, iter([to_unit(some)])), folder / "int8.onnx", size)
    return folder / "int8.onnx"


@click.command()
@click.option("--images", required=True, help="Such as imagefolder:DIR.")
@click.option("--before", type=click.Path(exists=True, path_type=Path), help="A checkout of commit 221fa58.")
@click.option("--size", default=224, show_default=True)
@click.option("--count", default=500, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--serve", "as_server", is_flag=True, hidden=True)
@click.option("--model", default="", hidden=True)
def main(images: str, before: Path | None, size: int, count: int, rounds: int, as_server: bool, model: str) -> None:
    """Compare the two and keep the result."""
    if as_server:
        serve(images, size, count, model)
        return
    if before is None:
        raise click.UsageError("--before: expected a checkout of commit 221fa58")
    from qrobust.record import to_json  # `before` has none

    roots = {"before": before, "now": Path(__file__).parent.parent}
    with tempfile.TemporaryDirectory() as folder:
        file = str(int8_file(Path(folder), images, size))
        found = {
            name: compare(roots, images, size, count, path, rounds)
            for name, path in (("rendering", ""), ("rendering_and_mobilenet_v2", file))
        }
    asked = f"--size {size} --count {count} --rounds {rounds}"
    about = {"workers": WORKERS, "commit": git_commit(), "versions": versions(), "hardware": to_json(hardware(1))}
    write_json(RESULTS, found | about | {"command": f"workers.py --before CHECKOUT --images imagefolder:DIR {asked}"})


if __name__ == "__main__":
    main()
