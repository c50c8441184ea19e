"""A calibrator in front of a file that another tool made, against one that was trained with the float parent.

    python benchmarks/quantized_file.py --data imagefolder:DIR --weights WEIGHTS --normalization imagenet --work WORK

onnxruntime's `quantize_static` quantizes a ResNet-20 (QDQ, U8S8, per channel), or NNCF by its defaults with
`--nncf PYTHON`, the interpreter of an environment that has it. `qrobust compensate` puts a calibrator in front of
that file, which is all that it is given; with `--remedy scales` it learns other scales and biases for it. `qrobust
run` quantizes the float network and trains a calibrator with it as the teacher. All learn from random operations
alone, as many steps, and are measured under the 19 corruptions at severity 5 on the same test images. What is done in
WORK is kept. `results/quantized_file.json` holds the gains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

RESULTS = Path(__file__).parent / "results"
SEED, CALIBRATION_IMAGES, BATCH, SIZE = 0, 256, 32, 32


def quantize(data: str, weights: Path, normalization: str, path: Path, nncf: str | None) -> str:
    """The network, exported in float and quantized by another tool, on images of the calibration split.

    Returns:
        What quantized it, with its version.
    """
    from qrobust.data.loading import open_data
    from qrobust.deployment.export import export
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model
    from qrobust.preprocessing import Preprocessing
    from qrobust.shifts.filters import to_unit

    opened = open_data(data, seed=SEED, calibration_images=CALIBRATION_IMAGES)
    opened = opened.prepared(Preprocessing(size=SIZE, crop_ratio=1.0))
    model = load_model(
        find_model("resnet20"),
        classes=len(opened.class_names),
        image_size=SIZE,
        weights=weights,
        pretrained=False,
        normalization=normalization,
        seed=SEED,
    )
    source = path.with_suffix(".float.onnx")
    export(model.network, source, SIZE)

    left = [model.normalization(to_unit(images)).numpy() for images, _ in opened.calibration.batches(BATCH)]
    return by_nncf(source, left, path, nncf) if nncf else by_onnxruntime(source, left, path)


def by_onnxruntime(source: Path, left: list[np.ndarray], path: Path) -> str:
    """The file quantized by onnxruntime's own tool; returns what did it."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return {"images": left.pop()} if left else None

    quantize_static(
        source,
        path,
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return f"quantize_static of onnxruntime {onnxruntime.__version__}"


def by_nncf(source: Path, batches: list[np.ndarray], path: Path, python: str) -> str:
    """The file quantized by NNCF in another environment; returns what did it."""
    images, script = path.with_suffix(".images.npy"), Path(__file__).parent / "quantize_nncf.py"
    np.save(images, np.concatenate(batches))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [python, str(script), str(source), str(images), str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=clean,
    )
    images.unlink()
    return f"NNCF {said.stdout.split()[-1]}"


def gain_of_file(out: Path) -> dict[str, Any]:
    """What the record of a file says."""
    from qrobust.record import read_evaluation, to_json

    found = read_evaluation(out / "record.json")
    assert found.compensation is not None
    versus, s = found.summary.versus[found.compensation.graph], found.summary
    assert versus.shift_quantization_drop_pp is not None
    assert versus.shift_quantization_drop_interval_pp is not None
    low, high = versus.shift_quantization_drop_interval_pp
    file = found.compensation.file
    told = replace(found.compensation, file=replace(file, file=Path(file.file).name))
    return {
        "n": s.n_test,
        "conditions": s.n_conditions,
        "clean_accuracy": s.clean_accuracy,
        "shift_accuracy": s.shift_accuracy,
        "gain_pp": 0.0 - versus.shift_quantization_drop_pp,
        "gain_interval_pp": [0.0 - high, 0.0 - low],
        "clean_cost_pp": versus.quantization_drop_pp,
        "clean_cost_interval_pp": versus.quantization_drop_interval_pp,
        "latency_ms": to_json(found.latency_ms),
        "compensation": to_json(told),
    }


def gain_of_run(out: Path) -> dict[str, Any]:
    """What the record of a run says."""
    from qrobust.record import read_record, to_json

    found = read_record(out / "record.json")
    (row,) = (row for row in found.remedies if row.remedy == "compensated")
    return {
        "n": found.n_test,
        "conditions": found.summary.n_conditions,
        "clean_accuracy": found.summary.clean_accuracy,
        "shift_accuracy": found.summary.shift_accuracy,
        "gain_pp": row.gain_pp,
        "gain_interval_pp": row.gain_interval_pp,
        "clean_cost_pp": row.clean_cost_pp,
        "clean_cost_interval_pp": row.clean_cost_interval_pp,
        "latency_ms": to_json(found.summary.latency_ms),
    }


@click.command()
@click.option("--data", required=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--normalization", required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the file and both runs.")
@click.option("--steps", default=1500, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--test-images", default=1000, show_default=True)
@click.option("--results", default="quantized_file", show_default=True, help="Name of the file of results.")
@click.option("--nncf", metavar="PYTHON", help="Quantize by NNCF of that interpreter, not by quantize_static.")
@click.option("--threads", default=1, show_default=True)
def main(
    data: str,
    weights: Path,
    normalization: str,
    work: Path,
    steps: int,
    batch_size: int,
    test_images: int,
    results: str,
    nncf: str | None,
    threads: int,
) -> None:
    """Quantize, compensate both ways, and keep the figures."""
    from figures import git_commit

    from qrobust.record import hardware, to_json, versions
    from qrobust.storage import write_json

    work.mkdir(parents=True, exist_ok=True)
    file, of_file, of_run, of_scales = (work / name for name in ("int8.onnx", "file", "run", "scales"))
    made_by = work / "made_by.txt"
    if not file.exists():
        made_by.write_text(quantize(data, weights, normalization, file, nncf))
    given = ["--data", data, "--normalization", normalization, "--steps", str(steps), "--seed", str(SEED)]
    given += ["--batch-size", str(batch_size)]
    given += ["--test-images", str(test_images), "--shifts", "corruptions-19", "--severities", "5"]
    given += ["--threads", str(threads)]
    commands = {
        of_file: ["compensate", str(file), *given],
        of_run: ["run", "--model", "resnet20", "--weights", str(weights), "--attacks", "none", *given],
        of_scales: ["compensate", str(file), "--remedy", "scales", *given],
    }
    kept = RESULTS / f"{results}.json"
    found = dict[str, Any]()
    minutes: dict[str, float] = json.loads(kept.read_text())["minutes"] if kept.exists() else {}
    for out, command in commands.items():
        began = time.perf_counter()
        if not (out / "record.json").exists():
            again = ["--resume"] if out.exists() else []
            subprocess.run([sys.executable, "-m", "qrobust", *command, *again, "--out", str(out)], check=True)
            minutes[out.name] = (time.perf_counter() - began) / 60
        found[out.name] = gain_of_run(out) if out == of_run else gain_of_file(out)
        write_json(
            kept,
            {
                "what": "a calibrator for a file of another tool against one trained with the float parent",
                "made_by": made_by.read_text() if made_by.exists() else None,
                "commit": git_commit(),
                "command": "python benchmarks/quantized_file.py --data imagefolder:DIR --weights WEIGHTS "
                f"--normalization {normalization} --work WORK --steps {steps} --batch-size {batch_size} "
                f"--test-images {test_images}{' --nncf ENV/bin/python' if nncf else ''}",
                "steps": steps,
                "batch_size": batch_size,
                "seed": SEED,
                "minutes": minutes,
                **found,
                "difference_pp": found["run"]["gain_pp"] - found["file"]["gain_pp"] if len(found) > 1 else None,
                "versions": versions(),
                "hardware": to_json(hardware(threads)),
            },
        )


if __name__ == "__main__":
    main()
