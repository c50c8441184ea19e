"""Commands that make a run folder or work in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.command import CALIBRATOR, Command, Option
from qrobust.cli.console import console, echo
from qrobust.cli.options import (
    ATTACK_OPTIONS,
    CALIBRATOR_OPTIONS,
    CONFIG_OPTIONS,
    DECIDING_OPTIONS,
    FORMER,
    MODEL_OPTIONS,
    NEW_RUN_OPTIONS,
    OF_FILE,
    OF_RUN,
    QUANTIZATION_OPTIONS,
    SHIFT_OPTIONS,
    STAGE_OPTIONS,
    with_options,
)
from qrobust.cli.parsing import cores
from qrobust.cli.run_folders import (
    begin,
    begin_or_resume,
    begin_or_resume_file,
    check_runner,
    claim,
    claim_existing,
    evaluating_by,
    finish,
    refuse_float,
    refuse_mlflow,
    reopen,
    resumed,
    warn_of_float,
)
from qrobust.cli.types import COMPARISON, FolderType

if TYPE_CHECKING:
    from qrobust.record import CompensationResult, CorruptionSet, CorruptionSetSummary, Overview

run_folder = click.argument("run_folder", metavar="RUN", type=FolderType())
SEED_OF_RUN = {"--seed": "is for new runs: this one keeps the seed that drew its splits"}


@click.command(cls=Command)
@with_options(*NEW_RUN_OPTIONS, out={"required": False, "default": Path("qrobust-demo"), "show_default": True})
def demo(out: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """Do the whole job on built-in data, for a first look.

    Trains a small residual network on scikit-learn's handwritten digits, quantizes it, measures it under shift,
    compensates it and writes a report. It works offline and takes two to five minutes on two cores.

    \b
    qrobust demo
    qrobust demo --out runs/demo --resume     # after an interruption
    """
    from qrobust.device import find_device
    from qrobust.errors import InputError
    from qrobust.pipeline import demo as example
    from qrobust.pipeline import stages
    from qrobust.pipeline.config import RunConfig
    from qrobust.pipeline.output_folder import configuration
    from qrobust.pipeline.run_folder import check_folder
    from qrobust.user_code import hashes

    if resume and overwrite:
        raise InputError("resume: expected it or --overwrite, got both")
    seed = RunConfig.seed if options["seed"] is None else options["seed"]
    if resume and configuration(out):
        opened = resumed(out, **example.OPTIONS, **options)
        if opened.require_folder().weights.exists():
            finish(opened.require_folder(), stages.run_all(opened, resume=True))
            return
        overwrite, seed = True, opened.config.seed  # interrupted before its network was kept
        options["seed"] = seed
        check_folder(out, overwrite=True)
    else:
        claim(out, overwrite=overwrite)
    threads = cores() if options["threads"] is None else options["threads"]
    # Before anything is trained, what is given must be of use.
    config = RunConfig.from_options({**example.OPTIONS, "seed": seed, "threads": threads})
    find_device(options["device"] or config.device)
    hashes(options["allow_code"])
    with example.weights_file(seed, console(options["verbose"], options["quiet"]), threads) as weights:
        opened = begin(out, overwrite, **example.OPTIONS, weights=str(weights), **options)
        finish(opened.require_folder(), stages.run_all(opened, resume=False))


@click.command(cls=Command, former=FORMER)
@with_options(
    *MODEL_OPTIONS,
    *QUANTIZATION_OPTIONS,
    *SHIFT_OPTIONS,
    "remedy",
    *CALIBRATOR_OPTIONS,
    *ATTACK_OPTIONS,
    "anyway",
    *DECIDING_OPTIONS,
    *CONFIG_OPTIONS,
    "strict",
    "mlflow",
    "runner_name",
    "mixed_hosts",
    *NEW_RUN_OPTIONS,
    ptq={"advanced": True},
    runner_name={
        "help": "Where the run is evaluated: on this machine, on the hosts of a Ray cluster (without an address, one "
        "on this machine), as Slurm jobs. Hosts share the folders. All other stages run here."
    },
)
def run(
    out: Path,
    overwrite: bool,
    resume: bool,
    strict: bool,
    mlflow: str | None,
    runner_name: str,
    mixed_hosts: bool,
    **options: Any,
) -> None:
    """Quantize, compensate, export, evaluate, report in one go.

    \b
    qrobust run --model resnet20 --weights w.pt --data imagefolder:~/data/cifar10 --out runs/one
    qrobust run --model torchvision:mobilenet_v2 --pretrained --data imagefolder:DIR --out runs/two
    qrobust run ... --remedy scales --out runs/scales        # costs no time on the device
    qrobust run --config qrobust.toml --set quantization.bits=w4a8 --out runs/three
    qrobust run --resume --out runs/one       # after an interruption
    """
    from qrobust.pipeline import stages

    refuse_mlflow(mlflow)
    check_runner(runner_name, try_out=True)
    opened = begin_or_resume(out, overwrite, resume, **options)
    with evaluating_by(runner_name, lambda: opened.require_folder().predictions, mixed_hosts=mixed_hosts) as by:
        record = stages.run_all(opened, resume=resume, workers=by)
    finish(opened.require_folder(), record, strict=strict, mlflow=mlflow)


@click.command(cls=Command)
@with_options(*MODEL_OPTIONS, *QUANTIZATION_OPTIONS, "anyway", "primary", *CONFIG_OPTIONS, "strict", *NEW_RUN_OPTIONS)
def quantize(out: Path, overwrite: bool, resume: bool, strict: bool, **options: Any) -> None:
    """Turn a trained classifier into an INT8 graph.

    Makes the run folder that the other stages work in. Writes float.onnx and int8.onnx, and checks that onnxruntime
    runs the latter on integers and predicts as torch does.

    \b
    qrobust quantize --model resnet20 --weights w.pt --data imagefolder:DIR --out runs/one
    qrobust quantize ... --ptq auto                       # search on validation images, keep the best
    qrobust quantize ... --bits w4a8 --rounding adaround  # 4-bit weights, learned rounding
    qrobust quantize ... --bits w4a4 --qat-epochs 2       # quantization-aware training
    """
    from qrobust.pipeline import stages
    from qrobust.pipeline.export import checks_passed
    from qrobust.record import QuantizationResult
    from qrobust.report.no_gain import mostly_float
    from qrobust.report.verdict import NAMES, validation_sentence

    opened = begin_or_resume(out, overwrite, resume, compensating=False, **options)
    if not (resume and opened.require_folder().is_done("quantize")):
        stages.quantize(opened)
    folder = opened.require_folder()
    result = folder.need_result(QuantizationResult, "quantize", "quantize")
    for name, audited in result.audit.items():
        passed = checks_passed(name, audited.integer_ops, audited.quantizable_ops, result.parity[name].agreement)
        echo(f"{folder.graph(name)}: {passed}")
    if measured := result.quantization.validation:  # folders of earlier versions have none
        echo(validation_sentence(measured))
    in_float = mostly_float(result.audit, NAMES)
    warn_of_float(in_float.values())
    if strict:
        refuse_float(in_float.values())


@click.command(cls=Command, former=SEED_OF_RUN)
@run_folder
@click.option("--json", "as_json", cls=Option, is_flag=True, help="Print JSON instead of a table.")
@with_options(*STAGE_OPTIONS, **OF_RUN)
def sensitivity(run_folder: Path, as_json: bool, **options: Any) -> None:
    """Show which layers lose most by quantization.

    For each layer: signal-to-noise ratios in decibels of its weights, of the rounding of its input, and of its output
    with everything before it quantized; and how predictions on validation images change if it alone is quantized.
    `qrobust quantize --keep-float auto:N` leaves the N most sensitive in float.

    \b
    qrobust sensitivity runs/one
    """
    import json

    from qrobust.pipeline import stages
    from qrobust.record import to_json

    opened = reopen(run_folder, **options)
    layers = stages.sensitivity(opened)
    if as_json:
        click.echo(json.dumps([to_json(noise) | to_json(effect) for noise, effect in layers], indent=2))
        return
    echo(f"{'layer':34s} {'bits':>4s} {'weight dB':>9s} {'input dB':>9s} {'output dB':>9s} {'KL alone':>9s} drop")
    for noise, effect in sorted(layers, key=lambda layer: -layer[1].divergence):
        echo(
            f"{noise.name:34s} {noise.weight_bits:4d} {noise.weight_sqnr_db:9.1f} {noise.input_sqnr_db:9.1f} "
            f"{noise.output_sqnr_db:9.1f} {effect.divergence:9.5f} {100 * effect.accuracy_drop:+.2f}"
        )
    echo(f"KL divergence in nats and drop in points on {layers[0][1].n} validation images.")


@click.command(cls=Command, former=FORMER | {"--method": "is now --remedy"})
@click.argument("run_folder", metavar="RUN|FILE.onnx", type=FolderType())
@click.option(
    "--remedy",
    cls=Option,
    group=CALIBRATOR,
    metavar="NAME",
    unset="calibrator",
    help="From what changes least to what changes all: calibrator; scales: learn scales, ranges and biases, keep the "
    "integer weights; first-stage: train the first layers; finetune: train all. NAME+calibrator: a calibrator in "
    "front of that. second-look, calibrator+second-look: ask about each image's negative as well, at twice the time. "
    "auto: make the ladder and name the least intrusive one that is enough. Baselines: bn-reestimate, "
    "calibrator+bn-reestimate, auto-contrast, denoise, anti-adversary (torch only). none: remove all.",
)
@click.option(
    "--compare",
    cls=Option,
    group=CALIBRATOR,
    is_flag=False,
    flag_value="ladder",
    type=COMPARISON,
    metavar="[all]",
    help="Make the ladder of remedies, export, measure and report them, and say which to ship. all: the baselines, "
    "too.",
)
@with_options(
    "skip_bad_images",
    *SHIFT_OPTIONS,
    *CALIBRATOR_OPTIONS,
    *ATTACK_OPTIONS,
    "primary",
    "accept_undecided",
    *STAGE_OPTIONS,
    *OF_FILE,
    "workers",
    **OF_RUN,
    data={"help": "Of FILE.onnx: imagefolder:DIR, list:FILE, npz:FILE, torchvision:NAME or digits."},
    out={"required": False, "help": "Of FILE.onnx: folder for everything that is made."},
    overwrite={"help": "Of FILE.onnx: replace what an earlier command made in --out."},
    resume={"help": "Of FILE.onnx: continue what was interrupted in --out."},
)
def compensate(
    run_folder: Path,
    remedy: str | None,
    compare: str | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    workers: int,
    **options: Any,
) -> None:
    """Win back robustness, by default by a calibrator in front.

    A calibrator is a small network that corrects the image; the classifier stays as it is, bit for bit. A training
    that was interrupted continues if the options are the same. What is not given stays as the run has it.

    \b
    qrobust compensate runs/one                          # then: export, evaluate, report
    qrobust compensate runs/one --scenario night         # train for what changes at night
    qrobust compensate runs/one --remedy scales          # exports its own graph; then: evaluate, report
    qrobust compensate runs/one --compare                # the ladder of remedies, exported, measured and reported

    An ONNX file that is quantized already is compensated without its float network: its nodes and constants stay,
    byte for byte, behind a calibrator; or its nodes and integer weights, with other scales and biases.

    \b
    qrobust compensate INT8.onnx --data imagefolder:DIR --normalization imagenet --out runs/two
    qrobust compensate INT8.onnx --remedy scales --data imagefolder:DIR --normalization imagenet --out runs/three
    """
    from qrobust.errors import InputError
    from qrobust.pipeline import stages
    from qrobust.record import CompensationResult

    if run_folder.suffix == ".onnx" and not run_folder.is_dir():
        if compare or remedy not in (None, "calibrator", "scales", "scales+calibrator"):
            other = remedy or "--compare"
            raise InputError(
                f"remedy: expected calibrator, scales or scales+calibrator, as {run_folder} is integers, got {other}"
            )
        _compensate_file(run_folder, out, remedy, resume=resume, overwrite=overwrite, workers=workers, **options)
        return
    given = {name: options.pop(name) for name in OF_FILE if name in options}
    _refuse_of_file(run_folder, given | {"out": out, "resume": resume, "overwrite": overwrite}, workers)
    if compare and remedy is not None:
        raise InputError(f"remedy: expected --compare, which makes all of them, or --remedy, got both ({remedy})")
    if remedy == "auto":
        remedy, compare = None, "ladder"
    for name in ATTACK_OPTIONS:
        if not compare and options[name] is not None:
            raise InputError(f"{name}: expected with --compare only; otherwise `qrobust evaluate` attacks")
    opened = reopen(run_folder, **options)
    if compare:
        finish(opened.require_folder(), stages.compare(opened, baselines=compare == "all"))
    elif remedy in (None, "calibrator"):
        stages.compensate(opened)
        _say_validation(opened.require_folder().need_result(CompensationResult, "compensate", "compensate"))
    elif remedy == "none":
        stages.delete_compensation(opened)
        echo(f"none: only float and INT8 are left; `qrobust evaluate {run_folder}` measures them")
    else:
        stages.make_baseline(opened, str(remedy))
        echo(f"{remedy}: made; `qrobust evaluate {run_folder}` measures it")


def _say_validation(done: CompensationResult) -> None:
    """What a calibrator did on validation images."""
    start, end = done.training.float, done.validation
    echo(
        f"on validation images, {end.measures.shift} under shift {100 * start.start_shift_accuracy:.1f} -> "
        f"{100 * end.shift_accuracy:.1f} %, {end.measures.clean} on clean ones "
        f"{100 * start.start_clean_accuracy:.1f} -> {100 * end.clean_accuracy:.1f} %"
    )


def _refuse_of_file(run_folder: Path, given: Mapping[str, object], workers: int) -> None:
    """A run has of its own what is given with a file."""
    from qrobust.errors import InputError

    for name, value in {**given, "workers": None if workers == 1 else workers}.items():
        if value is not None and value is not False:
            raise InputError(f"{name}: expected with FILE.onnx only, {run_folder} is a run, which has its own")


def _compensate_file(
    file: Path,
    out: Path | None,
    remedy: str | None,
    *,
    resume: bool,
    overwrite: bool,
    workers: int,
    **options: Any,
) -> None:
    """`compensate` of a file that is quantized already."""
    from qrobust.cli.file_commands import say_evaluation
    from qrobust.errors import InputError
    from qrobust.pipeline.compensate_onnx import compensate_file
    from qrobust.report.imported import gain_sentence, recommended

    if out is None:
        raise InputError("out: expected a folder for what is made of an ONNX file, got none")
    for name in ATTACK_OPTIONS:
        if options.pop(name) is not None:
            raise InputError(f"{name}: expected with a run only; `qrobust evaluate-onnx` attacks files")
    if options["model"] is not None:
        raise InputError(f"model: expected none beside {file}, got {options['model']}")
    opened = begin_or_resume_file(out, overwrite, resume, remedy=remedy, **options | {"model": str(file)})
    record = compensate_file(opened, resume=resume, workers=workers)
    say_evaluation(record)
    for sentence in (gain_sentence(record), *recommended(record)):
        echo(sentence)
    echo(f"Report: {opened.require_folder().html}")


@click.command(cls=Command, former=SEED_OF_RUN)
@run_folder
@with_options("correction_output", *STAGE_OPTIONS, **OF_RUN)
def export(run_folder: Path, **options: Any) -> None:
    """Write calibrator and classifier as one INT8 graph.

    Writes compensated.onnx, and checks that onnxruntime runs it on integers and predicts as torch does.

    \b
    qrobust export runs/one
    """
    from qrobust.pipeline import stages

    opened = reopen(run_folder, **options)
    stages.export(opened)
    echo(str(opened.require_folder().graph("compensated")))


@click.command(
    cls=Command,
    former=FORMER
    | SEED_OF_RUN
    | dict.fromkeys(
        ("--data", "--out"),
        "is not for runs; ONNX files are measured by `qrobust evaluate-onnx FILE... --data SPEC --out DIR`",
    ),
)
@run_folder
@with_options(
    *SHIFT_OPTIONS,
    *ATTACK_OPTIONS,
    *DECIDING_OPTIONS,
    "budget",
    "workers",
    "runner_name",
    "mixed_hosts",
    *STAGE_OPTIONS,
    **OF_RUN,
)
def evaluate(
    run_folder: Path, budget: float | None, workers: int, runner_name: str, mixed_hosts: bool, **options: Any
) -> None:
    """Measure a run's graphs clean, under shift and attacked.

    All run on onnxruntime and see the same pixels. Predictions are kept: an evaluation that was interrupted continues
    where it stopped, and a second one runs what is new. What is not given stays as the run has it.

    \b
    qrobust evaluate runs/one
    qrobust evaluate runs/one --shifts corruptions-15 --severities 1,2,3,4,5 --attacks none --workers 4
    qrobust evaluate runs/one --shifts corruptions-15 --severities 1,2,3,4,5 --runner ray://head:6379
    """
    from qrobust.errors import InputError
    from qrobust.pipeline import stages
    from qrobust.record import EvaluationResult
    from qrobust.report.classes import balanced_sentence, deciding_sentence, evenness

    if str(options["model"]).endswith(".onnx"):
        raise InputError("model: ONNX files are measured by `qrobust evaluate-onnx FILE... --data SPEC --out DIR`")
    check_runner(runner_name, workers)
    opened = reopen(run_folder, **options)
    folder = opened.require_folder()
    with evaluating_by(
        runner_name, lambda: folder.predictions, workers=workers, mixed_hosts=mixed_hosts, begin=True
    ) as by:
        stages.evaluate(opened, budget=budget, workers=by)
    result = opened.require_folder().need_result(EvaluationResult, "evaluate", "evaluate")
    summary = result.summary
    for name, clean in summary.clean_accuracy.items():
        shifted = summary.shift_accuracy[name]
        under_shift = f", under shift {100 * shifted:.2f} %" if shifted is not None else ""
        echo(f"{name}: clean {100 * clean:.2f} %{under_shift} ({sample_of(summary)})")
    if result.classes:
        names, class_names = {name: name for name in result.classes.classifiers}, opened.data.class_names
        echo(
            deciding_sentence(result.classes, result.primary, class_names, names)
            or balanced_sentence(result.classes, names)
        )
        echo(evenness(result.classes, class_names))
    say_corruption_sets(result.corruption_sets)


def sample_of(summary: Overview | CorruptionSetSummary) -> str:
    """How many images and conditions a summary is of."""
    return f"n = {summary.n_test} of {summary.of}, {summary.n_conditions} conditions"


def say_corruption_sets(entries: tuple[CorruptionSet, ...]) -> None:
    """A line for each corruption data set."""
    for entry in entries:
        means = ", ".join(f"{name} {100 * a:.2f} %" for name, a in entry.summary.accuracy.items())
        echo(f"{entry.name}: {means} ({sample_of(entry.summary)})")


@click.command(cls=Command, former=SEED_OF_RUN)
@run_folder
@with_options("accept_undecided", "strict", "mlflow")
def report(run_folder: Path, accept_undecided: bool | None, strict: bool, mlflow: str | None) -> None:
    """Write the report of what the stages of a run found.

    Writes record.json, report.html, report.md, results.csv, and a model card beside every graph.

    \b
    qrobust report runs/one
    qrobust report runs/one --mlflow https://mlflow.example.com
    """
    from qrobust.pipeline.report import write_report
    from qrobust.pipeline.run_folder import open_run, refuse_file

    refuse_mlflow(mlflow)
    claim_existing(run_folder)
    refuse_file(run_folder)
    folder, _, config = open_run(run_folder, accept_undecided=accept_undecided)
    finish(folder, write_report(folder, config), strict=strict, mlflow=mlflow)
