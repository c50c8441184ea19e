"""Thirteen of timm's networks, each of another family, trained for minutes: INT8 of networks that know something.

    pip install timm                            # only for this
    python benchmarks/timm_trained.py --data imagefolder:DIR --work WORK

DIR holds photographs of ten classes. All of them, at 64 px, become one pool, WORK/images-64.npz, which is split; each
network starts with random weights and learns from the training images. It is quantized with the defaults and
measured on the test images. Weights and graphs are kept in WORK, rows in `results/timm_trained.json`: a network that
is in both is not trained again. Each has a process of its own with a time and memory limit.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from zoo import SEED, change_by_precision, circumstances, in_a_process, keep

if TYPE_CHECKING:
    import torch

    from qrobust.classifier import NormalizedModel
    from qrobust.data.splits import Data, Split

RESULT = Path(__file__).parent / "results" / "timm_trained.json"
SIDE, BATCH, SHIFTED = 64, 32, 6
EPOCHS, RATE, DECAY, SMOOTHING = 3, 3e-3, 0.05, 0.1
CALIBRATION_IMAGES = 256
# Of batch norms: that of some of timm's networks is too slow for so few steps.
MOMENTUM = 0.1
NETWORKS = (
    "regnetx_002",
    "dla46_c",
    "cs3darknet_s",
    "resnet18",
    "repvgg_a0",
    "gernet_s",
    "hgnetv2_b0",
    "ese_vovnet19b_dw",
    "repvit_m0_9",
    "rexnet_100",
    "mobileone_s0",
    "regnety_002",
    "lcnet_100",
)


def pool(spec: str, path: Path) -> None:
    """All images of a data set at 64 px, in one file."""
    import numpy as np

    from qrobust.data.loading import open_data
    from qrobust.storage import atomic_write

    opened = open_data(spec, seed=SEED, image_size=SIDE)
    splits = (opened.training, opened.calibration, opened.validation, opened.test)
    images = np.concatenate([split.read(slice(None)).permute(0, 2, 3, 1).numpy() for split in splits])
    labels = np.concatenate([split.labels.numpy() for split in splits])
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels, class_names=np.array(opened.class_names))


def load(work: Path) -> Data:
    """The pool, split."""
    import qrobust

    return qrobust.load_data(f"npz:{work / 'images-64.npz'}", calibration_images=CALIBRATION_IMAGES, seed=SEED)


def train(model: torch.nn.Module, split: Split) -> None:
    """Three epochs of mirrored and moved images, in bfloat16."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = MOMENTUM
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)
    pixels, labels = F.pad(split.read(slice(None)), (SHIFTED,) * 4), split.labels
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(EPOCHS + 1)])
    for step in range(steps):
        drawn = order[step * BATCH : (step + 1) * BATCH]
        y, x = torch.randint(2 * SHIFTED + 1, (2,), generator=generator).tolist()
        images = pixels[drawn][:, :, y : y + SIDE, x : x + SIDE] / 255
        mirrored = torch.rand(BATCH, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[drawn], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)


def trained(name: str, work: Path, data: Data) -> tuple[NormalizedModel, float]:
    """The network with the weights of WORK, or trained now; and the seconds that took."""
    import torch

    import qrobust
    from qrobust.storage import atomic_write

    model = qrobust.load_classifier(f"timm:{name}", num_classes=len(data.class_names), image_size=SIDE, seed=SEED)
    kept = work / f"{name}.pt"
    if not kept.is_file():
        started = time.monotonic()
        train(model, data.training)
        with atomic_write(kept) as part:
            torch.save({"weights": model.state_dict(), "seconds": time.monotonic() - started}, part)
    found = torch.load(kept, weights_only=True)
    model.load_state_dict(found["weights"])
    model.to(memory_format=torch.contiguous_format)
    return model, found["seconds"]


def measure(name: str, work: Path) -> dict[str, Any]:
    """Train, quantize, export and measure one network."""
    import torch

    import qrobust
    from qrobust.deployment.parity import compare, logits_of
    from qrobust.errors import QRobustError
    from qrobust.record import to_json

    torch.set_num_threads(1)
    started = time.monotonic()
    data = load(work)
    model, training_s = trained(name, work, data)
    images, labels = data.test.read(slice(None)) / 255, data.test.labels
    path = work / f"{name}.onnx"
    try:
        quantized = qrobust.quantize(model, data.calibration)
        qrobust.export_onnx(quantized, path, image_size=SIDE)
        audited = qrobust.audit(path)
    except QRobustError as error:
        return {"reason": str(error), "seconds": time.monotonic() - started}
    floating = logits_of(model, images)
    fake_quantized = logits_of(quantized.module, images)
    int8 = logits_of(qrobust.OnnxClassifier(path), images)
    said = {"float": floating, "int8": int8}
    return {
        "n": len(labels),
        "training_images": len(data.training),
        "correct": {key: int((logits.argmax(1) == labels).sum()) for key, logits in said.items()},
        "agreeing": int((floating.argmax(1) == int8.argmax(1)).sum()),
        "parity": to_json(compare(fake_quantized, int8, labels)),
        "logit_std": float(floating.std()),
        "mean_change_by_precision": change_by_precision(quantized.module, images[:200]),
        "integer_ops": audited.integer_ops,
        "quantizable_ops": audited.quantizable_ops,
        "float_compute": audited.float_compute,
        "training_s": training_s,
        "seconds": time.monotonic() - started,
    }


@click.command()
@click.option("--data", required=True, help="Photographs of ten classes, such as imagefolder:DIR.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where images and weights are kept.")
@click.option("--only", default="", help="Names, separated by commas; default all of the list.")
@click.option("--again", is_flag=True, help="Measure anew what the result file has.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds per network.")
@click.option("--memory", default=12.0, show_default=True, help="Address space per network, in GiB.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--worker", hidden=True)
def main(
    data: str, work: Path, only: str, again: bool, timeout: float, memory: float, out: Path, worker: str | None
) -> None:
    """Measure the networks one by one, and keep each row as soon as it is there."""
    if worker is not None:
        click.echo(json.dumps(measure(worker, work)))
        return
    import timm

    work.mkdir(parents=True, exist_ok=True)
    if not (work / "images-64.npz").is_file():
        pool(data, work / "images-64.npz")
    result = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    result |= circumstances("python benchmarks/timm_trained.py --data imagefolder:DIR --work WORK")
    result |= {"image_size": SIDE, "epochs": EPOCHS, "batch_size": BATCH, "calibration_images": CALIBRATION_IMAGES}
    result["versions"]["timm"] = timm.__version__
    for name in only.split(",") if only else NETWORKS:
        if name in result["rows"] and not again:
            continue
        row = in_a_process(__file__, name, timeout, memory, ["--data", data, "--work", str(work)])
        result["rows"][name] = row | {"commit": result["commit"]}
        keep(result, out)
        click.echo(f"{name}: {row.get('correct', row.get('reason'))} {row['seconds']:.0f} s")


if __name__ == "__main__":
    main()
