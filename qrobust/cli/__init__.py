"""The command line. Heavy imports happen inside commands, so that `--help` stays instant."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

from qrobust import __version__
from qrobust.cli.console import console, echo
from qrobust.cli.interrupts import Interruptible, end, remember_arguments, signals_raise
from qrobust.cli.options import (
    NO_SCENE,
    DurationType,
    FilledCommand,
    FolderType,
    FractionType,
    allow_code,
    choices,
    common,
    cores,
    inputs,
    measuring,
    out_options,
    resume,
    run_dir,
    seed,
    training,
)
from qrobust.cli.runs import begin, begin_or_resume, claim, finish, reopen
from qrobust.errors import InputError, QRobustError


class RunCommand(Interruptible, FilledCommand):
    """Says what is kept when it is interrupted, and takes no empty value."""


class Group(click.Group):
    """Turns every qrobust error into one line and its exit code, in this one place."""

    command_class = RunCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        remember_arguments(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with signals_raise():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise end() from error
        except QRobustError as error:
            message, code = str(error), error.exit_code
        except OSError as error:  # a full disk, a folder that went away
            if error.errno == errno.EPIPE:  # click knows what to do when nobody reads on
                raise
            told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            message, code = told, InputError.exit_code
        except SystemExit as error:  # click's own are of another kind
            from qrobust.usercode import complaint

            message, code = f"a user's code ended the program ({complaint(error)})", InputError.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else ctx.command_path
            message, code = f"{error.format_message()} See {path} --help.", error.exit_code
        echo(f"Error: {' '.join(message.split())}", err=True)
        raise click.exceptions.Exit(code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "quantize-and-compensate" if cmd_name == "run" else cmd_name)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """INT8 image classifiers whose robustness is measured, and repaired.

    \b
    qrobust demo                      # the whole job on built-in data, a few minutes
    qrobust run --model M --data D --out DIR
                                      quantize, compensate, export, measure, report
    qrobust audit FILE.onnx           # what onnxruntime really runs on integers

    `run` is short for `quantize-and-compensate`. The stages can be run one by one on the same folder:
    quantize, evaluate, compensate, export, evaluate, report.
    """


@main.command("quantize-and-compensate")
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
    from qrobust import pipeline

    bench = begin_or_resume(out, overwrite, resume, **options)
    finish(bench, pipeline.run(bench, resume=resume))


@main.command()
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
    qrobust quantize ... --bits w4a4 --qat-epochs 2       # train the twin; --resume goes on after a kill
    """
    from qrobust import pipeline
    from qrobust.pipeline.stage import gates_passed
    from qrobust.report.verdict import validation_sentence

    bench = begin_or_resume(out, overwrite, resume, compensating=False, **options)
    if not (resume and bench.place().stage("quantize")):
        pipeline.quantize(bench)
    stage = bench.place().need_stage("quantize", "quantize")
    for name, audited in stage["audit"].items():
        echo(f"{bench.place().graph(name)}: {gates_passed(name, audited, stage['parity'][name])}")
    if measured := stage["quantization"].get("validation"):  # folders of earlier versions have none
        echo(validation_sentence(measured))


@main.command()
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

    from qrobust import pipeline

    bench = reopen(run_folder, **options)
    layers = pipeline.sensitivity(bench)
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


@main.command()
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
    names = ("data", "out", "input_range", "data_root", "class_names", "skip_bad_images", "image_size", "test_images",
             "overwrite", "resume")  # fmt: skip
    own = {name: options.pop(name) for name in names}
    budget, workers = options.pop("budget"), options.pop("workers")
    if run_folder is not None and len(models) == 1 and not models[0].endswith(".onnx"):
        options["model"], models = models[0], ()
    if models:
        options.pop("allow_code")
        _evaluate_files(run_folder, models, budget=budget, workers=workers, **own, **options)
        return
    from qrobust import pipeline
    from qrobust.errors import InputError

    given = [f"--{k.replace('_', '-')}" for k, v in own.items() if v]
    if run_folder is None or given:
        raise InputError(f"evaluate: expected a run's DIR or --model FILE.onnx, got {', '.join(given) or 'neither'}")
    bench = reopen(run_folder, **options)
    pipeline.evaluate(bench, budget=budget, workers=workers)
    result = bench.place().need_stage("evaluate", "evaluate")
    summary = result["summary"]
    for name, clean in summary["clean_accuracy"].items():
        shifted = summary["shift_accuracy"][name]
        under_shift = f", under shift {100 * shifted:.2f} %" if shifted is not None else ""
        echo(
            f"{name}: clean {100 * clean:.2f} %{under_shift} "
            f"(n = {summary['n_test']} of {summary['of']}, {summary['n_cells']} cells)"
        )
    _say_stored(result["stored"])


def _say_stored(entries: list[dict[str, Any]]) -> None:
    """A line for each stored set."""
    for entry in entries:
        s = entry["summary"]
        means = ", ".join(f"{name} {100 * a:.2f} %" for name, a in s["accuracy"].items())
        echo(f"{entry['name']}: {means} (n = {s['n_test']} of {s['of']}, {s['n_cells']} cells)")


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
    from qrobust.report.markdown import evaluation_table, sample, table
    from qrobust.standalone import Choices, evaluate_files

    if run_folder is not None or data is None or out is None:
        raise InputError("evaluate: --model needs --data and --out, and no run's DIR")
    chosen = choices(options)
    if chosen.pop("scene_images", None):
        raise InputError(
            "scene: with --model expected shifts, not a folder; give its images as --data imagefolder:DIR"
        )
    for name in NO_SCENE:
        chosen.pop(name, None)
    record = evaluate_files(
        Choices(models, data, **chosen), out, console(verbose, quiet),
        threads=cores() if threads is None else threads, workers=workers, overwrite=overwrite, resume=resume,
    )  # fmt: skip
    for line in (*table(evaluation_table(record)), "", sample(record["summary"])):
        echo(line)
    _say_stored(record["stored"])
    echo(f"Record: {out / 'record.json'}")


@main.command()
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
    from qrobust import pipeline
    from qrobust.errors import InputError

    if compare and method is not None:
        raise InputError(f"method: expected --compare, which makes all of them, or --method, got both ({method})")
    bench = reopen(run_folder, **options)
    if compare:
        finish(bench, pipeline.compare(bench))
    elif method in (None, "calibrator"):
        pipeline.compensate(bench)
        done = bench.place().need_stage("compensate", "compensate")
        start, end = done["training"]["float"], done["validation"]
        measures = end["measures"]
        echo(
            f"on validation images, {measures['shift']} under shift {100 * start['start_shift_accuracy']:.1f} -> "
            f"{100 * end['shift_accuracy']:.1f} %, {measures['clean']} on clean ones "
            f"{100 * start['start_clean_accuracy']:.1f} -> {100 * end['clean_accuracy']:.1f} %"
        )
    elif method == "none":
        pipeline.forget_compensation(bench)
        echo(f"none: only float and INT8 are left; `qrobust evaluate {run_folder}` measures them")
    else:
        pipeline.make_alternative(bench, str(method))
        echo(f"{method}: made; `qrobust evaluate {run_folder}` measures it")


@main.command()
@run_dir
@common
def export(run_folder: Path, **options: Any) -> None:
    """Write compensated.onnx: calibrator and classifier as one INT8 graph, through the gates."""
    from qrobust import pipeline

    bench = reopen(run_folder, **options)
    pipeline.export(bench)
    echo(str(bench.place().graph("compensated")))


@main.command()
@run_dir
@common
def report(run_folder: Path, **options: Any) -> None:
    """Write record.json, report.html and report.md from what the stages left."""
    from qrobust import pipeline

    bench = reopen(run_folder, **options)
    finish(bench, pipeline.write_report(bench))


@main.command()
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


@main.command()
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
    from qrobust import demo as example
    from qrobust import pipeline
    from qrobust.config import RunConfig

    claim(out, overwrite=overwrite, resumable=False)
    threads = cores() if options["threads"] is None else options["threads"]
    RunConfig(**example.OPTIONS, seed=options["seed"], threads=threads)  # before anything is trained
    with example.weights_file(
        options["seed"],
        console(options["verbose"], options["quiet"]),
        threads,
    ) as weights:
        bench = begin(out, overwrite, **example.OPTIONS, weights=str(weights), **options)
        finish(bench, pipeline.run(bench, resume=False))
