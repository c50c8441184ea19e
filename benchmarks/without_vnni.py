"""How fast is INT8 on an x86 CPU without VNNI, in each of the forms in which it can run there?

    python benchmarks/without_vnni.py

On such a CPU only. The networks of benchmarks/quantization.py and torchvision's MobileNetV2 at 224 px with random
weights, as speed does not depend on them: float; 8-bit weights as onnxruntime runs them, with sums that saturate; the
same file with `session.x64quantprecision`, which adds in 32 bits; 7-bit weights (`--target x86-avx2`); and signed
activations (`--target arm64`), whose kernels add in 32 bits. Leaves results/without_vnni.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import torch
from figures import git_commit

from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.profiling import latencies_ms
from qrobust.deployment.session import sums_saturate
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import ARM64, X86_AVX2, X86_VNNI
from qrobust.record import hardware, to_json, versions
from qrobust.storage import write_json

RESULT = Path(__file__).parent / "results" / "without_vnni.json"
NETWORKS = {"cifar_resnet18": 32, "cifar_vgg16_bn": 32, "cifar_mobilenet_v2": 32, "torchvision:mobilenet_v2": 224}
# Images per batch, and rounds of timing at each.
BATCHES = {1: 50, 32: 10}


@click.command()
@click.option("--seed", default=0, show_default=True)
def main(seed: int) -> None:
    """Time every form of every network with one thread and two."""
    if not sums_saturate():
        raise click.ClickException("this CPU has VNNI: there is nothing to choose between")
    rows = []
    for name, size in NETWORKS.items():
        model = load_model(
            find_model(name),
            classes=10,
            image_size=size,
            weights=None,
            pretrained=False,
            normalization="cifar10",
            seed=seed,
        )
        images = torch.rand(32, 3, size, size, generator=torch.Generator().manual_seed(seed))
        with tempfile.TemporaryDirectory() as folder:
            paths = {form: Path(folder) / f"{form}.onnx" for form in ("float", "x86-vnni", "x86-avx2", "arm64")}
            export(model, paths["float"], size)
            for target in (X86_VNNI, X86_AVX2, ARM64):
                export(quantize(model, target, [images]), paths[target.name], size)
            for threads in (1, 2):
                sessions = {
                    "float": OnnxClassifier(paths["float"], threads),
                    "saturating": OnnxClassifier(paths["x86-vnni"], threads, exact_sums=False),
                    "by_request": OnnxClassifier(paths["x86-vnni"], threads),
                    "seven_bits": OnnxClassifier(paths["x86-avx2"], threads, exact_sums=False),
                    "signed": OnnxClassifier(paths["arm64"], threads, signed_activations=True),
                }
                for batch, rounds in BATCHES.items():
                    found = latencies_ms(sessions, size, batch, rounds)
                    row = {"network": name, "image_size": size, "threads": threads, "batch": batch}
                    rows.append(row | {"latency_ms": found})
                    click.echo(rows[-1])
    write_json(
        RESULT,
        {
            "rows": rows,
            "hardware": to_json(hardware(2)),
            "versions": versions(),
            "commit": git_commit(),
            "seed": seed,
            "command": " ".join(["python", *sys.argv]),
        },
    )


if __name__ == "__main__":
    main()
