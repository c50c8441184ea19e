"""The embedded example: real handwritten digits and a small residual network trained on the spot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from qrobust.data.loading import open_data
from qrobust.models.resnet import resnet8
from qrobust.preprocessing import NORMALIZATIONS
from qrobust.progress import Reporter
from qrobust.storage import atomic_write

NORMALIZATION, CALIBRATION_IMAGES = "cifar10", 256
OPTIONS: Mapping[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "normalization": NORMALIZATION,
    "calibration_images": CALIBRATION_IMAGES,
    "steps": 500,
    "batch_size": 64,
    "attack_images": 100,
}
EPOCHS, BATCH, RATE = 12, 64, 0.05


@contextmanager
def weights_file(seed: int, reporter: Reporter, threads: int) -> Iterator[Path]:
    """Train the network on the digits' training and calibration splits; yields a temporary state dict."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = open_data("digits", seed=seed, calibration_images=CALIBRATION_IMAGES)
    images = torch.cat([data.training.read(slice(None)), data.calibration.read(slice(None))])
    labels = torch.cat([data.training.labels, data.calibration.labels])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALIZATIONS[NORMALIZATION])
    inputs = (images.float() / 255 - mean) / std
    model = resnet8(len(data.class_names))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    reporter.say("train the demo's network ...")
    with reporter.bar("train", steps) as bar:
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
                loss = F.cross_entropy(model(inputs[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        with atomic_write(path) as part:
            torch.save(model.state_dict(), part)
        yield path
