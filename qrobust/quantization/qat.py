"""Quantization-aware training: make a fake-quantized model trainable, train its weights and ranges, convert it.

Straight-through gradients (Bengio et al., arXiv 1308.3432); the step sizes of activations and weights may
learn too (Esser et al., "Learned Step Size Quantization", arXiv 1902.08153).
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import fx, nn
from torch.nn import functional as F

from qrobust.classifier import Classifier
from qrobust.data.splits import Split, TrainingData
from qrobust.device import ask, device_of, fast_arithmetic
from qrobust.errors import InputError
from qrobust.evaluation.primary import ACCURACY, Primary
from qrobust.progress import Progress
from qrobust.quantization.config import QATConfig
from qrobust.quantization.convert import integer_layer
from qrobust.quantization.integer_layers import (
    ActivationQuantizer,
    IntegerConv2d,
    IntegerLinear,
    convolve,
    pass_inside,
    zero_padding,
)
from qrobust.quantization.layerwise import INTEGER_LAYERS
from qrobust.quantization.rewrites.fx_utils import set_module
from qrobust.quantization.sensitivity import divergence, logits_on
from qrobust.quantization.tracing import LAYERS, calls
from qrobust.record import QatFit
from qrobust.shifts.filters import to_unit
from qrobust.shifts.generic import draw
from qrobust.shifts.registry import selection_conditions
from qrobust.shifts.rendering import render
from qrobust.stopwatch import RENDERING, part
from qrobust.training_loop import fit

VALIDATIONS = 8
WARM_UP = 0.05
PADDING = 0.125
GROUPS = 8
BATCH = 50


# A level at the end of the range is inside it, whatever float rounding makes of it; of a range that does not learn,
# all that is rounded to its ends.
END, ROUNDED = 1e-4, 0.5


class LearnedStep(torch.autograd.Function):
    """`round(x / s) s` within [low, high] levels; gradients of the paper's equations 2 to 5."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, scale: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        rounded = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, scale, rounded)
        ctx.limits = (low, high)  # type: ignore[attr-defined]  # torch types ctx without attributes
        return rounded

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> tuple:
        x, scale, rounded = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types ctx without it
        low, high = ctx.limits  # type: ignore[attr-defined]  # set in forward
        learns = ctx.needs_input_grad[1]  # type: ignore[attr-defined]  # torch types ctx without it
        if scale.ndim:
            inside = (x >= scale * (low - END)) & (x <= scale * (high + END))
            passed, x_inside = grads[0] * inside, x * inside
        else:
            edge, step = END if learns else ROUNDED, float(scale)
            bounds = step * (low - edge), step * (high + edge)
            passed = pass_inside(grads[0], x, *bounds)
            x_inside = pass_inside(x, x, *bounds) if learns else x
        if not learns:
            return passed, None, None, None
        # The slope is round(level) - level inside, the end of the range outside: times s, what rounding added.
        added = torch.sub(rounded, x_inside).mul_(grads[0])
        dims = [d for d in range(x.ndim) if d >= scale.ndim or scale.shape[d] == 1]
        total = added.sum(dims, keepdim=bool(scale.ndim), dtype=torch.float32) / scale
        return passed, total.view(scale.shape), None, None


class TrainableQuantizer(nn.Module):
    """An activation quantizer whose step size may learn: any shape in, same shape out."""

    def __init__(self, source: ActivationQuantizer, learn: bool) -> None:
        super().__init__()
        self.qmin, self.qmax, self.zero_point = source.qmin, source.qmax, int(source.zero_point)
        self.log_scale = nn.Parameter(source.scale.log(), requires_grad=learn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.qmin - self.zero_point, self.qmax - self.zero_point
        return LearnedStep.apply(x, self.log_scale.exp().to(x.dtype), low, high)

    def frozen(self) -> ActivationQuantizer:
        """With the step size it has now."""
        return ActivationQuantizer(float(self.log_scale.detach().exp()), self.zero_point, self.qmin, self.qmax)


class Thawed(nn.Module, ABC):
    """What stands for an integer layer while it trains."""

    @abstractmethod
    def frozen(self, source: ActivationQuantizer) -> IntegerConv2d | IntegerLinear:
        """The integer layer that it has become, behind that quantizer."""


class TrainableLayer(Thawed):
    """A convolution or linear layer on fake-quantized weights; both weights and their step sizes may learn."""

    def __init__(self, source: nn.Conv2d | nn.Linear, layer: IntegerConv2d | IntegerLinear, learn: bool) -> None:
        super().__init__()
        self.geometry, self.qmax = [source], layer.qmax  # in a list: not a submodule, its weights do not train
        scale = layer.weight_scale.view(-1, *[1] * (source.weight.ndim - 1))
        exact = source.weight.detach() / scale
        # Where rounding was learned, training starts at what was learned.
        nearest = exact.round().clamp(-layer.qmax, layer.qmax) == layer.weight_int
        self.weight = nn.Parameter(torch.where(nearest, exact, layer.weight_int.float()) * scale)
        self.bias = nn.Parameter(layer.bias().clone())
        self.log_scale = nn.Parameter(scale.log(), requires_grad=learn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = LearnedStep.apply(self.weight, self.log_scale.exp(), -self.qmax, self.qmax)
        layer = self.geometry[0]
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        padding = zero_padding(layer)
        return convolve(x, weight, self.bias, layer.stride, padding, layer.dilation, layer.groups)

    def frozen(self, source: ActivationQuantizer) -> IntegerConv2d | IntegerLinear:
        """With the integers that the weights round to now."""
        shell = copy.copy(self.geometry[0])
        shell._parameters = dict(shell._parameters) | {"bias": self.bias}
        scale = self.log_scale.detach().exp().flatten()
        return integer_layer(shell, self.weight.detach(), scale, (-self.qmax, self.qmax), source)


def thaw(fake_quantized: fx.GraphModule, make: Callable[[str, nn.Module], nn.Module]) -> fx.GraphModule:
    """A copy of a fake-quantized model in which other modules stand for its quantizers and integer layers.

    Args:
        fake_quantized: frozen; it is not changed.
        make: name and module to what stands for it; called once for each, however often it runs. The module itself:
            it stays as it is.
    """
    trainable = copy.deepcopy(fake_quantized)
    made: dict[int, nn.Module] = {}
    for node, module in calls(trainable, (ActivationQuantizer, *INTEGER_LAYERS)):
        if id(module) not in made:
            made[id(module)] = make(str(node.target), module)
        set_module(trainable, str(node.target), made[id(module)])
    trainable.delete_all_unused_submodules()
    return trainable


def prepare_qat(
    prepared: fx.GraphModule,
    fake_quantized: fx.GraphModule,
    *,
    learn_ranges: bool,
    only: Collection[str] | None = None,
) -> fx.GraphModule:
    """A trainable copy of a fake-quantized model.

    Args:
        prepared: the observed float graph that the fake-quantized model was made from, whose weights training starts
            at.
        fake_quantized: frozen; it is not changed.
        learn_ranges: whether step sizes learn, or stay as they were observed.
        only: names of the quantizers and layers that train; the others stay as they are, to the bit. None: all train,
            layers in float too.
    """
    floats = dict(prepared.named_modules(remove_duplicate=False))

    def make(name: str, module: nn.Module) -> nn.Module:
        if only is not None and name not in only:
            return module
        if isinstance(module, ActivationQuantizer):
            return TrainableQuantizer(module, learn_ranges)
        source = floats[name]
        assert isinstance(source, nn.Conv2d | nn.Linear)
        assert isinstance(module, IntegerConv2d | IntegerLinear)
        return TrainableLayer(source, module, learn_ranges)

    trainable = thaw(fake_quantized, make)
    for _, layer in calls(trainable, LAYERS if only is None else ()):
        layer.requires_grad_(True)
    return trainable


def convert_qat(trainable: fx.GraphModule) -> fx.GraphModule:
    """The fake-quantized model that a trainable graph has become."""
    fake_quantized = copy.deepcopy(trainable)
    made: dict[int, ActivationQuantizer] = {}
    for node, module in calls(fake_quantized, TrainableQuantizer):
        assert isinstance(module, TrainableQuantizer)
        set_module(fake_quantized, str(node.target), made.setdefault(id(module), module.frozen()))
    modules = dict(fake_quantized.named_modules(remove_duplicate=False))
    for node, layer in calls(fake_quantized, Thawed):
        assert isinstance(layer, Thawed)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        quantizer = modules[str(source.target)]
        assert isinstance(quantizer, ActivationQuantizer)
        set_module(fake_quantized, str(node.target), layer.frozen(quantizer))
    fake_quantized.delete_all_unused_submodules()
    return fake_quantized.eval().requires_grad_(False)


def train(
    trainable: fx.GraphModule,
    teacher: Classifier,
    data: TrainingData,
    validation: Split,
    config: QATConfig,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    checkpoint: Path,
    primary: Primary = ACCURACY,
    by_labels: bool = True,
    progress: Progress = lambda *_: None,
) -> QatFit:
    """Train a thawed fake-quantized model, in place; it ends with the state that was best on validation images.

    The loss is cross-entropy to the labels and the KL divergence from the float teacher's probabilities.
    Images are moved by up to an eighth of their side; with conditions or families, half of each batch is shifted.
    Adam, a short warm-up, cosine to zero. The best state is the one of highest validation accuracy (with shifts, the
    mean of that on clean and on shifted images), and of those the one nearest to the teacher. What validation images
    cannot tell from luck does not replace the fake-quantized model as it was: a trained state does if it is more
    accurate by over one standard error (Breiman et al., "Classification and Regression Trees", 1984), or no less
    accurate and nearer to the teacher. Without labels the nearest state is the best: what is called accuracy then is
    agreement, which falls with every answer that changes, though as many become right as wrong.

    Args:
        trainable: from `prepare_qat`; it is trained on the device where it and the teacher are.
        teacher: the float classifier.
        data: what to learn from; where it has conditions or families, half of each batch is shifted.
        validation: images to choose by.
        config: learning rate of Adam at its peak (step sizes learn at the same rate, relative to their size), and
            weight of the teacher, from 0 to 1; the labels have the rest.
        steps: optimizer steps.
        batch_size: images per step, at least 8.
        seed: decides images, moves and shifts of every step.
        checkpoint: file to resume from; deleted by whoever owns the folder once the stage is done.
        primary: what is called accuracy.
        by_labels: whether the labels of validation images are known, or the teacher's answers stand for them.
        progress: called with steps done, all steps and a note.

    Raises:
        InputError: an argument out of range.
    """
    if batch_size < GROUPS:
        raise InputError(f"batch_size: expected at least {GROUPS}, got {batch_size}")
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    reference = torch.cat([ask(teacher, to_unit(images)) for images, _ in validation.batches(BATCH)])
    shifted, labels = _shifted(validation, data, seed), validation.labels

    def judged(logits: torch.Tensor) -> tuple[float, float]:
        return primary.value((logits.argmax(1) == labels).numpy(), labels.numpy()), divergence(reference, logits)

    @torch.no_grad()
    def measure() -> tuple[float, float]:
        accuracy, away = judged(logits_on(trainable, validation))
        if shifted:
            others = judged(torch.cat([ask(trainable, to_unit(images)) for images in shifted]))
            accuracy, away = (accuracy + others[0]) / 2, (away + others[1]) / 2
        return accuracy, away

    every, counted = max(1, steps // VALIDATIONS), primary.images(labels.numpy()) if by_labels else None

    def loss(step: int, size: int) -> torch.Tensor:
        with part(RENDERING):
            batch = _batch(data, size, seed, step)
        return _loss(trainable, teacher, batch, config.distillation)

    done = fit(
        trainable,
        optimizer,
        steps=steps,
        rates=lambda step: [config.learning_rate * _schedule(step, steps)],
        loss=loss,
        batch_size=batch_size,
        least_batch=GROUPS,
        judge=measure,
        score=lambda found: (found[0], -found[1]) if by_labels else (-found[1],),
        judge_after=lambda step: step % every == 0,
        describe=lambda found: f"validation {100 * found[0]:.2f} %",
        checkpoint=checkpoint,
        checkpoint_every=every,
        progress=progress,
        replaces_start=lambda found, start: beyond_luck(found, start, counted),
    )
    (start, start_away), (best, best_away) = done.start, done.best
    return QatFit(start, best, start_away, best_away, done.best_step, done.steps, done.diverged, done.earlier_s)


def _loss(
    trainable: nn.Module,
    teacher: Classifier,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    distillation: float,
) -> torch.Tensor:
    """Cross-entropy to the labels, and the divergence from the teacher on the images without shifts."""
    place = device_of(trainable)
    images, clean, labels = (part.to(place) for part in batch)
    with torch.no_grad(), fast_arithmetic(place):
        view = teacher(clean).float()
    with fast_arithmetic(place):
        logits = trainable(images.contiguous(memory_format=torch.channels_last)).float()
    away = F.kl_div(logits.log_softmax(1), view.log_softmax(1), reduction="batchmean", log_target=True)
    return (1 - distillation) * F.cross_entropy(logits, labels) + distillation * away


def _schedule(step: int, steps: int) -> float:
    """A short warm-up, then cosine to zero."""
    return min(1.0, (step + 1) / (WARM_UP * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def beyond_luck(found: tuple[float, ...], start: tuple[float, ...], n: float | None) -> bool:
    """Whether (accuracy, divergence) on `n` images is better by over a standard error, or nearer at no loss.

    `n` is `Primary.images` where images weigh otherwise, and None where labels do not tell: then nearer is better.
    """
    if n is None:
        return found[1] < start[1]
    error = math.sqrt(start[0] * (1 - start[0]) / n)
    return found[0] > start[0] + error or (found[0] >= start[0] and found[1] < start[1])


@torch.no_grad()
def _shifted(split: Split, data: TrainingData, seed: int) -> list[torch.Tensor]:
    """The images in order, uint8, each batch under the next condition; nothing without conditions."""
    conditions = selection_conditions(data.conditions, data.families)
    if not conditions:
        return []
    size = max(1, min(BATCH, len(split) // len(conditions)))
    return [
        render(images, *conditions[index % len(conditions)], table=data.table, seed=seed + 1)
        for index, (images, _) in enumerate(split.batches(size))
    ]


def _batch(
    data: TrainingData, batch_size: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, the same without shifts, and labels: a function of the seed and the step alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    training, conditions = data.images, data.conditions
    chosen = torch.randint(len(training), (batch_size,), generator=generator)
    pixels, labels = training.read(chosen), training.labels[chosen]
    reach = int(PADDING * pixels.shape[-1])
    padded = F.pad(pixels, [reach] * 4)
    moves = torch.randint(2 * reach + 1, (batch_size, 2), generator=generator).tolist()
    height, width = pixels.shape[2:]
    pixels = torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(moves)])
    shifted = pixels.clone()
    if data.renders:
        groups = torch.arange(batch_size).chunk(GROUPS)
        rendered = groups[: len(groups) // 2]
        is_drawn = data.drawn_groups(len(rendered))
        for rows in itertools.compress(rendered, [not drawn for drawn in is_drawn]):
            name, severity = conditions[int(torch.randint(len(conditions), (), generator=generator))]
            shifted[rows] = render(pixels[rows], name, severity, table=data.table, seed=seed * 1_000_003 + step)
        if any(is_drawn):
            rows = torch.cat(list(itertools.compress(rendered, is_drawn)))
            indices = training.indices[chosen[rows]]
            shifted[rows], _ = draw(pixels[rows], indices, seed=seed, epoch=step, families=data.families)
    return to_unit(shifted), to_unit(pixels), labels
