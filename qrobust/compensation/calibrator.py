"""The calibrator: a small network in front of a frozen classifier that makes its images easier.

It looks at the image once, with integer convolutions at reduced resolution, and proposes up to three
corrections, its *branches*, applied by a few cheap float operators:

* *residual*: a signed, bounded change of each pixel, weighed by an attention map;
* *photometric*: one tone curve, colour matrix and offset for the whole image, part of which undoes low
  contrast by the image's own statistics;
* *geometric*: one affine warp of the whole image.

All of them are zero at initialisation, so the calibrator starts as the identity. One *gate* per image, from
0 to 1, scales them: it learns to stay shut on images that need no help.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.classifier import count_macs
from qrobust.compensation.config import FINE_SIZE
from qrobust.errors import InputError

# Of what the weights mean: a calibrator of another version cannot be read.
CALIBRATOR_VERSION = 2
WIDTHS = (4, 8, 12, 16, 20, 24, 32, 40, 48, 64)
RESIDUAL_BOUND = 0.5  # of the [0, 1] scale, per pixel
FAINT = 0.10  # mean absolute deviation from the mean colour below which an image may be stretched
STRETCH_BOUND = 5.0  # times what brings an image to that
MATRIX_BOUND = 3.0  # per entry of the colour matrix, beside the identity
OFFSET_BOUND = 2.0  # of the [0, 1] scale
TONE_BOUND = 1.0  # of x (1 - x), added to x: up to here the curve is monotone
WARP_BOUND = 0.8  # per entry of the affine matrix, beside the identity; 1 is half the image
GEOMETRIC = 6
HIDDEN, GRID = 64, 4
BRANCHES = ("residual", "photometric", "geometric")
# Without the residual, which takes most of the multiply-accumulates, a much smaller budget is enough.
FRUGAL = ("photometric", "geometric")
# Of large images sampling at other places, in float, takes most of the time: first to go where time is bounded.
FRUGAL_LARGE = (("residual", "photometric"), ("photometric",))


class Correction(nn.Module):
    """Applies what the network proposes; runs in float, on the few channels of the images.

    Args:
        image_size: S in pixels.
        stride: resolution of the proposed residual, in pixels.
        channels: C of the images.
    """

    def __init__(self, image_size: int, stride: int, channels: int = 3) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels
        # How faint an image is, some of the pixels of a large one tell.
        self.every = 1 if image_size <= FINE_SIZE else 4
        # Few operators on whole tensors: at batch 1 a device spends more on their number than on their arithmetic.
        self.bounds: torch.Tensor
        self.softness: torch.Tensor
        self.faint: torch.Tensor
        self.centres: torch.Tensor
        self.positions: torch.Tensor
        # Of each colour: what stretches it, its mixture of them all, an offset, and the curve it goes through first.
        bounds = torch.tensor([[STRETCH_BOUND, *[MATRIX_BOUND] * channels, OFFSET_BOUND, TONE_BOUND] * channels])
        self.register_buffer("bounds", bounds, persistent=False)
        self.register_buffer("softness", torch.where(bounds == STRETCH_BOUND, 1.0, bounds), persistent=False)
        told_by = channels * len(range(0, image_size, self.every)) ** 2
        self.register_buffer("faint", torch.tensor(FAINT * told_by), persistent=False)
        self.identity: torch.Tensor
        self.register_buffer("identity", torch.eye(channels), persistent=False)
        along = (torch.arange(image_size) + 0.5) * (2 / image_size) - 1
        rows, columns = torch.meshgrid(along, along, indexing="ij")
        self.register_buffer("centres", torch.stack([columns, rows]), persistent=False)
        homogeneous = torch.stack([columns, rows, torch.ones_like(rows)])
        self.register_buffer("positions", WARP_BOUND * homogeneous, persistent=False)

    def forward(
        self,
        images: torch.Tensor,
        maps: torch.Tensor | None,
        photometric: torch.Tensor | None,
        geometric: torch.Tensor | None,
        gate: torch.Tensor,
    ) -> torch.Tensor:
        """Correct images `(N, C, S, S)`; a branch that is not there proposes None.

        Args:
            images: in [0, 1].
            maps: `(N, (C + 1) stride^2, S'/stride, S'/stride)` of the padded side S'.
            photometric: `(N, C (C + 3))`.
            geometric: `(N, 6)`.
            gate: `(N, 1)`, before the sigmoid.
        """
        gate = torch.sigmoid(gate)
        # Plane by plane: operators on some of the channels take up to five times as long on interleaved ones.
        images = images.contiguous()
        if maps is not None:
            change, attention = self.residual(maps)
            images = images + self.on_pixels(change * (attention * gate[:, :, None, None, None]), images)
        if photometric is not None:
            images = self._photometric(images, photometric, gate)
        images = images.clamp(0, 1)
        return images if geometric is None else self._warp(images, geometric, gate)

    def residual(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The signed change of each pixel in [-1, 1], and how much of it is wanted there, up to `RESIDUAL_BOUND`.

        Both lie block by block, as proposed, `(N, C or 1, stride^2, S'/stride, S'/stride)`; see `on_pixels`.
        """
        blocks = maps.contiguous().unflatten(1, (-1, self.stride**2))
        return torch.tanh(blocks[:, : self.channels]), torch.sigmoid(blocks[:, self.channels :]) * RESIDUAL_BOUND

    def on_pixels(self, blocks: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """What lies block by block, laid out as the images are, without the padding."""
        found = F.pixel_shuffle(blocks.flatten(1, 2), self.stride)
        return found if found.shape[2] == images.shape[2] else found[:, :, : images.shape[2], : images.shape[3]]

    def _photometric(self, images: torch.Tensor, proposal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """One tone curve, colour matrix and offset for each image; part of the matrix stretches faint images."""
        proposal = torch.tanh(proposal / self.softness) * (gate * self.bounds)
        colours = self.channels
        stretch, matrix, offset, tone = proposal.reshape(-1, colours, colours + 3).split([1, colours, 1, 1], 2)
        pixels = images.flatten(2)
        # The quadratic curve of Zero-DCE (Guo et al., arXiv 2001.06826), one for each colour of the image.
        pixels = pixels * (1 + tone - tone * pixels)
        some = pixels.view_as(images)[:, :, :: self.every, :: self.every].flatten(2) if self.every > 1 else pixels
        mean = some.mean(2, keepdim=True)
        # Only faint images are stretched: the others stay as they are, whatever is proposed.
        spread = (some - mean).abs().sum((1, 2), keepdim=True) + 0.01 / FAINT * self.faint
        stretch = stretch * torch.relu(self.faint / spread - 1)
        # What stretches, mixes and stays is one small matrix for all pixels of an image.
        matrix = matrix + self.identity * (1 + stretch)
        found = offset - stretch * mean
        if self.every > 1:
            with _full_precision(pixels):
                found = found + matrix @ pixels
        else:  # as quick on few pixels, and no matrix product in float for an audit to count
            for colour in range(colours):
                found = found + matrix[:, :, colour : colour + 1] * pixels[:, colour : colour + 1]
        return found.reshape(-1, *images.shape[1:])

    def _warp(self, images: torch.Tensor, proposal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        moved = (gate * torch.tanh(proposal)).reshape(-1, 2, 3, 1, 1)
        grid = (self.centres + (moved * self.positions).sum(2)).permute(0, 2, 3, 1)
        # Within the centres of the outermost pixels `zeros` is `border`, and three times as fast in onnxruntime.
        edge = 1 - 1 / images.shape[-1]
        grid = grid.clamp(-edge, edge)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _full_precision(pixels: torch.Tensor) -> AbstractContextManager[None]:
    """Grey levels do not survive products in bfloat16, which training's autocast would make of them."""
    kind = pixels.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class Calibrator(nn.Module):
    """Images `(N, C, S, S)` in [0, 1] to images of the same shape and range.

    Args:
        image_size: S in pixels, at least 8.
        width: channels of the first layer.
        branches: which corrections it may make, of `BRANCHES`.
        channels: C, 3 or 1.

    Raises:
        InputError: an image too small, another number of channels, or branches that do not exist.
    """

    def __init__(self, image_size: int, width: int, branches: tuple[str, ...] = BRANCHES, channels: int = 3) -> None:
        super().__init__()
        _check(image_size, width, branches, channels)
        stride = 2 if image_size <= FINE_SIZE else 4
        # What the network looks at is padded to a multiple of its coarsest step.
        self.padding = -image_size % (4 * stride)
        deep = 2 * width
        side = (image_size + self.padding) // (4 * stride)
        # Where things are matters for geometry: the summary keeps a coarse grid instead of one mean, of windows that
        # overlap where the side is no multiple.
        grid = min(GRID, side)
        step = side // grid
        pooled = nn.Identity() if side == grid else nn.AvgPool2d(side - (grid - 1) * step, step)
        self.image_size, self.width, self.branches = image_size, width, branches
        self.stem = nn.Sequential(nn.Conv2d(channels, width, stride + 2, stride, 1), nn.ReLU())
        self.fine = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(width, deep, 3, 2, 1), nn.ReLU(), nn.Conv2d(deep, deep, 3, 1, 1), nn.ReLU()
        )
        self.summary = nn.Sequential(
            nn.Conv2d(deep, deep, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(deep, deep, 3, 1, 1),
            nn.ReLU(),
            pooled,
            nn.Flatten(),
            nn.Linear(deep * grid**2, HIDDEN),
            nn.ReLU(),
        )
        self.gate = nn.Linear(HIDDEN, 1)
        heads: list[nn.Conv2d | nn.Linear] = [self.gate]
        if "photometric" in branches:
            self.photometric = nn.Linear(HIDDEN, channels * (channels + 3))
            heads.append(self.photometric)
        if "geometric" in branches:
            self.geometric = nn.Linear(HIDDEN, GEOMETRIC)
            heads.append(self.geometric)
        if "residual" in branches:
            self.up = nn.Sequential(nn.Conv2d(deep, width, 1), nn.Upsample(scale_factor=2, mode="nearest"))
            self.merge = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())
            self.maps = nn.Conv2d(width, (channels + 1) * stride**2, 3, 1, 1)
            heads.append(self.maps)
        self.correction = Correction(image_size, stride, channels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is not None
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        # Pixels vary by about a quarter around the middle: begin as if they had been normalised.
        first = self.stem[0]
        assert isinstance(first, nn.Conv2d)
        assert first.bias is not None
        with torch.no_grad():
            first.weight.mul_(4)
            first.bias.copy_(-0.5 * first.weight.sum((1, 2, 3)))
        for last in heads:
            assert last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = F.pad(images, [0, self.padding] * 2) if self.padding else images
        fine = self.fine(self.stem(seen))
        coarse = self.down(fine)
        maps = self.maps(self.merge(fine + self.up(coarse))) if "residual" in self.branches else None
        summary = self.summary(coarse)
        photometric = self.photometric(summary) if "photometric" in self.branches else None
        geometric = self.geometric(summary) if "geometric" in self.branches else None
        return self.correction(images, maps, photometric, geometric, self.gate(summary))


def _check(image_size: int, width: int, branches: tuple[str, ...], channels: int) -> None:
    """Refuse what no calibrator can be."""
    if not branches or set(branches) - set(BRANCHES) or len(set(branches)) < len(branches):
        raise InputError(
            f"branches: expected some of {', '.join(BRANCHES)}, each once, got {', '.join(branches) or 'none'}"
        )
    for name, value, least in (("width", width, 1), ("image_size", image_size, 8)):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")
    if channels not in (1, 3):
        raise InputError(f"channels: expected 3 or 1, got {channels}")


def within_budget(
    image_size: int, budget: float, classifier_macs: int, branches: tuple[str, ...] = (), channels: int = 3
) -> list[tuple[int, tuple[str, ...]]]:
    """Widths and branches of all calibrators within a budget of multiply-accumulates per image, best first.

    Args:
        image_size: S in pixels.
        budget: what the calibrator may take, as a fraction of what the classifier takes.
        classifier_macs: multiply-accumulates of the classifier.
        branches: of `BRANCHES`; none given: all, then fewer: without the residual, or above `FINE_SIZE` without the
            geometric branch, then the photometric alone.
        channels: C of the images, 3 or 1.

    Raises:
        InputError: the budget is below the smallest calibrator; the message says how large that is.
    """
    fewer = FRUGAL_LARGE if image_size > FINE_SIZE else (FRUGAL,)
    sets = (branches,) if branches else (BRANCHES, *fewer)
    cost = {
        (w, b): count_macs(Calibrator(image_size, w, b, channels), image_size, channels)
        for b in sets
        for w in reversed(WIDTHS)
    }
    fitting = [choice for choice, macs in cost.items() if macs <= int(budget * classifier_macs)]
    if not fitting:
        least = min(cost.values())
        raise InputError(
            f"mac_budget: expected at least {math.ceil(1e6 * least / classifier_macs) / 1e6:g}, got {budget:g}: the "
            f"smallest calibrator at {image_size} px ({', '.join(sets[-1])}) needs {least:,} multiply-accumulates, "
            f"the classifier {classifier_macs:,}"
        )
    return fitting
