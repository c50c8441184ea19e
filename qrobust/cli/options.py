"""Every option that commands share, declared once.

What an option is without, and what it may be, are those of the field that it sets in a run's configuration
(`parsing.FIELDS`); nothing of that is repeated here. An option that is not given is None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from qrobust.cli.command import ATTACKS, CALIBRATOR, MODEL, QAT, QUANTIZATION, RUN, SHIFTS, Option
from qrobust.cli.types import (
    DURATION,
    FRACTION,
    FRACTIONS,
    INTEGER,
    INTEGERS,
    NAMES,
    NAMES_OR_NONE,
    NUMBER,
    FolderType,
    OneOf,
)
from qrobust.compensation.config import FINE_SIZE, LARGE_LATENCY_BUDGET

Decorator = Callable[[Any], Any]
_DECLARED: dict[str, Callable[..., Decorator]] = {}


def _declare(*flags: str, **traits: Any) -> None:
    """Of a parameter called like its first long flag, or like the flags' last word, which has no dashes."""
    name = (flags[-1] if not flags[-1].startswith("-") else flags[-1].lstrip("-")).replace("-", "_")
    if traits.pop("flag", False):
        traits |= {"is_flag": True, "default": None}
    elif "type" not in traits and "is_flag" not in traits:
        traits["type"] = str if "metavar" in traits else OneOf(name)
    _DECLARED[name] = functools.partial(click.option, *flags, cls=Option, **traits)


def with_options(*names: str, **changes: Mapping[str, object]) -> Decorator:
    """Give a command the options of these names; `changes` are to what is declared, by name."""

    def apply(command: Any) -> Any:
        for name in reversed(names):
            command = _DECLARED[name](**changes.get(name, {}))(command)
        return command

    return apply


_declare(
    "--model",
    group=MODEL,
    metavar="SPEC",
    help="torchvision:NAME, timm:NAME, path/to/file.py:FACTORY, FILE.onnx (float), or built in: "
    "resnet8, resnet20, resnet32, cifar_resnet18, cifar_mobilenet_v2, cifar_vgg16_bn.",
)
_declare(
    "--weights",
    group=MODEL,
    metavar="FILE[:KEY]",
    help="Trained weights: a checkpoint that torch saved, or .safetensors; KEY where it holds several. Nothing in "
    "the file is executed.",
)
_declare("--pretrained", group=MODEL, flag=True, help="Let torchvision or timm fetch its own weights.")
_declare(
    "--normalization",
    group=MODEL,
    advanced=True,
    metavar="NAME|M,M,M/S,S,S",
    unset="the model's preset",
    help="What the model subtracts and divides by: imagenet, cifar10, none, or means and standard deviations "
    "(M/S for one channel).",
)
_declare(
    "--data",
    group=MODEL,
    metavar="SPEC",
    help="imagefolder:DIR, list:FILE (path,label[,split] a line), npz:FILE, torchvision:NAME or digits.",
)
_declare(
    "--data-root",
    group=MODEL,
    advanced=True,
    metavar="DIR",
    unset="~/.cache/torchvision",
    help="Folder of torchvision's data sets.",
)
_declare(
    "--class-names",
    group=MODEL,
    advanced=True,
    metavar="FILE",
    help="One class name a line, in index order, for data that holds some of the classes.",
)
_declare(
    "--skip-bad-images",
    group=MODEL,
    advanced=True,
    flag=True,
    help="Leave out image files that cannot be decoded, and list them.",
)
_declare(
    "--image-size",
    group=MODEL,
    advanced=True,
    type=INTEGER,
    metavar="PIXELS",
    unset="the images' own if small and alike, else the model's",
    help="Side of the images that the model reads.",
)
_declare(
    "--resize",
    group=MODEL,
    advanced=True,
    unset="the model's own, else crop; none where the images have the size",
    help="How images get that size: crop (the shorter side to size / crop ratio, then the centre), stretch (both "
    "sides), letterbox (the longer side, the rest filled), or none: they must have it.",
)
_declare(
    "--crop-ratio",
    group=MODEL,
    advanced=True,
    type=FRACTION,
    metavar="FRACTION",
    unset="the model's own, else 224/256",
    help="Share of the shorter side that --resize crop keeps, e.g. 224/232.",
)
_declare(
    "--interpolation",
    group=MODEL,
    advanced=True,
    unset="the model's own, else bilinear",
    help="Pillow's filter for resizing.",
)
_declare(
    "--antialias/--no-antialias",
    "antialias",
    group=MODEL,
    advanced=True,
    type=bool,
    default=None,
    help="Whether the filter looks at all pixels where an image becomes smaller. Pillow, torchvision and timm do; "
    "cv2.resize does not.",
)
_declare(
    "--fill",
    group=MODEL,
    advanced=True,
    type=INTEGER,
    metavar="0..255",
    unset="0",
    help="Grey level beside a letterboxed image.",
)
_declare(
    "--channel-order",
    group=MODEL,
    advanced=True,
    unset="rgb",
    help="bgr for a network trained on images as OpenCV reads them. Graphs take RGB all the same and swap inside.",
)
_declare(
    "--calibration-images",
    group=MODEL,
    advanced=True,
    type=INTEGER,
    metavar="N",
    unset="an eighth of the training images, 32 to 512",
    help="Images on which quantization ranges are observed.",
)
_declare(
    "--train-images",
    group=MODEL,
    advanced=True,
    type=INTEGER,
    metavar="N",
    unset="all",
    help="Use only the first N training images.",
)
_declare(
    "--test-images",
    group=MODEL,
    type=INTEGER,
    metavar="N",
    unset="all",
    help="Measure on N test images only.",
)

_declare(
    "--target",
    group=QUANTIZATION,
    help="CPU family that runs the graph: x86-vnni (AVX512-VNNI or AVX-VNNI), x86-avx2 (older, 7-bit weights) or "
    "arm64 (signed activations).",
)
_declare(
    "--bits",
    group=QUANTIZATION,
    help="Bits of weights and activations. Fewer than 8 are stored in 8-bit containers and run as fast.",
)
_declare(
    "--edges",
    group=QUANTIZATION,
    advanced=True,
    help="First and last layer: 8 bits, the same bits as the others, or float.",
)
_declare(
    "--layer-bits",
    group=QUANTIZATION,
    advanced=True,
    type=NAMES,
    metavar="LAYER=BITS,...",
    help="Bits of single layers, e.g. 'features.0.*=w8a8,fc=float'. `qrobust sensitivity` prints their names.",
)
_declare(
    "--keep-float",
    group=QUANTIZATION,
    advanced=True,
    type=NAMES,
    metavar="LAYER,...",
    help="Layers to leave in float, or auto:N for the N most sensitive.",
)
_declare(
    "--target-drop",
    group=QUANTIZATION,
    advanced=True,
    type=NUMBER,
    metavar="POINTS",
    unset="any",
    help="Maximum loss by quantization on validation images, in percentage points. The most sensitive layers get 8 "
    "bits, then float, until it is met.",
)
_declare(
    "--target-latency",
    group=QUANTIZATION,
    advanced=True,
    type=NUMBER,
    metavar="MS",
    unset="any",
    help="Maximum time for one image with --target-drop, in milliseconds on this CPU: layers that cost time and are "
    "not needed get integers again.",
)
_declare(
    "--calibration-cache",
    group=QUANTIZATION,
    advanced=True,
    metavar="DIR",
    unset="not kept",
    help="Folder of observed ranges. Runs of the same network and calibration images share it: what one observed, "
    "the others read.",
)
_declare(
    "--ptq",
    group=QUANTIZATION,
    help="auto tries ranges, equalization, rounding and bias correction on validation images and keeps the best.",
)
_declare(
    "--observer",
    group=QUANTIZATION,
    advanced=True,
    help="How activation ranges are chosen; histogram minimises the KL divergence.",
)
_declare("--equalize", group=QUANTIZATION, advanced=True, flag=True, help="Cross-layer equalization of weights.")
_declare(
    "--bias-correction",
    group=QUANTIZATION,
    advanced=True,
    flag=True,
    help="Correct each channel's bias by the mean error that quantization adds to it.",
)
_declare(
    "--rounding",
    group=QUANTIZATION,
    advanced=True,
    help="Rounding of weights below 8 bits: to the nearest, or learned (AdaRound).",
)
_declare(
    "--storage",
    group=QUANTIZATION,
    advanced=True,
    help="Storage of 4-bit weights in the file: int4 halves it, and runs as fast once loaded.",
)

_declare(
    "--qat-epochs",
    group=QAT,
    type=NUMBER,
    metavar="EPOCHS",
    help="Epochs of training, or a fraction of one. 0: none.",
)
_declare(
    "--qat-learning-rate", group=QAT, advanced=True, type=NUMBER, metavar="RATE", help="Peak learning rate of Adam."
)
_declare("--qat-ranges", group=QAT, advanced=True, help="Whether quantization ranges are learned, too.")
_declare(
    "--qat-distillation",
    group=QAT,
    advanced=True,
    type=NUMBER,
    metavar="FRACTION",
    help="Share of the loss that imitates the float model; the labels have the rest.",
)
_declare(
    "--qat-shifts",
    group=QAT,
    advanced=True,
    flag=True,
    help="Train on shifted images, too: those of --train-on (`run`), or random operations (`quantize`).",
)

_declare(
    "--scenario",
    group=SHIFTS,
    type=NAMES,
    metavar="NAME,...",
    help="Shifts that occur together, to learn from beside random operations and to measure, instead of --train-on "
    "and --shifts: night, fog, vibration, old-lens, rotated-mount or all.",
)
_declare(
    "--target-images",
    group=SHIFTS,
    metavar="DIR",
    help="Real images of the new surroundings, to learn from and to measure as well: in class folders, or loose and "
    "without labels.",
)
_declare(
    "--shifts",
    group=SHIFTS,
    type=NAMES,
    metavar="NAME,...",
    unset="the suite 'default'",
    help="What is measured: shifts, suites of shifts, FILE.py:FUNCTION, or stored:DIR (CIFAR-10-C, ImageNet-C).",
)
_declare(
    "--severities", group=SHIFTS, advanced=True, type=INTEGERS, metavar="1..5,...", help="Strengths of the shifts."
)
_declare(
    "--severity-table",
    group=SHIFTS,
    advanced=True,
    help="What a severity means. auto: cifar-c for images below 64 px, else imagenet-c.",
)
_declare(
    "--train-on",
    group=SHIFTS,
    type=NAMES_OR_NONE,
    metavar="NAME,...|none",
    help="What everything that learns may learn from: shifts, suites, scenarios or FILE.py:FUNCTION. generic: random "
    "operations that name no corruption. none: --target-images alone.",
)
_declare(
    "--scenario-share",
    group=SHIFTS,
    advanced=True,
    type=FRACTION,
    metavar="FRACTION",
    help="Share of the rendered training images under named shifts; random operations have the rest.",
)

_declare(
    "--mac-budget",
    group=CALIBRATOR,
    advanced=True,
    type=FRACTION,
    metavar="FRACTION",
    help="Maximum multiply-accumulates of the calibrator, relative to the classifier's.",
)
_declare(
    "--latency-budget",
    group=CALIBRATOR,
    advanced=True,
    type=NUMBER,
    metavar="FACTOR",
    unset=f"{LARGE_LATENCY_BUDGET:g} above {FINE_SIZE} px as far as it can be kept, else 0",
    help="Maximum batch-1 latency of calibrator + classifier relative to INT8 alone, e.g. 1.25: a narrower "
    "calibrator, or one of fewer branches, is chosen until it fits. 0: no limit.",
)
_declare(
    "--remedy",
    group=CALIBRATOR,
    help="What repairs, from what changes least to what changes all: a calibrator in front; other scales, ranges and "
    "biases for the same integer weights; the first stage, or everything, trained; NAME+calibrator: both. "
    "second-look asks about each image's negative, too. auto makes the ladder and says which to ship; none measures "
    "INT8 alone.",
)
_declare(
    "--clean-budget",
    group=CALIBRATOR,
    advanced=True,
    type=NUMBER,
    metavar="POINTS",
    unset="0.3; without labels 15",
    help="Maximum cost on clean validation images, in percentage points: of accuracy, or without labels of agreement "
    "with what the classifier said before. The calibrator's gate is chosen to stay within it.",
)
_declare(
    "--branches",
    group=CALIBRATOR,
    advanced=True,
    type=NAMES,
    metavar="NAME,...",
    unset="all that fit the budget",
    help="Corrections that the calibrator may make: residual, photometric, geometric.",
)
_declare("--steps", group=CALIBRATOR, type=INTEGER, metavar="N", help="Training steps.")
_declare(
    "--batch-size",
    group=CALIBRATOR,
    advanced=True,
    type=INTEGER,
    metavar="IMAGES",
    help="Images per training step.",
)
_declare(
    "--learning-rate",
    group=CALIBRATOR,
    advanced=True,
    type=NUMBER,
    metavar="RATE",
    help="Peak learning rate of Adam while pixels are restored. Training through the classifier has half of it, on "
    "the 8-bit grid a quarter; --remedy finetune has half.",
)
_declare(
    "--reverse-weight",
    group=CALIBRATOR,
    advanced=True,
    type=NUMBER,
    metavar="WEIGHT",
    help="Weight of the pull towards reverse adversarial examples of the clean images.",
)
_declare(
    "--hard-shift-share",
    group=CALIBRATOR,
    advanced=True,
    type=NUMBER,
    metavar="FRACTION",
    help="Share of the training shifts that are drawn by how much they hurt the INT8 classifier.",
)
_declare(
    "--evolution-steps",
    group=CALIBRATOR,
    advanced=True,
    type=INTEGER,
    metavar="STEPS",
    help="Random steps of the calibrator's last biases at the end, each measured on onnxruntime: seconds each.",
)
_declare(
    "--correction-output",
    group=CALIBRATOR,
    advanced=True,
    flag=True,
    help="Give the graph a second output, `correction`: how far the calibrator's gate is open, from 0 to 1. A device "
    "that logs it sees that its surroundings change.",
)
_declare(
    "--few-shot",
    group=CALIBRATOR,
    advanced=True,
    type=INTEGER,
    metavar="N",
    unset="0",
    help="Learn from N training images only (with --no-labels: unlabelled ones). Validation images stay. 0: all.",
)
_declare(
    "--labels/--no-labels",
    "use_labels",
    group=CALIBRATOR,
    advanced=True,
    type=bool,
    default=None,
    help="Train and choose by labels, or by the float model's predictions alone.",
)

_declare(
    "--attacks",
    group=ATTACKS,
    help="quick: PGD, transfer and random noise. full, for hours: also FGSM, PGD with restarts, APGD, Square, "
    "HopSkipJump and poses.",
)
_declare(
    "--norms",
    group=ATTACKS,
    advanced=True,
    type=NAMES,
    metavar="linf|l2,...",
    unset="linf; with --attacks full linf,l2",
    help="Norms of the perturbations.",
)
_declare(
    "--epsilons",
    group=ATTACKS,
    advanced=True,
    type=FRACTIONS,
    metavar="FRACTION,...",
    help="L-infinity budgets, on the [0, 1] scale.",
)
_declare(
    "--l2-epsilons",
    group=ATTACKS,
    advanced=True,
    type=FRACTIONS,
    metavar="DISTANCE,...",
    unset="in proportion to --epsilons",
    help="L2 budgets, on the [0, 1] scale.",
)
_declare(
    "--attack-images",
    group=ATTACKS,
    advanced=True,
    type=INTEGER,
    metavar="N",
    help="Attack the first N test images. 0: none.",
)

_declare(
    "--primary",
    group=RUN,
    advanced=True,
    metavar="auto|accuracy|balanced|recall:CLASS",
    help="The measure that decides which state, gate, recipe and remedy is best. auto: balanced accuracy where the "
    "largest class has more than twice the images of the smallest, else accuracy.",
)
_declare(
    "--accept-undecided",
    group=RUN,
    advanced=True,
    flag=True,
    help="Recommend a graph though the images of some classes are too few to tell whether it harms them.",
)
_declare(
    "--out",
    group=RUN,
    required=True,
    type=FolderType(),
    metavar="DIR",
    help="Folder for everything that is made. It must be new or empty, unless --resume or --overwrite is given.",
)
_declare(
    "--allow-code",
    group=RUN,
    advanced=True,
    type=str,
    multiple=True,
    metavar="SHA256",
    help="Run a Python file with this SHA-256, though only the run's configuration names it; repeat it for several.",
)
_declare(
    "--anyway",
    group=RUN,
    advanced=True,
    is_flag=True,
    help="Go on though the float network is no better than chance on validation images.",
)
_declare(
    "--config",
    group=RUN,
    type=str,
    metavar="FILE",
    help="TOML file with choices; `qrobust init` writes one with all of them. Options go before it.",
)
_declare(
    "--set",
    "settings",
    group=RUN,
    advanced=True,
    type=str,
    multiple=True,
    metavar="KEY=VALUE",
    help="One choice by its key in such a file, e.g. quantization.bits=w4a8; repeat it for several.",
)
_declare(
    "--strict",
    group=RUN,
    advanced=True,
    is_flag=True,
    help="Exit with code 3 where INT8 buys nothing: a graph has less than half of its work on integers, or takes "
    "longer than float. What was made stays.",
)
_declare(
    "--mlflow",
    group=RUN,
    advanced=True,
    type=str,
    metavar="URI",
    help="Log the finished run to an MLflow server (https://...) or a folder (file:DIR): choices, figures, report, "
    "graphs. Needs `pip install mlflow-skinny`.",
)
_declare("--resume", group=RUN, is_flag=True, help="Continue what was interrupted in --out. Needs no other option.")
_declare("--overwrite", group=RUN, is_flag=True, help="Replace what an earlier command made in --out.")
_declare(
    "--budget",
    group=RUN,
    advanced=True,
    type=DURATION,
    metavar="DURATION",
    unset="all images",
    help="Measure as many test images as fit into e.g. 90s, 10m or 1h; each class keeps its share.",
)
_declare(
    "--workers",
    group=RUN,
    advanced=True,
    type=INTEGER,
    metavar="N",
    default=1,
    show_default=True,
    help="Processes that render shifted images and run inference, one thread each. The pixels are the same.",
)
_declare(
    "--runner",
    "runner_name",
    group=RUN,
    advanced=True,
    type=str,
    default="local",
    show_default=True,
    metavar="local|ray[://HOST:PORT]|slurm",
    help="Where images are rendered and inference runs: on this machine, on the hosts of a Ray cluster (without an "
    "address, one on this machine), as Slurm jobs. Hosts share the folders. Times are taken here.",
)
_declare(
    "--mixed-hosts",
    group=RUN,
    advanced=True,
    is_flag=True,
    help="Take hosts whose CPUs differ; figures may differ with them.",
)
_declare("--seed", group=RUN, advanced=True, type=INTEGER, metavar="N", help="Seed of splits, pixels and training.")
_declare(
    "--threads",
    group=RUN,
    type=INTEGER,
    metavar="N",
    unset="all cores",
    help="Threads of torch and onnxruntime.",
)
_declare(
    "--device",
    group=RUN,
    advanced=True,
    type=str,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where torch observes, trains and attacks. auto: a GPU if there is one. ONNX Runtime stays on the CPU.",
)
_declare("-v", "--verbose", group=RUN, is_flag=True, help="Print details.")
_declare("-q", "--quiet", group=RUN, is_flag=True, help="Print results, warnings and errors only.")

# What decides the pixels that a classifier sees.
FITTING_OPTIONS = ("image_size", "resize", "crop_ratio", "interpolation", "antialias", "fill")
MODEL_OPTIONS = (
    "model",
    "weights",
    "pretrained",
    "normalization",
    "data",
    "data_root",
    "class_names",
    "skip_bad_images",
    *FITTING_OPTIONS,
    "channel_order",
    "calibration_images",
    "train_images",
    "test_images",
)
QUANTIZATION_OPTIONS = (
    "target",
    "bits",
    "edges",
    "layer_bits",
    "keep_float",
    "target_drop",
    "target_latency",
    "calibration_cache",
    "ptq",
    "observer",
    "equalize",
    "bias_correction",
    "rounding",
    "storage",
    "qat_epochs",
    "qat_learning_rate",
    "qat_ranges",
    "qat_distillation",
    "qat_shifts",
)
RENDERED_OPTIONS = ("scenario", "shifts", "severities", "severity_table")
SHIFT_OPTIONS = (*RENDERED_OPTIONS, "target_images")
CALIBRATOR_OPTIONS = (
    "train_on",
    "scenario_share",
    "mac_budget",
    "latency_budget",
    "clean_budget",
    "branches",
    "steps",
    "batch_size",
    "learning_rate",
    "reverse_weight",
    "hard_shift_share",
    "evolution_steps",
    "correction_output",
    "few_shot",
    "use_labels",
)
ATTACK_OPTIONS = ("attacks", "norms", "epsilons", "l2_epsilons", "attack_images")
DECIDING_OPTIONS = ("primary", "accept_undecided")
NEW_RUN_OPTIONS = ("out", "resume", "overwrite", "allow_code", "seed", "threads", "device", "verbose", "quiet")
CONFIG_OPTIONS = ("config", "settings")
STAGE_OPTIONS = ("model", "allow_code", "threads", "device", "verbose", "quiet")
# Of a command for a run that is there.
OF_RUN: dict[str, Mapping[str, object]] = {
    "threads": {"unset": "the run's"},
    "device": {"unset": "the run's"},
    "model": {
        "group": RUN,
        "advanced": True,
        "help": "The run's own model: a FILE.py:FACTORY runs only if the command names it again.",
    },
}

# Of `compensate` with a file in place of a run: what a new run would be given.
OF_FILE = (
    "data",
    "normalization",
    "data_root",
    "class_names",
    *FITTING_OPTIONS,
    "channel_order",
    "calibration_images",
    "train_images",
    "test_images",
    "target",
    "anyway",
    "out",
    "resume",
    "overwrite",
    "seed",
)

# Options of earlier versions, and what is said to who gives one.
FORMER = {
    "--hold-out": "is now --train-on NAME,...: what is learned from, apart from --shifts, which are measured",
    "--scene": "is now --scenario NAME, or --target-images DIR for a folder of real images",
    "--favour": "is now --hard-shift-share",
    "--polish": "is now --evolution-steps",
}
