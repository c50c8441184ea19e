"""Commands that make a run folder or work in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrobust.cli.console import console, echo
from qrobust.cli.options import (
    RunCommand,
    common,
    inputs,
    measuring,
    out_options,
    resume,
    run_dir,
    seed,
    training,
)
from qrobust.cli.parsing import cores
from qrobust.cli.run_folders import (
    begin,
    begin_or_resume,
    claim,
    claim_existing,
    finish,
    reopen,
)
from qrobust.cli.types import FolderType


@click.command(cls=RunCommand, name="quantize-and-compensate")
@inputs
@measuring
@training
@out_options
@resume
@seed
@common
def run_command(out: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """All stages: quantize, compensate, export, measure on onnxruntime, report. Short: `qrobust run`.

    \b
    qrobust run --model resnet20 --weights weights.pt --data imagefolder:~/data/cifar10 --out runs/one
    qrobust run --model torchvision:mobilenet_v2 --weights my.pt --data imagefolder:DIR --out runs/two
    """
    from qrobust.pipeline import stages

    run = begin_or_resume(out, overwrite, resume, **options)
    finish(run.require_folder(), stages.run_all(run, resume=resume))


@click.command(cls=RunCommand)
@inputs
@out_options
@resume
@seed
@common
def quantize(out: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """Quantize a trained classifier: float.onnx and int8.onnx in a new run folder, audited.

    \b
    qrobust quantize --model resnet20 --weights weights.pt --data imagefolder:DIR --out runs/one
    qrobust quantize ... --ptq auto                       # search on validation images, keep the best
    qrobust quantize ... --bits w4a8 --rounding adaround  # 4-bit weights, learned rounding
    qrobust quantize ... --bits w4a4 --qat-epochs 2       # train the fake-quantized model; --resume goes on after a
    kill
    """
    from qrobust.pipeline import stages
    from qrobust.pipeline.export import checks_passed
    from qrobust.record import QuantizationResult
    from qrobust.report.verdict import validation_sentence

    run = begin_or_resume(out, overwrite, resume, compensating=False, **options)
    if not (resume and run.require_folder().stage("quantize")):
        stages.quantize(run)
    folder = run.require_folder()
    result = folder.need_result(QuantizationResult, "quantize", "quantize")
    for name, audited in result.audit.items():
        passed = checks_passed(name, audited.integer_ops, audited.quantizable_ops, result.parity[name].agreement)
        echo(f"{folder.graph(name)}: {passed}")
    if measured := result.quantization.validation:  # folders of earlier versions have none
        echo(validation_sentence(measured))


@click.command(cls=RunCommand)
@run_dir
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@common
def sensitivity(run_folder: Path, as_json: bool, **options: Any) -> None:
    """Which layers of a run's classifier quantization costs most, one by one.

    Signal-to-noise ratios in decibels of each layer's weights, of its input's rounding alone, and of its
    output with everything before it quantized; and what quantizing that layer alone does on validation
    images. `qrobust quantize --keep-float auto:N` leaves the N worst in float.
    """
    import json

    from qrobust.pipeline import stages

    run = reopen(run_folder, **options)
    layers = stages.sensitivity(run)
    if as_json:
        click.echo(json.dumps(layers, indent=2))
        return
    echo(f"{'layer':34s} {'bits':>4s} {'weight dB':>9s} {'input dB':>9s} {'output dB':>9s} {'KL alone':>9s} drop")
    for layer in sorted(layers, key=lambda found: -found["divergence"]):
        echo(
            f"{layer['name']:34s} {layer['weight_bits']:4d} {layer['weight_sqnr_db']:9.1f} "
            f"{layer['input_sqnr_db']:9.1f} {layer['output_sqnr_db']:9.1f} {layer['divergence']:9.5f} "
            f"{100 * layer['accuracy_drop']:+.2f}"
        )
    echo(f"KL divergence in nats and drop in points on {layers[0]['n']} validation images.")


@click.command(cls=RunCommand)
@run_dir
@click.option(
    "--method",
    help="calibrator; bn-reestimate: batch-norm statistics of the shifted images; calibrator+bn-reestimate; "
    "finetune: train the quantized classifier on the shifts; auto-contrast, denoise: fixed preprocessing; "
    "anti-adversary: gradient steps at inference, in torch only; none.  [default: calibrator]",
)
@click.option("--compare", is_flag=True, help="Every method, measured together; says which to ship.")
@click.option(
    "--skip-bad-images",
    is_flag=True,
    default=None,
    help="Leave out images of a scene's folder that cannot be decoded; list them.  [default: as the run did]",
)
@measuring
@training
@common
def compensate(run_folder: Path, method: str | None, compare: bool, **options: Any) -> None:
    """Win robustness back for the INT8 classifier of a run folder; by default, train a calibrator in front of it.

    \b
    qrobust compensate runs/one                          # then: export, evaluate, report
    qrobust compensate runs/one --method bn-reestimate   # exports its own graph; then: evaluate, report
    qrobust compensate runs/one --compare                # every method, exported, measured and reported

    A calibrator leaves the classifier as it is: its hash before and after is in the record. Training resumes
    after an interruption if the options are the same.
    """
    from qrobust.errors import InputError
    from qrobust.pipeline import stages

    if compare and method is not None:
        raise InputError(f"method: expected --compare, which makes all of them, or --method, got both ({method})")
    run = reopen(run_folder, **options)
    if compare:
        finish(run.require_folder(), stages.compare(run))
    elif method in (None, "calibrator"):
        stages.compensate(run)
        done = run.require_folder().need_stage("compensate", "compensate")
        start, end = done["training"]["float"], done["validation"]
        measures = end["measures"]
        echo(
            f"on validation images, {measures['shift']} under shift {100 * start['start_shift_accuracy']:.1f} -> "
            f"{100 * end['shift_accuracy']:.1f} %, {measures['clean']} on clean ones "
            f"{100 * start['start_clean_accuracy']:.1f} -> {100 * end['clean_accuracy']:.1f} %"
        )
    elif method == "none":
        stages.forget_compensation(run)
        echo(f"none: only float and INT8 are left; `qrobust evaluate {run_folder}` measures them")
    else:
        stages.make_baseline(run, str(method))
        echo(f"{method}: made; `qrobust evaluate {run_folder}` measures it")


@click.command(cls=RunCommand)
@run_dir
@common
def export(run_folder: Path, **options: Any) -> None:
    """Write compensated.onnx: calibrator and classifier as one INT8 graph, through the gates."""
    from qrobust.pipeline import stages

    run = reopen(run_folder, **options)
    stages.export(run)
    echo(str(run.require_folder().graph("compensated")))


@click.command(cls=RunCommand)
@run_dir
@common
def report(run_folder: Path, **options: Any) -> None:
    """Write record.json, report.html and report.md from what the stages left."""
    from qrobust.pipeline.report import write_report
    from qrobust.pipeline.run_folder import open_run

    claim_existing(run_folder)
    folder, _, config = open_run(run_folder, threads=options["threads"])
    finish(folder, write_report(folder, config))


@click.command(cls=RunCommand)
@click.option(
    "--out",
    type=FolderType(),
    default=Path("qrobust-demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
@seed
@common
def demo(out: Path, overwrite: bool, **options: Any) -> None:
    """The whole job on scikit-learn's handwritten digits: offline, with no files of your own.

    Trains a small residual network on the spot, quantizes it, compensates it, and leaves a report. Takes
    two to five minutes on two cores.
    """
    from qrobust.pipeline import demo as example
    from qrobust.pipeline import stages
    from qrobust.pipeline.config import RunConfig

    claim(out, overwrite=overwrite, resumable=False)
    threads = cores() if options["threads"] is None else options["threads"]
    RunConfig(**example.OPTIONS, seed=options["seed"], threads=threads)  # before anything is trained
    with example.weights_file(
        options["seed"],
        console(options["verbose"], options["quiet"]),
        threads,
    ) as weights:
        run = begin(out, overwrite, **example.OPTIONS, weights=str(weights), **options)
        finish(run.require_folder(), stages.run_all(run, resume=False))
