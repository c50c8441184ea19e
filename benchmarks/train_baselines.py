"""Train a reference network on an image folder: the recipe behind the figures in `results/`.

    python benchmarks/train_baselines.py --data imagefolder:~/data/cifar10 --model resnet20 --out ~/runs/resnet20
    python benchmarks/train_baselines.py ... --device cuda    # on a GPU, whose name is recorded

SGD with Nesterov momentum, one-cycle learning rate, random crops (4 px of padding) and mirror images,
bfloat16 autocast over channels-last tensors where that is faster. Where the recipe says so, the first epochs see
crops three quarters as wide, at half the cost, with objects as large as ever. It trains on qrobust's own training
and calibration splits, so the validation split of the same `--seed` stays unseen by the classifier, and
takes the last epoch: nothing is chosen on the test images, which are measured once at the end. It
resumes from `checkpoint.pt` after an interruption and leaves `weights.pt` (a plain state dict) and
`training.json`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from figures import git_commit
from torch import nn
from torch.nn import functional as F

from qrobust.data.loading import open_data
from qrobust.data.splits import Split
from qrobust.device import CPU, ask, bfloat16_kernels, fast_arithmetic, find_device, on_cpu
from qrobust.models.registry import BUILT_IN
from qrobust.record import to_json

# Epochs, the first of them on small crops, peak learning rate and label smoothing of each network, where they differ
# from the defaults.
RECIPES = {
    "cifar_resnet18": {"epochs": 16, "small_epochs": 10, "max_lr": 0.1, "label_smoothing": 0.1},
    "cifar_vgg16_bn": {"epochs": 20, "max_lr": 0.1, "label_smoothing": 0.1},
    "cifar_mobilenet_v2": {"epochs": 16, "small_epochs": 10, "max_lr": 0.1, "label_smoothing": 0.1},
}
DEFAULTS = {"epochs": 40, "small_epochs": 0, "max_lr": 0.2, "label_smoothing": 0.0}
SMALL = 0.75
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def normalise(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1).to(images.device)
    std = torch.tensor(CIFAR_STD).view(1, 3, 1, 1).to(images.device)
    return (images.float() / 255 - mean) / std


def augment(images: torch.Tensor, side: int, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops `side` px wide of the square, zero-padded images and mirror images, one draw per image."""
    padded = F.pad(images, [padding] * 4)
    n, offsets_there_are = len(images), padded.shape[-1] - side + 1
    offsets = torch.randint(offsets_there_are, (n, 2), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    rows = offsets[:, :1] + torch.arange(side)
    columns = offsets[:, 1:] + torch.arange(side)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(n)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    places = (index, channel, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(place.to(images.device) for place in places)]


def without_strided_depthwise(model: nn.Module) -> None:
    """Compute strided depthwise convolutions densely and drop what the stride skips: the same outputs.

    Their input gradients take ten to eighty times as long as dense ones in bfloat16 on CPUs (torch 2.14),
    a third of a MobileNetV2's step.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels and module.stride != (1, 1):
            rows, columns = module.stride
            module.stride = (1, 1)
            module.register_forward_hook(lambda _, __, out, r=rows, c=columns: out[:, :, ::r, ::c])


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    correct = 0
    for images, labels in split.batches(500):
        correct += int((ask(model, normalise(images)).argmax(1) == labels).sum())
    return correct / len(split)


@click.command()
@click.option("--data", required=True, help="imagefolder:DIR, npz:FILE, torchvision:NAME or digits")
@click.option("--model", "name", type=click.Choice(sorted(BUILT_IN)), default="resnet20", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", type=int, help="[default: the network's recipe]")
@click.option("--small-epochs", type=int, help="First epochs, on small crops. [default: the network's recipe]")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--max-lr", type=float, help="[default: the network's recipe]")
@click.option("--label-smoothing", type=float, help="[default: the network's recipe]")
@click.option("--weight-decay", default=5e-4, show_default=True)
@click.option(
    "--init",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of an earlier training of the same network, to go on from in a second cycle.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Train through torch.compile: the same recipe in less time, given a C++ compiler and a minute to begin.",
)
def main(
    data: str,
    name: str,
    out: Path,
    epochs: int | None,
    small_epochs: int | None,
    batch_size: int,
    max_lr: float | None,
    label_smoothing: float | None,
    weight_decay: float,
    init: Path | None,
    seed: int,
    threads: int,
    device_name: str,
    compiled: bool,
) -> None:
    """Train NAME on DATA and leave weights.pt and training.json in OUT."""
    recipe = DEFAULTS | RECIPES.get(name, {})
    epochs = int(recipe["epochs"]) if epochs is None else epochs
    small_epochs = int(recipe["small_epochs"]) if small_epochs is None else small_epochs
    max_lr = recipe["max_lr"] if max_lr is None else max_lr
    smoothing = recipe["label_smoothing"] if label_smoothing is None else label_smoothing
    device = find_device(device_name)
    place = device.place
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    opened = open_data(data, seed=seed)
    train = replace(opened.training, indices=torch.cat([opened.training.indices, opened.calibration.indices]))
    images, labels = train.read(slice(None)).to(place), train.labels.to(place)
    model = BUILT_IN[name](len(opened.class_names)).to(memory_format=torch.channels_last).to(place)
    if place == CPU and bfloat16_kernels(place):
        without_strided_depthwise(model)
    if init:
        model.load_state_dict(torch.load(init / "weights.pt", weights_only=True, map_location=CPU))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=max_lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=max_lr, total_steps=epochs * steps, pct_start=0.2
    )
    forward = torch.compile(model, dynamic=False) if compiled else model
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, first_epoch, seconds = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=CPU)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch, seconds = state["epoch"], state["seconds"]
    for epoch in range(first_epoch, epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        whole = images.shape[-1]
        side = round(SMALL * whole) if epoch < small_epochs else whole
        padding = 4 if side == whole else 0
        model.train()
        total = torch.zeros((), device=place)
        with click.progressbar(range(steps), label=f"epoch {epoch + 1}/{epochs}", file=sys.stderr) as progress:
            for step in progress:
                chosen = order[step * batch_size : (step + 1) * batch_size]
                batch = augment(normalise(images[chosen]), side, padding, generator)
                batch = batch.contiguous(memory_format=torch.channels_last)
                with fast_arithmetic(place):
                    logits = forward(batch)
                loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()  # without waiting for the device
        seconds += time.monotonic() - started
        state = {
            "model": on_cpu(model.state_dict()),
            "optimizer": on_cpu(optimizer.state_dict()),
            "schedule": schedule.state_dict(),
            "epoch": epoch + 1,
            "seconds": seconds,
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        os.replace(checkpoint.with_suffix(".part"), checkpoint)
        click.echo(f"epoch {epoch + 1}: training loss {float(total) / steps:.4f}, {seconds:.0f} s so far")
    result = {
        "model": name,
        "data": data,
        "splits": to_json(opened.summary()),
        "recipe": {
            "epochs": epochs,
            "small_epochs": small_epochs,
            "batch_size": batch_size,
            "max_lr": max_lr,
            "label_smoothing": smoothing,
            "weight_decay": weight_decay,
            "schedule": "one-cycle, 20 % warm-up",
            "augmentation": "crop with 4 px padding (small epochs: 3/4 as wide, no padding), mirror",
            "precision": "bfloat16 autocast" if bfloat16_kernels(place) else "float32",
            "compiled": compiled,
            "seed": seed,
        },
        "first_cycle": json.loads((init / "training.json").read_text()) if init else None,
        "normalisation": {"mean": CIFAR_MEAN, "std": CIFAR_STD},
        "validation_accuracy": accuracy(model, opened.validation),
        "test_accuracy": accuracy(model, opened.test),
        "training_seconds": round(seconds),
        "threads": threads,
        "device": device.description,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "commit": git_commit(),
        "command": " ".join(["python", *sys.argv]),
    }
    torch.save(on_cpu(model.state_dict()), out / "weights.pt")
    (out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps({k: result[k] for k in ("validation_accuracy", "test_accuracy")}))


if __name__ == "__main__":
    main()
