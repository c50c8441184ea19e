"""Commands that work on ONNX files: evaluate, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.console import console, echo
from qrobust.cli.options import (
    RunCommand,
    allow_code,
    common,
    measuring,
)
from qrobust.cli.parsing import NO_TARGET_IMAGES, choices, cores
from qrobust.cli.run_folders import (
    reopen,
)
from qrobust.cli.types import DurationType, FolderType, FractionType

if TYPE_CHECKING:
    from qrobust.record import CorruptionSet


@click.command(cls=RunCommand)
@click.argument("run_folder", metavar="[DIR]", type=FolderType(), required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="An .onnx classifier; repeat it, the first is the reference. With a run's DIR: the run's own model, which a "
    "FILE.py:FACTORY needs to run again.",
)
@allow_code
@click.option(
    "--data",
    help="With --model: imagefolder:DIR, npz:FILE, torchvision:NAME or digits.",
)
@click.option(
    "--out",
    type=FolderType(),
    help="With --model: folder of the evaluation.",
)
@click.option("--overwrite", is_flag=True, help="Replace the evaluation that --out holds.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the evaluation that --out holds where it stopped.",
)
@click.option(
    "--input-range",
    help="With --model, what the graphs want: unit ([0, 1]), byte ([0, 255]), imagenet or m,m,m/s,s,s, of one "
    "channel m/s.  "
    "[default: byte for uint8 inputs, else unit]",
)
@click.option("--data-root", help="With --model: where torchvision data sets lie.")
@click.option(
    "--class-names",
    help="With --model: file with one class name per line, in index order.",
)
@click.option(
    "--skip-bad-images",
    is_flag=True,
    help="With --model: leave out files of an imagefolder that cannot be decoded; list them.",
)
@click.option(
    "--image-size",
    type=int,
    help="With --model: side in pixels, where no graph fixes it.",
)
@click.option(
    "--test-images",
    type=int,
    help="With --model: keep only so many test images.  [default: all]",
)
@click.option(
    "--budget",
    type=DurationType(),
    help="Such as 90s, 10m or 1h: measure as many test images as fit, each class with its share.  [default: all]",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="Processes that render shifted images and run inference, one thread each; the pixels are the same.",
)
@click.option(
    "--seed",
    type=int,
    help="Decides order and pixels.  [default: 0, or the run's, which it must be]",
)
@measuring
@common
def evaluate(run_folder: Path | None, models: tuple[str, ...], **options: Any) -> None:
    """Measure every graph in a run folder, or any .onnx classifiers, on onnxruntime, on the same pixels.

    \b
    qrobust evaluate runs/one
    qrobust evaluate --model float.onnx --model int8.onnx --data imagefolder:DIR --out evaluations/one

    Predictions are kept: an evaluation that was killed goes on where it stopped (with --model: --resume).
    Without a run, test images are the data's `test` part, else `val`, else all of it.
    """
    names = (
        "data",
        "out",
        "input_range",
        "data_root",
        "class_names",
        "skip_bad_images",
        "image_size",
        "test_images",
        "overwrite",
        "resume",
    )
    own = {name: options.pop(name) for name in names}
    budget, workers = options.pop("budget"), options.pop("workers")
    if run_folder is not None and len(models) == 1 and not models[0].endswith(".onnx"):
        options["model"], models = models[0], ()
    if models:
        options.pop("allow_code")
        _evaluate_files(run_folder, models, budget=budget, workers=workers, **own, **options)
        return
    from qrobust.errors import InputError
    from qrobust.pipeline import stages
    from qrobust.record import EvaluationResult

    given = [f"--{k.replace('_', '-')}" for k, v in own.items() if v]
    if run_folder is None or given:
        raise InputError(f"evaluate: expected a run's DIR or --model FILE.onnx, got {', '.join(given) or 'neither'}")
    run = reopen(run_folder, **options)
    stages.evaluate(run, budget=budget, workers=workers)
    result = run.require_folder().need_result(EvaluationResult, "evaluate", "evaluate")
    summary = result.summary
    for name, clean in summary.clean_accuracy.items():
        shifted = summary.shift_accuracy[name]
        under_shift = f", under shift {100 * shifted:.2f} %" if shifted is not None else ""
        echo(
            f"{name}: clean {100 * clean:.2f} %{under_shift} "
            f"(n = {summary.n_test} of {summary.of}, {summary.n_conditions} conditions)"
        )
    _say_corruption_sets(result.corruption_sets)


def _say_corruption_sets(entries: tuple[CorruptionSet, ...]) -> None:
    """A line for each corruption data set."""
    for entry in entries:
        s = entry.summary
        means = ", ".join(f"{name} {100 * a:.2f} %" for name, a in s.accuracy.items())
        echo(f"{entry.name}: {means} (n = {s.n_test} of {s.of}, {s.n_conditions} conditions)")


def _evaluate_files(
    run_folder: Path | None,
    models: tuple[str, ...],
    *,
    data: str | None,
    out: Path | None,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    workers: int,
    overwrite: bool,
    resume: bool,
    **options: Any,
) -> None:
    """`evaluate --model`: no run, only files."""
    from qrobust.errors import InputError
    from qrobust.pipeline.evaluate_onnx import Choices, evaluate_files
    from qrobust.report.markdown import evaluation_table, sample, table

    if run_folder is not None or data is None or out is None:
        raise InputError("evaluate: --model needs --data and --out, and no run's DIR")
    chosen = choices(options)
    if chosen.pop("target_images", None):
        raise InputError(
            "scene: with --model expected shifts, not a folder; give its images as --data imagefolder:DIR"
        )
    for name in NO_TARGET_IMAGES:
        chosen.pop(name, None)
    record = evaluate_files(
        Choices(models, data, **chosen),
        out,
        console(verbose, quiet),
        threads=cores() if threads is None else threads,
        workers=workers,
        overwrite=overwrite,
        resume=resume,
    )
    for line in (*table(evaluation_table(record)), "", sample(record.summary)):
        echo(line)
    _say_corruption_sets(record.corruption_sets)
    echo(f"Record: {out / 'record.json'}")


@click.command(cls=RunCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--image-size", type=int, help="Side in pixels, where the file leaves it open.")
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    help="Fuse as onnxruntime does on that CPU family: they differ in int8 activations.  [default: this CPU]",
)
@click.option(
    "--min-integer",
    type=FractionType(),
    help="Exit with code 3 below this share (0 to 1) of integer multiply-accumulates.",
)
@click.option(
    "--min-integer-nodes",
    type=FractionType(),
    help="Exit with code 3 below this share of integer convolutions and matrix products, each counting one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every node and reason.")
def audit(
    file: Path,
    image_size: int | None,
    target: str | None,
    min_integer: float | None,
    min_integer_nodes: float | None,
    as_json: bool,
) -> None:
    """Tell what onnxruntime runs on integers in FILE.onnx, and what keeps the rest in float.

    Counted in multiply-accumulates and in operators, from the kernels that ran on one random image.
    """
    import json

    from qrobust.deployment.audit import audit as audit_file
    from qrobust.deployment.audit import check_share
    from qrobust.report.audit import audit_lines

    for name, share in (
        ("--min-integer", min_integer),
        ("--min-integer-nodes", min_integer_nodes),
    ):
        if share is not None and not 0 <= share <= 1:
            raise click.BadParameter(f"expected a share from 0 to 1, got {share:g}", param_hint=name)
    signed = None if target is None else target == "arm64"
    result = audit_file(file, image_size, signed_activations=signed, explain=True)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        echo(f"{file}{f' as on {target}' if target else ''}")
        for line in audit_lines(result):
            echo(line)
    check_share(result, min_integer, min_integer_nodes)
