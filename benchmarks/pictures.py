"""Draw what a calibrator does, for docs/calibrator.md: input, what it adds, attention, what it hands on.

    qrobust demo --out RUN
    pip install matplotlib
    python benchmarks/pictures.py --run RUN

Of handwritten digits (scikit-learn's, which come with it); one test image under each shift, at severity 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from torch import nn

from qrobust.compensation.calibrator import RESIDUAL_BOUND, Correction
from qrobust.pipeline.run import Run
from qrobust.progress import Reporter
from qrobust.shifts.filters import to_unit
from qrobust.shifts.rendering import render

SHIFTS = ("gaussian_noise", "impulse_noise", "motion_blur", "contrast", "rotation", "translation", "inversion")
COLUMNS = ("clean", "as the camera sees it", "what the residual adds", "attention", "handed to the classifier")


def inside(calibrator: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """The calibrated image, the residual, the attention `(H, W)` from 0 to 1, and the gate of one image."""
    seen: list[tuple[Any, ...]] = []
    correction = next(m for m in calibrator.modules() if isinstance(m, Correction))
    handle = correction.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        calibrated = calibrator(images)
        handle.remove()
        change, attention = (correction.on_pixels(some, images) for some in correction.residual(seen[0][1]))
        gate = torch.sigmoid(seen[0][4])
    return (
        calibrated[0],
        (change * attention * gate[:, :, None, None])[0],
        attention[0, 0] / RESIDUAL_BOUND,
        float(gate),
    )


@click.command()
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of `qrobust demo`.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/calibrator.png"), show_default=True)
def main(run: Path, out: Path) -> None:
    """Draw the calibrator of RUN at work."""
    opened_run = Run.open(run, Reporter(), threads=1)
    figure, grid = plt.subplots(len(SHIFTS), len(COLUMNS), figsize=(8.4, 1.55 * len(SHIFTS)))
    pixels = opened_run.data.test.read(slice(0, len(SHIFTS)))
    for row, (name, clean) in enumerate(zip(SHIFTS, pixels, strict=True)):
        shifted = to_unit(render(clean[None], name, 5, table=opened_run.table, seed=opened_run.config.seed))
        calibrated, added, attention, gate = inside(opened_run.calibrator, shifted)
        label = int(opened_run.data.test.labels[row])
        before, after = (int(opened_run.fake_quantized(image).argmax()) for image in (shifted, calibrated[None]))
        pictures = (to_unit(clean), shifted[0], 0.5 + added.clamp(-0.5, 0.5), attention, calibrated)
        notes = (f"a {label}", f"says {before}", "", f"gate {gate:.2f}", f"says {after}")
        for axes, picture, note in zip(grid[row], pictures, notes, strict=True):
            axes.imshow(picture if picture.ndim == 2 else picture.permute(1, 2, 0), cmap="viridis", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(note, fontsize=8)
        grid[row][0].set_ylabel(name.replace("_", " "), fontsize=8)
    for axes, title in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
