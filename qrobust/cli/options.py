"""Options that commands share, and what becomes of them in a RunConfig."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from qrobust.cli.interrupts import (
    Interruptible,
)
from qrobust.cli.types import FolderType, FractionType

Command = Callable[..., Any]


class FilledCommand(click.Command):
    """A command whose options and arguments are never empty: that is a variable of the shell that is not set."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from qrobust.errors import InputError

        given, *_ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            values = given.get(param.name or "")
            for value in values if isinstance(values, list | tuple) else (values,):
                if isinstance(value, str) and not value.strip():
                    name = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx)
                    raise InputError(
                        f"{name}: expected a value, got an empty string; is a variable of the shell unset?"
                    )
        return super().parse_args(ctx, args)


def options(*decorators: Command) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


common = options(
    click.option(
        "--threads",
        type=int,
        default=None,
        help="Threads for torch and onnxruntime.  [default: all cores, or the run's]",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="No progress: only results, warnings and errors."),
)
seed = click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Decides splits, pixels, training and attacks.",
)
skip_bad_images = click.option(
    "--skip-bad-images",
    is_flag=True,
    help="Leave out files of an imagefolder that cannot be decoded; list them.",
)
inputs = options(
    click.option(
        "--model",
        required=True,
        help="torchvision:NAME, path/to/file.py:FACTORY, or built in: resnet8, resnet20, resnet32, cifar_resnet18, "
        "cifar_mobilenet_v2, cifar_vgg16_bn.",
    ),
    click.option(
        "--weights",
        help="State dict (.pt, .pth) or .safetensors; nothing in the file is executed.",
    ),
    click.option("--pretrained", is_flag=True, help="Let torchvision fetch its own weights."),
    click.option(
        "--normalization",
        help="imagenet, cifar10, none or m,m,m/s,s,s; of one channel m/s.  [default: the model's preset]",
    ),
    click.option(
        "--data",
        required=True,
        help="imagefolder:DIR, npz:FILE, torchvision:NAME or digits.",
    ),
    click.option(
        "--data-root",
        help="Where torchvision data sets lie.  [default: ~/.cache/torchvision]",
    ),
    click.option(
        "--class-names",
        help="File with one class name per line, in index order, for data of some of the classes.",
    ),
    skip_bad_images,
    click.option(
        "--image-size",
        type=int,
        help="Side in pixels.  [default: the images' own if small and alike, else the model's]",
    ),
    click.option(
        "--calibration-images",
        type=int,
        default=512,
        show_default=True,
        help="Images that quantization ranges are observed on.",
    ),
    click.option(
        "--train-images",
        type=int,
        help="Keep only so many training images.  [default: all]",
    ),
    click.option("--test-images", type=int, help="Keep only so many test images.  [default: all]"),
    click.option(
        "--target",
        default="x86-vnni",
        show_default=True,
        help="CPU family whose integer kernels the graph is made for: x86-vnni (with AVX512-VNNI or AVX-VNNI), "
        "x86-avx2 (older, 7-bit weights) or arm64 (signed activations).",
    ),
    click.option(
        "--bits",
        type=click.Choice(["w8a8", "w6a8", "w4a8", "w4a4"]),
        default="w8a8",
        show_default=True,
        help="Bits of weights and activations; narrow ones stay in 8-bit containers and run as fast.",
    ),
    click.option(
        "--edges",
        type=click.Choice(["8bit", "same", "float"]),
        default="8bit",
        show_default=True,
        help="The first and the last layer: 8 bits, the same bits as the rest, or float.",
    ),
    click.option(
        "--layer-bits",
        help="Such as 'features.0.*=w8a8,fc=float': names as `qrobust sensitivity` prints them, or patterns.",
    ),
    click.option(
        "--keep-float",
        help="Comma-separated layers to leave in float, or auto:N for the N most sensitive.",
    ),
    click.option(
        "--ptq",
        type=click.Choice(["default", "auto"]),
        default="default",
        show_default=True,
        help="auto tries ranges, equalization, rounding and bias correction on validation images, keeps the best.",
    ),
    click.option(
        "--observer",
        type=click.Choice(["min-max", "moving-average", "percentile", "histogram", "mse"]),
        default="mse",
        show_default=True,
        help="How activation ranges are chosen; histogram is by least KL divergence.",
    ),
    click.option("--equalize", is_flag=True, help="Cross-layer equalization."),
    click.option(
        "--bias-correction",
        is_flag=True,
        help="Correct each channel's bias by the mean error that quantization adds to it.",
    ),
    click.option(
        "--rounding",
        type=click.Choice(["nearest", "adaround"]),
        default="nearest",
        show_default=True,
        help="Of weights below 8 bits: to the nearest, or learned.",
    ),
    click.option(
        "--storage",
        type=click.Choice(["int8", "int4"]),
        default="int8",
        show_default=True,
        help="How 4-bit weights lie in the file: int4 halves it, and runs as fast once loaded.",
    ),
    click.option(
        "--qat-epochs",
        type=float,
        default=0,
        show_default=True,
        help="Epochs of quantization-aware training, or a fraction of one; 0: none.",
    ),
    click.option(
        "--qat-learning-rate",
        type=float,
        default=1e-4,
        show_default=True,
        help="Peak rate of Adam.",
    ),
    click.option(
        "--qat-ranges",
        type=click.Choice(["learned", "frozen"]),
        default="learned",
        show_default=True,
        help="Whether step sizes learn, too.",
    ),
    click.option(
        "--qat-distillation",
        type=float,
        default=0.9,
        show_default=True,
        help="Share of the loss that imitates the float model, from 0 to 1; the labels have the rest.",
    ),
    click.option(
        "--qat-shifts",
        is_flag=True,
        help="Quantization-aware training sees shifted images, too: those of --shifts without --hold-out (`run`), or "
        "of the suite 'default' at severities 3 and 5 (`quantize`).",
    ),
)
measuring = options(
    click.option(
        "--scene",
        help="Comma-separated: night, fog, vibration, old-lens, rotated-mount or all, for the shifts of that scene "
        "instead of --shifts; imagefolder:DIR for real images of it, in class folders or without labels.",
    ),
    click.option(
        "--shifts",
        help="Comma-separated names, suites, FILE.py:FUNCTION or stored:DIR (CIFAR-10-C, ImageNet-C).  "
        "[default: suite 'default']",
    ),
    click.option("--severities", help="Comma-separated, 1 to 5.  [default: 3,5]"),
    click.option(
        "--severity-table",
        type=click.Choice(["auto", "cifar-c", "imagenet-c"]),
        help="What severities mean.  [default: auto, by image size]",
    ),
    click.option(
        "--attacks",
        type=click.Choice(["none", "quick", "full"]),
        help="quick: PGD, transfer and random noise; full, for hours: FGSM, PGD with restarts, APGD, Square, "
        "HopSkipJump and poses. ONNX files have no gradient: Square and noise, or with HopSkipJump and poses.  "
        "[default: quick; none for files]",
    ),
    click.option("--norms", help="Comma-separated, linf or l2.  [default: linf; with --attacks full linf,l2]"),
    click.option(
        "--epsilons",
        help="Comma-separated L-infinity budgets of attacks.  [default: 1/255,2/255,4/255,8/255]",
    ),
    click.option(
        "--l2-epsilons",
        help="Comma-separated L2 budgets of attacks, on the [0, 1] scale.  [default: in proportion to --epsilons]",
    ),
    click.option(
        "--attack-images",
        type=int,
        help="Test images to attack; 0 for none.  [default: 200]",
    ),
)
training = options(
    click.option(
        "--hold-out",
        help="Comma-separated shifts, of those chosen, that are measured but never trained on; none: all are.  "
        "[default: none]",
    ),
    click.option(
        "--mac-budget",
        type=FractionType(),
        help="The calibrator's multiply-accumulates, as a fraction of the classifier's.  [default: 0.10]",
    ),
    click.option(
        "--latency-budget",
        type=float,
        help="Such as 1.25: how many times the INT8 graph's time at batch 1 the pair may take, measured here; a "
        "narrower calibrator is chosen until it fits; 0: any time.  [default: 0]",
    ),
    click.option(
        "--clean-budget",
        type=float,
        metavar="POINTS",
        help="Clean accuracy on validation images, in percentage points, that the calibrator may cost: its gate is "
        "chosen by that after training.  [default: 0.3]",
    ),
    click.option(
        "--branches",
        help="Comma-separated corrections that the calibrator may make: residual, photometric, geometric.  "
        "[default: all that fit the budget]",
    ),
    click.option("--steps", type=int, help="Training steps.  [default: 4000]"),
    click.option("--batch-size", type=int, help="Images per training step.  [default: 128]"),
    click.option(
        "--learning-rate",
        type=float,
        help="Peak rate of Adam while pixels are restored; half of it through the classifier, a quarter on the "
        "calibrator's 8-bit grid; half for --method finetune.  [default: 0.002]",
    ),
    click.option(
        "--reverse-weight",
        type=float,
        help="Weight of the pull towards reverse adversarial examples of the clean images.  [default: 0]",
    ),
    click.option(
        "--favour",
        type=float,
        help="Share of the training shifts that are drawn by how much they hurt the INT8 classifier.  [default: 0]",
    ),
    click.option(
        "--polish",
        type=int,
        help="Random steps of the calibrator's last biases at the end, each judged on the exported pair by "
        "onnxruntime; seconds each.  [default: 0]",
    ),
    click.option(
        "--few-shot",
        type=int,
        help="Learn from only so many training images; with --no-labels: unlabelled ones; 0: all. Choosing on "
        "validation images takes those of the data set as ever.  [default: 0]",
    ),
    click.option(
        "--labels/--no-labels",
        "use_labels",
        default=None,
        help="Train and choose with labels, or by the float model's view alone.  [default: labels]",
    ),
)
allow_code = click.option(
    "--allow-code",
    multiple=True,
    metavar="SHA256",
    help="Run a Python file with this SHA-256, though only the run's configuration names it; repeat it for several.",
)
run_dir = options(
    click.argument("run_folder", metavar="DIR", type=FolderType()),
    click.option("--model", help="The run's own model: a FILE.py:FACTORY runs only if it is named again."),
    allow_code,
    click.option(
        "--seed",
        type=int,
        help="Must be the run's own, which drew its splits.  [default: the run's]",
    ),
)
resume = options(
    click.option("--resume", is_flag=True, help="Go on with the run in --out where it stopped."),
    allow_code,
)
out_options = options(
    click.option(
        "--out",
        required=True,
        type=FolderType(),
        help="Folder of the run; must be new or empty, unless --resume or --overwrite is given.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds."),
)


class RunCommand(Interruptible, FilledCommand):
    """Says what is kept when it is interrupted, and takes no empty value."""
