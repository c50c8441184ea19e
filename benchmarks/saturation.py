"""Does the simulation of a CPU without VNNI say what onnxruntime does on one? Checked on one, or under emulation.

    apt-get install qemu-user  # on a CPU with VNNI
    python benchmarks/saturation.py --data imagefolder:~/data/cifar10 --training ~/runs/resnet20

Single operators first, with weights made to overflow: the simulation must give the saturated integers exactly,
which fixes the order in which products are paired. Then whole networks, exported as `qrobust` exports them: the
trained ones of `--training` (made by train_baselines.py) in 8 bits, in 7, and in 8 with only the worst layer in 7;
torchvision's ResNet-18 and MobileNetV2 with random weights, for their shapes. Each graph runs twice, on the same
images: where the CPU has VNNI, natively and under `qemu-x86_64 -cpu Haswell`, which leaves results/saturation.json;
where it has none, with the sums in 32 bits that onnxruntime offers on request and natively, which leaves
results/saturation_native.json. In both, `native` is the run whose sums are exact, `emulated` the one that saturates.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from figures import git_commit
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from qrobust.data.loading import open_data
from qrobust.data.splits import Data
from qrobust.deployment.audit import audit
from qrobust.deployment.export import export
from qrobust.deployment.onnx_graph import load
from qrobust.deployment.session import sums_saturate
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.quantization.integer_layers import (
    WIDENED,
    ActivationQuantizer,
    IntegerConv2d,
    IntegerLinear,
)
from qrobust.quantization.ptq import quantize
from qrobust.quantization.saturation import saturation_risk, without_vnni
from qrobust.quantization.target import X86_VNNI, Target
from qrobust.quantization.tracing import calls, trace
from qrobust.record import SaturationRisk, hardware, to_json, versions

RESULTS = Path(__file__).parent / "results"
SESSION = Path(__file__).parent / "saturation_session.py"
EMULATOR = ["qemu-x86_64", "-cpu", "Haswell"]
HAS_VNNI = not sums_saturate()
RESULT = RESULTS / ("saturation.json" if HAS_VNNI else "saturation_native.json")
SEVEN_BITS = Target("x86-avx2", (0, 255), (-63, 63), "no pair of products leaves 16 bits")
# Powers of two: with them every float is an exact integer times one.
INPUT_SCALE, WEIGHT_SCALE = 2.0**-6, 2.0**-7
# Weights (out, channels per group, rows, columns) or (out, in), stride, padding, groups, zero point.
OPERATORS: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {
    "first layer, 3 channels, stride 2": ((16, 3, 3, 3), 2, 1, 1, 114),
    "3x3": ((32, 16, 3, 3), 1, 1, 1, 0),
    "3x3, stride 2, 6 channels": ((24, 6, 3, 3), 2, 1, 1, 77),
    "7x7, stride 2, 3 channels": ((64, 3, 7, 7), 2, 3, 1, 120),
    "1x1": ((40, 24, 1, 1), 1, 0, 1, 0),
    "1x1, stride 2, odd channels": ((17, 9, 1, 1), 2, 0, 1, 5),
    "grouped": ((32, 8, 3, 3), 1, 1, 4, 33),
    "one channel in, two out per group": ((32, 1, 3, 3), 1, 1, 16, 10),
    "depthwise, 32 channels": ((32, 1, 3, 3), 1, 1, 32, 10),
    "depthwise, 6 channels, stride 2": ((6, 1, 3, 3), 2, 1, 6, 10),
    "linear": ((10, 64), 1, 0, 1, 0),
    "linear, odd inputs": ((33, 95), 1, 0, 1, 21),
}


def run(
    jobs: list[tuple[Path, np.ndarray]], *, saturated: bool
) -> tuple[list[dict[str, np.ndarray]], dict[str, bool]]:
    """Outputs of each graph by name, and the instruction sets that the process was offered."""
    before, options = (EMULATOR if saturated else [], []) if HAS_VNNI else ([], [] if saturated else ["--exact"])
    with tempfile.TemporaryDirectory() as folder:
        arguments: list[str | Path] = [*options]
        for i, (model, images) in enumerate(jobs):
            np.save(f"{folder}/{i}.npy", images)
            arguments += [model, f"{folder}/{i}.npy", f"{folder}/{i}.npz"]
        command = [*before, sys.executable, SESSION, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"{command[0]} failed: {done.stderr[-500:]}")
        outputs = []
        for i in range(len(jobs)):
            with np.load(f"{folder}/{i}.npz") as arrays:
                outputs.append({name: arrays[name] for name in arrays.files})
    return outputs, json.loads(done.stdout)


def every_pair(channels: int, kernel: int, out_multiple: int = 16) -> torch.Tensor:
    """One output channel for each two places of a filter, both 127: it overflows where those two are a pair."""
    places = list(itertools.combinations(range(channels * kernel**2), 2))
    weight = torch.zeros(len(places) + -len(places) % out_multiple, channels * kernel**2, dtype=torch.int8)
    for row, chosen in enumerate(places):
        weight[row, list(chosen)] = 127
    return weight.view(-1, channels, kernel, kernel)


def operator_layer(weight: torch.Tensor, stride: int, padding: int, groups: int) -> IntegerConv2d | IntegerLinear:
    scale, bias = torch.full((len(weight),), WEIGHT_SCALE), torch.zeros(len(weight))
    if weight.ndim == 2:
        return IntegerLinear(weight, scale, bias, torch.tensor(INPUT_SCALE))
    return IntegerConv2d(
        weight,
        scale,
        bias,
        torch.tensor(INPUT_SCALE),
        stride=(stride,) * 2,
        padding=(padding,) * 4,
        dilation=(1, 1),
        groups=groups,
    )


def operator_graph(layer: IntegerConv2d | IntegerLinear, zero_point: int, output_scale: float, path: Path) -> None:
    """One QLinearConv (uint8 out, zero point 128) or QGemm (float out) on its own."""
    out, weight = len(layer.weight_int), layer.weight_int.numpy()
    constants = {
        "input_scale": np.float32(INPUT_SCALE),
        "input_zero": np.uint8(zero_point),
        "weight": weight,
        "weight_scale": layer.weight_scale.numpy(),
        "weight_zero": np.zeros(out, np.int8),
        "output_scale": np.float32(output_scale),
        "output_zero": np.uint8(128),
        "bias": layer.bias_int.numpy(),
    }
    wide = weight.shape[1:] == WIDENED and isinstance(layer, IntegerConv2d) and layer.groups == 1
    if wide:  # as `export` writes it
        constants |= {
            "weight": np.pad(weight, [(0, 0), (0, 1), (0, 0), (0, 0)]),
            "ends": np.eye(8, dtype=np.int64)[5],
        }
    pad = [helper.make_node("Pad", ["input", "ends", "input_zero"], ["wide"])] if wide else []
    inputs = ["wide" if wide else "input", "input_scale", "input_zero", "weight", "weight_scale", "weight_zero"]
    if isinstance(layer, IntegerConv2d):
        inputs += ["output_scale", "output_zero", "bias"]
        left, right, top, bottom = layer.padding
        node = helper.make_node(
            "QLinearConv",
            inputs,
            ["output"],
            strides=list(layer.stride),
            pads=[top, left, bottom, right],
            group=layer.groups,
        )
        shape, kind = [None, weight.shape[1] * layer.groups, None, None], TensorProto.UINT8
    else:
        node = helper.make_node("QGemm", [*inputs, "bias"], ["output"], transB=1, domain="com.microsoft")
        shape, kind = [None, weight.shape[1]], TensorProto.FLOAT
    graph = helper.make_graph(
        [*pad, node],
        "operator",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("output", kind, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in {*node.input, "ends"}],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)


def check_operators(folder: Path) -> list[dict[str, Any]]:
    """Every operator exact, saturated, as the fake-quantized model has it and as it is simulated."""
    generator = torch.Generator().manual_seed(0)
    cases: dict[str, tuple[IntegerConv2d | IntegerLinear, int, torch.Tensor]] = {}
    for channels, kernel in ((4, 3), (3, 3), (5, 2), (16, 1), (1, 3)):
        layer = operator_layer(every_pair(channels, kernel), 1, 0, 1)
        pixels = torch.full((1, channels, kernel, kernel), 255)
        cases[f"every pair of a {kernel}x{kernel} filter of {channels} channels"] = (layer, 0, pixels)
    cases["every pair of a linear layer of 18 inputs"] = (
        operator_layer(every_pair(18, 1).flatten(1), 1, 0, 1),
        0,
        torch.full((1, 18), 255),
    )
    for name, (shape, stride, padding, groups, zero_point) in OPERATORS.items():
        weight = torch.randint(-128, 128, shape, generator=generator)
        weight[::3] = weight[::3].abs().clamp(max=127)  # a third of the filters adds up
        size = (5, shape[1]) if len(shape) == 2 else (2, shape[1] * groups, 13, 14)
        pixels = torch.randint(80, 256, size, generator=generator)
        cases[name] = (operator_layer(weight.to(torch.int8), stride, padding, groups), zero_point, pixels)
    jobs, exact, simulated = [], [], []
    for i, (layer, zero_point, pixels) in enumerate(cases.values()):
        fake_quantized = trace(
            nn.Sequential(ActivationQuantizer(INPUT_SCALE, zero_point, 0, 255), layer).eval(),
            (ActivationQuantizer, IntegerConv2d, IntegerLinear),
        )
        x = (pixels - zero_point) * INPUT_SCALE
        both = fake_quantized(x), without_vnni(fake_quantized)(x)
        output_scale = 2.0 ** math.ceil(math.log2(max(float(v.abs().max()) for v in both) / 127))
        if isinstance(layer, IntegerConv2d):
            both = tuple((v / output_scale).round() + 128 for v in both)
        exact.append(both[0].numpy())
        simulated.append(both[1].numpy())
        operator_graph(layer, zero_point, output_scale, folder / f"{i}.onnx")
        jobs.append((folder / f"{i}.onnx", pixels.numpy().astype(np.uint8)))
    native, emulated = ([r["output"] for r in run(jobs, saturated=e)[0]] for e in (False, True))
    return [
        {
            "operator": name,
            "outputs": native[i].size,
            "changed_by_saturation": int((native[i] != emulated[i]).sum()),
            "native_unlike_twin": int((native[i] != exact[i]).sum()),
            "emulated_unlike_simulation": int((emulated[i] != simulated[i]).sum()),
        }
        for i, name in enumerate(cases)
    ]


def quantizer_names(fake_quantized: fx.GraphModule) -> list[str]:
    """What each quantizer of a fake-quantized model reads, in the order of their calls."""
    return [str(node.args[0]) for node, _ in calls(fake_quantized, ActivationQuantizer)]


def with_every_activation(path: Path, result: Path) -> list[str]:
    """Make every quantized activation an output of the graph; returns their names in order."""
    proto = load(path)
    constants = {c.name for c in proto.graph.initializer}
    names = [n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    for name in names:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
    onnx.save(proto, result)
    return names


def activations(fake_quantized: nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    """What every quantizer of a fake-quantized model gives, as integers, in the order of their calls."""
    seen: list[np.ndarray] = []

    def note(quantizer: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        seen.append(((output / quantizer.scale).round() + quantizer.zero_point).numpy().astype(np.uint8))

    handles = [m.register_forward_hook(note) for m in fake_quantized.modules() if isinstance(m, ActivationQuantizer)]
    fake_quantized(images)
    for handle in handles:
        handle.remove()
    return seen


def distance(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return {
        "mean_difference": float(np.abs(a - b).mean()),
        "largest_difference": float(np.abs(a - b).max()),
        "agreement": float((a.argmax(1) == b.argmax(1)).mean()),
    }


@torch.inference_mode()
def check_network(
    name: str,
    weights: str,
    fake_quantized: fx.GraphModule,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    inner: int,
    folder: Path,
) -> dict[str, Any]:
    """One graph exact, saturated, as the fake-quantized model has it and as it is simulated."""
    plain, open_graph = folder / "int8.onnx", folder / "activations.onnx"
    export(fake_quantized, plain, images.shape[-1])
    outputs = with_every_activation(plain, open_graph)
    simulated_twin = without_vnni(fake_quantized)
    twin_logits, simulated = (
        torch.cat([m(part) for part in images.split(50)]).numpy() for m in (fake_quantized, simulated_twin)
    )
    jobs = [(plain, images.numpy()), (open_graph, images[:inner].numpy())]
    (native, native_inside), native_flags = run(jobs, saturated=False)
    started = time.monotonic()
    (emulated, emulated_inside), emulated_flags = run(jobs, saturated=True)
    seconds = time.monotonic() - started
    native_logits, emulated_logits = native["logits"], emulated["logits"]
    mine, fake_quantized_models = (
        activations(simulated_twin, images[:inner]),
        activations(fake_quantized, images[:inner]),
    )
    names = quantizer_names(fake_quantized)
    assert len(names) == len(outputs) == len(mine)
    error, expected = (emulated_logits - native_logits).ravel(), (simulated - twin_logits).ravel()
    audited = audit(plain)
    result = {
        "network": name,
        "weights": weights,
        "n": len(images),
        "image_size": images.shape[-1],
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
        "native_flags": native_flags,
        "emulated_flags": emulated_flags,
        "emulation_seconds": round(seconds, 1),
        "logit_deviation": float(native_logits.std()),
        "twin_and_native": distance(twin_logits, native_logits),
        "native_and_emulated": distance(native_logits, emulated_logits),
        "simulated_and_emulated": distance(simulated, emulated_logits),
        # Undefined where nothing saturates and both errors are zero.
        "error_correlation": float(np.corrcoef(error, expected)[0, 1]) if error.any() and expected.any() else None,
        "activations": [
            {
                "after": names[i],
                "native_unlike_emulated": float((native_inside[o] != emulated_inside[o]).mean()),
                "simulated_unlike_emulated": float((mine[i] != emulated_inside[o]).mean()),
                "twin_unlike_native": float((fake_quantized_models[i] != native_inside[o]).mean()),
            }
            for i, o in enumerate(outputs)
        ],
    }
    if labels is not None:
        pairs = {"native": native_logits, "emulated": emulated_logits, "twin": twin_logits, "simulated": simulated}
        result["accuracy"] = {k: float((v.argmax(1) == labels.numpy()).mean()) for k, v in pairs.items()}
    return result


@torch.inference_mode()
def settle_batch_norms(model: nn.Module, images: torch.Tensor) -> None:
    """Give random weights batch-norm statistics that fit them, lest activations fade away in the depth."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images)
    model.eval()


def pixels(data: Data, split: str, n: int) -> torch.Tensor:
    return getattr(data, split).read(slice(0, n)).float() / 255


def validation(data: Data) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((images.float() / 255, labels) for images, labels in data.validation.batches(100))


def worst_layer(risk: SaturationRisk) -> str:
    """The layer whose outputs saturation changes most."""
    return max(risk.layers, key=lambda layer: layer.mean_error).name


@click.command()
@click.option("--data", "spec", required=True, help="imagefolder:DIR of CIFAR-10 (JPEG).")
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder that train_baselines.py made; may be repeated. Without any, only the single operators are checked "
    "again, and the networks stay as recorded.",
)
@click.option(
    "--photographs", help="imagefolder:DIR of ImageNet's classes: EfficientNet-Lite0 is checked on them, too."
)
@click.option("--class-names", type=click.Path(path_type=Path), help="File of all 1,000 class names, for these.")
@click.option("--images", "n", default=1000, show_default=True, help="Test images of a trained network, emulated.")
@click.option("--inner", default=50, show_default=True, help="Images on which every activation is compared.")
@click.option("--seed", default=0, show_default=True)
def main(
    spec: str,
    training: tuple[Path, ...],
    photographs: str | None,
    class_names: Path | None,
    n: int,
    inner: int,
    seed: int,
) -> None:
    """Compare the simulation with saturating sums, and the fake-quantized model with exact ones."""
    torch.set_num_threads(1)
    emulator = None
    if HAS_VNNI:
        told = subprocess.run([EMULATOR[0], "--version"], capture_output=True, text=True, check=True).stdout
        emulator = {"version": told.splitlines()[0], "command": " ".join(EMULATOR)}
    networks, trained = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        operators = check_operators(folder)
        for row in operators:
            click.echo(json.dumps(row))
        if not training:
            kept = json.loads(RESULT.read_text())
            kept |= {"operators": operators, "operators_commit": git_commit()}
            RESULT.write_text(json.dumps(kept, indent=1) + "\n")
            return
        data = open_data(spec, seed=seed)
        for where in training:
            recipe = json.loads((where / "training.json").read_text())
            trained[recipe["model"]] = recipe
            model = load_model(
                find_model(recipe["model"]),
                classes=len(data.class_names),
                image_size=32,
                weights=where / "weights.pt",
                pretrained=False,
                normalization="cifar10",
                seed=seed,
            )
            calibration = pixels(data, "calibration", len(data.calibration)).split(64)
            eight, seven = (quantize(model, target, calibration) for target in (X86_VNNI, SEVEN_BITS))
            worst = worst_layer(saturation_risk(eight, validation(data)))
            mixed = copy.deepcopy(eight)
            mixed.set_submodule(f"network.{worst}", seven.get_submodule(f"network.{worst}"))
            for weights, fake_quantized in (("8 bit", eight), ("7 bit", seven), (f"8 bit, `{worst}` 7 bit", mixed)):
                images, labels = pixels(data, "test", n), data.test.labels[:n]
                row = check_network(recipe["model"], weights, fake_quantized, images, labels, inner, folder)
                started = time.monotonic()
                row["risk"] = to_json(saturation_risk(fake_quantized, validation(data)))
                row["risk_seconds"] = round(time.monotonic() - started, 1)
                networks.append(row)
                click.echo(json.dumps({k: v for k, v in row.items() if k not in ("activations", "risk")}))
        larger = open_data(spec, seed=seed, image_size=64)
        for spec_name in ("torchvision:resnet18", "torchvision:mobilenet_v2"):
            model = load_model(
                find_model(spec_name),
                classes=10,
                image_size=64,
                weights=None,
                pretrained=False,
                normalization="cifar10",
                seed=seed,
            )
            settle_batch_norms(model, pixels(larger, "calibration", 32))
            fake_quantized = quantize(model, X86_VNNI, pixels(larger, "calibration", 32).split(16))
            row = check_network(spec_name, "8 bit", fake_quantized, pixels(larger, "test", 16), None, 8, folder)
            networks.append(row)
            click.echo(json.dumps({k: v for k, v in row.items() if k != "activations"}))
        if photographs:
            found = open_data(
                photographs, seed=seed, image_size=224, class_names_file=class_names, calibration_images=64
            )
            model = load_model(
                find_model(f"{Path(__file__).parent / 'efficientnet_lite0.py'}:make"),
                classes=1000,
                image_size=224,
                weights=None,
                pretrained=False,
                normalization="0.498,0.498,0.498/0.502,0.502,0.502",
                seed=seed,
            )
            rest = (found.training, found.validation, found.test)
            images = torch.cat([part.read(slice(None)).float() / 255 for part in rest])
            labels = torch.cat([part.labels for part in rest])
            for weights, target in (("8 bit", X86_VNNI), ("7 bit", SEVEN_BITS)):
                fake_quantized = quantize(model, target, pixels(found, "calibration", 64).split(16))
                row = check_network("efficientnet_lite0", weights, fake_quantized, images, labels, 8, folder)
                networks.append(row)
                click.echo(json.dumps({k: v for k, v in row.items() if k != "activations"}))
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/saturation.py --data imagefolder:DIR "
        + " ".join(f"--training {Path(w).name}" for w in training)
        + (" --photographs imagefolder:DIR/images --class-names DIR/classes.txt" if photographs else ""),
        "commit": git_commit(),
        "seed": seed,
        "emulator": emulator,
        "versions": versions(),
        "hardware": to_json(hardware(1)),
        "splits": to_json(data.summary()),
        "training": {k: {"test_accuracy": v["test_accuracy"], "recipe": v["recipe"]} for k, v in trained.items()},
        "operators": operators,
        "operators_commit": git_commit(),
        "networks": networks,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
