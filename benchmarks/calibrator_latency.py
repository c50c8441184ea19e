"""What time a calibrator takes in front of networks for photographs, by branches, and which one the default takes.

    python benchmarks/calibrator_latency.py

INT8 MobileNetV2, ResNet18 and EfficientNet-Lite0 of random weights at 224 px, whose times are those of trained ones:
alone; behind a calibrator of each set of branches that `--mac-budget` allows, as wide as that allows, with every
branch at work; and behind those that the default `--latency-budget` tries, up to the one that it takes. Sessions take
turns within a round; `--threads` says with how many threads each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from figures import git_commit
from torch import nn

from qrobust.classifier import Compensated, count_macs
from qrobust.compensation.calibrator import Correction, within_budget
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.fit import new_calibrator
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.profiling import latencies_ms
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI
from qrobust.record import hardware, to_json, versions
from qrobust.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "calibrator_latency.json"
LITE0 = f"{Path(__file__).parent / 'efficientnet_lite0.py'}:make"
NETWORKS = {
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "resnet18": "torchvision:resnet18",
    "efficientnet_lite0": LITE0,
}
SIZE, BATCHES = 224, (1, 8)


def graph(calibrator: nn.Module, int8: nn.Module, images: torch.Tensor, path: Path) -> Path:
    """A compensated classifier whose calibrator proposes something else for each image, exported."""
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    frozen = quantize(calibrator.eval(), X86_VNNI, [images], leaves=(Correction,))
    export(Compensated(frozen, int8), path, SIZE)
    return path


def measure(spec: str, folder: Path, threads: tuple[int, ...]) -> dict[str, Any]:
    """Times of one network, alone and behind calibrators."""
    found = find_model(spec)
    model = load_model(
        found, classes=1000, image_size=SIZE, weights=None, pretrained=False, normalization="imagenet", seed=0
    )
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    int8, config = quantize(model, X86_VNNI, [images]), CalibratorConfig()
    files = {"float": folder / "float.onnx", "int8": folder / "int8.onnx"}
    for network, path in ((model, files["float"]), (int8, files["int8"])):
        export(network, path, SIZE)
    choices, default = within_budget(SIZE, config.mac_budget, count_macs(model, SIZE)), None
    widest = {branches: width for width, branches in reversed(choices)}
    for width, branches in choices:
        if default and width != widest[branches]:
            continue
        name = f"{' + '.join(branches)}, width {width}"
        calibrator = new_calibrator(SIZE, width, branches, 3, 0)
        files[name] = graph(calibrator, int8, images, folder / f"{width}-{'-'.join(branches)}.onnx")
        if not default:
            ms = latencies_ms({key: OnnxClassifier(files[key], 1) for key in ("int8", name)}, SIZE, 1)
            default = name if ms[name] <= config.latency_limit(SIZE) * ms["int8"] else None
    rows = []
    for count in threads:
        sessions = {name: OnnxClassifier(path, count) for name, path in files.items()}
        for batch in BATCHES:
            rows.append({"threads": count, "batch": batch, "ms": latencies_ms(sessions, SIZE, batch)})
    return {"default": default, "rows": rows}


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--threads", default="1,2", show_default=True)
def main(networks: str, threads: str) -> None:
    """Measure, and write results/calibrator_latency.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = read_json(RESULTS)["networks"] if RESULTS.exists() else {}
    for name in networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            known[name] = measure(NETWORKS[name], Path(folder), tuple(map(int, threads.split(","))))
        result = {
            "networks": known,
            "size": SIZE,
            "budget": CalibratorConfig().latency_limit(SIZE),
            "command": f"python benchmarks/calibrator_latency.py --threads {threads}",
            "commit": git_commit(),
            "versions": versions(),
            "hardware": to_json(hardware(1)),
        }
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
