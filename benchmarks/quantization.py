"""How much accuracy and time INT8 and fewer bits cost: qrobust beside its peers, on onnxruntime.

    python benchmarks/train_baselines.py --data imagefolder:DIR --model cifar_resnet18 --out RUNS/cifar_resnet18
    (and cifar_mobilenet_v2, cifar_vgg16_bn)
    pip install nncf        # a peer, only for this comparison
    python benchmarks/quantization.py --data imagefolder:DIR --trainings RUNS --out WORK

Each variant is one `qrobust quantize`. Peers get the same float graph and the same calibration images:
onnxruntime's `quantize_static` (uint8 activations, per-channel int8 weights) with each of its calibrators,
and NNCF. Accuracy is of onnxruntime on all test images, drops are paired; nothing is chosen on them. What
is done is kept in WORK, so an interrupted run goes on. Results go to `results/quantization.json`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from figures import git_commit

from qrobust.data.loading import open_data
from qrobust.data.splits import Data
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.profiling import latencies_ms
from qrobust.evaluation.predictions import CLEAN, predict
from qrobust.evaluation.statistics import paired_bootstrap, wilson_interval
from qrobust.record import hardware, to_json
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("cifar_resnet18", "cifar_mobilenet_v2", "cifar_vgg16_bn")
# Peers and the ways to quantize; what each adds to `qrobust quantize`.
VARIANTS: dict[str, list[str]] = {
    "w8a8": [],
    "w8a8-auto": ["--ptq", "auto"],
    "w8a8-qat": ["--qat-epochs", "0.25", "--qat-learning-rate", "0.00002"],
    "w8a8-avx2": ["--target", "x86-avx2"],
    "w6a8": ["--bits", "w6a8"],
    "w4a8": ["--bits", "w4a8", "--rounding", "adaround"],
    "w4a8-qat": ["--bits", "w4a8", "--qat-epochs", "0.5", "--qat-learning-rate", "0.0001"],
    "w4a4": ["--bits", "w4a4", "--rounding", "adaround"],
    "w4a4-qat": ["--bits", "w4a4", "--qat-epochs", "1", "--qat-learning-rate", "0.0003"],
}
STATIC = ("MinMax", "Entropy", "Percentile")
BATCHES, THREADS, ROUNDS = (1, 32), (1, 2), 41


def calibration_feed(data: Data, name: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    for images, _ in data.calibration.batches(size):
        yield {name: (images.float() / 255).numpy()}


def static_peer(source: Path, target: Path, data: Data, method: str) -> None:
    """onnxruntime's own quantizer in its fast x86 form."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feed = calibration_feed(data, "images", 32)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feed, None)

    prepared = target.with_name(f"{target.stem}.prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )
    prepared.unlink()


def nncf_peer(source: Path, target: Path, data: Data) -> None:
    """NNCF's post-training quantization of the same graph."""
    import nncf
    import onnx

    dataset = nncf.Dataset(list(calibration_feed(data, "images", 1)))
    onnx.save(nncf.quantize(onnx.load(source), dataset, subset_size=len(data.calibration)), target)


def quantize(network: str, name: str, options: list[str], data: str, weights: Path, out: Path, threads: int) -> None:
    """One `qrobust quantize`, resumed where it stopped, or kept where it is done."""
    if (out / "stages" / "quantize.json").exists():
        return
    command = [str(Path(sys.executable).parent / "qrobust"), "quantize", "--model", network, "--data", data]
    command += ["--weights", str(weights), "--out", str(out), "--threads", str(threads), *options]
    command += ["--resume"] if (out / "config.json").exists() else []
    click.echo(f"{network} {name}: {' '.join(command[1:])}", err=True)
    subprocess.run(command, check=True)


def measured(path: Path, data: Data, threads: int, cache: Path) -> dict[str, Any]:
    """Predictions on all test images, kept."""
    if not cache.exists():
        found = predict({"x": OnnxClassifier(path, threads)}, data.test, CLEAN, table="cifar-c", seed=0)["x"]
        np.save(cache.with_suffix(".part.npy"), found.prediction)
        os.replace(cache.with_suffix(".part.npy"), cache)
    return {"prediction": np.load(cache)}


def network_result(
    network: str, wanted: dict[str, list[str]], data_spec: str, training: Path, out: Path, threads: int
) -> dict[str, Any]:
    """Everything about one network."""
    out.mkdir(parents=True, exist_ok=True)
    data = open_data(data_spec, seed=0)
    labels = data.test.labels.numpy()
    graphs: dict[str, Path] = {}
    stages: dict[str, Any] = {}
    for name, options in wanted.items():
        quantize(network, name, options, data_spec, training / "weights.pt", out / name, threads)
        graphs[name] = out / name / "int8.onnx"
        stages[name] = read_json(out / name / "stages" / "quantize.json")
    source = out / "w8a8" / "float.onnx"
    peers, missing = [], {}
    for method in STATIC:
        name = f"quantize_static-{method}"
        graphs[name] = out / f"{name}.onnx"
        if not graphs[name].exists():
            static_peer(source, graphs[name], data, method)
        peers.append(name)
    graphs["nncf"] = out / "nncf.onnx"
    if not graphs["nncf"].exists():
        try:
            nncf_peer(source, graphs["nncf"], data)
        except ImportError as error:
            missing["nncf"] = str(error)
            del graphs["nncf"]
    if "nncf" in graphs:
        peers.append("nncf")
    graphs = {"float": source} | graphs
    right = {}
    for name, path in graphs.items():
        right[name] = measured(path, data, threads, out / f"{name}.predictions.npy")["prediction"] == labels
    variants = {}
    for name, path in graphs.items():
        hits = int(right[name].sum())
        audited = audit(path)
        entry: dict[str, Any] = {
            "accuracy": hits / len(labels),
            "accuracy_interval": wilson_interval(hits, len(labels)),
            "integer_ops": audited.integer_ops,
            "quantizable_ops": audited.quantizable_ops,
            "size_bytes": path.stat().st_size,
        }
        if name != "float":
            lost = right["float"].astype(float) - right[name].astype(float)
            low, high = paired_bootstrap(lost, 0)
            entry |= {"drop_pp": 100 * lost.mean(), "drop_interval_pp": [100 * low, 100 * high]}
        if name in stages:
            entry["options"] = wanted[name]
            entry["quantize_s"] = stages[name]["duration_s"]
            entry["parity"] = stages[name]["parity"]["int8"]
            entry["quantization"] = {k: stages[name]["quantization"][k] for k in ("recipe", "trials", "qat")}
        variants[name] = entry
    best_peer = max(peers, key=lambda p: variants[p]["accuracy"])
    return {
        "training": read_json(training / "training.json"),
        "splits": to_json(data.summary()),
        "n_test": len(labels),
        "variants": variants,
        "peers": peers,
        "best_peer": best_peer,
        "missing_peers": missing,
        "against_best_peer_pp": 100 * (variants["w8a8"]["accuracy"] - variants[best_peer]["accuracy"]),
        "latency_ms": latency(graphs),
    }


def latency(graphs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Medians in milliseconds, all graphs in turn in one process."""
    timed = {n: p for n, p in graphs.items() if n in ("float", "w8a8", "w4a8", "w4a4", "nncf") or "static" in n}
    found = {}
    for threads in THREADS:
        sessions = {name: OnnxClassifier(path, threads) for name, path in timed.items()}
        for batch in BATCHES:
            found[f"threads_{threads}_batch_{batch}"] = latencies_ms(sessions, 32, batch, ROUNDS)
    return found


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option(
    "--trainings", type=click.Path(path_type=Path), required=True, help="Folder of train_baselines.py's folders."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where runs are kept.")
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option(
    "--variants", default=",".join(VARIANTS), show_default=True, help="w8a8, which peers stand beside, and others."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--results", default="quantization", show_default=True, help="Name of the file in results/.")
def main(data: str, trainings: Path, out: Path, networks: str, variants: str, threads: int, results: str) -> None:
    """Quantize every network every way, beside its peers, and write results/."""
    if "w8a8" not in variants.split(",") or set(variants.split(",")) - set(VARIANTS):
        raise click.ClickException(f"variants: expected w8a8 and others of {', '.join(VARIANTS)}, got {variants}")
    wanted = {name: VARIANTS[name] for name in variants.split(",")}
    torch.set_num_threads(threads)
    path = RESULTS / f"{results}.json"
    result = read_json(path) if path.exists() else {"networks": {}}
    for network in networks.split(","):
        started = time.monotonic()
        found = network_result(network, wanted, data, trainings / network, out / network, threads)
        found["duration_s"] = round(time.monotonic() - started)
        found["commit"] = git_commit()
        found["hardware"] = to_json(hardware(threads))
        result["networks"][network] = found
        result["variants"] = wanted
        result["seed"] = 0
        result["command"] = (
            "python benchmarks/quantization.py --data imagefolder:DIR --trainings RUNS --networks "
            f"{','.join(result['networks'])} --variants {variants} --results {results} --out WORK"
        )
        result["versions"] = {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES}
        text = json.dumps(result, indent=1)
        for folder in (str(trainings.expanduser().absolute()), str(Path.home())):
            text = text.replace(folder, "~")
        RESULTS.mkdir(exist_ok=True)
        write_json(path, json.loads(text))


PACKAGES = ("torch", "onnx", "onnxruntime", "nncf", "numpy")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
