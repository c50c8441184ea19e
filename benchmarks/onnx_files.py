"""ONNX classifiers of many makers: are they read, how much of them is integer, and can they be compensated?

    pip install timm onnxslim                                   # only for this
    python benchmarks/onnx_files.py --data imagefolder:DIR --weights WEIGHTS --trained TRAINED --work WORK
    ... --file NAME MAKER FILE NORMALIZATION DATA CLASSES       # one more, made elsewhere; as often as wanted

Sources are a trained ResNet-20 (WEIGHTS, with CIFAR-10 in DIR), a small network that learns scikit-learn's digits in
seconds, and what `timm_trained.py` left in TRAINED. Each file of `onnx_makers.py` is made in WORK, asked by
onnxruntime on test images, read by qrobust and compared. A float file is then quantized by qrobust; one that is
quantized already is audited as it is. `results/onnx_files.json` has a row for each, kept as soon as it is there.
Some of the quantized files learn other scales from random operations, and are measured under the 19 corruptions.
CLASSES is a file of class names where a network knows other classes than the folders of DATA, else empty.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from onnx_makers import CASES, Source, small_network
from quantized_file import gain_of_file
from zoo import SEED, circumstances, in_a_process, keep

if TYPE_CHECKING:
    from qrobust.classifier import NormalizedModel
    from qrobust.data.splits import Data

RESULT = Path(__file__).parent / "results" / "onnx_files.json"
TEST_IMAGES, CALIBRATION_IMAGES, PARITY_IMAGES = 1000, 128, 200
REMEDY, STEPS, BATCH = "scales", 300, 32
SHIFTS, SEVERITY, MEASURED = "corruptions-19", "5", 300


# The network that is trained here.
DIGITS, DIGITS_STEPS, DIGITS_RATE = "digits", 150, 3e-3


@dataclass(frozen=True)
class Sample:
    """A file and how it is asked.

    Attributes:
        maker: who wrote it.
        path: of the file.
        normalization: as `--normalization` takes it, what the input is; empty for bytes.
        data: spec of images.
        compensate: whether it learns other scales.
        class_names: file of them; empty: those of the data.
    """

    maker: str
    path: Path
    normalization: str
    data: str
    compensate: bool
    class_names: str = ""


def source_of(name: str, weights: Path, trained: Path) -> Source:
    """A network with its weights."""
    import torch

    import qrobust

    if name == "resnet20":
        model = qrobust.load_classifier(
            name, num_classes=10, image_size=32, weights=weights, normalization="imagenet", seed=SEED
        )
        return Source(name, model, 32)
    if name == DIGITS:
        return Source(name, trained_on_digits(), 32)
    model = qrobust.load_classifier(f"timm:{name}", num_classes=10, image_size=64, seed=SEED)
    model.load_state_dict(torch.load(trained / f"{name}.pt", weights_only=True)["weights"])
    return Source(name, model, 64)


def trained_on_digits() -> NormalizedModel:
    """A small network that knows handwritten digits after some seconds."""
    import torch
    from torch.nn import functional as F

    import qrobust

    torch.manual_seed(SEED)
    network, split = small_network(), opened(DIGITS, 32).training
    optimizer = torch.optim.AdamW(network.parameters(), lr=DIGITS_RATE)
    generator = torch.Generator().manual_seed(SEED)
    pixels = split.read(slice(None)) / 255
    for _ in range(DIGITS_STEPS):
        drawn = torch.randint(len(split), (BATCH,), generator=generator)
        loss = F.cross_entropy(network(pixels[drawn]), split.labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return qrobust.load_classifier(network.eval(), num_classes=10, image_size=32, normalization="none")


def opened(spec: str, side: int | None = None, class_names: str = "") -> Data:
    """Its four splits."""
    from qrobust.data.loading import open_data

    return open_data(
        spec,
        image_size=side,
        calibration_images=CALIBRATION_IMAGES,
        class_names_file=Path(class_names) if class_names else None,
        seed=SEED,
    )


def made(name: str, data: str, weights: Path, trained: Path, work: Path) -> Sample:
    """The file of a case, which is made where WORK does not have it yet."""
    case, path = CASES[name], work / f"{name}.onnx"
    spec = {"resnet20": data, DIGITS: DIGITS}.get(case.source, f"npz:{trained / 'images-64.npz'}")
    if not path.is_file():
        source = source_of(case.source, weights, trained)
        images = opened(spec, source.side).calibration.read(slice(CALIBRATION_IMAGES))
        part = path.with_suffix(".part.onnx")
        case.make(source, part, images)
        part.rename(path)
    return Sample(case.maker, path, case.normalization, spec, case.compensate)


def measure(sample: Sample) -> dict[str, Any]:
    """What becomes of one file."""
    import torch

    from qrobust.deployment.classifiers import ForeignClassifier
    from qrobust.deployment.parity import logits_of
    from qrobust.errors import QRobustError
    from qrobust.models.onnx_import.file import read_onnx

    torch.set_num_threads(1)
    started = time.monotonic()
    row: dict[str, Any] = {"maker": sample.maker, "step": "read"}
    try:
        file = read_onnx(sample.path)
        row |= {"opset": file.opset, "layout": file.layout, "pixels": str(file.pixels).removeprefix("torch.")}
        row |= {"integer": list(file.integer), "size_bytes": sample.path.stat().st_size, "half": file.is_half}
        row["step"] = "run"
        data = opened(sample.data, file.image_size, sample.class_names)
        given = sample.normalization if file.pixels != torch.uint8 else None
        theirs = ForeignClassifier(sample.path, 1, "unit" if given == "none" else given)
        tests = data.test.first(TEST_IMAGES)
        images = tests.read(slice(None)) / 255
        theirs.examine(images[:50], len(data.class_names))
        said = logits_of(theirs, images)
        row |= {"n": len(images), "correct": int((said.argmax(1) == tests.labels).sum())}
        row |= {"chance": float(tests.labels.bincount().max()) / len(images), "step": "import"}
        row |= of_integers(sample, data) if file.integer else of_float(sample, data)
        row["step"] = "done"
    except QRobustError as error:
        row["reason"] = str(error).replace(f"{sample.path.parent}/", "")
    return row | {"seconds": time.monotonic() - started}


def read(sample: Sample, side: int, classes: int, *, quantized: bool) -> NormalizedModel:
    """The file as a torch network."""
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model

    return load_model(
        find_model(str(sample.path), quantized=quantized),
        classes=classes,
        image_size=side,
        weights=None,
        pretrained=False,
        normalization=sample.normalization or None,
        seed=SEED,
    )


def of_float(sample: Sample, data: Data) -> dict[str, Any]:
    """A float file: read, compared, quantized."""
    import qrobust
    from qrobust.deployment.imported import check_import
    from qrobust.deployment.parity import parity

    images = data.validation.first(PARITY_IMAGES).read(slice(None)) / 255
    model = read(sample, images.shape[-1], len(data.class_names), quantized=False)
    difference = check_import(model.network, model.normalization(images))
    path = sample.path.with_suffix(".int8.onnx")
    quantized = qrobust.quantize(model, data.calibration)
    qrobust.export_onnx(quantized, path, image_size=images.shape[-1])
    audited = qrobust.audit(path)
    labels = data.validation.first(PARITY_IMAGES).labels
    measured = parity(quantized.module, qrobust.OnnxClassifier(path), images, labels)
    return {
        "import": {"n": len(images), "largest_difference": difference},
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
        "parity": {"n": measured.n, "agreement": measured.agreement},
    }


def of_integers(sample: Sample, data: Data) -> dict[str, Any]:
    """A quantized file: its integers in torch against the session, and what runs on integers."""
    import qrobust
    from qrobust.deployment.imported import check_integers
    from qrobust.pipeline.file_run import batches_to_compare
    from qrobust.record import to_json

    model = read(sample, data.image_size, len(data.class_names), quantized=True)
    batches = (
        (model.normalization(pixels / 255), labels) for pixels, labels in batches_to_compare(data, TEST_IMAGES)
    )
    audited = qrobust.audit(sample.path)
    return {
        "import": to_json(check_integers(model.network, batches)),
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
    }


def compensated(sample: Sample, out: Path) -> dict[str, Any]:
    """The file with other scales, by the command, and its figures."""
    options = {
        "--data": sample.data,
        "--class-names": sample.class_names,
        "--normalization": sample.normalization,
        "--out": str(out),
        "--remedy": REMEDY,
        "--steps": str(STEPS),
        "--batch-size": str(BATCH),
        "--test-images": str(MEASURED),
        "--shifts": SHIFTS,
        "--severities": SEVERITY,
        "--seed": str(SEED),
        "--threads": "1",
    }
    command = [sys.executable, "-m", "qrobust", "compensate", str(sample.path)]
    command += [word for option, value in options.items() if value for word in (option, value)]
    # Of a thousand classes, the labels of ten would teach which ten there are.
    command += ["--no-labels"] if sample.class_names else []
    command += ["--resume"] if out.exists() else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (out / "record.json").is_file():
        return {"reason": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found = gain_of_file(out)
    shown = ("n", "conditions", "shift_accuracy", "gain_pp", "gain_interval_pp", "clean_cost_pp")
    return {key: found[key] for key in shown}


def available(name: str, trained: Path) -> bool:
    """Whether the network of a case is trained; files that were made elsewhere need none."""
    source = CASES[name].source if name in CASES else "resnet20"
    return source in ("resnet20", DIGITS) or (trained / f"{source}.pt").is_file()


@click.command()
@click.option("--data", required=True, help="CIFAR-10, such as imagefolder:DIR.")
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="Of the ResNet-20.")
@click.option("--trained", type=click.Path(path_type=Path), required=True, help="WORK of timm_trained.py.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where files are kept.")
@click.option(
    "--file",
    "files",
    nargs=6,
    multiple=True,
    help="NAME MAKER FILE NORMALIZATION DATA CLASSES of one that was made elsewhere.",
)
@click.option("--only", default="", help="Names, separated by commas; default all.")
@click.option("--again", is_flag=True, help="Measure anew what the result file has.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds per file.")
@click.option("--memory", default=12.0, show_default=True, help="Address space per file, in GiB.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--read-only", is_flag=True, help="Let none learn.")
@click.option("--worker", hidden=True)
@click.option("--front", is_flag=True, hidden=True)
def main(
    data: str,
    weights: Path,
    trained: Path,
    work: Path,
    files: tuple[tuple[str, str, str, str, str, str], ...],
    only: str,
    again: bool,
    timeout: float,
    memory: float,
    out: Path,
    read_only: bool,
    worker: str | None,
    front: bool,
) -> None:
    """Measure the files one by one, and keep each row as soon as it is there."""
    given = {
        name: Sample(maker, Path(path), "" if normalization == "bytes" else normalization, spec, True, classes)
        for name, maker, path, normalization, spec, classes in files
    }
    if worker is not None:
        sample = given[worker] if worker in given else made(worker, data, weights, trained, work)
        click.echo(json.dumps(compensated(sample, work / f"{worker}-{REMEDY}") if front else measure(sample)))
        return
    work.mkdir(parents=True, exist_ok=True)
    result = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    result |= circumstances(
        "python benchmarks/onnx_files.py --data imagefolder:DIR --weights WEIGHTS --trained TRAINED --work WORK"
    )
    result |= {
        "steps": STEPS,
        "batch_size": BATCH,
        "remedy": REMEDY,
        "shifts": SHIFTS.split(","),
        "severity": int(SEVERITY),
    }
    passed = ["--data", data, "--weights", str(weights), "--trained", str(trained), "--work", str(work)]
    passed += [part for file in files for part in ("--file", *file)]
    rows = result["rows"]
    names = [name for name in (only.split(",") if only else [*CASES, *given]) if available(name, trained)]
    for name in names:
        if name in rows and not again:
            continue
        rows[name] = in_a_process(__file__, name, timeout, memory, passed) | {"commit": result["commit"]}
        keep(result, out)
        click.echo(f"{name}: {rows[name].get('reason', rows[name].get('import'))} {rows[name]['seconds']:.0f} s")
    chosen = [name for name in names if name in given or CASES[name].compensate]
    for name in [] if read_only else chosen:
        if "reason" in rows[name] or ("gain_pp" in rows[name].get("compensated", {}) and not again):
            continue
        rows[name]["compensated"] = in_a_process(__file__, name, timeout, memory, [*passed, "--front"])
        keep(result, out)
        click.echo(f"{name}: {rows[name]['compensated']}")


if __name__ == "__main__":
    main()
