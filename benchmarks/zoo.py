"""Which of torchvision's classification networks come out integer, and what stands in the way of the others.

    python benchmarks/zoo.py                       # all of them; what is in results/zoo.json already is kept
    python benchmarks/zoo.py --only resnet18,vgg11 --again

Each network gets random weights with batch norms that are not the identity, at its preferred size or a smaller
stated one, in a process of its own with a time and memory limit. The figures are about operators, not accuracy.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from figures import git_commit

RESULT = Path(__file__).parent / "results" / "zoo.json"
CALIBRATION_IMAGES, TEST_IMAGES, CLASSES, SEED = 16, 16, 10, 0
MOST_MILLIONS = 62
# Larger than this and made for any size: the stated smaller side tells as much in less time.
LARGE_MILLIONS, SMALLER_SIDE = 9, 128
# Letters that the names of one kind have in common.
LEAST_COMMON = 3
FIXED_SIZE = ("vit", "maxvit", "swin", "vgg", "alexnet")
# Beyond the limit, but the smallest of their kind.
ALSO = ("vit_b_32", "vgg11", "vgg11_bn")
# Names of factors that begin near zero, with which a block does nothing yet.
LAYER_SCALES = ("layer_scale", "gamma", "layer_scale_1", "layer_scale_2", "gamma1", "gamma2", "gamma_1", "gamma_2")
# They move or choose numbers, on whatever type these are.
MOVING = (
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Expand",
    "Shape",
    "Pad",
    "Identity",
    "Cast",
    "MaxPool",
    "Resize",
    "ConstantOfShape",
    "Where",
    "Range",
    "Tile",
    "ReorderInput",
    "ReorderOutput",
    "Constant",
)


def networks() -> tuple[list[str], list[str]]:
    """The networks to measure, and the bigger ones."""
    from torchvision import models

    every = models.list_models(module=models)
    millions = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] / 1e6 for name in every}
    measured = [n for n in every if millions[n] <= MOST_MILLIONS or n in ALSO]
    return measured, [n for n in every if n not in measured]


def sister(name: str, measured: list[str]) -> str:
    """The measured network of the same operators, whose name begins most alike; "" where none is of its kind."""
    plain = name.removeprefix("wide_")
    best = max(measured, key=lambda m: (_common(m, plain), m.endswith("_bn") == name.endswith("_bn")))
    return best if _common(best, plain) >= LEAST_COMMON else ""


def _common(first: str, second: str) -> int:
    """How many letters two names have in common from the start."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def images(n: int, side: int, seed: int) -> Any:
    """Random images `(n, 3, side, side)` that differ in scale of pattern, sharpness, colour and contrast."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        conditions = 2 ** (1 + i % 4)
        coarse = torch.rand(1, 3, conditions, conditions, generator=generator) - 0.5
        shade, contrast = torch.rand(2, 1, 3, 1, 1, generator=generator)
        pattern = torch.nn.functional.interpolate(coarse, size=side, mode="nearest" if i % 2 else "bicubic")
        made.append(pattern * (0.2 + 1.5 * contrast) + 0.2 + 0.6 * shade)
    return torch.cat(made).clamp(0, 1)


def unsettle(model: Any, pixels: Any) -> None:
    """Batch norms that fit these images without being the identity; factors and heads that do not vanish.

    A norm divides by the root mean square rather than the standard deviation of what it reads: in a deep network of
    random weights all images look more and more alike, and to divide by what is left of their differences would
    make the logits a matter of rounding.
    """
    import torch

    def settle(norm: Any, inputs: Any) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].square().mean((0, 2, 3)))
        norm.weight.uniform_(0.7, 1.4)
        norm.bias.normal_(0, 0.3)

    for name, parameter in model.named_parameters():
        if name.endswith(LAYER_SCALES):
            parameter.uniform_(0.05, 0.2)
        elif not parameter.any() and name.endswith(("weight", "class_token")):
            parameter.normal_(0, 0.02)
    hooks = [m.register_forward_pre_hook(settle) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()


def float_layers(plain: Any) -> list[str]:
    """Layers, and functions of torchvision that torch.fx does not look into, whose matrix products stay in float."""
    import torch

    layers = [type(m).__name__ for m in plain.modules() if "Attention" in type(m).__name__]
    functions = [n.target for n in plain.graph.nodes if n.op == "call_function"]
    closed = [f for f in functions if (f.__module__ or "").startswith("torchvision") or f is torch.einsum]
    return layers + [f.__name__ for f in closed]


def side_of(name: str, preferred: int, millions: float) -> int:
    """At which size a network is measured: its own, or a smaller one where that takes long and tells as much."""
    large = millions > LARGE_MILLIONS and not name.startswith(FIXED_SIZE)
    return min(preferred, SMALLER_SIDE if large else 224)


def measure(spec: str, choose_side: Callable[[int, float], int]) -> dict[str, Any]:
    """Take one network as far as it goes.

    Args:
        spec: such as `torchvision:resnet18`.
        choose_side: from its preferred size and its millions of parameters to the size to measure at.
    """
    import torch

    from qrobust.deployment.audit import audit
    from qrobust.deployment.classifiers import OnnxClassifier
    from qrobust.deployment.export import export
    from qrobust.deployment.parity import parity
    from qrobust.errors import QRobustError
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model
    from qrobust.quantization.ptq import quantize
    from qrobust.quantization.recipe import Recipe
    from qrobust.quantization.target import X86_VNNI
    from qrobust.quantization.tracing import folded

    torch.set_num_threads(1)
    found = find_model(spec)
    started = time.monotonic()
    assert found.preset.image_size is not None
    model = load_model(
        found,
        classes=CLASSES,
        image_size=found.preset.image_size,
        weights=None,
        pretrained=False,
        normalization=None,
        seed=SEED,
    )
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    preferred = found.preset.image_size
    side = choose_side(preferred, millions)
    row: dict[str, Any] = {"parameters_millions": millions, "image_size": side, "preferred_size": preferred}
    unsettle(model, images(CALIBRATION_IMAGES, side, SEED + 1))
    pixels, tests = images(CALIBRATION_IMAGES, side, SEED + 2), images(TEST_IMAGES, side, SEED + 3)

    def at(step: str) -> None:
        row["step"] = step
        click.echo(step, err=True)  # what is known of a process that had to be stopped

    try:
        with tempfile.TemporaryDirectory() as folder:
            at("trace")
            plain = folded(model, pixels[:1])
            row["float_layers"] = dict(sorted(Counter(float_layers(plain)).items()))
            at("quantize")
            fake_quantized = quantize(model, X86_VNNI, pixels.split(4), recipe=Recipe(ranges="moving-average"))
            at("export")
            path = Path(folder) / "int8.onnx"
            export(fake_quantized, path, side)
            at("run")
            audited = audit(path)
            with torch.inference_mode():
                wanted = torch.cat([model(part) for part in tests.split(4)])
                nudged = torch.cat([model(part) for part in tests.mul(255).round().div(255).split(4)])
            labels = wanted.argmax(1)
            measured = parity(fake_quantized, OnnxClassifier(path, 1), tests, labels)
            by_precision = change_by_precision(fake_quantized, tests)
            row["size_bytes"] = path.stat().st_size
    except QRobustError as error:
        return row | {"reason": str(error), "seconds": time.monotonic() - started}
    others = Counter(audited.other_ops)
    left = {k: n for k, n in others.items() if k not in MOVING and not k.startswith(("QLinear", "Q", "Dequantize"))}
    return row | {
        "step": "done",
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
        "float_compute": audited.float_compute,
        "other_float": left,
        "conversions": others["QuantizeLinear"] + others["DequantizeLinear"],
        "parity": {
            key: getattr(measured, key) for key in ("n", "agreement", "max_logit_difference", "mean_logit_difference")
        },
        "float_agreement": measured.torch_accuracy,
        "logit_std": float(wanted.std()),
        "mean_change_by_rounded_pixels": float((wanted - nudged).abs().mean()),
        "mean_change_by_precision": by_precision,
        "seconds": time.monotonic() - started,
    }


def change_by_precision(fake_quantized: Any, pixels: Any) -> float:
    """Mean change of the fake-quantized model's logits where torch computes with 64 bits instead of 32.

    The same integers by the same code: what differs is where values near a rounding border fall, and what follows.
    """
    import torch

    double = copy.deepcopy(fake_quantized).double()
    with torch.inference_mode():
        single = torch.cat([fake_quantized(part) for part in pixels.split(4)])
        precise = torch.cat([double(part.double()) for part in pixels.split(4)])
    return float((single - precise).abs().mean())


def in_a_process(
    script: str, name: str, timeout: float, memory_gib: float, options: Sequence[str] = ()
) -> dict[str, Any]:
    """The row of one network by a script's hidden `--worker`, whatever becomes of its process."""
    command = [sys.executable, script, "--worker", name, *options]
    limit = int(memory_gib * 2**30)
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
    except subprocess.TimeoutExpired as error:
        steps = (error.stderr or b"").decode().split() or ["start"]
        return {"step": steps[-1], "reason": f"took more than {timeout:g} s in all", "seconds": timeout}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {"step": "crash", "reason": said[-1][:300], "seconds": time.monotonic() - started}


def keep(result: dict[str, Any], out: Path) -> None:
    """Write a result file whole or not at all."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, out)


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    share = f"{row['integer_ops']} of {row['quantizable_ops']}" if "integer_ops" in row else row["reason"]
    return f"{share}; {row.get('other_float', '')} {row['seconds']:.0f} s"


def circumstances(command: str) -> dict[str, Any]:
    """What a reader needs to repeat the figures."""
    import onnx
    import onnxruntime
    import torch
    import torchvision

    model = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "command": command,
        "commit": git_commit(),
        "seed": SEED,
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, onnx, onnxruntime)}
        | {"python": platform.python_version()},
        "hardware": {"processor": model[0].partition(":")[2].strip() if model else platform.machine(), "threads": 1},
        "calibration_images": CALIBRATION_IMAGES,
        "test_images": TEST_IMAGES,
    }


@click.command()
@click.option("--only", default="", help="Names, separated by commas; default all.")
@click.option("--again", is_flag=True, help="Measure anew what the result file has.")
@click.option("--image-size", type=int, help="One side for all, in pixels.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds per network.")
@click.option("--memory", default=10.0, show_default=True, help="Address space per network, in GiB.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--worker", hidden=True)
def main(
    only: str, again: bool, image_size: int | None, timeout: float, memory: float, out: Path, worker: str | None
) -> None:
    """Measure the networks one by one, and keep each row as soon as it is there."""
    if worker is not None:
        choose = (lambda *_: image_size) if image_size else partial(side_of, worker)
        click.echo(json.dumps(measure(f"torchvision:{worker}", choose)))
        return
    names, bigger = networks()
    wanted = only.split(",") if only else names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise click.UsageError(f"unknown networks {unknown}; there are {', '.join(names)}")
    result = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    for row in result["rows"].values():
        row.setdefault("commit", result["commit"])
    result |= circumstances("python benchmarks/zoo.py")
    for name in wanted:
        if name in result["rows"] and not again:
            continue
        row = in_a_process(__file__, name, timeout, memory, ["--image-size", str(image_size)] if image_size else [])
        result["rows"][name] = row | {"commit": result["commit"]}
        result["rows"] = {n: result["rows"][n] for n in names if n in result["rows"]}
        result["sisters"] = {n: sister(n, list(result["rows"])) for n in (*names, *bigger) if n not in result["rows"]}
        keep(result, out)
        click.echo(f"{name}: {told(row)}")


if __name__ == "__main__":
    main()
